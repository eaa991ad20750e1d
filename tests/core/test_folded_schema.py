"""Folded tensors are checked against the schema, because kernels read them by their address."""

from __future__ import annotations

import shutil
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from qalign_export.onnx_graphs.decoder import build_decoder
from qalign_export.onnx_graphs.graph_files import GRAPHS
from qalign_export.onnx_graphs.vision import build_vision
from qalign_export.options import ExportOptions
from qalign_export.parameters import ONE_ALIGN, open_parameters
from qalign_export.rounding.blockwise import fold_and_round
from qalign_export.writer import export_artifact
from qalign_fast.artifact.manifest import FileEntry, hash_file, open_artifact
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.engines.torch_weights import found_in, read_folded
from qalign_fast.errors import ArtifactError
from qalign_fast.families.mplug_owl2.folded_schema import schema
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.prompts import ALL_PROMPTS
from qalign_fast.families.schema import FoldedTensor, Linear, Plain, check_tensors
from support.goldens import FOLDERS, GOLDEN

Tensors = dict[str, torch.Tensor]


def names_of(schema: Iterable[FoldedTensor]) -> Iterator[str]:
    """Every name that a file of folded tensors may have."""
    for entry in schema:
        if isinstance(entry, Plain):
            yield entry.name
        else:
            yield from (f"{entry.name}.{part}" for part in ("weight", "scale", "groups", "bias"))


