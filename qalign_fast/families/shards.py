"""A checkpoint's directory in, its weight files out: `.safetensors` or `.bin`, single or sharded with an index.

A file is mapped while it is open, and its tensors are read one at a time.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from qalign_fast.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from torch import Tensor


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: safetensors before .bin, a single file before shards.

    Raises CheckpointError if there are none, if a shard is missing or if the index cannot be read.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (directory / stem).is_file():
            return [directory / stem]
        if (directory / f"{stem}.index.json").is_file():
            return _shards(directory / f"{stem}.index.json")
    raise CheckpointError(
        f"{directory}: no weights; expected model.safetensors or pytorch_model.bin, or shards with their .index.json"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a readable shard index ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not a file name inside this directory")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name}: this shard is missing; {index.name} lists it")
    return [index.parent / name for name in names]


FLOATS = ("float32", "float16", "bfloat16")
_SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Shard(Protocol):
    """One open weight file."""

    def names(self) -> Iterable[str]:
        """The names of its tensors, as upstream calls them."""
        ...

    def form(self, name: str) -> tuple[tuple[int, ...], str]:
        """A tensor's shape and dtype: one of FLOATS, or the file's own word for another dtype."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor as the file has it, which may be mapped from the file."""
        ...


class _SafetensorsShard:
    def __init__(self, shard: Any) -> None:
        self._shard = shard

    def names(self) -> Iterable[str]:
        names: list[str] = self._shard.keys()
        return names

    def form(self, name: str) -> tuple[tuple[int, ...], str]:
        view = self._shard.get_slice(name)
        kind: str = view.get_dtype()
        return tuple(view.get_shape()), _SAFETENSORS_DTYPES.get(kind, kind)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shard.get_tensor(name)
        return tensor


class _BinShard:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def form(self, name: str) -> tuple[tuple[int, ...], str]:
        tensor = self._tensors[name]
        return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


@contextlib.contextmanager
def open_shard(file: Path) -> Iterator[Shard]:
    """A weight file, which is mapped while it is open. Raises CheckpointError if it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as shard:
                yield _SafetensorsShard(shard)
        else:
            yield _BinShard(_load_bin(file))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: not a readable weight file ({one_line(error)})") from error


def _load_bin(file: Path) -> dict[str, Tensor]:
    import torch

    # weights_only keeps pickle from running code. Files from before torch's zip format (1.6) cannot be mapped.
    with file.open("rb") as start:
        mapped = start.read(4) == b"PK\x03\x04"
    shard = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(shard, dict):
        raise CheckpointError(f"{file}: holds a {type(shard).__name__}; expected named tensors")
    for name, tensor in shard.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{file}: '{name}' is a {type(tensor).__name__}; expected a tensor")
    return shard
