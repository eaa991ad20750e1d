"""Rows of scores as a job and `score` write them, made up: Parquet, JSON lines, CSV, and a job's folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qalign_fast.levels import LEVELS, level_of

MODEL = {"name": "tiny", "sha256": "ab" * 32, "precision": "int8"}
JOB = {
    "model": MODEL,
    "options": {"fps": 1.0, "background": None},
    "options_sha256": "cd" * 32,
    "tasks": ["quality"],
    "scale": [1.0, 5.0],
}
KINDS = ("parquet", "jsonl", "csv")
FAULTS = (("failed", "not an image"), ("unavailable", "timed out"))
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "camera", "task")),
        *((name, pa.float64()) for name in ("score", "score01")),
        ("probabilities", pa.struct([(word, pa.float64()) for word in LEVELS])),
        ("level", pa.string()),
        ("frames", pa.int32()),
        *((name, pa.string()) for name in ("sha256", "status", "error")),
        ("warnings", pa.list_(pa.string())),
        ("milliseconds", pa.float64()),
    ]
)

Row = dict[str, Any]


def made_rows(count: int, *, seed: int = 0, task: str = "quality", faults: float = 0.1) -> list[Row]:
    """Scores of made-up pictures in three folders; some of them are errors."""
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet([2, 4, 4, 2, 1], count)
    found = []
    for i, p in enumerate(probabilities):
        row = scored_row(f"set{i % 3}/{i:05}.jpg", round(float(p @ [5, 4, 3, 2, 1]), 4), task=task)
        row |= {"camera": ("Nikon", "Canon", None)[i % 3], "milliseconds": round(float(draw.gamma(2, 20)), 3)}
        row["probabilities"] = dict(zip(LEVELS, p.tolist()))
        if draw.random() < faults:
            status, message = FAULTS[i % 2]
            row |= dict.fromkeys(("score", "score01", "probabilities", "level"))
            row |= {"status": status, "error": f"{row['source']}: {message}"}
        found.append(row)
    return found


def scored_row(source: str, score: float, *, task: str = "quality", **more: Any) -> Row:
    """A row of Parquet's fields with a score."""
    row: Row = dict.fromkeys(SCHEMA.names)
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    row |= {"source": source, "task": task, "score": score, "score01": (score - 1) / 4, "status": "ok"}
    return row | {"level": level_of(score, 1, 5), "sha256": digest} | more


def write_rows(path: Path, rows: list[Row], job: dict[str, Any] | None = JOB) -> Path:
    """A file of the kind that the suffix says. Only Parquet holds the job."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        metadata = {} if job is None else {b"qalign.job": json.dumps(job).encode()}
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata)), path, row_group_size=64)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "ascii")
    else:
        at = SCHEMA.names.index("probabilities")
        out = io.StringIO()
        writer = csv.DictWriter(out, [*SCHEMA.names[:at], *LEVELS, *SCHEMA.names[at + 1 :]], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | (row["probabilities"] or {}) for row in rows)
        path.write_bytes(out.getvalue().encode("utf-8", "surrogateescape"))
    return path


def scores_of(rows: list[Row]) -> np.ndarray:
    """Of the rows that have one."""
    return np.array([row["score"] for row in rows if row["error"] is None])
