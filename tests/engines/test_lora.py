"""A merged adapter gives what the unmerged one gives: by the authors' own code, and by a plain sum at every linear."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qalign_fast import CheckpointError, OptionError, Scorer
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import ModelWarning
from qalign_fast.families.mplug_owl2.model.checkpoint import load_model
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import ALL_PROMPTS, prompt
from support.adapters import Parts, linears, named, random_parts, write_adapter
from support.goldens import GOLDEN, PICTURES, Golden

LOGITS = 2e-4
LORA, BASE = GOLDEN / "lora-112", GOLDEN / "narrow-112"
SETTINGS = {"base_model_name_or_path": str(BASE)}
GROUPS = {
    "decoder, q and o": ("q_proj", "o_proj"),
    "decoder, k and v of text and picture": ("multiway.0", "multiway.1"),
    "decoder, mlp": ("gate_proj", "up_proj", "down_proj"),
    "vision": ("query_key_value", "dense", "fc1", "fc2"),
    "abstractor, attention": ("attention.query", "attention.key", "attention.value", "out_proj"),
    "abstractor, mlp and projection": ("w1", "w2", "w3", "visual_fc"),
}


def logits(model: Model, pixels: Tensor, medium: str = "image") -> dict[str, np.ndarray]:
    tokens = model.encode(pixels)
    clips = [tokens] if medium == "image" else [tokens[:3].flatten(0, 1)[None], tokens[2:3]]
    prompts = [p for p in ALL_PROMPTS if p.medium == medium]
    return {p.task: torch.cat([model.decode(clip, *model.constants(p)) for clip in clips]).numpy() for p in prompts}


def pixels_of(golden: Golden) -> Tensor:
    return torch.from_numpy(golden.expected["resized_uint8"])


@pytest.mark.parametrize("form", ["merged", "unmerged"])
@pytest.mark.parametrize("medium", ["image", "video"])
def test_a_golden_adapter_gives_the_authors_logits(form: str, medium: str, narrow: Golden) -> None:
    expected = np.load(LORA / "expected.npz")
    compared = 0
    for task, found in logits(load_model(LORA), pixels_of(narrow), medium).items():
        if (name := f"{form}_logits_{task}_{medium}") in expected:
            np.testing.assert_allclose(found, expected[name], rtol=0, atol=LOGITS)
            compared += 1
    assert compared == 4


@pytest.mark.parametrize("left_out", ["adapter_model.safetensors", "non_lora_trainables.bin", "both"])
def test_the_golden_adapters_files_all_count(left_out: str, narrow: Golden, tmp_path: Path) -> None:
    """The logits are a hundred times the tolerance off without either file."""
    expected = np.load(LORA / "expected.npz")["merged_logits_quality_image"]
    if left_out == "both":
        model = load_model(BASE)
    elif left_out == "non_lora_trainables.bin":
        merged = load_model(LORA).state_dict()
        plain = load_model(BASE).state_dict()
        model = load_model(BASE)
        model.load_state_dict(plain | {n: t for n, t in merged.items() if not n.startswith("abstractor.")})
    else:
        model = load_model(LORA)
        plain = load_model(BASE).state_dict()
        model.load_state_dict(plain | {n: t for n, t in model.state_dict().items() if n.startswith("abstractor.")})
    assert np.abs(logits(model, pixels_of(narrow))["quality"] - expected).max() > 100 * LOGITS


def unmerged(parts: Parts, scalings: Mapping[str, float]) -> Model:
    """The base, with x A^T B^T added to what each of these linears gives."""
    model = load_model(BASE)
    for module, (down, up) in parts.items():
        ours = linears(model.config)[module][0].removesuffix(".weight")
        scaling = scalings[module]

        def add(_: Any, x: tuple[Tensor, ...], y: Tensor, down: Any = down, up: Any = up, s: Any = scaling) -> Tensor:
            return y + s * (x[0] @ down.T) @ up.T

        model.get_submodule(ours).register_forward_hook(add)
    return model


def modules(config: Any, ends: Iterable[str]) -> list[str]:
    return [name for name in linears(config) if name.endswith(tuple(ends))]


def test_the_groups_below_are_all_linears_of_a_model() -> None:
    """And as many as the model that computes has."""
    model = load_model(BASE)
    assert {name for ends in GROUPS.values() for name in modules(model.config, ends)} == set(linears(model.config))
    assert len(linears(model.config)) == sum(isinstance(module, nn.Linear) for module in model.modules())


@pytest.mark.parametrize("group", GROUPS)
def test_merged_is_unmerged_on_every_kind_of_linear(group: str, narrow: Golden, tmp_path: Path) -> None:
    base = load_model(BASE)
    parts = random_parts(base.config, modules(base.config, GROUPS[group]))
    folder = write_adapter(tmp_path / "a", named(parts), SETTINGS | {"target_modules": list(parts)})
    found = logits(load_model(folder), pixels_of(narrow))
    expected = logits(unmerged(parts, dict.fromkeys(parts, 2.0)), pixels_of(narrow))
    before = logits(base, pixels_of(narrow))
    for task, values in expected.items():
        np.testing.assert_allclose(found[task], values, rtol=0, atol=LOGITS)
        assert np.abs(values - before[task]).max() > 10 * LOGITS  # or the adapter would not show


def test_the_head_is_merged_in_the_rows_that_are_kept(narrow: Golden, tmp_path: Path) -> None:
    base = load_model(BASE)
    down, up = torch.randn(2, 32), torch.randn(32000, 2)
    folder = write_adapter(
        tmp_path / "a", named({"lm_head": (down, up)}), SETTINGS | {"target_modules": ["lm_head"], "lora_alpha": 2}
    )
    change = load_model(folder).decoder.head - base.decoder.head
    rows = [15129, 1781, 6534, 6460, 4319]
    torch.testing.assert_close(change, up[rows] @ down, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({}, lambda _: 2.0),
        ({"use_rslora": True}, lambda _: 4 / 2**0.5),
        ({"lora_alpha": 3}, lambda _: 1.5),
        ({"alpha_pattern": {"q_proj": 8}}, lambda m: 4.0 if m.endswith("q_proj") else 2.0),
        ({"alpha_pattern": {"model.layers.1.self_attn.q_proj": 8}}, lambda m: 4.0 if "s.1.self_attn.q" in m else 2.0),
        ({"alpha_pattern": {r"layers\.[02]\..*": 1}}, lambda m: 2.0 if "layers.1." in m else 0.5),
        ({"r": 7, "rank_pattern": {"q_proj": 2, "multiway.1": 2}}, lambda _: 2.0),
    ],
    ids=["alpha / r", "rslora", "another alpha", "by end", "by name", "by pattern", "ranks by end"],
)
def test_scalings_are_pefts(settings: dict[str, Any], scaling: Any, narrow: Golden, tmp_path: Path) -> None:
    """Against peft 0.8.2's rules: alpha / r, alpha / sqrt(r), and patterns that fit a module name's end."""
    config = load_model(BASE).config
    parts = random_parts(config, modules(config, ["q_proj", "v_proj.multiway.1"]))
    targets = {"target_modules": ["q_proj", "v_proj.multiway.1"]}
    folder = write_adapter(tmp_path / "a", named(parts), SETTINGS | targets | settings)
    expected = logits(unmerged(parts, {m: scaling(m) for m in parts}), pixels_of(narrow))
    for task, values in logits(load_model(folder), pixels_of(narrow)).items():
        np.testing.assert_allclose(values, expected[task], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("form", ["bin", ".default", "no prefix", "regular expression", "bfloat16"])
def test_forms_of_the_file(form: str, tmp_path: Path) -> None:
    config = load_model(BASE).config
    parts = random_parts(config, modules(config, ["q_proj"]))
    tensors = named(parts, ".default" if form == ".default" else "")
    if form == "no prefix":
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    if form == "bfloat16":
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        parts = {name: (a.bfloat16().float(), b.bfloat16().float()) for name, (a, b) in parts.items()}
    targets: Any = r"model\.layers\.\d+\.self_attn\.q_proj" if form == "regular expression" else ["q_proj"]
    folder = write_adapter(
        tmp_path / "a", tensors, SETTINGS | {"target_modules": targets}, pickled=form in ("bin", ".default")
    )
    found, base = load_model(folder).decoder.layers[1].q.weight, load_model(BASE).decoder.layers[1].q.weight
    down, up = parts["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(found, base + 2 * up @ down, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.", "model.", ""])
def test_whole_tensors_take_the_bases_place_under_any_prefix(prefix: str, tmp_path: Path) -> None:
    parts = random_parts(load_model(BASE).config, ["model.layers.0.self_attn.q_proj"])
    q, norm = torch.randn(32, 32), torch.randn(32)
    whole = {f"{prefix}model.layers.0.self_attn.q_proj.weight": q, f"{prefix}model.norm.weight": norm}
    settings = SETTINGS | {"target_modules": list(parts)}
    model = load_model(write_adapter(tmp_path / "a", named(parts), settings, whole=whole))
    [(down, up)] = parts.values()
    assert torch.equal(model.decoder.norm, norm)
    torch.testing.assert_close(model.decoder.layers[0].q.weight, q + 2 * up @ down, rtol=0, atol=1e-6)


def test_a_file_that_holds_the_entire_model(narrow: Golden, tmp_path: Path) -> None:
    """As one project's training writes it. The weights under an adapter are the base's, as in its builder."""
    theirs = load_file(BASE / "model.safetensors")
    parts = random_parts(load_model(BASE).config, ["model.layers.0.self_attn.q_proj"])
    whole = {f"base_model.model.{name}": tensor.bfloat16() for name, tensor in theirs.items()}
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    whole[f"{q}.base_layer.weight"] = torch.full_like(whole.pop(f"{q}.weight"), 7.0)
    settings = SETTINGS | {"target_modules": list(parts)}
    model = load_model(write_adapter(tmp_path / "a", named(parts), settings, whole=whole))
    [(down, up)] = parts.values()
    expected = theirs["model.layers.0.self_attn.q_proj.weight"].float() + 2 * up @ down
    torch.testing.assert_close(model.decoder.layers[0].q.weight, expected, rtol=0, atol=1e-6)
    assert torch.equal(model.decoder.norm, theirs["model.norm.weight"].bfloat16().float())


def test_a_vocabulary_that_grew_comes_with_its_rows(tmp_path: Path) -> None:
    """Q-Scorer's form: five words more, in embeddings and head that were saved whole."""
    parts = random_parts(load_model(BASE).config, ["model.layers.0.self_attn.q_proj"])
    embed, head = torch.randn(32005, 32), torch.randn(32005, 32)
    whole = {"base_model.model.model.embed_tokens.weight": embed, "base_model.model.lm_head.weight": head}
    settings = SETTINGS | {"target_modules": list(parts)}
    folder = write_adapter(tmp_path / "a", named(parts), settings, whole=whole)
    raw = json.loads((BASE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vocab_size": 32005}))
    model = load_model(folder)
    assert torch.equal(model.decoder.embed, embed)
    assert torch.equal(model.decoder.head[1], head[1781])
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has shape \[32000, 32\]; expected \[32005, 32\]"):
        load_model(folder)


def test_a_scorer_takes_an_adapter_and_a_base(narrow: Golden, tmp_path: Path) -> None:
    scores = [Scorer.load(LORA, **more).score(narrow.pictures[0]) for more in ({}, {"base": BASE})]  # type: ignore[arg-type]
    expected = np.load(LORA / "expected.npz")["merged_logits_quality_image"][0]
    for score in scores:
        np.testing.assert_allclose(score.logits, expected, rtol=0, atol=LOGITS)
    for model in (BASE, narrow.artifact):
        with pytest.raises(OptionError, match=f"base {BASE}"):
            Scorer.load(model, base=BASE)


def test_an_adapter_runs_on_bitsandbytes(narrow: Golden) -> None:
    pytest.importorskip("bitsandbytes")
    engine = load_engine(LORA, LoadOptions(device="cpu", precision="bnb-int8"))
    exact = load_engine(LORA)
    found, expected = (e.decode(e.encode(narrow.expected["resized_uint8"]), prompt("quality")) for e in (engine, exact))
    plain = load_engine(BASE, LoadOptions(device="cpu", precision="bnb-int8"))
    base = plain.decode(plain.encode(narrow.expected["resized_uint8"]), prompt("quality"))
    assert np.abs(found - expected).mean() < np.abs(base - expected).mean() / 4


def test_a_scorer_of_an_adapter_can_be_pickled(narrow: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(LORA, tmp_path / "a")
    shutil.copytree(BASE, tmp_path / "narrow-112")
    monkeypatch.chdir(tmp_path)
    stored = pickle.dumps(Scorer.load("a", base="narrow-112"))
    monkeypatch.chdir("/")
    score = pickle.loads(stored).score(narrow.pictures[0])
    np.testing.assert_allclose(
        score.logits, np.load(LORA / "expected.npz")["merged_logits_quality_image"][0], rtol=0, atol=LOGITS
    )


def test_an_inverted_adapter_and_another_base_are_told(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "another")
    for name in ("q-align-csiq-lora-1", "q-align-livec-lora-1"):
        shutil.copytree(LORA, tmp_path / name)
    with pytest.warns(ModelWarning) as told:
        load_engine(tmp_path / "q-align-csiq-lora-1", LoadOptions(base=tmp_path / "another"))
    assert [str(one.message).split(": ")[1][:30] for one in told] == [
        "its name says that it was trai",
        "was trained on ../narrow-112, ",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_engine(tmp_path / "q-align-livec-lora-1", LoadOptions(base=BASE))


def test_a_q_scorer_adapter_is_its_merged_checkpoint(tmp_path: Path) -> None:
    """In the form of its authors' training: the vocabulary and the MLP stand whole beside the adapter."""
    whole = load_file(GOLDEN / "q-scorer-112" / "model.safetensors")
    base, merged = Path(shutil.copytree(BASE, tmp_path / "base")), tmp_path / "merged"
    beside = {name: x for name, x in whole.items() if name.startswith("deepmlp") or len(x) == 32005}
    assert len(beside) == 10
    trunk = {name: x[:32000].contiguous() for name, x in whole.items() if not name.startswith("deepmlp")}
    save_file(trunk, base / "model.safetensors")
    parts = random_parts(load_model(base).config, [f"model.layers.{i}.self_attn.q_proj" for i in range(3)])
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "base_model_name_or_path": str(base)}
    folder = write_adapter(tmp_path / "Qscorer_lora_5_1", named(parts), settings, whole=beside)
    told = json.loads((GOLDEN / "q-scorer-112" / "config.json").read_text())
    for name in ("score_token_id", "score_tokens"):  # which the authors' training does not write
        del told[name]
    (folder / "config.json").write_text(json.dumps(told | {"vocab_size": 32000}))
    shutil.copytree(GOLDEN / "q-scorer-112", merged)
    moved = {name: x.float() for name, x in whole.items()}
    for module, (a, b) in parts.items():
        moved[f"{module}.weight"] += 2 * b @ a
    save_file(moved, merged / "model.safetensors")
    pictures = sorted(PICTURES.iterdir())
    found, expected = (Scorer.load(path).score(pictures) for path in (folder, merged))
    plain = Scorer.load(GOLDEN / "q-scorer-112").score(pictures)
    assert [score.value for score in found] == pytest.approx([score.value for score in expected], abs=1e-5)
    assert max(abs(a.value - b.value) for a, b in zip(found, plain)) > 1e-3
    assert found[0].scale.high == 5
