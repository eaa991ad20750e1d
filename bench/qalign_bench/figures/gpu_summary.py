"""The JSON files that gpu.sh leaves in a folder in, a few tables out, with the measured beside the predicted.

    python -m qalign_bench.figures.gpu_summary bench/results [--predicted bench/predicted.json]

It reads the files that are there, for it also runs after a measurement that was cut off. Predictions are a JSON list of
{"gpu", "precision", "batch", "ms", "pictures_per_second", "stages": {name: ms}}: `gpu` is part of the device's name,
`ms` is the time of a batch, and a stage is "encode", "decode" or one of `KINDS` below.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = Any
Lines: TypeAlias = list[list[str]]  # of a table; a line is a list of cells
_SHOWN = 20  # tests that fail
# kinds of kernels by a pattern of their names; the first that matches counts
KINDS = {
    "attention": r"_attend|fmha|flash|attention|sdpa",
    "norms, quantizing": r"_norm|_quantize|_swiglu|_finish_product",
    "products": r"multiply|gemm|gemv|nvjet|xmma|cutlass|matmul|splitK",
    "copies": r"^Mem(?:cpy|set)|CatArray|copy_kernel",
    "other": "",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--predicted", type=Path, help="default: bench/predicted.json")
    options = parser.parse_args()
    predicted = read(options.predicted or Path(__file__).parents[2] / "predicted.json") or []
    print("\n\n".join(text(*part) for part in tables(options.folder, predicted) if part[1]))


def read(path: Path) -> Json:
    """A file's JSON; None for a file that is not there or was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def tables(folder: Path, predicted: Sequence[Json]) -> Iterator[tuple[list[str], Lines]]:
    """A header and its lines for each kind of result. Kinds that the folder has none of come without lines."""
    files = [(path, read(path)) for path in sorted(folder.glob("gpu_*.json"))]
    known = [(path.stem.removeprefix("gpu_"), found) for path, found in files if found is not None]
    profiles = [profile for name, found in known if name.startswith("profile_") for profile in found]
    benches = [(name, found) for name, found in known if name.startswith(("throughput_", "peer_", "tuned_"))]
    runs = [run | {"file": name} for name, found in benches for run in found["runs"]]
    yield SPEED, [speed(run, prediction(run, predicted)) for run in runs]
    yield STAGES, [line for run in runs for line in stages(run, profiles, prediction(run, predicted))]
    yield PROFILE, [step(profile) for profile in profiles]
    yield TESTS, tests(folder / "gpu_tests.txt")
    yield GRAPHS, [line for name, found in known if name == "graphs" for line in graphs(found)]
    yield CEILINGS, [line for name, found in known if name == "ceilings" for line in ceilings(found["rows"])]
    yield TILES, [line for name, found in known if name.startswith("tune_") for line in tiles(found["times"])]


SPEED = [
    "measured",
    "contestant",
    "batch",
    "pictures/s",
    "predicted",
    "ratio",
    "ms",
    "GB",
    "of the peak",
    "times as fast",
]
STAGES = ["contestant", "batch", "stage", "ms", "predicted", "ratio"]
PROFILE = ["a step of", "batch", "us", "gaps", "kernels and copies"]
TESTS = ["tests on the device", ""]
GRAPHS = ["graphs beside direct launches", "batch", "largest difference of a logit"]
CEILINGS = ["of libraries", "shape", "TFLOPS, TOPS or GB/s"]
TILES = ["product", "M x K x N", "fastest", "us", "TOPS", "us by rule", "us of torch", "times as fast as the rule"]


def prediction(run: Json, predicted: Sequence[Json]) -> Json | None:
    """The prediction for a run of our own engine; None where there is none."""
    for one in [] if run["is_peer"] else predicted:
        here = one["gpu"].lower() in run["device"].lower()
        if here and (one["precision"], one["batch"]) == (run["precision"], run["batch"]):
            return one
    return None


def speed(run: Json, expected: Json | None) -> list[str]:
    """A line of SPEED."""
    rate, memory, against = run["images_per_second"], run["peak_memory_bytes"]["device"], run["against"]
    foreseen = expected["pictures_per_second"] if expected else None
    return [
        run["file"],
        run["contestant"],
        str(run["batch"]),
        f"{rate:.1f}",
        number(foreseen),
        number(rate / foreseen if foreseen else None, 2),
        f"{run['ms_p50']:.2f}",
        number(memory / 1e9 if memory else None, 2),
        f"{100 * run['peak_share']:.0f} %" if run["peak_share"] else "-",
        number(against["times_as_fast"] if against else None, 2),
    ]


