"""`latency` and `throughput`: single forwards over pictures in memory, by contestant and batch, interleaved.

The clock covers what a caller waits for: uint8 pixels in the host's memory to scores there, for every task. Loading,
warming up and decoding of pictures are not timed. Pictures are random and the same for all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

from qalign_bench.cli.options import WrongOptionError
from qalign_bench.cli.session import Session
from qalign_bench.contestants.command_lines import our_contestant, peak_contestant, peer_contestants
from qalign_bench.contestants.models import Model
from qalign_bench.contestants.process import Contestant, Process
from qalign_bench.contestants.rounds import fit_together, play, play_in_turns
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.datasheets import arithmetic_of
from qalign_bench.figures.energy import energy_meter
from qalign_bench.figures.runs import Series, forward_run

BATCHES = {"latency": (1,), "throughput": (1, 2, 4, 8)}
_ROUNDS = 15  # many and short: the range of their medians then covers how a median differs between two benches
_TURNS = 3  # rounds where each means loading everything again; one contestant's rounds then follow each other
_SECONDS = 0.5  # about how long a contestant is timed in a round, unless --repeat gives a number
_MOST = 100  # forwards in that time


def measure(session: Session) -> None:
    """Leaves a run for every contestant and batch. Raises QAlignError where a contestant fails."""
    models = session.models()
    ours = [our_contestant(model, session.options) for model in models]
    peers = []
    if session.options.peers:
        parameters = models[0].parameters
        if parameters is None:
            raise WrongOptionError("--model", "peers need a checkpoint or random:..., to load the same parameters")
        numbers = models[0].numbers
        peers = peer_contestants(session.options, parameters, models[0].config, numbers)
        session.facts["same_numbers"] = numbers is not None and all(model.numbers == numbers for model in models)
        if not session.facts["same_numbers"]:
            session.remark("the artifact and the peers have different random numbers: their scores are not compared")
    compare(session, models, [*ours, *peers])


def compare(session: Session, models: list[Model], contestants: list[Contestant]) -> None:
    """Leaves a run for each of the contestants and batch. The first contestants run these models, one each."""
    options = session.options
    together = not options.exclusive and fit_together(contestants)
    if not together and not options.exclusive:
        session.remark("the contestants do not fit into memory together: each is loaded anew for every round")
    turns = min(_ROUNDS if together else _TURNS, options.repeat or sys.maxsize)
    rounds = min(_ROUNDS, options.repeat or sys.maxsize)
    with ExitStack() as stack:
        match = _Match(session, len(contestants), turns, -(-rounds // turns), stack)
        try:
            (play if together else play_in_turns)(match, contestants, turns)
        finally:
            session.facts |= {"rounds": match.done, "of_rounds": turns, "together": together}
            for (i, _), series in sorted(match.series.items()):
                series.ms = [times for times in series.ms if times]
                if series.ms:
                    model = models[i] if i < len(models) else None
                    session.runs.append(forward_run(session, contestants[i].name, model, series, match.peaks))


class _Match:
    """What happens in the contestants' turns, which have some rounds each, and what was measured in them."""

    def __init__(self, session: Session, contestants: int, turns: int, rounds: int, stack: ExitStack) -> None:
        self.series: dict[tuple[int, int], Series] = {}  # by contestant and batch
        self._peaks: dict[str, list[Message]] = {}  # arithmetic -> the fastest product after each round
        self.done = 0  # turns that all contestants had
        options = session.options
        self._session, self._stack, self._turns, self._rounds = session, stack, turns, rounds
        self._batches = sorted(set(options.batches)) or list(BATCHES[options.scenario])
        self._steps, self._of_steps = 0, turns * contestants * len(self._batches)
        self._peak_process: Process | None = None

    @property
    def device(self) -> str:
        """Where all contestants run, as our first one says."""
        return str(self.series[0, self._batches[0]].ready["device"])

    @property
    def peaks(self) -> dict[str, Message]:
        """The fastest product of each arithmetic, at its median over the rounds.

        Contestants are told by their medians, too. The best of a peak beside the median of a forward would not be fair
        on a shared machine.
        """
        return {k: sorted(found, key=lambda peak: peak["gops"])[len(found) // 2] for k, found in self._peaks.items()}

    def loading(self, contestant: Contestant) -> None:
        self._show(f"loading {contestant.name}")

    def turn(self, i: int, process: Process) -> None:
        for batch in self._batches:
            self._show(f"{process.name}, batch {batch}")
            series = self.series.setdefault((i, batch), Series(process.ready, batch))
            for _ in range(self._rounds):
                self._measure(process, series)
            self._steps += 1

    def _show(self, what: str) -> None:
        self._session.progress(self._steps, self._of_steps, f"round {self.done + 1} of {self._turns}: {what}")

    def _measure(self, process: Process, series: Series) -> None:
        asked = {"batch": series.batch, "tasks": list(self._session.options.tasks)}
        if series.batch not in process.seen:
            process.seen.add(series.batch)
            warm = process.ask("latency", **asked, warmup=1, repeat=1)
            series.forward_ms = series.forward_ms or warm["ms"][0]
        meter = energy_meter(self.device)
        before = meter() if meter else 0.0
        series.ms.append([])
        for repeat in self._repeats(series.forward_ms):
            series.add(process.ask("latency", **asked, warmup=0, repeat=repeat))
        if meter:
            series.joules.append((meter() - before) / (series.batch * len(series.ms[-1])))

    def _repeats(self, ms: float) -> Iterator[int]:
        """A round's forwards in parts. `ms` is about the time of one. An interruption loses a part, half a second."""
        part = max(1, min(_MOST, round(1e3 * _SECONDS / ms)))
        asked = self._session.options.repeat
        left = part if asked is None else -(-asked // (self._turns * self._rounds))
        while left:
            yield min(left, part)
            left -= min(left, part)

    def after(self) -> None:
        self._measure_peaks()
        self._session.noise.sample()
        self.done += 1

    def _measure_peaks(self) -> None:
        if self._peak_process is None:
            contestant = peak_contestant(self.device, self._session.options)
            self._peak_process = self._stack.enter_context(contestant.start())
        for arithmetic in sorted({arithmetic_of(s.ready["precision"]) for s in self.series.values()} - {""}):
            self._peaks.setdefault(arithmetic, []).append(self._peak_process.ask("peak", precision=arithmetic))
