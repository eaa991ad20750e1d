"""An artifact's card, and the whole pushed to a Hub on this machine by the real client, and loaded back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from qalign_export.fidelity import verify
from qalign_fast import Scorer
from qalign_fast.adapters.hub_repository import CARD, CONFIG, MODELING, push, write_files
from qalign_fast.adapters.model_card import card_text
from qalign_fast.artifact.manifest import MANIFEST, Manifest, open_artifact
from qalign_fast.errors import ArtifactError, OptionError
from qalign_fast.families.published import published_id, trained_for
from qalign_fast.identity import identify_model
from support.command_line import CLI
from support.fake_hub import TOKEN, Hub, running_hub
from support.goldens import ROOT, Golden

ID = "someone/one-align-fp32"
PICTURE = str(ROOT / "samples" / "coffee.jpg")
FILES = {CARD, CONFIG, MODELING, MANIFEST, "prompts.safetensors", "preprocessor_config.json"}
FILES |= {"onnx/vision_encoder.onnx", "onnx/decoder_model.onnx"}


@pytest.fixture
def manifest(copy: Path) -> Manifest:
    return open_artifact(copy).manifest


def head_of(manifest: Manifest) -> dict[str, Any]:
    """What the Hub's own client reads at the card's head."""
    return ModelCard(card_text(manifest, ID)).data.to_dict()


def test_the_head_says_what_the_manifest_says(manifest: Manifest) -> None:
    assert head_of(manifest) == {
        "license": "unknown",
        "library_name": "qalign-fast",
        "pipeline_tag": "image-classification",
        "tags": [
            *("image-quality-assessment", "image-aesthetics-assessment"),
            *("video-quality-assessment", "video-aesthetics-assessment", "mplug_owl2", "fp32"),
        ],
    }


@pytest.mark.parametrize(
    ("name", "precision", "base"),
    [
        ("one-align", "int8", {"base_model": "q-future/one-align", "base_model_relation": "quantized"}),
        ("DeQA-Score-Mix3", "bf16", {"base_model": "zhiyuanyou/DeQA-Score-Mix3"}),
        ("my-one-align", "int8", {}),
    ],
)
def test_a_published_source_is_the_base_model(
    manifest: Manifest, name: str, precision: str, base: dict[str, str]
) -> None:
    head = head_of(replace(manifest, source={"name": name, "sha256": "0" * 64}, precision=precision))
    assert {key: value for key, value in head.items() if key.startswith("base")} == base


def test_every_hub_id_that_is_known_is_in_the_documents_table() -> None:
    table = (ROOT / "docs/family.md").read_text().partition("## Checkpoints")[2].partition("##")[0]
    listed = re.findall(r"^\| ([\w-]+/[^ ]+) \|", table, re.MULTILINE)
    written = [name.replace("-N", "-1") for name in listed if "{" not in name]
    written += [f"q-future/q-align-{part}-lora-1" for part in "agi cgi csiq live livec".split()]
    assert len(written) == len(listed) + 4 > 14
    for hub_id in written:
        name = hub_id.partition("/")[2]
        assert published_id(name) == hub_id and trained_for(name)
    assert published_id("One-Align") is published_id("one-align-int8") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("unknown; see the source checkpoint", {"license": "unknown"}),
        ("S-Lab: License 1.0", {"license": "other", "license_name": "s-lab-license-1.0"}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_keeps_its_name(
    manifest: Manifest, text: str, expected: dict[str, str]
) -> None:
    changed = replace(manifest, license=text)
    assert {key: value for key, value in head_of(changed).items() if key.startswith("license")} == expected
    assert f"| licence of the weights | {text} |" in card_text(changed, ID)


def test_fidelity_is_the_manifests_report_and_nothing_where_there_is_none(copy: Path, narrow: Golden) -> None:
    assert "Not measured; " in card_text(open_artifact(copy).manifest, ID)
    report = verify(copy, narrow.checkpoint, count=16)["onnx"]
    text = card_text(open_artifact(copy).manifest, ID)
    [row] = re.findall(r"^\| onnx \| narrow-112 \| (.*) \|$", text, re.MULTILINE)
    pictures, mean, most, srcc, flips = row.split(" | ")
    assert pictures == report.pictures
    assert (float(mean), float(most)) == (float(f"{report.mean_delta:.2g}"), float(f"{report.max_delta:.2g}"))
    assert srcc.split()[0] == f"{report.srcc:.5f}" and flips == f"{report.level_flips:.2%}"


def test_an_adapter_of_an_inverted_split_is_warned_of(manifest: Manifest) -> None:
    source = {"name": "q-align-csiq-lora-1", "sha256": "0" * 64, "base": {"name": "one-align", "sha256": "1" * 64}}
    text = card_text(replace(manifest, source=source), ID)
    assert "split of CSIQ" in text and f"| merged into | `one-align`, SHA-256 `{'1' * 64}` |" in text


def test_the_files_change_neither_hashes_nor_scores(copy: Path) -> None:
    before, score = identify_model(copy), Scorer.load(copy).score(PICTURE)
    write_files(copy)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == FILES
    assert identify_model(copy) == before
    assert open_artifact(copy).manifest.to_json() == (copy / MANIFEST).read_text()
    assert Scorer.load(copy).score(PICTURE) == score


def test_a_card_that_somebody_edited_is_kept(copy: Path) -> None:
    assert write_files(copy) == dict.fromkeys((CARD, CONFIG, MODELING), True)
    (copy / CARD).write_text("mine")
    assert write_files(copy) == {CARD: False, CONFIG: True, MODELING: True}
    assert (copy / CARD).read_text() == "mine"
    assert all(write_files(copy, force=True).values())
    assert "OWNER/narrow-112" in (copy / CARD).read_text()


def test_examples_name_the_repository_once_it_is_known(copy: Path) -> None:
    write_files(copy)
    assert all(write_files(copy, ID).values())
    text = (copy / CARD).read_text()
    assert text.count(f'"{ID}"') == 3 and "OWNER" not in text


def test_a_damaged_artifact_is_not_pushed(copy: Path) -> None:
    with (copy / "prompts.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ArtifactError, match="damaged or changed"):
        push(copy, ID)
    with pytest.raises(OptionError, match=r"'one-align' is not a repository's id; expected owner/name"):
        push(copy, "one-align")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "repository").mkdir()
    with running_hub(tmp_path / "repository", ID) as server:
        yield server


def run(hub: Hub, tmp_path: Path, *command: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [*map(str, command)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_TOKEN": token, **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


LOAD_BACK = f"""
import json, sys
import torch, transformers
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, pipeline
from qalign_fast import Scorer

