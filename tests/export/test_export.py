"""Exports of checkpoints and of random weights: folding, precisions, options, memory, prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qalign_export import random_numbers
from qalign_export.custom_prompt import tokenize_prompt
from qalign_export.options import ExportOptions
from qalign_export.parameters import ONE_ALIGN, open_parameters, weight_count
from qalign_export.pictures import generate_pictures
from qalign_export.rounding.blockwise import fold_and_round
from qalign_export.rounding.fold import blocks
from qalign_export.tensor_file import TensorFile
from qalign_export.writer import export_artifact
from qalign_fast import ArtifactError, CheckpointError, DeviceError, Scorer, TaskError
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.families.mplug_owl2.model.checkpoint import parameter_shapes
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.prompts import ALL_PROMPTS, prompt
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.contract.precisions import PRECISIONS
from support.goldens import FOLDERS, GOLDEN, Golden, assert_goldens

TOKENIZER = GOLDEN / "tokenizer.model"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folding_changes_nothing(folder: str) -> None:
    assert_goldens(folder, PLAIN)


def test_moving_outliers_changes_nothing_before_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every migration gets random scales, those of the constant prefix's values too."""
    from qalign_export.rounding import blockwise as module

    source = open_parameters(GOLDEN / "outlier-112")
    pixels = torch.from_numpy(np.load(GOLDEN / "outlier-112" / "expected.npz")["resized_uint8"])
    generator = torch.Generator().manual_seed(0)
    moved = 0

    def scales(weights: list[torch.Tensor], *_: object) -> torch.Tensor:
        nonlocal moved
        moved += 1
        return torch.empty(weights[0].shape[1]).uniform_(0.25, 4, generator=generator)

    monkeypatch.setattr(module, "choose_migration", scales)
    monkeypatch.setattr(module, "_round", lambda *_: None)
    monkeypatch.setattr(module, "sensitive_linears", lambda *_: {})
    results = []
    for precision in ("fp32", "int8"):
        tensors: dict[str, torch.Tensor] = {}
        rounded = fold_and_round(source, precision, ALL_PROMPTS, pixels, tensors.__setitem__)
        model, p = FoldedModel(source.config, tensors), prompt("quality")
        results.append(model.decode(model.encode(pixels), rounded.prefixes[p.prefix], rounded.suffixes[p.suffix]))
    assert moved == sum(len(block.migrations) for block in blocks(source.config))
    torch.testing.assert_close(*results, rtol=0, atol=2e-4)


