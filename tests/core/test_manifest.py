"""Manifests, graphs and prompts that are wrong but have a valid seal raise an ArtifactError and never crash."""

from __future__ import annotations

import copy as copying
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from qalign_fast import ArtifactError, QAlignError, Scorer
from qalign_fast.artifact.manifest import MANIFEST, PARTIAL, hash_file
from qalign_fast.artifact.seal import is_sealed, parse_strict, seal
from support.artifacts import ODD_VALUES, change_manifest, places
from support.command_line import run
from support.goldens import Golden

DECODER = "onnx/decoder_model.onnx"
PROMPTS = "prompts.safetensors"
HEADER = b'{"x":{"dtype":"%s","shape":[%d],"data_offsets":[0,2]}}'


def hash_again(copy: Path, *unlisted: str) -> None:
    """Writes the files as they are now into the manifest."""
    files = {p.relative_to(copy).as_posix(): p for p in copy.rglob("*") if p.is_file() and p.name != MANIFEST}
    listed = {name: vars(hash_file(path)) for name, path in files.items() if name not in unlisted}
    change_manifest(copy, files=listed)


def refusal(copy: Path, name: str) -> str:
    with pytest.raises(ArtifactError) as caught:
        Scorer.load(copy)
    assert str(copy / name) in str(caught.value)
    return str(caught.value)


def put_weights_beside(copy: Path, location: str = "decoder_model.onnx_data") -> None:
    model = onnx.load(copy / DECODER)
    (copy / DECODER).unlink()
    onnx.save(model, copy / DECODER, save_as_external_data=True, location=location, size_threshold=1024)


def test_the_seal_covers_every_byte() -> None:
    text = seal({"a": {"sha256": "x"}, "b": [1.5, None, "ü"]}).encode()
    assert is_sealed(text)
    assert parse_strict(text)["b"] == [1.5, None, "ü"]
    for i in range(len(text)):
        assert not any(is_sealed(text[:i] + bytes([text[i] ^ 1 << bit]) + text[i + 1 :]) for bit in range(8))
    assert not any(map(is_sealed, (text + b"\n", text[:-1], b"", b"{}", b" " + text)))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"schema"',
        b"{",
        b"\xff\xfe{}",
        b'{"schema": 1, "schema": 1}',
        b'{"schema": NaN}',
        b'{"schema": 1e999}',
        b'{"schema": ' + b"9" * 5000 + b"}",
        b'{"schema": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"[" * 1_000_000,
        b'{"schema": {"a":' * 100_000,
        b" " * (5 << 20),
        '{"schema": 1}'.encode("utf-16"),
    ],
)
def test_what_is_no_manifest_is_one_error(copy: Path, text: bytes) -> None:
    (copy / MANIFEST).write_bytes(text)
    assert len(refusal(copy, MANIFEST)) < 600


def test_any_field_of_another_value_is_refused_or_changes_no_score(narrow: Golden, copy: Path) -> None:
    """A field that cannot be checked, such as a layer count that only the graph knows, must not change the score."""
    whole = json.loads((copy / MANIFEST).read_text())
    rng = np.random.default_rng(0)
    places_of_it = [i for i, (_, key) in enumerate(places(whole)) if type(key) is str or key == 0]
    cases = [(i, odd) for i in places_of_it for odd in ODD_VALUES]
    picture = narrow.pictures[0]
    loaded = 0
    for i, odd in (cases[k] for k in rng.choice(len(cases), 400, replace=False)):
        content = copying.deepcopy(whole)
        holder, key = list(places(content))[i]
        holder[key] = odd
        change_manifest(copy, **content)
        try:
            scorer = Scorer.load(copy)
            assert scorer.score(picture).value == pytest.approx(narrow.expected["score_quality_image"][0], abs=2e-4)
            loaded += 1
        except QAlignError as error:
            assert MANIFEST in str(error) or any(name in str(error) for name in whole["files"]), (key, odd, error)
    assert 5 < loaded < 200


