"""The results of a bench: runs, their comparison, tables and plots. No test asserts how fast anything is."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qalign_bench.contestants.command_lines import SEED, our_contestant
from qalign_bench.figures import report, tables
from qalign_bench.figures.environment import environment
from qalign_bench.figures.flop import our_work, upstream_work
from qalign_bench.figures.runs import baseline, compare_runs
from qalign_bench.peers.measured_process import random_pictures
from qalign_bench.scenarios import forwards
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.levels import score_of
from qalign_fast.references import EMBEDDED
from support.bench import REQUIRED, session
from support.goldens import ROOT

BOTH = (prompt("quality"), prompt("aesthetics"))


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    """The embedded model beside the same with an engine that sleeps, in two rounds of one forward of two pictures."""
    made = session(scenario="latency", repeat=2, batches=(2,), engines=("native",))
    models = made.models()
    ours = our_contestant(models[0], made.options)
    slow = dataclasses.replace(ours, name="slow", argv=(sys.executable, str(ROOT / "tests/support/slow_worker.py")))
    forwards.compare(made, models, [ours, slow])
    return report.results(made)


def test_a_slowed_engine_is_reported_slower(compared: dict[str, Any]) -> None:
    ours, slow = compared["runs"]
    assert slow["images_per_second_range"][1] < ours["images_per_second_range"][0]
    assert ours["against"]["contestant"] == "slow"
    assert ours["against"]["range"][0] > 1
    assert ours["against"]["largest_score_difference"] == 0
    assert slow["stations_ms"]["encode"] > ours["stations_ms"]["encode"]


def test_scores_are_the_engines_own_for_the_pictures_of_the_seed(compared: dict[str, Any]) -> None:
    engine = load_engine(EMBEDDED, LoadOptions(engine="native"))
    pixels = random_pictures(SEED, 2, engine.config.pixels.side)
    logits = engine.decode(engine.encode(pixels), engine.prompts[0])
    expected = [score_of(row, "quality").value for row in logits]
    np.testing.assert_allclose(compared["runs"][0]["scores"], [expected], rtol=0, atol=1e-6)


def test_a_run_has_every_key_and_they_agree(compared: dict[str, Any]) -> None:
    config = open_artifact(EMBEDDED).manifest.config
    works = our_work(config, BOTH[:1]), upstream_work(config, BOTH[:1])  # what is no model of ours is a peer
    for run, work in zip(compared["runs"], works, strict=True):
        assert all(run[key] is not None for key in REQUIRED)
        assert run["images_per_second"] == pytest.approx(2e3 / run["ms_p50"])
        assert run["ms_p50"] <= run["ms_p90"] <= run["ms_p99"]
        low, high = run["images_per_second_range"]
        assert low <= run["images_per_second"] <= high
        assert run["timed"] == compared["rounds"] == 2
        assert run["gflop_per_image"] == pytest.approx(1e-9 * work.total)
        assert run["peak_share"] == pytest.approx(
            run["gflop_per_image"] * run["images_per_second"] / run["peak"]["gops"]
        )
        assert run["peak_memory_bytes"]["host"] > 50e6
        assert run["baseline"]["ratio"] is None
        assert run["baseline"]["measured_on"] == run["device"]
    json.dumps(compared)


def test_tables_say_what_belongs_beside_a_number(compared: dict[str, Any]) -> None:
    text, markdown = report.as_text(compared), report.as_markdown(compared)
    for shown in (text, markdown):
        assert "against the 23 fps RTX 3090 baseline of the paper's summary: not compared" in shown
        assert "int8 native computes with plain numpy" in shown
        assert "SRCC" in shown
        assert "measured peak, int8:" in shown
        assert environment()["cpu"] in shown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 8
    assert len({line.count("|") for line in rows[:4]}) == 1


def test_only_one_align_is_compared_with_the_baseline() -> None:
    assert baseline(46, "H100", True)["ratio"] == 2
    assert baseline(46, "H100", False)["ratio"] is None
    run = {"contestant": "int8 torch", "images_per_second": 46.0, "batch": 4, "is_peer": False}
    [line] = report._baseline([run | {"baseline": baseline(46, "H100", True)}])
    assert line.endswith("46.0 pictures/s, 2.0 of it, by int8 torch at batch 4 on H100")


def test_runs_are_compared_with_a_peer_of_the_same_batch() -> None:
    runs: list[dict[str, Any]] = [
        {"contestant": name, "is_peer": name == "peer", "batch": batch, "ms_round_medians": times, "scores": [[score]]}
        for name, batch, times, score in (("a", 1, [1, 2], 3.0), ("peer", 1, [3, 4], 3.5), ("a", 2, [5], 3.0))
    ]
    compare_runs(runs)
    assert runs[0]["against"] == {
        "contestant": "peer",
        "times_as_fast": 2,
        "range": [2, 3],
        "largest_score_difference": 0.5,
    }
    assert "against" not in runs[1]
    assert "against" not in runs[2]


@pytest.mark.parametrize(
    ("value", "shown"), [(1234.5, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (0, "0"), (None, "")]
)
def test_numbers_keep_three_digits(value: float | None, shown: str) -> None:
    assert report.number(value) == shown


def test_a_bench_saved_as_json_becomes_a_table(compared: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mini.json").write_text(json.dumps(compared))
    made = tables.with_tables("a\n<!-- table: mini -->\nold\n<!-- end -->\nb", tmp_path)
    ours, slow = compared["runs"]
    for run in (ours, slow):
        assert f"| {run['contestant']} | {report.number(run['images_per_second'])} |" in made
    assert f"| {report.number(ours['against']['times_as_fast'])} (" in made
    assert made.startswith("a\n<!-- table: mini -->\n| contestant |")
    assert made.endswith(
        f"{ours['environment']['date'][:10]}; {'; '.join(report.names([ours, slow]))}; measured peaks in "
        f"GOP/s: int8 {report.number(ours['peak']['gops'])}.\n<!-- end -->\nb"
    )
    with pytest.raises(SystemExit, match="no '<!-- end -->'"):
        tables.with_tables("<!-- table: mini -->\n", tmp_path)


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_plots_are_drawn(compared: dict[str, Any], scenario: str, tmp_path: Path) -> None:
    from qalign_bench.figures.plot import draw

    more = [run | {"batch": 4} for run in compared["runs"]]
    draw(compared | {"scenario": scenario, "runs": [*compared["runs"], *more]}, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG"
        colours = {colour[:3] for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= colours  # two contestants, or two stations
