"""The prompts of a model's tasks, by medium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qalign_fast.errors import TaskError, VideoError

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.families.prompt import Prompt


def find_prompts(engine: Engine, tasks: Sequence[str], medium: str) -> tuple[Prompt, ...]:
    """A prompt for each of the tasks, once. Raises TaskError, which lists what there is, for one the model lacks."""
    prompts = {prompt.task: prompt for prompt in engine.prompts if prompt.medium == medium}
    names = (tasks,) if isinstance(tasks, str) else tuple(dict.fromkeys(tasks))
    for task in names:
        if task not in prompts:
            raise TaskError(f"task {task!r} is not in this model; for {medium}s it has: {', '.join(prompts) or 'none'}")
    return tuple(prompts[task] for task in names)


def check_frames(engine: Engine, max_frames: int, prompts: Sequence[Prompt]) -> None:
    """Raises VideoError if so many frames and a prompt do not fit into the decoder's positions."""
    longest = max((len(prompt.prefix) + len(prompt.suffix) for prompt in prompts), default=0)
    most = engine.config.max_frames(longest)
    if not 1 <= max_frames <= most:
        raise VideoError(f"max_frames is {max_frames}; this model's positions hold 1 to {most}")
