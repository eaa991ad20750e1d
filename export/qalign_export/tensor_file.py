"""Tensors in one at a time, one safetensors file out: safetensors' own writer needs all of them in memory at once.

The header stands at the file's start. It is written last, into space that was kept for it; until then nobody can read
the file.
Format: https://huggingface.co/docs/safetensors (an 8-byte length, a JSON header padded with spaces, the data).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

_ALIGN = 64  # bytes, good for vector instructions; the format has no alignment, so each gap is a tensor with a name
_ENTRY = 192  # bytes in the header that a tensor and its gap need at most
_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
}
GAP = "gap."


class TensorFile:
    """A safetensors file being written. Leaving its `with` block by an error leaves a file that cannot be read."""

    def __init__(self, path: Path, most: int) -> None:
        """`most`: the largest number of tensors that will be written."""
        self._start = -(-(8 + _ENTRY * most) // _ALIGN) * _ALIGN
        self._end = 0
        self._entries: dict[str, object] = {}
        self._file = path.open("wb")
        self._file.seek(self._start)

    def write(self, name: str, tensor: Tensor) -> None:
        """Appends a tensor of any shape and of a dtype in _NAMES, at an address that is a multiple of _ALIGN."""
        assert name not in self._entries, name
        if gap := -self._end % _ALIGN:
            self._append(f"{GAP}{len(self._entries)}", torch.zeros(gap, dtype=torch.uint8))
        self._append(name, tensor)

    def close(self) -> None:
        """Writes the header."""
        header = json.dumps(self._entries, separators=(",", ":")).encode()
        room = self._start - 8
        assert len(header) <= room
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + header.ljust(room))
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _append(self, name: str, tensor: Tensor) -> None:
        start, self._end = self._end, self._end + tensor.nbytes
        self._entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self._end],
        }
        self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
