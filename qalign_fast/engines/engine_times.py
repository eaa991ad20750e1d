"""A precision and the instruction set of this CPU in, the engines from fast to slow out, with the reason.

`python -m qalign_bench.figures.engine_times` makes engine_times.json, beside this file, from the receipts in
bench/results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("engine_times.json")
_WITHOUT_KERNELS = ("onnx", "torch", "native", "onnx-cuda")  # onnx-cuda is float16, which no CPU computes in
SAME_KERNELS = ("native", "torch")
# The other precisions, those with the most similar arithmetic first: whole numbers of 8 bits, or floats.
_LIKE = {
    "int8": ("int4", "fp16", "fp32"),
    "int4": ("int8", "fp16", "fp32"),
    "fp16": ("fp32", "int8", "int4"),
    "fp32": ("fp16", "int8", "int4"),
}


@dataclass(frozen=True)
class Measured:
    """The engines of one precision on one instruction set, timed in one interleaved run at OneAlign's full size."""

    device: str  # "cpu"
    instruction_set: str  # the name that our kernels have for it
    precision: str
    ms: Mapping[str, float]  # engine -> milliseconds a picture
    cpu: str
    date: str
    receipt: str  # the file in the repository that has the whole run

    def __str__(self) -> str:
        first, *others = (f"{name} {ms:.0f}" for name, ms in sorted(self.ms.items(), key=lambda item: item[1]))
        return f"{', '.join([f'{first} ms a picture', *others])}: {self.receipt}"


class Ranking(NamedTuple):
    """The engines in order of speed."""

    engines: tuple[str, ...]  # the fastest first
    why: str  # how that is known


def rank(precision: str, kernels: str | None, times: tuple[Measured, ...] | None = None) -> Ranking:
    """The engines on a CPU. `kernels` is the instruction set of the C++ kernels, None if they were not built.

    The order is the measured one, on this instruction set in this precision, or else in the most similar precision that
    was measured. native and torch have the same kernels: where one was measured, so was the other, and native, which
    needs less memory, goes first. Without a measurement native is first if the kernels have vector instructions.
    onnxruntime is first if they have none, or if they were not built.
    """
    if kernels is None:
        return Ranking(_WITHOUT_KERNELS, "the C++ kernels are not built: `qalign-fast build`")
    times = read_times() if times is None else times
    found = {m.precision: m for m in times if (m.device, m.instruction_set) == ("cpu", kernels)}
    for like in (precision, *_LIKE.get(precision, ())):
        if like in found:
            told = "" if like == precision else f"{precision} not measured, {like} "
            return Ranking(_by_time(found[like].ms), f"{told}measured: {found[like]}")
    if kernels == "portable":
        return Ranking(("onnx", *SAME_KERNELS, "onnx-cuda"), "the C++ kernels have no vector instructions for this CPU")
    return Ranking((*SAME_KERNELS, "onnx", "onnx-cuda"), f"by rule: not measured on {kernels}")


@cache
def read_times() -> tuple[Measured, ...]:
    """The table in engine_times.json."""
    return tuple(Measured(**entry) for entry in json.loads(TABLE.read_text("utf-8")))


def write_times(times: list[Measured]) -> str:
    """The table as JSON, which `read_times` reads."""
    return json.dumps([asdict(entry) for entry in times], indent=1) + "\n"


def _by_time(ms: Mapping[str, float]) -> tuple[str, ...]:
    known = next((ms[engine] for engine in SAME_KERNELS if engine in ms), None)
    times = dict(ms) if known is None else {**ms, **dict.fromkeys(SAME_KERNELS, known)}
    timed = sorted(times, key=lambda engine: (times[engine], engine))
    return (*timed, *(engine for engine in _WITHOUT_KERNELS if engine not in timed))
