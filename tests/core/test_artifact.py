"""The files that an export writes, and the damage that must not reach a runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from qalign_export import writer
from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import ArtifactError, Scorer, TaskError, __version__
from qalign_fast.artifact.manifest import MANIFEST, open_artifact, parse_manifest
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.onnx_session import CPU, open_sessions
from qalign_fast.families.mplug_owl2.prompts import prompt
from support.artifacts import change_manifest
from support.goldens import Golden


def test_the_manifest_is_its_own_inverse(narrow: Golden) -> None:
    manifest = open_artifact(narrow.artifact).manifest
    assert parse_manifest(json.loads(manifest.to_json()), "again") == manifest


def test_files_have_the_hubs_names_and_pass_onnx_checker(narrow: Golden) -> None:
    names = {p.relative_to(narrow.artifact).as_posix() for p in narrow.artifact.rglob("*") if p.is_file()}
    graphs = {"onnx/vision_encoder.onnx", "onnx/decoder_model.onnx"}
    assert names == graphs | {MANIFEST, "prompts.safetensors", "preprocessor_config.json"}
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in narrow.artifact.rglob("*"))
    for graph in graphs:
        onnx.checker.check_model(str(narrow.artifact / graph), full_check=True)


def test_plain_onnxruntime_runs_the_graphs(narrow: Golden) -> None:
    """An artifact can be used without this package."""
    import onnxruntime

    entry = json.loads((narrow.artifact / MANIFEST).read_text())["tasks"]["quality"]["image"]
    constants = load_file(narrow.artifact / "prompts.safetensors")
    vision, decoder = (
        onnxruntime.InferenceSession(narrow.artifact / f"onnx/{name}.onnx")
        for name in ("vision_encoder", "decoder_model")
    )
    (tokens,) = vision.run(None, {"pixels": narrow.expected["resized_uint8"]})
    feed = {"prefix_key_values": constants[entry["prefix"]], "suffix_embeds": constants[entry["suffix"]]}
    (logits,) = decoder.run(None, {"visual_tokens": tokens, **feed})
    np.testing.assert_allclose(logits, narrow.expected["logits_quality_image"], rtol=0, atol=2e-4)


def test_weights_beside_the_graph_give_the_same_logits(narrow: Golden, tmp_path: Path) -> None:
    out = export_artifact(narrow.checkpoint, tmp_path / "external", ExportOptions(external_from=0))
    assert (out / "onnx/vision_encoder.onnx_data").stat().st_size > (out / "onnx/vision_encoder.onnx").stat().st_size
    pixels = narrow.expected["resized_uint8"]
    inside, beside = (load_engine(path) for path in (narrow.artifact, out))
    logits = [e.decode(e.encode(pixels), prompt("quality")) for e in (inside, beside)]
    np.testing.assert_array_equal(*logits)


def test_chosen_tasks_only(narrow: Golden, tmp_path: Path) -> None:
    out = export_artifact(narrow.checkpoint, tmp_path / "one", ExportOptions(tasks=["aesthetics"]))
    scorer = Scorer.load(out)
    assert scorer.tasks() == scorer.tasks("video") == ("aesthetics",)
    with pytest.raises(TaskError, match="it has: aesthetics"):
        scorer.score(narrow.pictures[0])
    with pytest.raises(TaskError, match="the family has: quality, aesthetics"):
        ExportOptions(tasks=["beauty"])


def test_an_export_never_overwrites(narrow: Golden, copy: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        export_artifact(narrow.checkpoint, copy)


def test_an_interrupted_export_leaves_nothing(narrow: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_preprocessor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_artifact(narrow.checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_any_changed_byte_is_an_artifact_error_naming_the_file(copy: Path) -> None:
    rng = np.random.default_rng(0)
    for name in open_artifact(copy).manifest.files:
        path = copy / name
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        for damaged in (bytes(flipped), whole[:-1], whole + b"x", b""):
            path.write_bytes(damaged)
            with pytest.raises(ArtifactError) as caught:
                Scorer.load(copy)
            assert name in str(caught.value)
        path.unlink()
        with pytest.raises(ArtifactError, match=path.name):
            Scorer.load(copy)
        path.write_bytes(whole)
    Scorer.load(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": 2}, f"schema 2; this version ({__version__}) reads schema 1; a newer qalign-fast reads it"),
        ({"schema": 2, "made_with": {"qalign-fast": "77.3.0"}}, "reads schema 1; qalign-fast 77.3.0 or newer reads it"),
        ({"schema": 2, "made_with": {"qalign-fast": "0.0.1"}}, "a newer qalign-fast reads it"),
        ({"schema": 2, "made_with": {"qalign-fast": "9" * 5000}}, "a newer qalign-fast reads it"),
        ({"schema": 2, "made_with": [1]}, "a newer qalign-fast reads it"),
        ({"schema": None}, "schema None"),
        ({"schema": True}, "schema True"),
        ({"files": {"../secret": {"sha256": "0" * 64, "bytes": 1}}}, "lies outside the artifact"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "lies outside the artifact"),
        ({"files": {"x": {"sha256": "0", "bytes": 1}}}, "'0' is not a SHA-256"),
        ({"files": {"x": {"sha256": "0" * 64, "bytes": -1}}}, "expected a whole number, found -1"),
        ({"files": {}, "engines": {"onnx": {"encode": "../x", "decode": "y"}}}, "not among the manifest's files"),
        ({"engines": {"onnx": {}}}, "engine onnx has the parts none; expected encode, decode"),
        ({"engines": {}}, "has no engine's weights"),
        ({"family": "llava"}, "family 'llava'"),
        ({"levels": {"bad": 4319}}, "levels ['bad']"),
        ({"precision": "int6"}, "'int6', expected one of: fp32, fp16"),
        ({"tasks": {}}, "it has no task"),
        ({"sizes": {}}, "a field is missing or malformed"),
        ({"sizes": {"vision": {"width": "160"}}}, "width is '160', expected a positive number"),
        ({"sizes": {"vision": {"layers": -1}}}, "layers is -1, expected a positive number"),
        ({"tasks": {"quality": {"image": {}}}}, "a field is missing or malformed"),
    ],
)
def test_a_manifest_that_cannot_be_trusted(copy: Path, fields: dict[str, object], message: str) -> None:
    change_manifest(copy, **fields)
    with pytest.raises(ArtifactError) as caught:
        Scorer.load(copy)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("station", "fields", "message"),
    [
        ("pixels", {"side": 112.0}, "expected a whole number, found 112.0"),
        ("pixels", {"std": [0, 0.26, 0.27]}, "expected positive numbers"),
        ("sizes", {"patch": 15}, "side 112 is not a multiple of patch 15"),
    ],
)
def test_sizes_that_no_picture_fits(copy: Path, station: str, fields: dict[str, object], message: str) -> None:
    changed = json.loads((copy / MANIFEST).read_text())[station]
    (changed if station == "pixels" else changed["vision"]).update(fields)
    change_manifest(copy, **{station: changed})
    with pytest.raises(ArtifactError, match=message):
        Scorer.load(copy)


def test_a_link_out_of_the_artifact_is_refused(copy: Path, tmp_path: Path) -> None:
    path = copy / "preprocessor_config.json"
    path.rename(tmp_path / "outside.json")
    path.symlink_to(tmp_path / "outside.json")
    with pytest.raises(ArtifactError, match="a link that leads out"):
        Scorer.load(copy)


def test_references_that_are_no_model(tmp_path: Path) -> None:
    for reference in (tmp_path, tmp_path / "missing", "no such thing", __file__):
        with pytest.raises(ArtifactError):
            Scorer.load(reference)


@pytest.mark.parametrize(("threads", "spins"), [(1, False), (2, False), (16, True)])
def test_few_threads_do_not_spin_while_they_wait(narrow: Golden, threads: int, spins: bool) -> None:
    for session in open_sessions(open_artifact(narrow.artifact), "onnx", CPU, threads):
        options = session.get_session_options()
        assert options.intra_op_num_threads == threads
        if spins:
            with pytest.raises(RuntimeError, match="does not have"):
                options.get_session_config_entry("session.intra_op.allow_spinning")
        else:
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
