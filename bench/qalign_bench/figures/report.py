"""A bench's results in, text or markdown out: two tables, and the lines that belong beside them.

Results are the JSON object that `results` makes. One table is about speed, the other about costs. A column that no run
fills is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import floor, log10
from typing import Any, TypeAlias

from qalign_bench.cli.session import Run, Session
from qalign_bench.figures.runs import compare_runs

Results: TypeAlias = Mapping[str, Any]
Column: TypeAlias = tuple[str, Callable[[Run], str]]
Tables: TypeAlias = Sequence[Sequence[Column]]


def results(session: Session, *, interrupted: bool = False) -> dict[str, Any]:
    """A whole bench as one JSON object."""
    compare_runs(session.runs)
    return {
        "scenario": session.options.scenario,
        "interrupted": interrupted,
        **session.facts,
        "noise": session.noise.report(),
        "runs": session.runs,
    }


def as_text(found: Results, tables: Tables | None = None, lines: Sequence[str] | None = None) -> str:
    """For a terminal. `tables` and `lines` are those of a scenario that has its own; else speed, cost and notes."""
    drawn = [_text_table(*cells(columns, found["runs"])) for columns in tables or (SPEED, COST)]
    return "\n\n".join([headline(found), *drawn, "\n".join(notes(found) if lines is None else lines)])


def as_markdown(found: Results, tables: Tables | None = None, lines: Sequence[str] | None = None) -> str:
    """For a document. `tables` and `lines` as in `as_text`."""
    drawn = [markdown_table(*cells(columns, found["runs"])) for columns in tables or (SPEED, COST)]
    beside = [*headline(found).splitlines()[1:], *(notes(found) if lines is None else lines)]
    return "\n\n".join([headline(found).splitlines()[0], *drawn, "\n".join(f"- {line}" for line in beside)])


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent; "" for None."""
    if value is None:
        return ""
    decimals = max(0, digits - 1 - floor(log10(abs(value)))) if value else 0
    return f"{value:.{decimals}f}"


def percent(share: float | None) -> str:
    """A share as percent; "" for None."""
    return "" if share is None else f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _range(bounds: Sequence[float] | None) -> str:
    return f"{number(bounds[0])}..{number(bounds[1])}" if bounds else ""


