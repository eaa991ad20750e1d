"""A precision and what our kernels are on this CPU in, its engines from fast to slow out, and how that is known.

engine_times.json, beside this file, is made of receipts in bench/results by `python -m
qalign_bench.figures.engine_times`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("engine_times.json")
_WITHOUT_KERNELS = ("onnx", "torch", "onnx-cuda")  # onnx-cuda is float16, which no CPU computes in
# How like a precision's arithmetic the others' is, the most first: whole numbers of 8 bits, or floats.
_LIKE = {
    "int8": ("int4", "fp16", "fp32"),
    "int4": ("int8", "fp16", "fp32"),
    "fp16": ("fp32", "int8", "int4"),
    "fp32": ("fp16", "int8", "int4"),
}


@dataclass(frozen=True)
class Measured:
    """One precision's engines on one instruction set, timed in one interleaved run at OneAlign's full size."""

    device: str  # "cpu"
    instruction_set: str  # of our kernels, by their name
    precision: str
    ms: Mapping[str, float]  # a picture, by engine
    cpu: str
    date: str
    receipt: str  # the file in the repository that has all of the run

    def __str__(self) -> str:
        first, *others = (f"{name} {ms:.0f}" for name, ms in sorted(self.ms.items(), key=lambda item: item[1]))
        return f"{', '.join([f'{first} ms a picture', *others])}: {self.receipt}"


class Ranking(NamedTuple):
    engines: tuple[str, ...]  # the fastest first
    why: str


def rank(precision: str, kernels: str | None, times: tuple[Measured, ...] | None = None) -> Ranking:
    """A CPU's engines; `kernels` is the instruction set of the C++ kernels, None where they were not built.

    As measured on this instruction set in this precision. Where that was not done: as measured in the precision most
    like it; else torch first where its kernels have vector instructions. onnxruntime first where they have none, or
    where they were not built and torch would run in plain torch.
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
        return Ranking(_WITHOUT_KERNELS, "the C++ kernels have no vector instructions for this CPU")
    return Ranking(("torch", "onnx", "onnx-cuda"), f"by rule: not measured on {kernels}")


@cache
def read_times() -> tuple[Measured, ...]:
    return tuple(Measured(**entry) for entry in json.loads(TABLE.read_text("utf-8")))


def write_times(times: list[Measured]) -> str:
    """The table as JSON, which `read_times` reads."""
    return json.dumps([asdict(entry) for entry in times], indent=1) + "\n"


def _by_time(ms: Mapping[str, float]) -> tuple[str, ...]:
    timed = sorted(ms, key=lambda engine: ms[engine])
    return (*timed, *(engine for engine in _WITHOUT_KERNELS if engine not in ms))
