"""Measures how far engines' scores of the mini model are from onnxruntime's, in the same precision, on 63 pictures.

PYTHONPATH=tests:export python bench/studies/engine_agreement.py --json bench/results/engine_agreement.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from qalign_bench.figures.environment import environment
from qalign_export.options import ExportOptions
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from qalign_train.evaluate import distorted
from support.goldens import ROOT

PRECISIONS = ("fp32", "int8")
ENGINES = ("torch", "openvino")
SEVERITIES = 18  # of each picture and family
PICTURES = 60  # about as many of them, evenly spread


def main() -> None:
    """Measures, and writes the JSON."""
    parser = argparse.ArgumentParser(description="How far engines are from onnxruntime.")
    parser.add_argument("--json", type=Path, required=True, help="write the figures and the machine here")
    args = parser.parse_args()
    found = [distances(precision) for precision in PRECISIONS]
    args.json.write_text(json.dumps({"environment": environment(), "distances": found}, indent=1) + "\n")


def distances(precision: str) -> dict[str, Any]:
    """Of the scores, 1..5: the largest and the mean difference by engine."""
    pictures = distorted(SEVERITIES)
    pictures = pictures[:: len(pictures) // PICTURES]
    with tempfile.TemporaryDirectory() as folder:
        options = ExportOptions(precision, ("onnx", "torch"), ["quality"], calibration=generate_pictures(16))
        artifact = export_artifact(ROOT / "models/mini", Path(folder) / precision, options)
        values = {name: _scores(artifact, name, pictures) for name in ("onnx", *ENGINES)}
    moved = {name: np.abs(values[name] - values["onnx"]) for name in ENGINES}
    return {
        "precision": precision,
        "pictures": len(pictures),
        "engines": {name: {"largest": float(by.max()), "mean": float(by.mean())} for name, by in moved.items()},
    }


def _scores(artifact: Path, engine: str, pictures: list[Any]) -> Any:
    with Scorer.load(artifact, engine=engine) as scorer:
        return np.array([score.value for score in scorer.score(pictures)])


if __name__ == "__main__":
    main()
