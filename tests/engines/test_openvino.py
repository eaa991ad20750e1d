"""Engine openvino beside onnxruntime on the same graphs, and what it refuses."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.cli.info import describe
from qalign_fast.engines import candidates
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.onnx_session import CPU as ON_CPU
from qalign_fast.engines.onnx_session import import_onnxruntime, session_options
from qalign_fast.engines.openvino_graphs import _core, _read, cause, compile_graphs, settings
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import ArtifactError, DeviceError, MissingExtraError
from qalign_fast.families.mplug_owl2.prompts import prompt
from support.artifacts import seal_files
from support.goldens import FOLDERS, GOLDEN, PICTURES, Golden, Rounded
from support.heads import expected_of, pictures_of

QUALITY = prompt("quality")
FAMILIES = (*FOLDERS, "q-scorer-112", "compare2score-112")


def engines(artifact: Path) -> tuple[Engine, Engine]:
    """openvino's and onnxruntime's."""
    one, other = (load_engine(artifact, LoadOptions(engine=name)) for name in ("openvino", "onnx"))
    return one, other


@pytest.fixture(scope="module")
def engine(rounded: Rounded) -> Engine:
    return load_engine(rounded("narrow-112", "fp32"), LoadOptions(engine="openvino"))


# What it computes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("folder", FAMILIES)
def test_scores_are_onnxruntimes(folder: str, precision: str, rounded: Rounded) -> None:
    engine, other = engines(rounded(folder, precision))
    assert (engine.name, engine.device, engine.precision, engine.kernels) == ("openvino", "cpu", precision, "OpenVINO")
    files = pictures_of(expected_of(folder))
    for task in {p.task for p in engine.prompts if p.medium == "image"}:
        found, expected = (Scorer(one).score(files, task=task) for one in (engine, other))
        np.testing.assert_allclose([s.value for s in found], [s.value for s in expected], rtol=0, atol=1e-4)
        np.testing.assert_allclose([s.logits for s in found], [s.logits for s in expected], rtol=0, atol=1e-3)


def test_clips_are_onnxruntimes(rounded: Rounded) -> None:
    scorers = [Scorer(one) for one in engines(rounded("narrow-112", "fp32"))]
    frames = [PICTURES / str(name) for name in expected_of("narrow-112")["picture_names"]]
    for count in (1, 3, 5):
        found, expected = (scorer.score_video(frames[:count]).value for scorer in scorers)
        assert abs(found - expected) < 1e-4


def product_of_rows(rows: int, inputs: int, outputs: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """An int8 linear in the form of our graphs, without what finds the rows' scales; and random inputs."""
    random = np.random.default_rng(rows)
    w = random.integers(-127, 128, (inputs, outputs), dtype=np.int8)
    scales = random.uniform(0.001, 0.1, outputs).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0),
        helper.make_node("MatMulIntegerToFloat", ["q", "w", "one", "ws", "z128"], ["y"], domain="com.microsoft"),
    ]
    weights = {"w": w, "ws": scales, "one": np.float32(1), "z128": np.uint8(128)}
    graph = helper.make_graph(
        nodes,
        "linear",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", inputs]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("z", TensorProto.UINT8, ["N"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    x = random.standard_normal((rows, inputs)).astype(np.float32)
    x[0] *= 100  # beyond the range of its scale
    x[-1, :4] = 0.5, 1.5, -2.5, 0  # halves go to the even number
    s = np.abs(x).max(-1) / 127
    s[0], s[-1] = 1e-2, 1
    return helper.make_model(graph, opset_imports=opsets, ir_version=9), {"x": x, "s": s, "z": np.full(rows, 128, "u1")}


@pytest.mark.parametrize(
    "shape",
    [
        (77, 1024, 48),  # a picture's rows
        (1, 11008, 16),  # the last row, and the longest sums
        (2, 20, 3),  # shorter than a vector
    ],
)
def test_int8_operators_are_onnxruntimes(shape: tuple[int, int, int], tmp_path: Path) -> None:
    model, feed = product_of_rows(*shape)
    path = tmp_path / "linear.onnx"
    onnx.save(model, path)
    session = import_onnxruntime().InferenceSession(str(path), session_options(ON_CPU), providers=[ON_CPU.name])
    [expected] = session.run(None, feed)
    found = _core().compile_model(_read(path), "CPU", settings(None))(feed)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_int8_scores_are_onnxruntimes_but_for_values_that_round_otherwise(rounded: Rounded) -> None:
    """Float sums in another order round some rows' values differently, which these random models spread.

    `tests/train/test_mini.py` holds a trained model's to 0.01.
    """
    engine, other = engines(rounded("narrow-112", "int8"))
    tokens = other.encode(expected_of("narrow-112")["resized_uint8"])
    off = np.abs(engine.decode(tokens, QUALITY) - other.decode(tokens, QUALITY)).max(-1)
    assert np.median(off) < 1e-4  # the decoder alone: most pictures have no such value
    files = pictures_of(expected_of("narrow-112"))
    found, expected = ([s.value for s in Scorer(one).score(files)] for one in (engine, other))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.06)