def test_what_would_overflow_float16_stays_in_float32(narrow: Golden, tmp_path: Path) -> None:
    tensors = load_file(narrow.checkpoint / "model.safetensors")
    for name, factor in (("gate_proj", 1e3), ("up_proj", 1e3), ("down_proj", 1e-6)):  # the product passes 65504
        tensors[f"model.layers.1.mlp.{name}.weight"] = tensors[f"model.layers.1.mlp.{name}.weight"].float() * factor
    checkpoint = tmp_path / "loud"
    checkpoint.mkdir()
    save_file(tensors, checkpoint / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (checkpoint / name).write_text((narrow.checkpoint / name).read_text())
    out = export_artifact(
        checkpoint,
        tmp_path / "half",
        ExportOptions("fp16", ("onnx", "torch"), calibration=generate_pictures(4)),
    )
    quantization = open_artifact(out).manifest.quantization
    assert quantization is not None
    assert set(quantization["higher"]) == {"decoder.layers.1.down"}
    exact = Scorer.load(checkpoint).score(narrow.pictures)
    for engine in ("onnx", "torch"):
        found = Scorer.load(out, engine=engine).score(narrow.pictures)
        assert max(abs(a.value - b.value) for a, b in zip(found, exact, strict=True)) < 1e-2


def test_fp8_runs_on_torch_and_is_refused_for_onnx(narrow: Golden, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"does not compute in fp8 .*--engine torch, or int8"):
        ExportOptions("fp8", ["onnx", "torch"])
    out = export_artifact(narrow.checkpoint, tmp_path / "b", ExportOptions("fp8", ["torch"]))
    tensors = load_file(out / "torch/model_fp8.safetensors")
    down = "decoder.layers.0.down"
    assert (tensors[f"{down}.weight"].dtype, tensors[f"{down}.scale"].dtype) == (torch.float8_e4m3fn, torch.float32)
    assert tensors["decoder.head.weight"].dtype == torch.float32
    engine = load_engine(out)
    assert (engine.name, engine.precision) == ("torch", "fp8")


def test_a_linear_that_rounds_badly_in_fp8_stays_in_float32(narrow: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    from qalign_export.rounding import blockwise as module

    table = replace(PRECISIONS["fp8"], worst=1e-3)  # of what e4m3 does to random rows and weights, the middle
    monkeypatch.setattr(module, "PRECISIONS", {**PRECISIONS, "fp8": table})
    source, tensors = open_parameters(narrow.checkpoint), {}
    pixels = torch.from_numpy(narrow.expected["resized_uint8"])
    rounded = fold_and_round(source, "fp8", [prompt("quality")], pixels, tensors.__setitem__)
    assert 0 < len(rounded.higher) < len(rounded.errors)
    assert set(rounded.higher.values()) == {"fp32"}
    for name, error in rounded.errors.items():
        assert (tensors[f"{name}.weight"].dtype == torch.float8_e4m3fn) == (error <= 1e-3), name


def test_bfloat16_runs_on_torch_and_is_refused_for_onnx(narrow: Golden, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="onnxruntime does not compute in bf16"):
        ExportOptions("bf16")
    out = export_artifact(narrow.checkpoint, tmp_path / "b", ExportOptions("bf16", ["torch"]))
    engine = load_engine(out)
    assert (engine.name, engine.precision) == ("torch", "bf16")
    logits = engine.decode(engine.encode(narrow.expected["resized_uint8"]), prompt("quality"))
    np.testing.assert_allclose(logits, narrow.expected["logits_quality_image"], rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int2"}, "precision 'int2' is not known; available: fp32, fp16, bf16, fp8, int8, int4"),
        ({"engines": ["tensorrt"]}, "engine 'tensorrt' is not known; available: onnx, onnx-cuda, torch"),
        ({"precision": "int8", "engines": ["onnx-cuda"]}, "CUDA kernels do not compute in int8; available: fp16"),
    ],
)
def test_options_that_no_engine_has_are_refused_before_anything_is_read(options: dict, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        ExportOptions(**options)


def test_four_bits_on_both_engines(narrow: Golden, tmp_path: Path) -> None:
    out = export_artifact(narrow.checkpoint, tmp_path / "g", ExportOptions("int4", ("onnx", "torch")))
    weights = load_file(out / "torch/model_int4.safetensors")
    assert weights["decoder.layers.0.down.weight"].shape == (32, 1, 64)  # of 88 inputs, the narrow decoder's MLP width
    assert weights["decoder.layers.0.down.groups"].shape == (32, 4)
    scores = [Scorer.load(out, engine=engine).score(narrow.pictures[0]).value for engine in ("onnx", "torch")]
    assert abs(scores[0] - scores[1]) < 0.1


def test_an_artifact_says_which_engines_and_precision_it_has(narrow: Golden, tmp_path: Path) -> None:
    out = export_artifact(narrow.checkpoint, tmp_path / "o", ExportOptions("int8", ["torch"]))
    assert load_engine(out).name == "torch"
    for choice in ({"engine": "onnx"}, {"precision": "fp32"}):
        with pytest.raises(DeviceError, match=r"available: (torch|int8)"):
            load_engine(out, LoadOptions(**choice))  # type: ignore[arg-type]


def test_folded_weights_that_do_not_fit_are_an_artifact_error(narrow: Golden, tmp_path: Path) -> None:
    from qalign_fast.engines.torch_cpu import load_folded

    out = export_artifact(narrow.checkpoint, tmp_path / "o", ExportOptions("int8", ["torch"]))
    opened, file = open_artifact(out), out / "torch/model_int8.safetensors"
    whole = load_file(file)
    down = "decoder.layers.1.down.weight"
    for change in ({down: None}, {down: whole[down][:, :-1].contiguous()}, {down: whole[down].float()[:-1]}):
        save_file({name: t for name, t in (whole | change).items() if t is not None}, file)
        with pytest.raises(ArtifactError, match=file.name):
            load_folded(opened)


def test_random_weights_have_the_true_sizes_and_are_the_same_at_every_reading() -> None:
    source = open_parameters("random:one-align")
    assert source.config == ONE_ALIGN
    # 8.198 B by the model's card, of them 131 M embeddings and all but five rows of 131 M of the head; the rotary
    # tables and the abstractor's positions are buffers
    assert abs(weight_count(ONE_ALIGN) + 2 * 32000 * 4096 - 8.198e9) < 0.01e9
    name = "vision.layers.3.fc1.weight"
    first, again = (open_parameters("random:one-align").read([name])[name] for _ in range(2))
    assert first.shape == parameter_shapes(ONE_ALIGN)[name]
    assert torch.equal(first, again)
    assert not torch.equal(first, source.read(["vision.layers.4.fc1.weight"])["vision.layers.4.fc1.weight"])
    with pytest.raises(CheckpointError, match="no such geometry; known: one-align, mini"):
        open_parameters("random:llava")


def test_random_numbers_are_the_same_with_any_numpy() -> None:
    """They are whole before they are scaled. If a version of numpy gave others, peers' scores would change too."""
    noise = random_numbers._noise("model.norm.weight", 70_000)
    assert noise[[0, 1, 65_535, 65_536, -1]].tolist() == [35, 35, 336, -92, -150]
    assert abs(noise.mean()) < 2
    assert noise.std() == pytest.approx(random_numbers._SUM, rel=0.01)


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (64, 1024), 0, 1 / 32),
        ("model.layers.0.mlp.down_proj.weight", (64, 1024), 0, 1024**-0.5 / 32**0.5),  # adds to the residual rows
        ("model.vision_model.embeddings.patch_embed.weight", (64, 3, 14, 14), 0, 588**-0.5),
        ("model.embed_tokens.weight", (64, 1024), 0, 1),
        ("model.layers.0.input_layernorm.multiway.0.weight", (4096,), 1, 0.02),
        ("model.vision_model.post_layernorm.bias", (4096,), 0, 0.02),
    ],
)
def test_random_parameters_keep_rows_near_one(name: str, shape: tuple, mean: float, deviation: float) -> None:
    values = random_numbers.parameter(name, shape)
    assert values.shape == shape
    assert values.mean() == pytest.approx(mean, abs=0.05 * deviation)
    assert values.std() == pytest.approx(deviation, rel=0.05)


