"""The JSON that a job writes beside or into its rows in; what ran, out: model, options, scale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from qalign_fast.errors import RowsError, one_line
from qalign_fast.jobs.journal import Journal
from qalign_fast.json_values import count, numbers
from qalign_fast.levels import FIVE_LEVELS
from qalign_fast.records import JOB_FOLDER

_BESIDE, _JOURNAL = Path(JOB_FOLDER, "job.json"), Path(JOB_FOLDER, "journal.jsonl")


@dataclass(frozen=True)
class Job:
    """What ran: the model's facts (name, sha256, precision) and the job's options; None where rows do not say it.

    scale: the lowest and the highest score. folder: where relative sources start, and shards: how many files there
    will be, which only job.json says.
    """

    model: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    options_sha256: str | None = None
    scale: tuple[float, float] = (FIVE_LEVELS.low, FIVE_LEVELS.high)
    folder: str | None = None
    shards: int | None = None

    @property
    def sha256(self) -> str | None:
        """The model's hash."""
        found = (self.model or {}).get("sha256")
        return None if found is None else str(found)

    @property
    def model_name(self) -> str:
        """For people."""
        if not self.model:
            return "unknown"
        return " ".join(str(self.model[name]) for name in ("name", "precision") if self.model.get(name))


def parse_job(data: str | bytes, name: str) -> Job:
    """Raises RowsError, which says `name`, for what is no job's JSON."""
    try:
        found = json.loads(data)
        scale = parse_scale(found.get("scale") or list(Job.scale))
        options, plan = found.get("options") or {}, found.get("plan") or {}
        digest, folder = found.get("options_sha256"), found.get("folder")
        if not all(isinstance(value, dict) for value in (found.get("model") or {}, options, plan)):
            raise TypeError("model, options or plan are no objects")
        shards = None if plan.get("shards") is None else count(plan["shards"])
        digest = None if digest is None else str(digest)
        return Job(found.get("model"), options, digest, scale, folder and str(folder), shards)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        hint = "expected an object with model, options, options_sha256 and scale"
        raise RowsError(f"{name}: not a job's JSON ({one_line(error)}); {hint}") from error


def parse_scale(value: Any) -> tuple[float, float]:
    """The lowest and the highest score. Raises TypeError, ValueError or OverflowError for what is no scale."""
    low, high = map(float, numbers(value, 2))
    if not low < high or not isfinite(high - low):
        raise ValueError("its scale is not two numbers in rising order")
    return low, high


def job_beside(folder: Path) -> Job:
    """The job of rows that do not hold it themselves: `_job/job.json` in their folder, or an unknown one.

    Raises RowsError for a file that is none.
    """
    path = folder / _BESIDE
    try:
        return parse_job(path.read_bytes(), str(path)) if path.is_file() else Job()
    except OSError as error:
        raise RowsError(f"{path}: {error.strerror or error}") from error


def files_beside(folder: Path) -> dict[int, str] | None:
    """The files of a job's finished shards, by number, as its journal names them; None where there is no journal.

    Lines that are damaged, or not ended, do not count. Raises RowsError.
    """
    path = folder / _JOURNAL
    try:
        return {line.shard: line.file for line in Journal(path).read(mend=False).values()} if path.exists() else None
    except OSError as error:
        raise RowsError(f"{path}: {error.strerror or error}") from error


def unfinished(folder: Path) -> str | None:
    """How far the job in a folder is, in words; None where it is finished, or none is there."""
    shards, files = job_beside(folder).shards, files_beside(folder) or {}
    return f"{len(files)} of {shards} shards are finished" if shards and len(files) < shards else None
