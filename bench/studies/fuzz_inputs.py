"""Damaged pictures and clips in, what goes wrong out: crashes, hangs, foreign errors, lines on stderr, growing memory.

    python bench/studies/fuzz_inputs.py WORK [--pictures 20000] [--clips 2000] [--json bench/results/fuzz_inputs.json]

Items are made by damaged_files.py. A child process scores them by `Scorer.load().feed.run` in groups, each with one set
of options. A group with trouble is tried item by item. A child that dies is followed by another, which goes on behind
the item that killed it. The smallest item of each finding is written to WORK/failures, beside a text that tells what
happened. The same seed gives the same items.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import io
import json
import multiprocessing
import os
import re
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng

from damaged_files import damaged, make_seeds, read_seeds, seed_name
from qalign_bench.figures.environment import study_environment
from qalign_fast import PictureLimits, QAlignError, Scorer
from qalign_fast.errors import InternalError
from qalign_fast.feed.items import ClipOptions, Item, Medium

CLIP_OPTIONS = (ClipOptions(), ClipOptions(fps=8), ClipOptions(fps=3, sampling="time"))
_GROUP = {"image": 32, "video": 8}  # items of one run of the feed
_SLOW_S = 5.0  # an item that takes longer is a finding
_LOOK_S = 1.0  # a group that takes longer is timed item by item


@dataclass(frozen=True)
class Plan:
    """What one child does: the items `first` to `last` - 1, in groups or each alone."""

    work: Path
    medium: Medium
    seed: int
    first: int
    last: int
    alone: bool = False

    def group_end(self, first: int) -> int:
        """Groups begin at multiples of their size, whichever item a child begins with: options depend on it."""
        size = 1 if self.alone else _GROUP[self.medium]
        return min(self.last, (first // size + 1) * size)

    @property
    def lines(self) -> Path:
        """The file of what a child prints."""
        return self.work / f"stderr-{self.medium}.txt"


@dataclass(frozen=True)
class Finding:
    """An item that was not scored or refused as it should be, or that left more behind than its result."""

    number: int  # of the item
    kind: str
    cause: str  # the same for findings that are alike
    text: str


@dataclass
class Told:
    """What a child tells of a group."""

    next: int  # the first item behind it
    findings: list[Finding] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)  # "scored", or the error's class
    slowest: tuple[float, int] = (0.0, -1)  # seconds, at most, and the item
    process: int = 0
    resident_mb: float = 0.0
    held_mb: float | None = None  # without garbage and what malloc keeps; after a quarter of the items, and at the end


def main() -> None:
    """Makes the seeds, then tries pictures and clips, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--clips", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    make_seeds(options.work)
    found: dict[str, Any] = {"seed": options.seed, "options": list(map(str, limit_sets()))}
    found["pictures"] = fuzz(Plan(options.work, "image", options.seed, 0, options.pictures))
    found["clips"] = fuzz(Plan(options.work, "video", options.seed, 0, options.clips))
    found["environment"] = study_environment("av")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


# The parent: it watches children, and keeps the smallest item of each finding.


def fuzz(plan: Plan) -> dict[str, Any]:
    """The plan's items in, counts, findings, the slowest item and the growth of memory out."""
    began, findings, slowest = time.perf_counter(), Findings(plan), (0.0, -1)
    outcomes: Counter[str] = Counter()
    memory: dict[int, list[tuple[float, float | None]]] = {}
    for told in hunt(plan):
        outcomes += told.outcomes
        slowest = max(slowest, told.slowest)
        if told.process:
            memory.setdefault(told.process, []).append((told.resident_mb, told.held_mb))
        for finding in told.findings:
            findings.add(finding)
    found = {
        "items": plan.last - plan.first,
        "outcomes": outcomes,
        "findings": list(findings.rows.values()),
        "slowest_item": {"s": slowest[0], "number": slowest[1]},
        "processes": len(memory),
        "memory_mb": growth(max(memory.values(), key=len, default=[])),
        "took_s": time.perf_counter() - began,
    }
    print(json.dumps({plan.medium: found}, indent=1), flush=True)
    return found


def hunt(plan: Plan) -> Iterator[Told]:
    """What children tell of the plan's items. The group that a child died in is tried item by item."""
    first = plan.first
    while first < plan.last:
        process, receiver = _start(replace(plan, first=first))
        with suppress(EOFError):  # the child's end
            while True:
                told: Told = receiver.recv()
                first = told.next
                yield told
        process.join()
        if first < plan.last:
            rest = replace(plan, first=first, last=plan.group_end(first))
            died, first = _died(rest, process.exitcode or 0), rest.last
            yield from [Told(first, [died])] if plan.alone else _one_by_one(rest, died)


