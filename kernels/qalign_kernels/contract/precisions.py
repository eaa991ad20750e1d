"""Every precision that weights are kept in, in one table: its dtypes, its engines, and what replaces it.

`qalign_kernels.contract.linear` has the formulas. `docs/architecture.md` says what else a new one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

BLOCK, GROUP = 128, 32  # inputs of a block of 4-bit weights, and of one multiplier and zero point


@dataclass(frozen=True)
class Precision:
    """One way to keep a linear's weights, and all that depends on it outside the kernels. dtypes by torch's names."""

    name: str
    weight: str  # the weights' dtype; int4's are two in a byte
    bytes: float  # of a weight as files hold it, its share of scales included; the largest of the engines' forms
    engines: tuple[str, ...]  # those that have kernels for it
    rows: str | None = None  # the dtype that rows are rounded to before the product; None: the weights' own
    between: str = "float16"  # the dtype of what lies between products on a GPU
    nearest: str | None = None  # the precision to take where an engine has no kernels for this one
    higher: str | None = None  # what a linear becomes that this precision is too coarse for
    worst: float | None = None  # the relative squared error of a linear's output from which it does
    most: float | None = None  # the largest number that its rows can hold, where a model's rows may pass it
    shares: tuple[float, ...] = ()  # of the inputs' ranges, that an export tries to give to the weights
    arithmetic: str = ""  # the precision whose products these are, where they are another's
    native: bool = False  # whether the C++ kernels are several times as fast as plain torch on a CPU
    capability: tuple[int, int] = (8, 0)  # of an NVIDIA GPU, that the kernels need: 8.0 has 8-bit tensor cores

    @property
    def rounded(self) -> bool:
        """Whether weights are whole or 8-bit numbers with a scale, and rows are rounded as well."""
        return self.rows is not None

    @property
    def calibrated(self) -> bool:
        """Whether an export decides anything by pictures."""
        return self.rounded or self.most is not None


_ALL = (
    Precision("fp32", "float32", 4.0, ("onnx", "torch"), between="float32"),
    Precision("fp16", "float16", 2.0, ("onnx", "onnx-cuda", "torch"), most=65504.0, native=True),
    Precision("bf16", "bfloat16", 2.0, ("torch",), between="bfloat16", nearest="fp16", native=True),
    Precision(
        "fp8",
        "float8_e4m3fn",
        1.0,
        ("torch",),
        rows="float8_e4m3fn",
        nearest="int8",
        higher="fp32",
        worst=0.02,
        capability=(8, 9),  # the first with 8-bit floats
    ),
    Precision(
        "int8",
        "int8",
        1.0,
        ("onnx", "torch"),
        rows="int8",
        higher="fp32",
        worst=0.02,
        shares=(0.4, 0.5, 0.6),
        native=True,
    ),
    Precision(
        "int4",
        "uint8",
        0.6,  # .54 bytes in torch's form, .65 in a graph's, and 1.2 in both
        ("onnx", "torch"),
        rows="int8",
        higher="int8",
        worst=0.1,
        shares=(0.15,),  # more would undo GPTQ's gain
        arithmetic="int8",
        native=True,
    ),
)
PRECISIONS: Mapping[str, Precision] = MappingProxyType({precision.name: precision for precision in _ALL})