def test_what_an_export_was_making_does_not_load(copy: Path) -> None:
    unfinished = copy.rename(copy.with_name(f".artifact{PARTIAL}x7y"))
    with pytest.raises(ArtifactError, match="an export that was not finished"):
        Scorer.load(unfinished)


def save_prompts(copy: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(copy / PROMPTS)
    change(tensors)
    save_file(tensors, copy / PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("quality.image.suffix"), "has no tensor 'quality.image.suffix'"),
        (lambda t: t.update({"quality.image.prefix": t["quality.image.prefix"][:, :, 1:]}), "quality.image.prefix is"),
        (lambda t: t.update({"quality.image.suffix": t["quality.image.suffix"][:, 1:].copy()}), "the manifest's sizes"),
        (lambda t: t.update({"quality.image.suffix": t["quality.image.suffix"].astype("f8")}), "is float64"),
        (lambda t: t["quality.image.suffix"].__setitem__((0, 0), np.nan), "values that are not finite"),
        (lambda t: t["quality.image.prefix"].__setitem__((0, 0), np.inf), "values that are not finite"),
    ],
)
def test_prompts_that_are_not_what_the_manifest_says(copy: Path, change, message: str) -> None:
    save_prompts(copy, change)
    hash_again(copy)
    assert message in refusal(copy, PROMPTS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        *(
            (64).to_bytes(8, "little") + (HEADER % kind).ljust(64) + b"xx"
            for kind in ((b"BF16", 1), (b"F8_E5M2", 2), (b"F4", 4), (b"X9", 1), (b"F16", 1 << 62))
        ),
    ],
)
def test_prompts_that_are_no_safetensors(copy: Path, data: bytes) -> None:
    (copy / PROMPTS).write_bytes(data)
    hash_again(copy)
    refusal(copy, PROMPTS)


def change_graph(copy: Path, change: Callable[[onnx.ModelProto], Any]) -> None:
    model = onnx.load(copy / DECODER)
    change(model)
    (copy / DECODER).write_bytes(model.SerializeToString())


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"


def narrow_an_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 17


