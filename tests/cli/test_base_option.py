"""`--base` in the commands that have it, what `info` says of an adapter, and remarks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qalign_fast.identity import hash_model
from qalign_fast.levels import score_of
from qalign_fast.serve.served import facts_of, load_scorer
from qalign_fast.serve.settings import Settings
from support.command_line import run
from support.goldens import GOLDEN, PICTURES

BASE = GOLDEN / "narrow-112"
PICTURE = PICTURES / "chelsea_small.png"


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """An adapter without its base beside it, whose name says that it is inverted."""
    return Path(shutil.copytree(GOLDEN / "lora-112", tmp_path / "q-align-live-lora-2"))


def expected() -> float:
    index = list(np.load(BASE / "expected.npz")["picture_names"]).index(PICTURE.name)
    logits = np.load(GOLDEN / "lora-112" / "expected.npz")["merged_logits_quality_image"][index]
    return score_of(logits, "quality").value


def test_score(live: Path) -> None:
    alone = run("score", PICTURE, "--model", live)
    assert alone.returncode == 1
    assert "its base '../narrow-112' was not found" in alone.stderr
    done = run("score", PICTURE, "--model", live, "--base", BASE, "--task", "all")
    rows = {row["task"]: row["score"] for row in map(json.loads, done.stdout.splitlines())}
    assert rows["quality"] == pytest.approx(expected(), abs=1e-4)
    assert done.stderr.count("warning: q-align-live-lora-2: its name says that it was trained on Q-Align's") == 1
    assert "was trained for quality of images; it was not trained for aesthetics\n" in done.stderr
    assert "Warning" not in done.stderr


def test_a_base_of_no_adapter(live: Path) -> None:
    done = run("score", PICTURE, "--model", BASE, "--base", BASE)
    assert done.returncode == 1
    assert "is not a LoRA adapter" in done.stderr
    assert "these are the server's own" in run("score", PICTURE, "--model", "http://127.0.0.1:9", "--base", "x").stderr


def test_run_goes_on_with_the_same_adapter_and_base_alone(live: Path, tmp_path: Path) -> None:
    command = ("run", PICTURE, "--model", live, "--out", tmp_path / "out", "--format", "jsonl")
    assert run(*command, "--base", BASE).returncode == 0
    [row] = map(json.loads, (tmp_path / "out" / "part-00000.jsonl").read_text().splitlines())
    assert row["score"] == pytest.approx(expected(), abs=1e-4)
    assert run(*command, "--base", BASE).returncode == 0
    other = Path(shutil.copytree(BASE, tmp_path / "narrow-112"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    again = run(*command, "--base", other)
    assert again.returncode == 1
    assert "model" in again.stderr


def test_info(live: Path) -> None:
    facts = json.loads(run("info", live, "--base", BASE, "--json").stdout)
    assert facts["kind"] == "LoRA adapter"
    assert facts["base"] == str(BASE)
    assert facts["trained for"] == "quality of images"
    assert facts["decoder"] == "3 layers, 32 wide, 2048 positions"
    assert facts["warning"].startswith("q-align-live-lora-2: its name says")
    (live / "config.json").unlink()  # plain PEFT has none: the sizes are the base's
    assert json.loads(run("info", live, "--base", BASE, "--json").stdout) == facts
    plain = json.loads(run("info", BASE, "--json").stdout)
    assert plain["kind"] == "checkpoint"
    assert not {"base", "warning", "trained for"} & plain.keys()


@pytest.mark.filterwarnings("ignore::qalign_fast.errors.ModelWarning")
def test_serve(live: Path, tmp_path: Path) -> None:
    """A base is for the adapters among the models."""
    planned = run("serve", live, BASE, "--base", BASE, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    settings = Settings(models=(("live", str(live)), ("plain", str(BASE))), base=str(BASE))
    hashes = []
    for name, reference in settings.models:
        with load_scorer(reference, settings) as scorer:
            hashes.append(facts_of(name, reference, scorer, settings)["hash"])
            if name == "live":
                assert scorer.score(PICTURE).value == pytest.approx(expected(), abs=1e-4)
    assert hashes == [hash_model(live, BASE), hash_model(BASE)]
