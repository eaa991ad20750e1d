"""An adapter exports as the checkpoint that merging makes, and its artifact says what it was made of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from qalign_export.command import read_prompts
from qalign_export.fidelity import verify
from qalign_export.options import ExportOptions
from qalign_export.parameters import open_parameters
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from qalign_fast import OptionError
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import ModelWarning
from qalign_fast.families.mplug_owl2.prompts import prompt
from support.command_line import run
from support.goldens import GOLDEN, Golden

LORA, BASE = GOLDEN / "lora-112", GOLDEN / "narrow-112"
EXPECTED = np.load(LORA / "expected.npz")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_an_exported_adapter_gives_the_authors_logits(engine: str, narrow: Golden, tmp_path: Path) -> None:
    out = export_artifact(LORA, tmp_path / "a", ExportOptions(engines=(engine,)))
    model = load_engine(out, LoadOptions(engine=engine))
    tokens = model.encode(narrow.expected["resized_uint8"])
    for task in ("quality", "aesthetics", "aesthetic", "quality-paper"):
        found = model.decode(tokens, prompt(task))
        np.testing.assert_allclose(found, EXPECTED[f"merged_logits_{task}_image"], rtol=0, atol=2e-4)


def test_an_int8_artifact_says_both_hashes_and_is_close_to_the_adapter(narrow: Golden, tmp_path: Path) -> None:
    out = export_artifact(LORA, tmp_path / "a", ExportOptions("int8", calibration=generate_pictures(8)))
    source, base = open_artifact(out).manifest.source, open_parameters(BASE)
    assert source == {
        "name": "lora-112",
        "sha256": open_parameters(LORA).sha256(),
        "base": {"name": "narrow-112", "sha256": base.sha256()},
    }
    assert source["sha256"] != base.sha256()
    mine, plain = (verify(out, against, narrow.pictures)["onnx"] for against in (LORA, BASE))
    assert mine.against == "lora-112"
    assert mine.mean_delta < plain.mean_delta / 4


def test_the_hash_is_of_the_adapters_own_files(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LORA, tmp_path / "a"))
    found = {open_parameters(folder, BASE).sha256()}
    for name in ("adapter_config.json", "config.json"):
        (folder / name).write_text((folder / name).read_text() + "\n")
        found.add(open_parameters(folder, BASE).sha256())
    (folder / "non_lora_trainables.bin").unlink()
    (folder / "config.json").unlink()
    found.add(open_parameters(folder, BASE).sha256())
    assert len(found) == 4


def test_the_base_may_be_given(tmp_path: Path, narrow: Golden) -> None:
    folder = Path(shutil.copytree(LORA, tmp_path / "a"))
    assert "not found" in run("export", folder, tmp_path / "b").stderr
    made = run("export", folder, tmp_path / "b", "--base", BASE)
    assert "onnx against its source" in made.stderr
    told = run("verify", tmp_path / "b", *narrow.pictures, "--against", folder, "--base", BASE, "--max-delta", "1e-4")
    assert told.returncode == 0, told.stderr
    alone = run("verify", tmp_path / "b", "--base", BASE)
    assert alone.returncode == 2
    assert "need --against" in alone.stderr
    for source in (BASE, f"random:{BASE}"):
        with pytest.raises(OptionError, match=f"base {BASE}"):
            open_parameters(source, BASE)


def test_an_inverted_adapters_artifact_is_warned_of(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LORA, tmp_path / "q-align-live-lora-1"))
    with pytest.warns(ModelWarning, match="split of LIVE"):
        out = export_artifact(folder, tmp_path / "any-name", ExportOptions(base=BASE))
    with pytest.warns(ModelWarning, match="split of LIVE"):
        load_engine(out)
    facts = run("info", out).stdout
    assert re.search("trained for +quality of images", facts)
    assert re.search("warning +q-align-live-lora-1: its name says", facts)


def test_a_prompt_of_ones_own_takes_the_bases_tokenizer(tmp_path: Path) -> None:
    base = Path(shutil.copytree(BASE, tmp_path / "narrow-112"))
    folder = Path(shutil.copytree(LORA, tmp_path / "a"))
    shutil.copy(GOLDEN / "tokenizer.model", base)
    text = ["sharpness=How sharp is this image?\\n<image>\\nIt is"]
    assert read_prompts(text, None, str(folder), str(base)) == read_prompts(text, base / "tokenizer.model", str(folder))