def test_int4_scores_are_those_of_rows_in_float32(rounded: Rounded, tmp_path: Path) -> None:
    """onnxruntime rounds rows to 8 bits before products with weights of 4 bits, and OpenVINO does not."""
    artifact = Path(shutil.copytree(rounded("narrow-112", "int4"), tmp_path / "a"))
    for name in open_artifact(artifact).manifest.engines["onnx"].values():
        model = onnx.load(artifact / name)
        for attribute in (a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"):
            attribute.i = 1  # float32
        onnx.save(model, artifact / name)
    seal_files(artifact)
    expected = load_engine(artifact, LoadOptions(engine="onnx"))
    engine = load_engine(rounded("narrow-112", "int4"), LoadOptions(engine="openvino"))
    pixels = expected_of("narrow-112")["resized_uint8"]
    off = engine.decode(engine.encode(pixels), QUALITY) - expected.decode(expected.encode(pixels), QUALITY)
    assert np.abs(off).max() < 1e-4


@pytest.mark.parametrize("count", [1, 2, 3, 6, 40])
def test_any_batch_gives_a_pictures_own_scores(engine: Engine, count: int) -> None:
    pixels = expected_of("narrow-112")["resized_uint8"]
    alone = np.concatenate([engine.decode(engine.encode(pixels[i : i + 1]), QUALITY) for i in range(6)])
    which = np.arange(count) % 6
    found = engine.decode(engine.encode(pixels[which]), QUALITY)
    np.testing.assert_allclose(found, alone[which], rtol=0, atol=1e-4)


def test_several_threads_may_call_at_once(engine: Engine) -> None:
    pixels = expected_of("narrow-112")["resized_uint8"]
    expected = [engine.decode(engine.encode(pixels[i : i + 1]), QUALITY) for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: engine.decode(engine.encode(pixels[i % 6][None]), QUALITY), range(60)))
    for i, logits in enumerate(found):
        np.testing.assert_array_equal(logits, expected[i % 6])


def test_results_outlive_the_next_call(engine: Engine) -> None:
    pixels = expected_of("narrow-112")["resized_uint8"]
    first = engine.encode(pixels[:2])
    before = np.array(first)
    engine.encode(pixels[2:4])
    np.testing.assert_array_equal(first, before)


def test_tokens_may_be_a_part_of_an_array(engine: Engine) -> None:
    tokens = engine.encode(expected_of("narrow-112")["resized_uint8"])
    np.testing.assert_array_equal(engine.decode(tokens[::2], QUALITY), engine.decode(tokens[::2].copy(), QUALITY))


def test_a_scorer_is_loaded_anew_from_a_pickle(narrow: Golden) -> None:
    scorer = Scorer.load(narrow.artifact, engine="openvino", threads=1)
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy.engine.name == "openvino"
    assert copy.score(PICTURES / "chelsea_small.png") == scorer.score(PICTURES / "chelsea_small.png")


def test_no_cpu_computes_in_other_numbers(narrow: Golden) -> None:
    """Where a CPU has AMX, OpenVINO's own choice would be bfloat16; with VNNI, it would round rows to 8 bits."""
    for graph in compile_graphs(open_artifact(narrow.artifact), threads=1):
        assert graph.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert graph.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
        assert graph.get_property("INFERENCE_NUM_THREADS") == 1
        assert not graph.get_property("ENABLE_CPU_PINNING")


@pytest.mark.parametrize(("precision", "kind"), [("int8", "i8"), ("int4", "u4"), ("fp16", "f32")])
def test_weights_stay_in_their_bits_but_for_float16(precision: str, kind: str, rounded: Rounded) -> None:
    for graph in compile_graphs(open_artifact(rounded("narrow-112", precision))):
        facts = [node.get_rt_info() for node in graph.get_runtime_model().get_ops()]
        kinds = [str(fact["runtimePrecision"].astype(str)) for fact in facts if is_linear(fact)]
        assert kinds.count(kind) >= 10  # all but the patches', the head's and the abstractor's constants


def is_linear(fact: dict) -> bool:
    return bool(fact["layerType"].astype(str) == "FullyConnected")


# What it sends