def stages(run: Json, profiles: Sequence[Json], expected: Json | None) -> Iterator[list[str]]:
    """Lines of STAGES: encode and decode of a run of ours, and the kinds of kernels where a profile was taken."""
    if run["is_peer"]:
        return
    measured = dict(run["stations_ms"])
    for profile in profiles:
        if (profile["precision"], profile["batch"]) == (run["precision"], run["batch"]):
            measured |= kinds(profile)
    foreseen = expected["stages"] if expected else {}
    for name, ms in measured.items():
        ratio = ms / foreseen[name] if foreseen.get(name) else None
        yield [run["contestant"], str(run["batch"]), name, f"{ms:.3f}", number(foreseen.get(name), 3), number(ratio, 2)]


def kinds(profile: Json) -> dict[str, float]:
    """The milliseconds of a step by kind of kernel."""
    found: dict[str, float] = defaultdict(float)
    for kernel in profile["kernels"]:
        kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel["name"]))
        found[kind] += kernel["us"] / 1e3
    return found


def step(profile: Json) -> list[str]:
    """A line of PROFILE."""
    launches = sum(kernel["times"] for kernel in profile["kernels"])
    gaps = f"{100 * profile['gap_share']:.1f} %"
    return [profile["precision"], str(profile["batch"]), f"{profile['step_us']:.0f}", gaps, str(launches)]


def tests(path: Path) -> Lines:
    """Lines of TESTS: the count of each outcome, as pytest names it, and the tests that did not pass."""
    if not path.is_file():
        return []
    # "name PASSED [ 5%]", or with several processes "[gw1] [  5%] PASSED name"
    found = re.findall(
        r"^(?:\[gw\d+\] \[.*?\] (\w+) (\S.*)|(\S+::.*) ([A-Z]{4,}) +\[.*)$", path.read_text(), re.MULTILINE
    )
    outcomes = [(a or d, b or c) for a, b, c, d in found]
    counts = Counter(outcome for outcome, _ in outcomes)
    bad = [[name.strip(), outcome] for outcome, name in outcomes if outcome in ("FAILED", "ERROR")]
    return [[outcome.lower(), str(count)] for outcome, count in counts.items()] + bad[:_SHOWN]


def graphs(found: Json) -> Iterator[list[str]]:
    """Lines of GRAPHS."""
    for row in found["batches"]:
        yield [row["precision"], str(row["batch"]), f"{row['largest_difference']:g}"]


def ceilings(rows: Sequence[Json]) -> Iterator[list[str]]:
    """Lines of CEILINGS, one for each shape."""
    by_shape: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        rate = row.get("tops") or row.get("gbs")
        place = row["what"], " x ".join(map(str, row["shape"]))
        by_shape[place].append(f"{row['by']} {number(rate) if rate else 'fails'}")
    for (what, shape), cells in by_shape.items():
        yield [what, shape, ", ".join(cells)]


def tiles(times: Sequence[Json]) -> Iterator[list[str]]:
    """Lines of TILES: the fastest tile of each product."""
    products: dict[tuple[str, str], list[Json]] = defaultdict(list)
    for time in times:
        if time["seconds"] is not None:
            products[time["form"], f"{time['m']} x {time['k']} x {time['n']}"].append(time)
    for (form, shape), found in products.items():
        best = min(found, key=lambda time: time["seconds"])
        by = {time["by"]: time["seconds"] for time in found}
        name = " ".join([best["by"], *map(str, best["tile"] or ())])
        cells = [
            number(1e6 * seconds if seconds else None) for seconds in (best["seconds"], by.get("rule"), by.get("torch"))
        ]
        gain = by["rule"] / best["seconds"] if "rule" in by else None
        yield [form, shape, name, cells[0], number(best["tops"], 0), *cells[1:], number(gain, 2)]


def number(value: float | None, decimals: int = 1) -> str:
    """A number with so many decimals; "-" for None."""
    return "-" if value is None else f"{value:.{decimals}f}"


def text(header: Sequence[str], lines: Lines) -> str:
    """A table as text, each column as wide as its widest cell."""
    rows = [list(header), *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    main()
