"""`bench jobs` in small: every contestant scores every picture, and the table and its lines come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qalign_bench.cli import command
from qalign_bench.cli.options import Options
from qalign_bench.figures import job_tables
from qalign_bench.scenarios import jobs
from support.goldens import ROOT


def test_a_small_bench_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for name, value in {"_PICTURES": 6, "_SHARD": 2, "_PLANNED": 30, "_FOLDER": 5, "_workers": lambda: [1, 2]}.items():
        monkeypatch.setattr(jobs, name, value)
    monkeypatch.setattr(jobs, "default_workers", lambda: 2)
    files = tuple(str(path) for path in sorted((ROOT / "samples").glob("coffee*.jpg")))
    command.bench(Options("jobs", repeat=1, files=files, work=tmp_path), form="json")
    found = json.loads(capsys.readouterr().out)
    assert [run["contestant"] for run in found["runs"]] == ["feed", "job, 1 process", "job, 2 processes"]
    assert found["runs"][0]["of_feed"]["share"] == 1
    for run in found["runs"][1:]:
        assert set(run["stations_ms"]) == {"write", "flush", "hash", "journal"}
        assert run["of_feed"]["share"] == found["runs"][0]["ms_p50"] / run["ms_p50"]
    assert (found["planned_names"], found["folder_files"]) == (30, 5)
    shown = job_tables.document(found, "x.json")
    assert shown.count("\n| ") == 3
    assert "30 made-up names are planned" in shown