def _start(plan: Plan) -> tuple[Any, Connection]:
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=child, args=(plan, sender))
    process.start()
    sender.close()
    return process, receiver


def _died(plan: Plan, code: int) -> Finding:
    """A child's end by a signal or by its clock. The cause is the innermost line of Python of a thread that works."""
    text = plan.lines.read_text(errors="replace")
    if code >= 0 and "Timeout" not in text:
        raise SystemExit(f"a fault of the study: a child ended with {code}\n{text}")
    text = text[max(0, text.rfind("Fatal Python error"), text.rfind("Timeout")) :]
    kind = f"crash by {signal.Signals(-code).name}" if code < 0 else "hang"
    current = text[max(0, text.find("Current thread")) if code < 0 else 0 :]
    inner = re.findall(r'most recent call first\):\n  File "(.*)', current)
    working = [line for line in inner if "feed/threads.py" not in line]  # where idle threads wait
    return Finding(plan.first, kind, (working or inner or [""])[0], text)


def _one_by_one(group: Plan, died: Finding) -> list[Told]:
    """A group that a child died in, each item alone; `died` is kept where none of them is to blame alone."""
    alone = list(hunt(replace(group, alone=True)))
    kinds = {finding.kind for told in alone for finding in told.findings}
    kept = [] if died.kind in kinds else [replace(died, kind=f"{died.kind}, not alone")]
    return [*alone, Told(group.last, kept)]


class Findings:
    """Findings by kind and cause, and the smallest item of each in WORK/failures."""

    def __init__(self, plan: Plan) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._plan, self._seeds, self._folder = plan, read_seeds(plan.work, plan.medium), plan.work / "failures"
        self._folder.mkdir(exist_ok=True)
        for old in self._folder.glob(f"{plan.medium}-*"):
            old.unlink()

    def add(self, finding: Finding) -> None:
        """Counts it, and writes its item where that is the smallest until now."""
        key = finding.kind, finding.cause
        row = self.rows.setdefault(key, {"kind": finding.kind, "cause": finding.cause, "count": 0})
        row["count"] += 1
        name = seed_name(self._seeds, finding.number)
        data = damaged(self._seeds, name, finding.number, self._plan.seed)
        if len(data) < row.get("bytes", len(data) + 1):
            file = f"{self._plan.medium}-{list(self.rows).index(key)}"
            row |= {"bytes": len(data), "seed": name, "number": finding.number, "file": file}
            (self._folder / file).write_bytes(data)
            text = f"{finding.kind}: {finding.cause}\n{name}, item {finding.number}\n\n{finding.text}\n"
            (self._folder / f"{file}.txt").write_text(text)


