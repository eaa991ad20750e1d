"""Describes the folded tensors that engines run (name, shape, dtype and role) and checks a file's tensors against it.

Each family has a table of these (`Family.schema`). Export writes the tensors that it names, the loader checks them, and
a GPU's engine reads from it the dtype that a tensor takes on the GPU. dtypes are torch's names, so that no runtime is
needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from qalign_kernels.contract.precisions import BLOCK, GROUP

Shape: TypeAlias = tuple[int, ...]
Role: TypeAlias = Literal["norm", "rows"]

_FLOATS = ("float32", "float16", "bfloat16")
_SCALED = ("int8", "float8_e4m3fn")


class Found(NamedTuple):
    """The shape and dtype of a tensor in a file."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Plain:
    """A float32 tensor. Role "norm" is for gains and biases. Role "rows" is for rows, and for what is added to rows.

    On a GPU a tensor of rows takes the dtype of what lies between products. If one stayed float32, all that is computed
    from it would be float32 too.
    """

    name: str
    shape: Shape
    role: Role


@dataclass(frozen=True)
class Linear:
    """The weight of a linear and the tensors that belong to it. The dtype of the weight tells the precision.

    `NAME.weight` [N, K] is float32, float16 or bfloat16; or int8 or float8_e4m3fn with `NAME.scale` [N]; or uint8
    [N, B, 64] with two 4-bit weights in each byte, `NAME.scale` [N] and `NAME.groups` [N, 4 B]; B = ceil(K / 128).
    A linear with a bias has `NAME.bias` [N].
    """

    name: str
    outputs: int
    inputs: int
    bias_last: bool = False  # only the bias is added to its product, so that the product itself may add it
    stacked: str | None = None  # on a GPU it is a part of the weight of this name, with others that say the same
    padded: bool = False  # on a GPU its inputs are padded with zeros to a multiple of 16


FoldedTensor: TypeAlias = Plain | Linear
Values: TypeAlias = Mapping[str, tuple[str, tuple[int | None, ...]]]  # name -> (ONNX type, shape); None: it varies


class Interface(NamedTuple):
    """The inputs and outputs of an artifact's two graphs. `decode` takes tokens, then a prompt's constants."""

    encode: tuple[Values, Values]
    decode: tuple[Values, Values]


def check_tensors(schema: Iterable[FoldedTensor], found: Mapping[str, Found]) -> None:
    """Raises ValueError, which names the first tensor that is missing or wrong and says what was expected.

    Kernels read tensors by their address, so both shapes and dtypes are checked. Tensors that the schema does not name
    are ignored.
    """
    for entry in schema:
        if isinstance(entry, Plain):
            _check(entry.name, found, entry.shape)
        else:
            _check_linear(entry, found)


def _check_linear(linear: Linear, found: Mapping[str, Found]) -> None:
    name, outputs = linear.name, linear.outputs
    weight = _find(f"{name}.weight", found)
    if weight.dtype == "uint8":
        _check_int4(linear, found)
    else:
        _check(f"{name}.weight", found, (outputs, linear.inputs), (*_FLOATS, *_SCALED))
        if weight.dtype in _SCALED:
            _check(f"{name}.scale", found, (outputs,))
        _refuse(linear, weight.dtype, ("groups",) if weight.dtype in _SCALED else ("scale", "groups"), found)
    if f"{name}.bias" in found:
        _check(f"{name}.bias", found, (outputs,))


def _refuse(linear: Linear, dtype: str, parts: tuple[str, ...], found: Mapping[str, Found]) -> None:
    """Refuses a part that the dtype has not: kernels would read it, at the length that the weight asks for."""
    for part in parts:
        if f"{linear.name}.{part}" in found:
            raise ValueError(f"has {linear.name}.{part}, which a weight of {dtype} does not have")


def _check_int4(linear: Linear, found: Mapping[str, Found]) -> None:
    name, outputs = linear.name, linear.outputs
    if f"{name}.zero" in found:
        raise ValueError(f"{name} is in an earlier form of int4, which is not read any more; export the model again")
    blocks = -(-linear.inputs // BLOCK)
    _check(f"{name}.weight", found, (outputs, blocks, BLOCK // 2), ("uint8",))  # two weights a byte
    _check(f"{name}.scale", found, (outputs,))
    _check(f"{name}.groups", found, (outputs, blocks * BLOCK // GROUP), ("uint8",))


def _check(name: str, found: Mapping[str, Found], shape: Shape, dtypes: tuple[str, ...] = ("float32",)) -> None:
    tensor = _find(name, found)
    if tensor.shape != shape or tensor.dtype not in dtypes:
        asked = f"{' or '.join(dtypes)} {shape}"
        raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}; the manifest's sizes ask for {asked}")


def _find(name: str, found: Mapping[str, Found]) -> Found:
    if name not in found:
        raise ValueError(f"has no tensor {name!r}")
    return found[name]
