"""The JSON that a job writes beside or into its rows in; what ran, out: model, options, scale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qalign_fast.errors import RowsError
from qalign_fast.levels import FIVE_LEVELS
from qalign_fast.records import JOB_FOLDER

_BESIDE = Path(JOB_FOLDER, "job.json")


@dataclass(frozen=True)
class Job:
    """What ran: the model's facts (name, sha256, precision) and the job's options; None where rows do not say it.

    scale: the lowest and the highest score. folder: where relative sources start, which only job.json says.
    """

    model: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    options_sha256: str | None = None
    scale: tuple[float, float] = (FIVE_LEVELS.low, FIVE_LEVELS.high)
    folder: str | None = None

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


def parse_job(text: str | bytes, name: str) -> Job:
    """Raises RowsError, which says `name`, for what is no job's JSON."""
    try:
        found = json.loads(text)
        low, high = map(float, found.get("scale") or Job.scale)
        options, digest, folder = found.get("options") or {}, found.get("options_sha256"), found.get("folder")
        if not all(isinstance(value, dict) for value in (found.get("model") or {}, options)) or low >= high:
            raise TypeError("model or options are no objects, or the scale is empty")
        return Job(
            found.get("model"), options, None if digest is None else str(digest), (low, high), folder and str(folder)
        )
    except (ValueError, TypeError, AttributeError) as error:
        hint = "expected an object with model, options, options_sha256 and scale"
        raise RowsError(f"{name}: not a job's JSON ({error}); {hint}") from error


def job_beside(folder: Path) -> Job:
    """The job of rows that do not hold it themselves: `_job/job.json` in their folder, or an unknown one.

    Raises RowsError for a file that is none.
    """
    path = folder / _BESIDE
    try:
        return parse_job(path.read_bytes(), str(path)) if path.is_file() else Job()
    except OSError as error:
        raise RowsError(f"{path}: {error.strerror or error}") from error