def growth(samples: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    """MB of memory after a quarter of a child's groups and at its end: what is held, and all that is resident.

    malloc keeps memory that was freed, by what the largest pictures needed. So what is resident rises in steps; what is
    held says whether memory is lost. The resident numbers are medians of the tenth of the groups before these points.
    """
    if not samples:
        return {}
    resident, held = [one for one, _ in samples], [one for _, one in samples if one is not None]
    tenth, quarter = max(1, len(samples) // 10), max(1, len(samples) // 4)
    ends = [statistics.median(resident[max(0, end - tenth) : end]) for end in (quarter, len(samples))]
    some = [round(one) for one in resident[:: max(1, len(samples) // 20)]]
    grown = held[1] - held[0] if len(held) == 2 else None  # None: no child came to its end
    return {"held": held, "held_growth": grown, "resident": ends, "resident_some": some}


# The child: it scores groups of items, each with one set of options.


def child(plan: Plan, sender: Connection) -> None:
    """Scores a plan's items, and sends what came of each group. What is printed goes to a file."""
    with plan.lines.open("wb") as lines:
        os.dup2(lines.fileno(), 1)
        os.dup2(lines.fileno(), 2)
    faulthandler.enable()
    for kind in (UserWarning, RuntimeWarning):  # else a warning is told once, and never again of its own item
        warnings.simplefilter("always", kind)
    examiner, first = Examiner(plan), plan.first
    quarter = first + (plan.last - first) // 4
    while first < plan.last:
        told = examiner.examine(range(first, plan.group_end(first)))
        if first <= quarter < told.next or told.next == plan.last:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            told.held_mb = _resident_mb()
        first = told.next
        sender.send(told)


class Examiner:
    """Scores groups of items, and looks for the one that trouble comes from."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._seeds, self._lines = plan, read_seeds(plan.work, plan.medium), plan.lines.open("rb")
        scorer = Scorer.load()
        largest = [np.zeros((64, 64, 3), np.uint8)] * scorer.engine.family.clip_frames
        scorer.score_video(largest)  # an engine keeps the memory that its largest batch takes
        self._feeds = [Scorer(scorer.engine, limits).feed for limits in limit_sets()]
        self._folder = plan.work / "items"
        self._folder.mkdir(exist_ok=True)

    def examine(self, numbers: Sequence[int]) -> Told:
        """Scores the items together and, where there is trouble, each alone."""
        faulthandler.dump_traceback_later(_SLOW_S * (1 + len(numbers)), exit=True)
        began = time.perf_counter()
        told, ended = self._score(numbers)
        took = time.perf_counter() - began
        faulthandler.cancel_dump_traceback_later()
        trouble = ended + self._printed(numbers[0])
        if len(numbers) > 1 and (trouble or took > _LOOK_S):
            return _together(trouble, [self.examine([number]) for number in numbers])
        told.findings += trouble + [Finding(numbers[0], "slow", "", f"{took:.1f} s")] * (took > _SLOW_S)
        told.slowest, told.process, told.resident_mb = (took, numbers[0]), os.getpid(), _resident_mb()
        return told

    def _score(self, numbers: Sequence[int]) -> tuple[Told, list[Finding]]:
        """What came of the items, and the error that ended the run."""
        told, ended, plan = Told(numbers[-1] + 1), [], self._plan
        choice = default_rng([plan.seed, numbers[0] // _GROUP[plan.medium], 2]).integers(len(self._feeds))
        items = (make_item(self._seeds, plan.medium, number, self._folder, plan.seed) for number in numbers)
        try:
            for scored in self._feeds[choice].run(items, ("quality",)):
                told.outcomes[type(scored.error).__name__ if scored.error else "scored"] += 1
                if scored.error and is_fault(scored.error):
                    told.findings.append(_raised(scored.key, "foreign error", scored.error))
        except Exception as error:  # whatever it is, the items behind it have no scores
            ended = [_raised(numbers[0], "run ended", error)]
        for path in self._folder.iterdir():
            path.unlink()
        return told, ended

    def _printed(self, number: int) -> list[Finding]:
        """What was printed since the last call. The cause is a warning's place, or the beginning of another line."""
        text = self._lines.read().decode(errors="replace")
        if not text:
            return []
        warning = re.match(r"\S*?([^/\s]+/[^/\s]+:\d+): (\w+):", text)
        cause = f"{warning[2]} at {warning[1]}" if warning else re.split(r"[:(\d\n]", text)[0]
        return [Finding(number, "stderr", cause, text)]


def _together(trouble: list[Finding], alone: list[Told]) -> Told:
    """A group as its items alone tell it, and the trouble that none of them makes alone."""
    findings = [finding for told in alone for finding in told.findings]
    kinds = {finding.kind for finding in findings}
    findings += [replace(one, kind=f"{one.kind}, not alone") for one in trouble if one.kind not in kinds]
    outcomes = sum((told.outcomes for told in alone), Counter())
    slowest, last = max(told.slowest for told in alone), alone[-1]
    return Told(last.next, findings, outcomes, slowest, last.process, last.resident_mb)


def _raised(number: int, kind: str, error: BaseException) -> Finding:
    """The cause is where the first error was raised."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    place = traceback.extract_tb(root.__traceback__)[-1]
    where = f"{'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}"
    return Finding(number, kind, f"{type(root).__name__} at {where}", "".join(traceback.format_exception(error)))


def _resident_mb() -> float:
    """Anonymous memory; mapped weights are not in it."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1000


# What the tests use too.


def is_fault(error: QAlignError) -> bool:
    """Whether it is an error that no damaged file may lead to: another library's, or an internal one of ours."""
    return isinstance(error, InternalError) or not isinstance(error, QAlignError)


def limit_sets() -> list[PictureLimits]:
    """The defaults; small pictures, which are fast; these with each option that there is, and with all of them."""
    options: dict[str, Any] = {one.name: True for one in fields(PictureLimits) if one.default is False}
    options["background"] = (255, 255, 255)
    small = PictureLimits(max_pixels=4_000_000)
    each = [replace(small, **{name: value}) for name, value in options.items()]
    return [PictureLimits(), small, *each, replace(small, **options)]


def make_item(seeds: dict[str, bytes], medium: Medium, number: int, folder: Path, seed: int = 0) -> Item[int]:
    """An item of the feed: by turns a file in `folder`, bytes, an open file and a pipe."""
    name, random = seed_name(seeds, number), default_rng([seed, number, 1])
    data, path = damaged(seeds, name, number, seed), folder / f"{number}{Path(name).suffix}"
    path.write_bytes(data)
    media: Any = (path, data, io.BytesIO(data), Pipe(data))[random.integers(4)]
    return Item(number, media, medium, CLIP_OPTIONS[random.integers(len(CLIP_OPTIONS))])


class Pipe:
    """A binary file that cannot seek, and gives less than it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count if 0 <= count < 1000 else 1000)


if __name__ == "__main__":
    main()