SENDS = """
import socket, subprocess, sys
called = []
def hook(event, _):
    if event.startswith(("socket.", "os.fork", "subprocess.")):
        called.append(event)
sys.addaudithook(hook)
from qalign_fast import Scorer
assert Scorer.load(sys.argv[1], engine="openvino").score(sys.argv[2]).value > 0
print(called, "openvino_telemetry" in sys.modules)
import openvino_telemetry
"""


def test_nothing_is_sent_and_nothing_asked(narrow: Golden, tmp_path: Path) -> None:
    """`import openvino` alone forks a process that sends, and writes an id of this user into ~/intel."""
    outside_ci = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")}
    command = [sys.executable, "-c", SENDS, str(narrow.artifact), str(PICTURES / "chelsea_small.png")]
    environment = outside_ci | {"HOME": str(tmp_path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "[] False", "")
    assert not (tmp_path / "intel").exists()


# Which engine runs


def test_it_runs_only_where_it_is_named(narrow: Golden) -> None:
    artifact = open_artifact(narrow.artifact)
    assert "openvino" not in [one.engine for one in candidates.candidates(artifact, LoadOptions())]
    chosen = candidates.choose(artifact, LoadOptions("auto", engine="openvino"))
    assert (chosen.engine, chosen.place, str(chosen)) == ("openvino", "cpu", "openvino on OpenVINO")
    assert describe(narrow.artifact)["runs if it is named"] == "openvino on OpenVINO"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_no_other_device_is_taken(device: str, narrow: Golden) -> None:
    with pytest.raises(DeviceError, match=f"device '{device}': engine openvino runs on a CPU; engine torch"):
        load_engine(narrow.artifact, LoadOptions(device, engine="openvino"))


def test_graphs_are_needed(tmp_path: Path) -> None:
    torch_alone = export_artifact(GOLDEN / "narrow-112", tmp_path / "a", ExportOptions("fp32", ("torch",)))
    with pytest.raises(DeviceError, match="has no weights for engine 'openvino'; available: torch, native"):
        load_engine(torch_alone, LoadOptions(engine="openvino"))


def test_a_missing_package_is_named(narrow: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"engine openvino runs on openvino, .* pip install 'qalign-fast\[open"):
        load_engine(narrow.artifact, LoadOptions(engine="openvino"))


# Graphs that are not as they should be


def refused(artifact: Path) -> Exception:
    seal_files(artifact)
    with pytest.raises((ArtifactError, DeviceError)) as caught:
        load_engine(artifact, LoadOptions(engine="openvino"))
    assert "\n" not in str(caught.value) and "decoder_model.onnx" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("change", [lambda data: b"", lambda data: b"nonsense", lambda data: data[: len(data) // 2]])
def test_damaged_graphs_are_errors_of_the_artifact(change: Callable[[bytes], bytes], copy: Path) -> None:
    path = copy / "onnx/decoder_model.onnx"
    path.write_bytes(change(path.read_bytes()))
    assert type(refused(copy)) is ArtifactError


def test_an_operator_that_openvino_does_not_have_is_said(copy: Path) -> None:
    path = copy / "onnx/decoder_model.onnx"
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Sigmund"
    onnx.save(model, path)
    error = refused(copy)
    assert type(error) is DeviceError
    assert "Sigmund" in str(error) and "engine onnx runs such graphs" in str(error)


def test_another_graphs_interface_is_refused(copy: Path) -> None:
    shutil.copy(copy / "onnx/vision_encoder.onnx", copy / "onnx/decoder_model.onnx")
    assert "has the inputs and outputs" in str(refused(copy))


def test_graphs_read_only_the_manifests_files(copy: Path) -> None:
    path = copy / "onnx/decoder_model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="elsewhere.bin", size_threshold=0)
    assert "reads 'elsewhere.bin', which is not among the manifest's files" in str(refused(copy))


def test_weights_in_files_of_their_own_are_read(tmp_path: Path, narrow: Golden) -> None:
    external = export_artifact(GOLDEN / "narrow-112", tmp_path / "a", ExportOptions("fp32", external_from=0))
    assert any(name.endswith("_data") for name in open_artifact(external).manifest.files)
    pixels = expected_of("narrow-112")["resized_uint8"]
    one, other = (load_engine(path, LoadOptions(engine="openvino")) for path in (external, narrow.artifact))
    np.testing.assert_array_equal(one.encode(pixels), other.encode(pixels))


def test_a_run_that_fails_is_an_error_of_the_device(engine: Engine) -> None:
    with pytest.raises(DeviceError, match=r"device 'cpu': 2 at a time failed on OpenVINO .*; a smaller batch may do"):
        engine.encode(np.zeros((2, 5, 5, 3), np.uint8))
    assert cause(RuntimeError("Exception from a.cpp:1:\nwhat is wrong\n\n")) == "what is wrong"
