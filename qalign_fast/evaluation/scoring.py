"""A list of labels and a model in, a job's folder of scores out. The same call goes on where it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qalign_fast.errors import OptionError, TaskError
from qalign_fast.evaluation.outputs import numbered
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import Outcome, Watcher, run_job
from qalign_fast.jobs.options import JobOptions, RunOptions
from qalign_fast.jobs.safe_files import write_whole

if TYPE_CHECKING:
    from qalign_fast.evaluation.lists.entries import LabelList
    from qalign_fast.evaluation.protocols import Protocol

_COLUMN = "image"
_SHARD = 256  # entries; a job that was killed scores at most so many again


def score_list(
    labels: LabelList,
    root: str,
    task: str,
    folder: Path,
    run: RunOptions,
    *,
    watcher: Watcher | None = None,
    retry: bool = False,
    force: bool = False,
) -> Outcome:
    """Scores each name of the list once, below `root`, as a job in `folder` / "scores".

    Its rows' source is the name as the list has it. `retry` and `force` are as `run_job` takes them. Raises what
    `run_job` raises, OptionError for a root that is no folder and for a folder that has the scores of other names, and
    OSError.
    """
    if not Path(root).is_dir():
        raise OptionError(f"--root {root}: no such folder; the list's names start from there")
    folder.mkdir(parents=True, exist_ok=True)
    names = folder / "names.jsonl"
    lines = "".join(json.dumps({_COLUMN: name}) + "\n" for name in dict.fromkeys(e.name for e in labels.entries))
    if not force:
        _check_same(names, lines, folder)
    write_whole(names, lambda aside: _write(aside, lines))
    job = JobOptions(
        inputs=(str(names),),
        tasks=(task,),
        taking=InputOptions(column=_COLUMN, root=os.path.abspath(root)),  # noqa: PTH100
        shard_size=_SHARD,
        timing=False,
    )
    return run_job(folder / "scores", job, run, watcher=watcher, retry=retry, force=force)


def choose_task(wish: str | None, protocol: Protocol, labels: LabelList, has: Sequence[str]) -> tuple[str, str | None]:
    """The task to score in, of those that a model has, and a remark where it is not the one that the protocol asks for.

    A model that lacks the protocol's prompt, such as the embedded one, is asked by its own prompt of the same task.
    Raises TaskError for a wish that the model does not have.
    """
    if wish is not None:
        if wish not in has:
            raise TaskError(f"task {wish!r} is not in this model; it has: {', '.join(has)}")
        return wish, None
    judged = labels.task or "quality"
    if (asked := protocol.task(judged, labels.medium)) in has:
        return asked, None
    if judged in has:
        return judged, f"the model does not have the protocol's prompt {asked!r}; it is asked by that of {judged!r}"
    raise TaskError(f"the model has neither {asked!r} nor {judged!r}; --task chooses one of: {', '.join(has)}")


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder's name for each list: its own, with a number where two have the same."""
    return numbered(["".join(c if c.isalnum() or c in "-_." else "_" for c in n).strip(".") or "list" for n in names])


def _check_same(names: Path, lines: str, folder: Path) -> None:
    """A job goes on by its names' places, so what it has of other names would be taken for what it has of these."""
    if (folder / "scores").exists() and names.exists() and (before := names.read_text("utf-8")) != lines:
        counts = f"{before.count(chr(10))} names there, {lines.count(chr(10))} in this list"
        raise OptionError(
            f"{folder}: it has the scores of another list ({counts}); --out names another folder, --force starts anew"
        )


def _write(aside: Path, text: str) -> None:
    aside.write_text(text, "utf-8")