def add_an_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize("change", [rename_output, narrow_an_input, add_an_input])
def test_a_graph_of_another_interface(copy: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    change_graph(copy, change)
    hash_again(copy)
    assert "has the inputs and outputs" in refusal(copy, DECODER)


def test_graphs_swapped_or_of_another_model(copy: Path, goldens: dict[str, Golden]) -> None:
    engines = {"onnx": {"encode": DECODER, "decode": "onnx/vision_encoder.onnx"}}
    change_manifest(copy, engines=engines)
    assert "the manifest's sizes ask" in refusal(copy, DECODER)
    change_manifest(copy, engines={"onnx": {"encode": "onnx/vision_encoder.onnx", "decode": DECODER}})
    other = goldens["narrow-448"].artifact
    shutil.copy(other / "onnx/vision_encoder.onnx", copy / "onnx")
    hash_again(copy)
    assert "(None, 448, 448, 3)" in refusal(copy, "onnx/vision_encoder.onnx")


@pytest.mark.parametrize("data", [b"", b"\0" * 1000, b"\xff" * 1000, b"\x0a\x08location\x12"])
def test_a_graph_onnxruntime_refuses(copy: Path, data: bytes) -> None:
    (copy / DECODER).write_bytes(data)
    hash_again(copy)
    refusal(copy, DECODER)


def test_an_unknown_operator_is_an_artifact_error(copy: Path) -> None:
    change_graph(copy, lambda model: setattr(model.graph.node[-1], "op_type", "NoSuchOperator"))
    hash_again(copy)
    assert "onnxruntime cannot load it" in refusal(copy, DECODER)


def test_weights_beside_a_graph_must_be_listed(narrow: Golden, copy: Path) -> None:
    put_weights_beside(copy)
    hash_again(copy)
    score = Scorer.load(copy).score(narrow.pictures[0]).value
    assert score == pytest.approx(narrow.expected["score_quality_image"][0], abs=2e-4)
    hash_again(copy, "onnx/decoder_model.onnx_data")
    assert "reads 'decoder_model.onnx_data', which is not among" in refusal(copy, DECODER)


@pytest.mark.parametrize("location", ["/etc/passwd", "../prompts.safetensors", "../../outside", "x" * 200, "ü"])
def test_weights_elsewhere_are_refused(copy: Path, location: str) -> None:
    put_weights_beside(copy)

    def move(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for item in tensor.external_data:
                item.value = location if item.key == "location" else item.value

    model = onnx.load(copy / DECODER, load_external_data=False)
    move(model)
    (copy / DECODER).write_bytes(model.SerializeToString())
    hash_again(copy)
    refusal(copy, DECODER)


def hub_cache(artifact: Path, cache: Path, *, shared: bool) -> Path:
    """The artifact as huggingface_hub keeps it. `shared`: as since version 2, where all models share large files."""
    model = cache / "models--owner--name"
    snapshot = model / "snapshots/0123abc"
    (model / "blobs").mkdir(parents=True)
    for path in [p for p in artifact.rglob("*") if p.is_file()]:
        sha256 = hash_file(path).sha256
        blob, link = model / "blobs" / sha256, snapshot / path.relative_to(artifact)
        place = cache / "blobs" / sha256[:2] / sha256 if shared else blob
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
        if shared:
            blob.symlink_to(os.path.relpath(place, blob.parent))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_the_hubs_cache_of_links_is_read(narrow: Golden, copy: Path, tmp_path: Path, shared: bool) -> None:
    put_weights_beside(copy)
    hash_again(copy)
    snapshot = hub_cache(copy, tmp_path / "hub", shared=shared)
    assert (snapshot / DECODER).is_symlink()
    score = Scorer.load(snapshot).score(narrow.pictures[0]).value
    assert score == pytest.approx(narrow.expected["score_quality_image"][0], abs=2e-4)
    blob = (snapshot / PROMPTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert "SHA-256" in refusal(snapshot, PROMPTS)


def test_links_out_of_the_hubs_cache_are_refused(copy: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(copy, tmp_path / "hub", shared=False)
    for outside in (tmp_path / "outside", snapshot.parents[1] / "refs", snapshot.parents[2] / "models--other/blobs/x"):
        outside.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(copy / PROMPTS, outside)
        (snapshot / PROMPTS).unlink()
        (snapshot / PROMPTS).symlink_to(outside)
        assert "a link that leads out" in refusal(snapshot, PROMPTS)
    elsewhere = tmp_path / "not-a-cache"  # the same links, but no cache of the Hub
    shutil.copytree(snapshot.parents[1], elsewhere, symlinks=True)
    assert "a link that leads out" in refusal(elsewhere / "snapshots/0123abc", MANIFEST)


def test_no_verify_checks_sizes_and_places_only(narrow: Golden, copy: Path, tmp_path: Path) -> None:
    """Flips a bit of the fifth-last byte of the prompts, a suffix's mantissa. Its effect on scores is not checked."""
    path = copy / PROMPTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    refused = run("score", narrow.pictures[0], "--model", copy)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "SHA-256" in refused.stderr
    assert run("score", narrow.pictures[0], "--model", copy, "--no-verify").returncode == 0
    assert "SHA-256" in run("info", copy).stderr
    assert "hashes not checked" in run("info", copy, "--no-verify").stdout
    path.write_bytes(whole[:-1])
    assert "the manifest says" in run("info", copy, "--no-verify").stderr
    path.unlink()
    path.symlink_to(narrow.artifact / PROMPTS)
    assert "a link that leads out" in run("score", narrow.pictures[0], "--model", copy, "--no-verify").stderr