def _gb(count: float | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def _against(run: Run) -> str:
    against = run["against"]
    return f"{number(against['times_as_fast'])} ({_range(against['range'])})" if against else ""


def _engine_only(run: Run) -> str:
    only = run.get("of_engine_only")
    return f"{percent(only['share'])} ({percent(only['range'][0])}..{percent(only['range'][1])})" if only else ""


_WHO: list[Column] = [
    ("contestant", lambda run: str(run["contestant"])),
    ("batch", lambda run: str(run["batch"] or "")),
    ("pages", lambda run: run.get("pages", "")),  # startup: cold or warm
    ("file", lambda run: run.get("file", "")),  # pixels
    ("operation", lambda run: run.get("operation", "")),
]
SPEED: list[Column] = [
    *_WHO,
    ("pictures/s", lambda run: number(run["images_per_second"])),
    ("rounds' range", lambda run: _range(run["images_per_second_range"])),
    ("p50 ms", lambda run: number(run["ms_p50"], 4)),
    ("p90 ms", lambda run: number(run["ms_p90"], 4)),
    ("p99 ms", lambda run: number(run["ms_p99"], 4)),
    ("GFLOP/s", lambda run: number(run.get("gflop_per_second"))),
    ("largest difference", lambda run: number(run.get("largest_difference"), 2)),
    ("timed", lambda run: str(run["timed"])),
    ("times as fast", _against),
    ("engine busy", lambda run: percent(run.get("engine_busy_share"))),
    ("engine alone/s", lambda run: number(run.get("engine_only_images_per_second"))),
    ("share of that", _engine_only),
]
COST: list[Column] = [
    *_WHO,
    ("where the time goes, ms", lambda run: ", ".join(f"{k} {number(v)}" for k, v in run["stations_ms"].items())),
    ("decode's share", lambda run: percent(run.get("decode_share"))),
    ("host GB", lambda run: _gb(run["peak_memory_bytes"]["host"])),
    ("device GB", lambda run: _gb(run["peak_memory_bytes"]["device"])),
    ("joules/picture", lambda run: number(run["joules_per_image"])),
    ("GFLOP/picture", lambda run: number(run["gflop_per_image"], 4)),
    ("of measured peak", lambda run: percent(run["peak_share"])),
    ("of datasheet", lambda run: percent(run["datasheet_share"])),
]


def cells(columns: Sequence[Column], runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, without the columns that are empty throughout."""
    filled = [(name, texts) for name, cell in columns if any(texts := [cell(run) for run in runs])]
    return [name for name, _ in filled], [list(row) for row in zip(*(texts for _, texts in filled))]


def _text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["─" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown; all columns but the first are aligned to the right."""
    rule = "|---" + "|---:" * (len(header) - 1) + "|"
    first, *rest = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([first, rule, *rest])


def subject(run: Run) -> str:
    """What was measured: the scenario, the model and the tasks."""
    return f"{run['scenario']} of {run['model']}" + (f", {' and '.join(run['tasks'])}" if run["engine"] else "")


def case(run: Run) -> str:
    """Which of a contestant's cases a run is: its pages, file, operation or batch."""
    return str(run.get("pages") or run.get("file") or run.get("operation") or f"batch {run['batch']}")


def headline(found: Results) -> str:
    """What was measured, on which machine, and when."""
    run = found["runs"][0]
    facts = run["environment"]
    flags = ", ".join(facts["cpu_flags"]) or "no vector extension we know"
    gpus = "".join(f"; {gpu['name']}, driver {gpu['driver']}" for gpu in facts["gpu"])
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    threads = {None: "all cores", 1: "one thread"}.get(run["threads"], f"{run['threads']} threads")
    how = f", held to {run['instruction_set']}" if run["instruction_set"] else ""
    if "rounds" in found:
        how += f", {found['rounds']} {'rounds, interleaved' if found['together'] else 'turns, each loaded anew'}"
    return (
        f"{subject(run)}, on {run['device']} ({threads}){how}\n"
        f"{facts['cpu']} with {flags}; {facts['memory_bytes'] / 1e9:.0f} GB{gpus}; {facts['system']}\n"
        f"Python {facts['python']}, {packages}; revision {facts['revision'] or 'unknown'}; {facts['date']}"
    )


def notes(found: Results) -> list[str]:
    """The lines below the tables: the contestants, peaks, fidelity, the baseline, and warnings."""
    runs = found["runs"]
    lines = [
        *names(runs),
        *_chosen(found),
        *_peaks(runs),
        *_fidelities(runs),
        *_differences(runs),
        *_bits(runs),
        *_baseline(runs),
        *warnings(found),
    ]
    return list(dict.fromkeys(lines))


def warnings(found: Results) -> list[str]:
    """Why the numbers may be fewer or less exact than they look."""
    lines = ["interrupted: these are the rounds that were done"] if found["interrupted"] else []
    return lines + ([f"warning: {found['noise']['warning']}"] if found["noise"]["warning"] else [])


def names(runs: Sequence[Run]) -> list[str]:
    """What the contestants are."""
    theirs = [
        f"{run['contestant']} is {run['full_name']}" + (f", in {run['precision']}" if run["stations_ms"] else "")
        for run in runs
        if run["is_peer"]
    ]
    ours = [run for run in runs if run["engine"] and run["kernels"]]
    return [f"{run['contestant']} computes with {run['kernels']}" for run in ours] + theirs


def _chosen(found: Results) -> list[str]:
    """Which engine was chosen where none was asked for."""
    return [f"engine of {precision}, chosen: {choice}" for precision, choice in found.get("chosen", {}).items()]


def _peaks(runs: Sequence[Run]) -> list[str]:
    return [
        f"measured peak, {run['precision']}: {run['peak']['gops']:.0f} "
        f"{'GOP/s' if run['precision'].startswith('int') else 'GFLOP/s'} by {run['peak']['by']} "
        f"({' x '.join(map(str, run['peak']['shape']))})"
        for run in runs
        if run["peak"]
    ]


def _fidelities(runs: Sequence[Run]) -> list[str]:
    """How far each precision moves scores."""
    lines = []
    for run in runs:
        report = run["fidelity"]
        if report:
            lines.append(
                f"fidelity of {run['contestant']}: score {number(report['mean_delta'], 2)} off in the mean, "
                f"{number(report['max_delta'], 2)} at most, SRCC {report['srcc']:.5f}, against {report['against']} on "
                f"{report['pictures']}"
            )
        elif run["precision"] and not run["is_peer"]:
            lines.append(f"fidelity of {run['contestant']}: not measured (qalign-fast verify)")
    return lines


def _differences(runs: Sequence[Run]) -> list[str]:
    """The largest difference of scores over batches, for each pair that was compared."""
    largest: dict[tuple[str, str], float] = {}
    for run in runs:
        if run["against"] and (found := run["against"]["largest_score_difference"]) is not None:
            pair = run["contestant"], run["against"]["contestant"]
            largest[pair] = max(largest.get(pair, 0.0), found)
    return [f"scores of the same pictures, {a} and {b}: at most {number(d, 2)} apart" for (a, b), d in largest.items()]


def _bits(runs: Sequence[Run]) -> list[str]:
    """Whether all contestants gave the same pixels of each file."""
    found: dict[str, set[str]] = {}
    for run in runs:
        if "sha256" in run:
            found.setdefault(run["file"], set()).add(run["sha256"])
    differ = [file for file, hashes in found.items() if len(hashes) > 1]
    if not found:
        return []
    return [f"pixels differ between contestants: {', '.join(differ)}" if differ else "pixels: equal, bit for bit"]


def _baseline(runs: Sequence[Run]) -> list[str]:
    compared = [run for run in runs if run["baseline"] and not run["is_peer"]]
    if not compared:
        return []
    best = max(compared, key=lambda run: run["images_per_second"])
    base = best["baseline"]
    text = f"against the {base['images_per_second']:.0f} fps {base['device']} baseline of the paper's summary: "
    if base["ratio"] is None:
        return [f"{text}not compared, for this model is not OneAlign's geometry"]
    speed = f"{number(best['images_per_second'])} pictures/s, {number(base['ratio'], 2)} of it"
    return [f"{text}{speed}, by {best['contestant']} at batch {best['batch']} on {base['measured_on']}"]
