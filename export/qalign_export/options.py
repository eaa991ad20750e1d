"""The options of an export in one frozen value, checked when it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qalign_fast.errors import DeviceError, TaskError
from qalign_fast.families.family import Family
from qalign_fast.families.mplug_owl2.prompts import TASKS
from qalign_fast.families.prompt import Prompt
from qalign_fast.pixels.picture import Picture
from qalign_kernels.contract.precisions import PRECISIONS

ENGINES = ("onnx", "onnx-cuda", "torch")
UNKNOWN_LICENSE = "unknown; see the source checkpoint"
EXTERNAL_FROM = 1 << 30  # bytes; an ONNX file itself may hold 2 GiB


@dataclass(frozen=True)
class ExportOptions:
    """What an artifact is made to hold.

    Raises DeviceError for a precision or an engine that is not known, or an engine that does not have the precision;
    TaskError for an unknown task.
    """

    precision: str = "fp32"  # one of PRECISIONS
    engines: Sequence[str] = ("onnx",)  # of ENGINES
    tasks: Sequence[str] | None = None  # of the family's; None: all of them
    prompts: Sequence[Prompt] = ()  # of tasks that the family does not have; `tokenize_prompt` makes them
    calibration: Sequence[Picture] = ()  # their activations decide what is moved and what stays in a higher precision
    name: str | None = None  # the model's, in the manifest; None: the checkpoint's
    license: str = UNKNOWN_LICENSE
    base: str | Path | None = None  # of a LoRA adapter, the checkpoint to merge it into; None: the one that it names
    external_from: int = EXTERNAL_FROM  # bytes of weights from which a graph keeps them in a file beside it

    def __post_init__(self) -> None:
        for task in self.tasks or ():
            if task not in TASKS:
                raise TaskError(f"task {task!r} is not known; the family has: {', '.join(TASKS)}")
        if self.precision not in PRECISIONS:
            raise DeviceError(f"precision {self.precision!r} is not known; available: {', '.join(PRECISIONS)}")
        for engine in self.engines:
            if engine not in ENGINES:
                raise DeviceError(f"engine {engine!r} is not known; available: {', '.join(ENGINES)}")
            if engine not in PRECISIONS[self.precision].engines:
                raise DeviceError(_refusal(engine, self.precision))

    def prompts_of(self, family: Family) -> tuple[Prompt, ...]:
        """The prompts of the family's tasks for each of its media, then the user's own.

        Raises TaskError for a task that the family does not have, and for one's own if it answers by more than levels.
        """
        tasks = dict.fromkeys(family.tasks if self.tasks is None else self.tasks)
        for task in tasks:
            if task not in family.tasks:
                raise TaskError(f"task {task!r} is not known; {family.name} has: {', '.join(family.tasks)}")
        if self.prompts and family.answer:
            own = self.prompts[0].task
            raise TaskError(f"task {own!r}: {family.name} answers its own prompts alone: {', '.join(family.tasks)}")
        return (*(p for task in tasks for p in family.prompts if p.task == task), *self.prompts)


FLOAT32 = ExportOptions()  # all tasks, for onnxruntime on a CPU


def _refusal(engine: str, precision: str) -> str:
    if engine == "onnx":
        instead = f"--engine torch, or {PRECISIONS[precision].nearest}"
        return f"onnxruntime does not compute in {precision} on a CPU; available: {instead}"
    has = [name for name, one in PRECISIONS.items() if engine in one.engines]
    return f"onnxruntime's CUDA kernels do not compute in {precision}; available: {', '.join(has)}"
