"""The tables of the scenario `server`, and the lines below them."""

from __future__ import annotations

from qalign_bench.cli.session import Run
from qalign_bench.figures.report import Column, Results, names, number, percent, warnings


def _load(run: Run) -> str:
    """Which load a run had: its name, and its share of the peak."""
    load = run["load"]
    share = load.get("of_peak")
    return str(load.get("name", "")) + (f" ({number(share, 2)} of the peak)" if share else "")


def _open(run: Run, text: str) -> str:
    """What means something for an open loop alone: clients that wait for their answers set their own rate."""
    return text if run["load"]["kind"] == "open" else ""


def _count(name: str) -> Column:
    return name, lambda run: str(run[name]) if name in run else ""


def _ms(title: str, key: str) -> Column:
    return title, lambda run: number(run.get(key), 4)


_WHO: list[Column] = [("contestant", lambda run: str(run["contestant"])), ("load", _load)]
TABLES: list[list[Column]] = [
    [
        *_WHO,
        ("right/s", lambda run: number(run["images_per_second"])),
        ("goodput/s", lambda run: _open(run, number(run.get("goodput")))),
        _ms("p50 ms", "ms_p50"),
        _ms("p90 ms", "ms_p90"),
        _ms("p99 ms", "ms_p99"),
        ("in the bound", lambda run: _open(run, percent(run.get("held_share")))),
        _count("requests"),
        _count("refused"),
        _ms("refused p99 ms", "refused_ms_p99"),
        _count("failed"),
        _count("unanswered"),
        _count("wrong"),
    ],
    [
        *_WHO,
        ("CPU s/picture", lambda run: number(run.get("cpu_s_per_picture"))),
        ("memory MB", lambda run: number(None if run.get("resident_bytes") is None else run["resident_bytes"] / 1e6)),
        ("longest queue", lambda run: str(queue) if (queue := run.get("queue_max")) is not None else ""),
        _ms("queue p50 ms", "queue_ms_p50"),
        _ms("inference p50 ms", "inference_ms_p50"),
        _ms("sent late p99 ms", "late_ms_p99"),
        _ms("load's CPU ms/request", "load_cpu_ms_per_request"),
    ],
]


def lines(found: Results) -> list[str]:
    """The findings, who the contestants are, and warnings."""
    return [*findings(found), *dict.fromkeys(names(found["runs"])), *warnings(found)]


def findings(found: Results) -> list[str]:
    """What the bench says as a whole, and what was measured."""
    return [*_added(found), *_saturated(found), *_highest(found), *_about(found)]


def _added(found: Results) -> list[str]:
    return [
        f"{name} adds {number(added['p50_ms'])} ms to Scorer.score with one client, p50 less p50 "
        f"(rounds {number(added['rounds_ms'][0])}..{number(added['rounds_ms'][1])}; "
        f"of pairs of one picture {number(added['of_pairs_p50_ms'])})"
        for name, added in found.get("added_ms", {}).items()
    ]


def _saturated(found: Results) -> list[str]:
    saturated = found.get("saturated", {"per_second": {}, "ours_of": {}})
    speeds = ", ".join(f"{name} {number(rate)}" for name, rate in saturated["per_second"].items())
    shares = [
        f"the server reaches {percent(of['share'])} of {name} ({percent(of['range'][0])}..{percent(of['range'][1])})"
        for name, of in saturated["ours_of"].items()
    ]
    return [f"saturated, pictures a second: {speeds}", *shares] if speeds else []


def _highest(found: Results) -> list[str]:
    return [
        f"{name}: the highest rate that holds {number(found['bound_ms'])} ms for 99 of 100 is "
        f"{number(highest['per_second']) or 'below'}/s; {number(highest['not_held_per_second'])}/s does not"
        for name, highest in found.get("highest", {}).items()
    ]


def _about(found: Results) -> list[str]:
    if "files" not in found:
        return []
    count, mean = found["files"]["count"], number(found["files"]["mean_bytes"] / 1e3)
    loads = f"{count} files of {mean} KB; each load lasts {number(found['seconds'])} s"
    what = "a time counts from when its request was due; goodput is right answers within the bound"
    return [f"{loads}; {what}", f"wrong scores: {found['wrong']}"]
