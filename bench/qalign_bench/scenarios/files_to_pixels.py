"""`pixels`: files to uint8 [448, 448, 3], by each of our pixel paths and beside upstream's; interleaved, on one core.

No path can be faster than decoding, so its share of the time is shown. A peer's own path ends in what its model takes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from qalign_bench.cli.session import Run, Session
from qalign_bench.contestants.command_lines import peer_contestants
from qalign_bench.contestants.generated_pictures import generated_pictures
from qalign_bench.contestants.pixel_times import forms
from qalign_bench.contestants.process import Contestant, Process
from qalign_bench.contestants.rounds import play
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.runs import new_run, of_times
from qalign_bench.figures.spread import median

_ROUNDS = 7
_SIZES = ((4000, 3000), (1620, 1080), (600, 400))  # 12 MP, a film's frame, a small one


@dataclass
class _Times:
    """One contestant and file. Lists have a time in ms for each round."""

    whole: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)  # the part of it that decodes; empty where a peer does not tell
    sha256: str = ""


def measure(session: Session) -> None:
    """Leaves a run for every pixel path, peer and file. Raises QAlignError where one fails."""
    options = session.options
    files = list(options.files)
    for width, height in _SIZES if not files else ():
        files += generated_pictures(options.work, 1, width, height)
    session.facts["model"] = f"{len(files)} file{'s'[: len(files) - 1]} to [448, 448, 3]"
    ours = [form_contestant(form.name) for form in forms()]
    match = _Match(session, files, options.repeat or _ROUNDS, len(ours))
    try:
        play(match, [*ours, *peer_contestants(options, None, None)], match.rounds)
    finally:
        session.facts |= {"rounds": match.done, "of_rounds": match.rounds, "together": True}
        session.runs += match.runs()


def form_contestant(form: str) -> Contestant:
    """One of our pixel paths, by its name."""
    return Contestant(form, (sys.executable, "-P", "-m", "qalign_bench.contestants.pixel_worker"), {"form": form})


class _Match:
    def __init__(self, session: Session, files: list[str], rounds: int, ours: int) -> None:
        self.rounds, self.done = rounds, 0
        self._session, self._files, self._ours = session, files, ours
        self._ready: dict[int, tuple[str, Message]] = {}
        self._times: dict[tuple[int, str], _Times] = defaultdict(_Times)

    def loading(self, contestant: Contestant) -> None:
        self._session.progress(0, self.rounds, f"loading {contestant.name}")

    def turn(self, i: int, process: Process) -> None:
        self._session.progress(self.done, self.rounds, f"round {self.done + 1} of {self.rounds}: {process.name}")
        if not process.seen:
            process.seen.add("pixels")
            process.ask("pixels", files=self._files, repeat=1)
        self._ready[i] = process.name, process.ready
        found = process.ask("pixels", files=self._files, repeat=1)
        for f, file in enumerate(self._files):
            times = self._times[i, file]
            times.whole.append(median(found["ms"][f]))
            times.sha256 = found["sha256"][f]
            if "decode_ms" in found:
                times.decode.append(median(found["decode_ms"][f]))

    def after(self) -> None:
        self._session.noise.sample()
        self.done += 1

    def runs(self) -> list[Run]:
        return [self._run(i, file, times) for (i, file), times in self._times.items()]

    def _label(self, file: str) -> str:
        """A given file's path, or a generated file's size."""
        return file if self._session.options.files else Path(file).parent.name.removeprefix("pictures-")

    def _run(self, i: int, file: str, times: _Times) -> Run:
        name, ready = self._ready[i]
        stations, share = {}, None
        if times.decode:
            share = median([decode / whole for whole, decode in zip(times.whole, times.decode)])
            rest = [whole - decode for whole, decode in zip(times.whole, times.decode)]
            stations = {"decode": median(times.decode), "pad and resize": median(rest)}
        return new_run(self._session, name, ready, is_peer=i >= self._ours) | {
            "file": self._label(file),
            "ms_of": "a file",
            "threads": 1,
            **of_times(times.whole, times.whole, 1),
            "stations_ms": stations,
            "decode_share": share,
            "sha256": times.sha256,
        }
