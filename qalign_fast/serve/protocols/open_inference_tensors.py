"""The tensors of the Open Inference Protocol v2: a request's to elements, columns of numbers and text to a reply's.

A tensor's elements are in the JSON, flat or nested, or in its binary extension behind the JSON: there, an element of
BYTES is its length in 4 bytes, little-endian, and its bytes; numbers are little-endian.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.serve.problems import BadRequest

if TYPE_CHECKING:
    from qalign_fast.serve.protocols.open_inference_schemas import InputTensor, OutputWish

LENGTH_HEADER = "inference-header-content-length"
_SIZE = "binary_data_size"
_DEEPEST = 8  # lists in lists of a tensor's data
# What Triton can do with a tensor and we cannot: it would change the answer, so it is refused.
_UNKNOWN = ("shared_memory_region", "classification")


@dataclass(frozen=True)
class Column:
    """An output: float32 numbers, NaN where there is none, or texts."""

    name: str
    values: np.ndarray | Sequence[str]

    @property
    def datatype(self) -> str:
        """As the protocol names it."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    @property
    def shape(self) -> list[int]:
        """Pictures first."""
        return list(self.values.shape) if isinstance(self.values, np.ndarray) else [len(self.values)]


def split(body: bytes, length: str | None) -> tuple[bytes, memoryview | None]:
    """The JSON, and the binary data behind it where the header says that there is some. Raises BadRequest."""
    if length is None:
        return body, None
    if not (length.isascii() and length.isdecimal() and len(length) < 20 and 0 < int(length) <= len(body)):
        raise BadRequest(f"{LENGTH_HEADER}: {length[:40]!r}; expected the bytes of the JSON, of {len(body)} in all")
    return body[: int(length)], memoryview(body)[int(length) :]


def read_inputs(tensors: Sequence[InputTensor], rest: memoryview | None, known: Sequence[str]) -> dict[str, list[Any]]:
    """The elements of each tensor of BYTES: bytes from binary data, what there is from JSON. Raises BadRequest."""
    found: dict[str, list[Any]] = {}
    data = rest or memoryview(b"")
    for tensor in tensors:
        name = tensor.name[:80]
        if tensor.name not in known:
            raise BadRequest(f"no input {name!r}; there are: {', '.join(known)}")
        if tensor.name in found:
            raise BadRequest(f"input {name!r} is there twice")
        if tensor.datatype != "BYTES" or len(tensor.shape) != 1:
            raise BadRequest(
                f"input {name!r} is {tensor.datatype[:20]} {tensor.shape}; expected BYTES [number of them]"
            )
        parameters = _parameters(tensor.parameters, name)
        if _SIZE in parameters:
            size = parameters[_SIZE]
            if rest is None or type(size) is not int or not 0 <= size <= len(data):
                there = "there is no binary data" if rest is None else f"{len(data)} bytes are left"
                raise BadRequest(f"input {name!r}: {_SIZE} is {_brief(size)}; {there}")
            elements = _elements(data[:size], name)
            data = data[size:]
        elif tensor.data is None:
            raise BadRequest(f"input {name!r} has no data")
        else:
            elements = _flat(tensor.data, name)
        count = tensor.shape[0]
        found[tensor.name] = list(islice(elements, count + 1))  # one too many is enough to tell
        if len(found[tensor.name]) != count:
            more = "more" if len(found[tensor.name]) > count else f"{len(found[tensor.name])}"
            raise BadRequest(f"input {name!r}: its shape says {count} elements, its data has {more}")
    if len(data):
        raise BadRequest(f"{len(data)} bytes behind the JSON belong to no input")
    return found


def choose(known: Sequence[str], wishes: Sequence[OutputWish] | None, all_binary: object) -> list[tuple[str, bool]]:
    """The outputs of a reply, all where none is named, and whether each is binary. Raises BadRequest."""
    binary = _flag("binary_data_output", all_binary)
    if not wishes:
        return [(name, binary) for name in known]
    chosen: dict[str, bool] = {}
    for wish in wishes:
        name = wish.name[:80]
        if wish.name not in known:
            raise BadRequest(f"no output {name!r}; there are: {', '.join(known)}")
        if wish.name in chosen:
            raise BadRequest(f"output {name!r} is there twice")
        chosen[wish.name] = _flag("binary_data", _parameters(wish.parameters, name).get("binary_data", binary))
    return list(chosen.items())


def write_reply(head: Mapping[str, Any], outputs: Sequence[tuple[Column, bool]]) -> tuple[bytes, int | None]:
    """A reply's body, and the length of its JSON where binary data is behind it."""
    parts = [_binary(column) if binary else None for column, binary in outputs]
    described = [_described(column, part) for (column, _), part in zip(outputs, parts, strict=True)]
    text = json.dumps({**head, "outputs": described}, allow_nan=False, separators=(",", ":")).encode("ascii")
    if all(part is None for part in parts):
        return text, None
    return b"".join([text, *(part for part in parts if part is not None)]), len(text)


def _described(column: Column, binary: bytes | None) -> dict[str, Any]:
    tensor = {"name": column.name, "shape": column.shape, "datatype": column.datatype}
    if binary is not None:
        return {**tensor, "parameters": {_SIZE: len(binary)}}
    if isinstance(column.values, np.ndarray):
        # null is what numpy, and so tritonclient, reads as NaN
        return {**tensor, "data": [None if isnan(x) else x for x in column.values.ravel().tolist()]}
    return {**tensor, "data": list(column.values)}


def _binary(column: Column) -> bytes:
    if isinstance(column.values, np.ndarray):
        return column.values.astype("<f4", copy=False).tobytes()
    texts = [text.encode("utf-8", "replace") for text in column.values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _elements(data: memoryview, name: str) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at > len(data) or size > len(data) - at:
            raise BadRequest(f"input {name!r}: its binary data breaks off within an element")
        yield bytes(data[at : at + size])
        at += size


def _flat(data: Sequence[Any], name: str) -> Iterator[Any]:
    """The elements of nested lists, in order."""
    open_lists = [iter(data)]
    while open_lists:
        for element in open_lists[-1]:
            if not isinstance(element, list):
                yield element
                continue
            if len(open_lists) == _DEEPEST:
                raise BadRequest(f"input {name[:80]!r}: its data has more than {_DEEPEST} lists in one another")
            open_lists.append(iter(element))
            break
        else:
            open_lists.pop()


def _parameters(given: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    given = given or {}
    for key in _UNKNOWN:
        if key in given:
            raise BadRequest(f"tensor {name[:80]!r}: the server does not have {key}")
    return given


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {_brief(value)}; expected true or false")
    return value


def _brief(value: object) -> str:
    """A value of a client's for an error, which does not look into lists."""
    return repr(value)[:40] if isinstance(value, str | int | float | None) else type(value).__name__
