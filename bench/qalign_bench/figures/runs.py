"""What a contestant answered in, a run out: the JSON object from which tables, plots and the README are made.

Every run has every key. A null means that something was not measured or does not exist. Times are in ms, sizes in
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qalign_bench.cli.session import Run, Session
from qalign_bench.contestants.models import Model, is_one_align
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.datasheets import arithmetic_of, datasheet_gops
from qalign_bench.figures.environment import device_name
from qalign_bench.figures.flop import our_work, upstream_work
from qalign_bench.figures.spread import median, percentile, ratio
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.mplug_owl2.sizes import ModelConfig

BASELINE = 23.0  # pictures a second, upstream in 16 bits on an RTX 3090: a published summary of the paper
BASELINE_DEVICE = "RTX 3090"


@dataclass
class Series:
    """What one contestant answered for one batch. Lists have an entry for each round."""

    ready: Message
    batch: int
    forward_ms: float = 0.0  # about: the time of the first forward after warming up
    ms: list[list[float]] = field(default_factory=list)
    stations_ms: list[dict[str, float]] = field(default_factory=list)
    memory: list[dict[str, int | None]] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)  # a picture
    scores: list[list[float]] = field(default_factory=list)  # the last forward's, by task and picture

    def add(self, answer: Message) -> None:
        """Adds an answer to the last round."""
        self.ms[-1] += answer["ms"]
        self.stations_ms.append(answer["stations_ms"])
        self.memory.append(answer["peak_memory_bytes"])
        self.scores = answer["scores"]


def forward_run(session: Session, name: str, model: Model | None, series: Series, peaks: Mapping[str, Message]) -> Run:
    """A run of `latency` or `throughput`. `model` is None for a peer."""
    times = [t for times in series.ms for t in times]
    medians = [median(times) for times in series.ms]
    run = our_run(session, model, series.ready) if model else new_run(session, name, series.ready, is_peer=True)
    run |= {
        "batch": series.batch,
        "ms_of": f"a forward of {series.batch}",
        **of_times(times, medians, series.batch),
        "stations_ms": {k: median([s[k] for s in series.stations_ms]) for k in series.stations_ms[0]},
        # a process's peak never falls and larger batches raise it, so this batch's own peak is the least
        "peak_memory_bytes": {k: _least([m[k] for m in series.memory]) for k in ("host", "device")},
        "joules_per_image": median(series.joules) if series.joules else None,
        "scores": series.scores if model or session.facts.get("same_numbers", True) else [],
    }
    return run | of_work(session, run, model is None, peaks)


def our_run(session: Session, model: Model, ready: Message) -> Run:
    """A run of one of our engines, before it has numbers."""
    run = new_run(session, f"{ready['precision']} {ready['engine']}", ready, is_peer=False)
    return run | {"fidelity": model.fidelity(ready["engine"])}


def new_run(session: Session, name: str, ready: Message, *, is_peer: bool) -> Run:
    """A run of any contestant, before it has numbers."""
    options = session.options
    return {
        "scenario": options.scenario,
        "contestant": name,
        "is_peer": is_peer,
        "full_name": ready["name"],
        "model": session.facts["model"],
        "tasks": list(options.tasks),
        "precision": ready["precision"],
        "engine": ready["engine"],
        "kernels": ready["kernels"],
        "device": device_name(ready["device"], session.environment),
        "threads": options.threads,
        "instruction_set": options.instruction_set,
        "batch": None,
        "ms_of": None,
        "images_per_second": None,
        "images_per_second_range": None,
        "ms_p50": None,
        "ms_p90": None,
        "ms_p99": None,
        "ms_round_medians": [],
        "timed": 0,
        "stations_ms": {},
        "peak_memory_bytes": {"host": None, "device": None},
        "weights_bytes": ready["weights_bytes"],
        "load_s": ready["load_s"],
        "joules_per_image": None,
        "gflop_per_image": None,
        "peak": None,
        "peak_share": None,
        "datasheet_share": None,
        "fidelity": None,
        "scores": [],
        "against": None,
        "environment": session.environment | {"packages": session.environment["packages"] | ready["versions"]},
        "baseline": None,
    }


def of_times(times: Sequence[float], round_medians: Sequence[float], pictures: int) -> Run:
    """The keys that follow from wall times in ms. `pictures` is how many each time is for."""
    middle = median(times)
    return {
        "images_per_second": 1e3 * pictures / middle,
        "images_per_second_range": [1e3 * pictures / max(round_medians), 1e3 * pictures / min(round_medians)],
        "ms_p50": middle,
        "ms_p90": percentile(times, 0.9),
        "ms_p99": percentile(times, 0.99),
        "ms_round_medians": list(round_medians),
        "timed": len(times),
    }


def of_work(session: Session, run: Run, as_upstream: bool, peaks: Mapping[str, Message]) -> Run:
    """The keys that follow from the arithmetic of a picture and from the speed."""
    config: ModelConfig = session.config
    work = (upstream_work if as_upstream else our_work)(config, [prompt(task) for task in run["tasks"]])
    gops = 1e-9 * work.total * run["images_per_second"]
    peak = peaks.get(arithmetic_of(run["precision"]))
    sheet = datasheet_gops(run["device"], run["precision"])
    return {
        "gflop_per_image": 1e-9 * work.total,
        "gflop_stations": {station: 1e-9 * flop for station, flop in asdict(work).items()},
        "peak": peak,
        "peak_share": gops / peak["gops"] if peak else None,
        "datasheet_share": gops / sheet if sheet else None,
        "baseline": baseline(run["images_per_second"], run["device"], is_one_align(config)),
    }


def baseline(images_per_second: float, device: str, comparable: bool) -> dict[str, Any]:
    """The speed beside the published figure. Without a ratio where the model is not the one of that figure."""
    return {
        "images_per_second": BASELINE,
        "device": BASELINE_DEVICE,
        "of": "upstream's OneAlign, published in a summary of the paper",
        "measured_on": device,
        "ratio": images_per_second / BASELINE if comparable else None,
    }


def compare_runs(runs: Sequence[Run]) -> None:
    """Sets `against` of each run: how many times as fast it is as the case's first peer, or its first run without one.

    Runs of the same batch, pages, file and operation are one case.
    """
    for run in runs:
        case = [other for other in runs if _case(other) == _case(run) and other["ms_round_medians"]]
        reference = next((other for other in case if other["is_peer"]), case[0] if case else run)
        if reference is run or not run["ms_round_medians"]:
            continue
        times = ratio(reference["ms_round_medians"], run["ms_round_medians"])
        run["against"] = {
            "contestant": reference["contestant"],
            "times_as_fast": times.middle,
            "range": [times.low, times.high],
            "largest_score_difference": _difference(run["scores"], reference["scores"]),
        }


def _case(run: Run) -> tuple[Any, ...]:
    """Two runs are compared where this is equal."""
    return run["batch"], run.get("pages"), run.get("file"), run.get("operation")


def _difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float | None:
    """The largest difference of scores on 1..5, over tasks and pictures."""
    pairs = [pair for x, y in zip(a, b) for pair in zip(x, y)]
    return max((abs(x - y) for x, y in pairs), default=None)


def _least(values: Sequence[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