def test_a_random_model_exports_and_scores(tmp_path: Path, narrow: Golden) -> None:
    out = export_artifact(f"random:{narrow.checkpoint}", tmp_path / "r", ExportOptions("int8", tasks=["quality"]))
    scores = Scorer.load(out).score(narrow.pictures)
    assert len({round(score.value, 6) for score in scores}) == len(scores)


def test_exports_are_the_same_at_every_run(narrow: Golden, tmp_path: Path) -> None:
    options = ExportOptions("int4", ("onnx", "torch"), calibration=generate_pictures(4))
    first, again = (export_artifact(narrow.checkpoint, tmp_path / n, options) for n in "ab")
    files = [open_artifact(out).manifest.files for out in (first, again)]
    assert files[0] == files[1]


def test_an_export_holds_a_few_blocks_in_memory_not_the_model(tmp_path: Path) -> None:
    """25 layers of 52 MB each in float32: the whole model is 1.3 GB."""
    config = json.loads((GOLDEN / "narrow-112" / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    peaks = []
    for layers in (1, 25):
        folder = tmp_path / f"layers-{layers}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        code = (
            "import resource, sys\n"
            "from qalign_export.options import ExportOptions\n"
            "from qalign_export.writer import export_artifact\n"
            "options = ExportOptions('int8', ('onnx', 'torch'), ['quality'], external_from=0)\n"
            f"export_artifact('random:{folder}', sys.argv[1], options)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / f"out-{layers}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 200e6


def test_the_disk_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qalign_export import writer

    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    with pytest.raises(ArtifactError, match=r"about 15\.9 GB are written; .* has 1\.0 GB free"):
        export_artifact("random:one-align", tmp_path / "new/o", ExportOptions("int8"))
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_file_is_safetensors_and_aligned(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(3, dtype=torch.int8),
        "b": torch.randn(5, 7),
        "c": torch.randn(2, 2).bfloat16(),
        "d": torch.arange(9, dtype=torch.uint8).view(3, 3),
        "e": torch.tensor(0.5).half(),
        "f": torch.randn(4, 3).to(torch.float8_e4m3fn),
    }
    with TensorFile(tmp_path / "t", most=len(tensors)) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    found = load_file(tmp_path / "t")
    assert {name for name in found if not name.startswith("gap.")} == tensors.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in tensors.items())
    with safe_open(tmp_path / "t", "pt") as opened:
        assert all(opened.get_tensor(name).data_ptr() % 64 == 0 for name in tensors)


def test_an_unfinished_tensor_file_is_not_readable(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(KeyboardInterrupt), TensorFile(tmp_path / "t", most=2) as file:
        file.write("a", torch.zeros(4))
        raise KeyboardInterrupt
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "t")


def test_a_custom_prompt_is_tokenized_as_the_family_does() -> None:
    text = "USER: How would you rate the {0} of this {1}?\n<image>\nASSISTANT: The {0} of the {1} is"
    for known in ALL_PROMPTS:
        if known.task in ("quality", "aesthetics"):
            custom, _ = tokenize_prompt("mine", text.format(known.task, known.medium), TOKENIZER)
            assert (custom.prefix, custom.suffix) == (known.prefix, known.suffix)


def test_a_custom_task_scores(narrow: Golden, tmp_path: Path) -> None:
    prompts = tokenize_prompt("sharpness", "How sharp is it?\n<image>\nIt is", TOKENIZER)
    out = export_artifact(narrow.checkpoint, tmp_path / "o", ExportOptions(tasks=["quality"], prompts=prompts))
    reference = load_engine(narrow.checkpoint)
    pixels = narrow.expected["resized_uint8"]
    engine = load_engine(out)
    assert {p.name for p in engine.prompts} == {
        f"{t}.{m}" for t in ("quality", "sharpness") for m in ("image", "video")
    }
    for p in prompts:
        logits = [e.decode(e.encode(pixels), p) for e in (engine, reference)]
        np.testing.assert_allclose(*logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("quality", "a <image> b", "needs a name"),
        ("my task", "a <image> b", "needs a name"),
        ("mine", "a b", "0 <image>; expected one"),
        ("mine", "<image> b", "0 <image>|1 <image>; expected one, with text on both sides"),
        ("mine", "a <image> <image> b", "2 <image>; expected one"),
    ],
)
def test_custom_prompts_that_are_none(task: str, text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        tokenize_prompt(task, text, TOKENIZER)
    with pytest.raises(TaskError, match="not a readable sentencepiece tokenizer"):
        tokenize_prompt("mine", "a <image> b", GOLDEN / "README.md")
