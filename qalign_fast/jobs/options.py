"""The options of a job, as one value: those that decide what its rows hold, and those that decide how it runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

from qalign_fast.errors import OptionError
from qalign_fast.feed.items import ClipOptions
from qalign_fast.jobs.inputs.stores import is_url
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.pixels.limits import PictureLimits

Format: TypeAlias = Literal["parquet", "jsonl", "csv"]
FORMATS: tuple[Format, ...] = ("parquet", "jsonl", "csv")


@dataclass(frozen=True)
class JobOptions:
    """What a job's rows depend on. A job goes on only with equal ones.

    shard_size: inputs of a shard, which is scored again as a whole when it was not finished.
    dedup: whether equal pictures are scored once.
    timing: whether rows hold the milliseconds that reading took. Without, two runs of a job give equal bytes.
    """

    inputs: tuple[str, ...]
    tasks: tuple[str, ...] = ("quality",)
    taking: InputOptions = field(default_factory=InputOptions)
    clip: ClipOptions = field(default_factory=ClipOptions)
    limits: PictureLimits = field(default_factory=PictureLimits)
    format: Format = "parquet"
    shard_size: int = 1024
    dedup: bool = False
    timing: bool = True

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise OptionError(f"format {self.format!r} is not one; there are: {', '.join(FORMATS)}")
        if self.shard_size < 1:
            raise OptionError(f"shard_size is {self.shard_size}; expected 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Flat facts that can be compared, by the options' names. A path is told in full."""
        inputs = [name if name == "-" or is_url(name) else os.path.abspath(name) for name in self.inputs]  # noqa: PTH100
        flat = {"inputs": inputs, "tasks": self.tasks} | asdict(self.taking) | _prefixed("clip", asdict(self.clip))
        flat |= asdict(self.limits) | {"format": self.format, "shard_size": self.shard_size}
        flat |= {"dedup": self.dedup, "timing": self.timing}
        plain: dict[str, Any] = json.loads(json.dumps(flat))  # tuples as lists, as they come back
        return plain

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> JobOptions:
        """The options of which these are the facts."""

        def part(kind: Any, prefix: str = "") -> Any:
            return kind(**{each.name: _frozen(facts[f"{prefix}{each.name}"]) for each in fields(kind)})

        taking, clip, limits = part(InputOptions), part(ClipOptions, "clip_"), part(PictureLimits)
        more = {name: _frozen(facts[name]) for name in ("format", "shard_size", "dedup", "timing")}
        return cls(_frozen(facts["inputs"]), _frozen(facts["tasks"]), taking, clip, limits, **more)


@dataclass(frozen=True)
class RunOptions:
    """How a job runs; its rows are the same, but for the last digit of a score.

    devices: an engine for each, which share the work; "auto" is every GPU, or the CPU.
    workers: processes that decode pictures, of all engines together; None: one for each core, and two at least.
    time_limit: seconds that a picture may take to be read.
    """

    model: str | None = None
    devices: tuple[str, ...] = ("auto",)
    precision: str | None = None
    engine: str = "auto"
    threads: int | None = None
    verify: bool = True
    batch_size: int = 16
    workers: int | None = None
    time_limit: float = 60.0
    base: str | None = None  # of a LoRA adapter, as `Scorer.load` takes it


def hash_options(options: Mapping[str, Any]) -> str:
    """SHA-256 of options as `JobOptions.to_json` gives them."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, a text for each: "tasks: ['quality'] before, ['aesthetics'] now"."""
    names = dict.fromkeys((*before, *now))
    return [f"{n}: {before.get(n)!r} before, {now.get(n)!r} now" for n in names if before.get(n) != now.get(n)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in values.items()}
