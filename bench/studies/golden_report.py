"""Measures how exact the engines are, on the golden models and on the mini model: docs/measured.md has the table.

PYTHONPATH=tests:export python bench/studies/golden_report.py --json bench/results/golden_report.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qalign_bench.figures.environment import environment
from qalign_export.fidelity import compare
from qalign_export.options import ExportOptions
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from qalign_fast.analysis.resampling import Bootstrap
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.load import load_engine
from qalign_fast.references import EMBEDDED
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_train.evaluate import FAMILIES, distorted, evaluate, family_means
from support.goldens import FOLDERS, GOLDEN, ROOT

SEVERITIES = 18  # of each picture and family: more than 500 pictures


def main() -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description="How exact the engines are.")
    parser.add_argument("--json", type=Path, required=True, help="write the figures and the machine here")
    args = parser.parse_args()
    results = evaluate(Scorer.load())
    found = {
        "environment": environment(),
        "logits": logits(),
        "mini": {
            "spearman": family_means(results),
            "margin": min(result.margin for result in results),
            "pictures": len(results),
            "bytes": sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()),
        },
        "rounding": list(rounding()),
    }
    args.json.write_text(json.dumps(found, indent=1) + "\n")


def logits() -> dict[str, float]:
    """The largest difference from upstream's logits, in float32, by engine."""
    with tempfile.TemporaryDirectory() as folder:
        exported = {name: load_engine(export_artifact(GOLDEN / name, Path(folder) / name)) for name in FOLDERS}
        return {
            "torch": worst_logits({name: load_engine(GOLDEN / name) for name in FOLDERS}),
            "onnx": worst_logits(exported),
        }


def rounding() -> Iterator[dict[str, Any]]:
    """What each precision moves scores by, on damaged pictures the mini model was never trained on."""
    pictures = distorted(SEVERITIES)
    versions = len(FAMILIES) * SEVERITIES  # of each held-out picture, by family and rising severity
    scenes = [str(i // versions) for i in range(len(pictures))]
    worth = -np.array([i % SEVERITIES for i in range(len(pictures))], float)
    exact = {"quality": Scorer.load(ROOT / "models/mini").score(pictures)}
    for precision, kept in PRECISIONS.items():
        if precision == "fp32":
            continue
        engines = [engine for engine in kept.engines if engine != "onnx-cuda"]
        with tempfile.TemporaryDirectory() as folder:
            out, calibration = Path(folder) / precision, generate_pictures(16)
            options = ExportOptions(precision, engines, ["quality"], calibration=calibration)
            export_artifact(ROOT / "models/mini", out, options)
            for engine in engines:
                scores = {"quality": Scorer.load(out, engine=engine).score(pictures)}
                named = f"{len(pictures)} damaged and held out"
                report = compare(scores, exact, against="mini", pictures=named, scenes=scenes)
                old, new = (np.array([score.value for score in s["quality"]]) for s in (exact, scores))
                change = Bootstrap(scenes).srcc_change(old, new, worth)
                yield {"precision": precision, "engine": engine, **asdict(report), "srcc_change": asdict(change)}


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
                found = np.concatenate([engine.decode(x, prompt) for x in inputs])
                worst = max(worst, float(np.abs(found - expected[name]).max()))
    return worst


if __name__ == "__main__":
    main()