def refuse(*_, **__):
    raise SystemExit("transformers loads or initializes weights")
transformers.PreTrainedModel.__init__ = transformers.PreTrainedModel.from_pretrained = refuse
repository, picture = sys.argv[1], {PICTURE!r}
found = {{"ours": Scorer.load(repository).score(picture).value}}
model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True, attn_implementation="eager",
                                             torch_dtype=torch.float16, device_map="auto")
found["causal"] = model.score([Image.open(picture)], task_="quality", input_="image").item()
found["auto"] = AutoModel.from_pretrained(repository, trust_remote_code=True, dtype="auto").score([picture]).item()
pipe = pipeline("image-quality-assessment", model=repository, trust_remote_code=True)
found["pipeline"] = pipe([picture], batch_size=4)[0][0]["rating"]
found["no task"] = pipeline(model=repository, trust_remote_code=True, device_map="auto")(picture, top_k=1)[0]["rating"]
try:
    AutoModel.from_pretrained(repository, trust_remote_code=False)
except ValueError as error:
    found["untrusted"] = "trust_remote_code=True" in str(error)
print(json.dumps(found))
"""


def test_what_was_pushed_is_there_and_loads_through_us_and_through_transformers(
    hub: Hub, copy: Path, tmp_path: Path
) -> None:
    (copy / "notes.txt").write_text("not for others")
    (copy / "LICENSE").write_text("of the weights")
    (hub.folder / "torch").mkdir()
    (hub.folder / "torch" / "model_int4.safetensors").write_bytes(b"of an artifact that was there before")
    (hub.folder / ".gitattributes").write_text("the Hub's")
    pushed = run(hub, tmp_path, *CLI, "card", copy, "--push", ID)
    assert (pushed.returncode, pushed.stdout) == (0, f"{hub.endpoint}/{ID}\n"), pushed.stderr
    assert set(hub.files()) == FILES | {"LICENSE", ".gitattributes"}
    for name in FILES:
        assert (hub.folder / name).read_bytes() == (copy / name).read_bytes()
    assert hub.commits == ["narrow-112, fp32"] and "private" not in str(hub.made)
    expected = Scorer.load(copy).score(PICTURE).value
    folder = run(hub, tmp_path, sys.executable, "-c", LOAD_BACK, hub.folder)
    by_id = run(hub, tmp_path, sys.executable, "-c", LOAD_BACK, ID)
    for loaded in (folder, by_id):
        assert loaded.returncode == 0, loaded.stderr
        found = json.loads(loaded.stdout)
        assert found.pop("untrusted")
        assert found == pytest.approx(dict.fromkeys(found, expected), abs=1e-6)
        assert list(found) == ["ours", "causal", "auto", "pipeline", "no task"]


REVISIONS = f"""
from qalign_fast.adapters.auto_model import AutoModel
from qalign_fast.errors import ArtifactError
for revision in ("main", "v2"):
    try:
        print(AutoModel.from_pretrained({ID!r}, revision=revision, cache_dir="elsewhere").score([{PICTURE!r}]).shape)
    except ArtifactError as error:
        print(error)
