"""Measures what a table of the documentation says about the mini and the golden models, and prints the table's rows.

PYTHONPATH=tests:export python bench/studies/golden_report.py        after `make test` has run
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from qalign_export.fidelity import compare, generate_pictures
from qalign_export.rounding.pack import Recipe
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import EMBEDDED
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.load import load_engine
from qalign_train.evaluate import distorted, evaluate, family_means
from support.goldens import FOLDERS, GOLDEN, ROOT


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: load_engine(GOLDEN / name) for name in FOLDERS}
        row(
            "logits against upstream's code, torch, largest difference",
            f"{worst_logits(engines):.1e}",
            "three golden models",
        )
        engines = {name: load_engine(export_artifact(GOLDEN / name, Path(folder) / name)) for name in FOLDERS}
        row("the same, ONNX", f"{worst_logits(engines):.1e}", "the same, exported")
    row("`import qalign_fast`", f"{import_time():.0f} ms", "median of 9 processes")
    row("process start to first score, mini", f"{start_up():.2f} s", "median of 5 processes, a 600x400 JPEG")
    scorer = Scorer.load()
    for name, what in (
        ("astronaut_12mp.jpg", "12 MP JPEG to score, mini"),
        ("coffee.jpg", "600x400 JPEG to score, mini"),
    ):
        row(what, f"{score_time(scorer, ROOT / 'samples' / name) * 1e3:.0f} ms", "median of 15, after start-up")
    results = evaluate(scorer)
    means = family_means(results)
    families = ", ".join(f"{family} {mean:.2f}" for family, mean in means.items())
    row("mini: Spearman of score and severity", f"{np.mean(list(means.values())):.3f}", families)
    row(
        "mini: pristine above its worst version, at least",
        f"{min(r.margin for r in results):.2f}",
        "seven pictures never trained on",
    )
    row("mini: size", f"{sum(f.stat().st_size for f in EMBEDDED.rglob('*') if f.is_file()) / 1e6:.1f} MB", "int8")
    rounding()


def rounding() -> None:
    """How far each precision moves scores, on damaged pictures that the mini model was never trained on."""
    pictures = distorted(18)
    exact = {"quality": Scorer.load(ROOT / "models/mini").score(pictures)}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp16", "int8", "int4"):
            out, calibration = Path(folder) / precision, generate_pictures(16)
            options = {"engines": ("onnx", "torch"), "tasks": ["quality"], "calibration": calibration}
            export_artifact(ROOT / "models/mini", out, recipe=Recipe(precision), **options)
            for engine in ("onnx", "torch"):
                found = {"quality": Scorer.load(out, engine=engine).score(pictures)}
                r = compare(found, exact, against="mini", pictures="")
                how = f"{len(pictures)} damaged held-out pictures: mean, largest, SRCC lost"
                value = f"{r.mean_delta:.4f}, {r.max_delta:.3f}, {1 - r.srcc:.5f}"
                row(f"mini {precision}, {engine}: change of score", value, how)


def row(what: str, value: str, how: str) -> None:
    """Prints one row."""
    print(f"| {what} | {value} | {how} |", flush=True)


def worst_logits(engines: dict[str, Engine]) -> float:
    """The largest difference of a logit from upstream's, over all pictures, clips and prompts."""
    worst = 0.0
    for folder, engine in engines.items():
        expected = np.load(GOLDEN / folder / "expected.npz")
        tokens = engine.encode(expected["resized_uint8"])
        width = tokens.shape[-1]
        clips = (tokens[:3].reshape(1, -1, width), tokens[2:3])
        for prompt in engine.prompts:
            name = f"logits_{prompt.task}_{prompt.medium}"
            if name in expected:
                inputs = (tokens,) if prompt.medium == "image" else clips
                logits = np.concatenate([engine.decode(x, prompt) for x in inputs])
                worst = max(worst, float(np.abs(logits - expected[name]).max()))
    return worst


def import_time() -> float:
    """Milliseconds of `import qalign_fast`."""
    code = "import time; t = time.perf_counter(); import qalign_fast; print((time.perf_counter() - t) * 1e3)"
    return statistics.median(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(9))


def start_up() -> float:
    """Seconds of a process that scores one picture."""
    code = f"from qalign_fast import Scorer; Scorer.load().score({str(ROOT / 'samples/coffee.jpg')!r})"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def score_time(scorer: Scorer, path: Path) -> float:
    """Seconds from a file to its score, without the first three."""
    times = []
    for _ in range(18):
        start = time.perf_counter()
        scorer.score(path)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


if __name__ == "__main__":
    main()
