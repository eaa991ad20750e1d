"""Tensors in one at a time, one safetensors file out: safetensors' own writer wants all of them in memory at once.

The header stands at the file's start and is written last, into space kept for it; until then the file is not readable.
Format: https://huggingface.co/docs/safetensors (an 8-byte length, a JSON header padded with spaces, the data).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

_ALIGN = 64  # bytes: what vector instructions like; the format itself knows no alignment, so gaps are named tensors
_ENTRY = 192  # bytes of a tensor's entry in the header at most, a gap's included
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
    def __init__(self, path: Path, most: int) -> None:
        """`most`: how many tensors there will be at most."""
        self._start = -(-(8 + _ENTRY * most) // _ALIGN) * _ALIGN
        self._end = 0
        self._entries: dict[str, object] = {}
        self._file = path.open("wb")
        self._file.seek(self._start)

    def write(self, name: str, tensor: Tensor) -> None:
        assert name not in self._entries, name
        if gap := -self._end % _ALIGN:
            self._append(f"{GAP}{len(self._entries)}", torch.zeros(gap, dtype=torch.uint8))
        self._append(name, tensor)

    def close(self) -> None:
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