print(AutoModel.from_pretrained({ID!r}, cache_dir="elsewhere", local_files_only=True).scorer.engine.name)
"""


def test_a_revision_that_is_not_there_is_not_another_one(hub: Hub, copy: Path, tmp_path: Path) -> None:
    for file in copy.rglob("*"):
        if file.is_file():
            (hub.folder / file.relative_to(copy)).parent.mkdir(exist_ok=True)
            (hub.folder / file.relative_to(copy)).write_bytes(file.read_bytes())
    done = run(hub, tmp_path, sys.executable, "-c", REVISIONS)
    main, v2, offline = done.stdout.splitlines()
    assert (main, offline) == ("torch.Size([1])", "onnx")
    assert v2.startswith(f"{ID}: no such directory, and it could not be fetched from the Hub (")
    assert (tmp_path / "elsewhere").is_dir() and not (tmp_path / "cache" / "hub").exists()


def test_a_refusal_is_one_line_and_uploads_nothing(hub: Hub, copy: Path, tmp_path: Path) -> None:
    refused = run(hub, tmp_path, *CLI, "card", copy, "--push", ID, token="hf_wrong")
    assert refused.returncode == 1 and refused.stdout == ""
    assert re.fullmatch(rf"error: {ID}: not pushed \(\w+: .*401.*\)", refused.stderr.splitlines()[-1])
    public = run(hub, tmp_path, *CLI, "card", copy, "--push", ID, "--private")
    assert public.stderr.splitlines()[-1].startswith(f"error: {ID}: is there, and public; ")
    assert hub.files() == [] and hub.commits == []
    hub.private = True
    assert run(hub, tmp_path, *CLI, "card", copy, "--push", ID, "--private").returncode == 0
    assert hub.made[-1]["visibility"] == "private" and set(hub.files()) == FILES


def test_the_command_says_what_it_wrote_and_what_it_kept(hub: Hub, copy: Path, tmp_path: Path) -> None:
    first = run(hub, tmp_path, *CLI, "card", copy)
    assert first.stderr.splitlines() == [str(copy / name) for name in (CARD, CONFIG, MODELING)]
    (copy / CONFIG).write_text("{}")
    second = run(hub, tmp_path, *CLI, "card", copy)
    assert f"{copy / CONFIG}: kept as it is; --force writes it anew" in second.stderr.splitlines()
    alone = run(hub, tmp_path, *CLI, "card", copy, "--private")
    assert (alone.returncode, alone.stderr) == (1, "error: --private is for --push OWNER/NAME\n")
