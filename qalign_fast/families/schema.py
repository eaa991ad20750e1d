"""The tensors that engines run, described: name, shape, dtype and role of each, and what is held against that.

Each family has a table of these (`Family.schema`). Export writes by it, the loader checks by it, and a GPU's engine
reads from it which dtype a tensor takes there. dtypes are torch's names, so that no runtime is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from qalign_kernels.contract.precisions import BLOCK, GROUP

Shape: TypeAlias = tuple[int, ...]
Role: TypeAlias = Literal["norm", "rows"]

_FLOATS = ("float32", "float16", "bfloat16")
_SCALED = ("int8", "float8_e4m3fn")


class Found(NamedTuple):
    """A tensor of a file."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Plain:
    """A float32 tensor. Role "norm": gains and biases. Role "rows": what rows are made of or added to.

    A tensor of rows takes the dtype of what lies between products; a float32 among them would make float32 of all
    that follows.
    """

    name: str
    shape: Shape
    role: Role


@dataclass(frozen=True)
class Linear:
    """A linear's weight and what belongs to it, in whichever precision the weight's dtype says.

    `NAME.weight` [N, K]: float32, float16 or bfloat16; or int8 or float8_e4m3fn with `NAME.scale` [N]; or uint8
    [N, B, 64], two weights of 4 bits in each, with `NAME.scale` [N] and `NAME.groups` [N, 4 B], B = ceil(K / 128).
    `NAME.bias` [N] where it has one.
    """

    name: str
    outputs: int
    inputs: int
    bias_last: bool = False  # nothing but the bias is added to its product: the product may add it
    stacked: str | None = None  # a GPU reads it as part of this one, with its neighbours of the same name
    padded: bool = False  # a GPU takes it with zeros after its inputs, to a multiple of 16


FoldedTensor: TypeAlias = Plain | Linear
Values: TypeAlias = Mapping[str, tuple[str, tuple[int | None, ...]]]  # name -> (ONNX type, shape, None where it varies)


class Interface(NamedTuple):
    """The inputs and outputs of an artifact's two graphs. Beside tokens `decode` takes a prompt's constants."""

    encode: tuple[Values, Values]
    decode: tuple[Values, Values]


def check_tensors(schema: Iterable[FoldedTensor], found: Mapping[str, Found]) -> None:
    """Raises ValueError naming the first tensor that is missing or wrong, and what is asked of it.

    Kernels read tensors by their address, so shapes and dtypes are both held to. Tensors that the schema does not name
    are not looked at.
    """
    for entry in schema:
        if isinstance(entry, Plain):
            _check(entry.name, found, entry.shape)
        else:
            _check_linear(entry, found)


def names_of(schema: Iterable[FoldedTensor]) -> Iterator[str]:
    """Every name that a file of folded tensors may have."""
    for entry in schema:
        if isinstance(entry, Plain):
            yield entry.name
        else:
            yield from (f"{entry.name}.{part}" for part in ("weight", "scale", "groups", "bias"))


def _check_linear(linear: Linear, found: Mapping[str, Found]) -> None:
    name, outputs = linear.name, linear.outputs
    weight = _find(f"{name}.weight", found)
    if weight.dtype == "uint8":
        _check_int4(linear, found)
    else:
        _check(f"{name}.weight", found, (outputs, linear.inputs), (*_FLOATS, *_SCALED))
        if weight.dtype in _SCALED:
            _check(f"{name}.scale", found, (outputs,))
    if f"{name}.bias" in found:
        _check(f"{name}.bias", found, (outputs,))


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
        raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}; the manifest's sizes ask {asked}")


def _find(name: str, found: Mapping[str, Found]) -> Found:
    if name not in found:
        raise ValueError(f"has no tensor {name!r}")
    return found[name]