def weights_of(artifact: Path) -> Path:
    return artifact / open_artifact(artifact).manifest.engines["torch"]["weights"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8", "int8", "int4"])
def test_every_tensor_of_an_export_is_one_that_is_asked_for(folder: str, precision: str, tmp_path: Path) -> None:
    artifact = export_artifact(GOLDEN / folder, tmp_path / "a", ExportOptions(precision, ("torch",)))
    tensors, config = load_file(weights_of(artifact)), open_artifact(artifact).manifest.config
    check_tensors(schema(config), found_in(tensors))
    written = {name for name in tensors if not name.startswith("gap.")}  # what aligns the others in the file
    assert written <= {*names_of(schema(config))}


def test_onealigns_weights_are_8_billion() -> None:
    linears = [entry for entry in schema(ONE_ALIGN) if isinstance(entry, Linear)]
    assert sum(linear.outputs * linear.inputs for linear in linears) == pytest.approx(7.98e9, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "name", "change", "says"),
    [
        ("int8", "decoder.norm", None, "has no tensor 'decoder.norm'"),
        ("int8", "vision.layers.1.fc1.weight", None, "has no tensor 'vision.layers.1.fc1.weight'"),
        ("int8", "decoder.layers.0.q.scale", None, "has no tensor 'decoder.layers.0.q.scale'"),
        ("int8", "decoder.layers.0.q.weight", lambda t: t[:-1], "q.weight is int8 (31, 32); the manifest's sizes ask"),
        (
            "int8",
            "decoder.layers.0.q.scale",
            lambda t: t.double(),
            "q.scale is float64 (32,); the manifest's sizes ask",
        ),
        ("int8", "vision.layers.0.qkv.bias", lambda t: t[:5], "qkv.bias is float32 (5,)"),
        ("int8", "vision.pre_norm.weight", lambda t: t[:1], "pre_norm.weight is float32 (1,)"),
        ("int8", "abstractor.layers.0.x", lambda t: t.half(), "x is float16 (8, 32)"),
        ("int4", "decoder.layers.1.o.groups", lambda t: torch.cat((t, t), 1), "o.groups is uint8 (32, 8)"),
        ("int4", "decoder.layers.1.o.groups", None, "has no tensor 'decoder.layers.1.o.groups'"),
        ("int4", "decoder.layers.1.o.scale", lambda t: t[:, None], "o.scale is float32 (32, 1)"),
        ("int4", "decoder.layers.1.o.weight", lambda t: t[..., :0], "o.weight is uint8 (32, 1, 0)"),
        ("int4", "decoder.layers.1.o.weight", lambda t: t.flatten(1), "o.weight is uint8 (32, 64)"),
        ("fp16", "decoder.head.weight", lambda t: t.double(), "head.weight is float64 (5, 32)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    precision: str,
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor] | None,
    says: str,
    rounded: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(rounded("narrow-112", precision), tmp_path / "copy")
    before = load_file(weights_of(copy))[name]
    change_weights(copy, {name: None if change is None else change(before).contiguous()})
    with pytest.raises(ArtifactError) as caught:
        read_folded(open_artifact(copy))
    assert says in str(caught.value)
    assert str(weights_of(copy)) in str(caught.value)


def change_weights(artifact: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replaces or adds tensors, or leaves them out for None. The manifest then fits the changed file."""
    manifest, path = open_artifact(artifact).manifest, weights_of(artifact)
    save_file({name: t for name, t in (load_file(path) | changes).items() if t is not None}, path)
    entry: FileEntry = hash_file(path)
    files = {**manifest.files, str(path.relative_to(artifact)): entry}
    (artifact / "qalign.json").write_text(replace(manifest, files=files).to_json())


def test_int4_of_an_earlier_version_is_to_be_exported_again(
    rounded: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """It had a scale and a zero point for each group. One of these tensors has today's name and shape."""
    copy = shutil.copytree(rounded("narrow-112", "int4"), tmp_path / "copy")
    tensors, changes = load_file(weights_of(copy)), dict[str, torch.Tensor | None]()
    for name in (name.removesuffix("groups") for name in tensors if name.endswith(".groups")):
        outputs, blocks, _ = tensors[f"{name}weight"].shape
        zero = torch.zeros(outputs, -(-blocks // 2), dtype=torch.uint8)
        changes |= {f"{name}groups": None, f"{name}zero": zero, f"{name}scale": torch.ones(outputs, blocks)}
    change_weights(copy, changes)
    with pytest.raises(ArtifactError, match=r"an earlier form of int4, .*; export the model again"):
        load_engine(copy, LoadOptions(engine="torch"))


class Recording(UserDict[str, Any]):
    """Folded tensors by name. `read` has the names that were read."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        tensor = super().__getitem__(name)
        self.read.add(name)
        return tensor


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_model_reads_every_tensor_of_the_schema_and_no_other(folder: str) -> None:
    parameters, written = open_parameters(GOLDEN / folder), dict[str, torch.Tensor]()
    rounded = fold_and_round(parameters, "fp32", ALL_PROMPTS, torch.empty(0), written.__setitem__)
    tensors, config, asked = Recording(written), parameters.config, ALL_PROMPTS[0]
    model = FoldedModel(config, tensors)
    pixels = torch.zeros(1, config.pixels.side, config.pixels.side, 3, dtype=torch.uint8)
    model.decode(model.encode(pixels), rounded.prefixes[asked.prefix], rounded.suffixes[asked.suffix])
    required = {one.name if isinstance(one, Plain) else f"{one.name}.weight" for one in schema(config)}
    assert required <= tensors.read <= {*names_of(schema(config))}
    assert tensors.read == written.keys()  # linears' biases too, where they have one


@pytest.mark.parametrize(
    ("engine", "precision"), [("onnx", "fp32"), ("onnx", "int8"), ("onnx", "int4"), ("onnx-cuda", "fp16")]
)
def test_the_graphs_read_only_tensors_of_the_schema(
    engine: str, precision: str, rounded: Callable[[str, str], Path]
) -> None:
    artifact = open_artifact(rounded("narrow-112", precision))
    tensors, config = Recording(load_arrays(weights_of(artifact.directory))), artifact.manifest.config
    for build in (build_vision, build_decoder):
        build(GRAPHS[engine]("graph", tensors), config)
    required = {one.name if isinstance(one, Plain) else f"{one.name}.weight" for one in schema(config)}
    assert tensors.read <= {*names_of(schema(config))}
    # the decoder's last layer computes last rows alone, which are text
    assert required - tensors.read == {f"decoder.layers.{config.decoder.layers - 1}.mlp_norm_visual"}
