"""Graphs for onnxruntime's CUDA provider, and the engine that binds them. Both also run on a CPU, as here."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from qalign_export.options import ExportOptions
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines import devices, onnx_session
from qalign_fast.engines.candidates import choose
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.onnx_cuda import DeviceTokens, OnnxGpuEngine
from qalign_fast.engines.onnx_session import CPU, Provider, cuda, require_provider, tensorrt
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import ArtifactError, DeviceError
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.levels import score_of
from support.goldens import FOLDERS, GOLDEN, PICTURES, Golden

QUALITY = prompt("quality")
# Each has a float16 kernel of the CUDA provider (onnxruntime 1.31, docs/OperatorKernels.md) or only moves bytes.
FUSED = {"MultiHeadAttention", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization"}
FUSED |= {"SkipSimplifiedLayerNormalization"}
STANDARD = set("Add Cast Concat Cos Div Expand Gather Identity LayerNormalization Less MatMul Mul ReduceMean".split())
STANDARD |= set("Reshape Shape Sin Slice Split Sqrt Transpose Unsqueeze Where".split())


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts with graphs for CUDA alone, by golden folder."""
    out = tmp_path_factory.mktemp("cuda")
    return {
        folder: export_artifact(
            GOLDEN / folder,
            out / folder,
            ExportOptions("fp16", ("onnx-cuda",), calibration=generate_pictures(4)),
        )
        for folder in FOLDERS
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "narrow-112" / "expected.npz"))


@pytest.fixture
def engine(fused: dict[str, Path]) -> OnnxGpuEngine:
    """All buffers are on the CPU. The code that binds, fills and keeps them is the same."""
    return OnnxGpuEngine(open_artifact(fused["narrow-112"]), "onnx-cuda", CPU)


def graphs(artifact: Path) -> Iterator[onnx.GraphProto]:
    for part in open_artifact(artifact).manifest.engines["onnx-cuda"].values():
        yield onnx.load(artifact / part).graph


def test_every_operator_has_a_kernel_there(fused: dict[str, Path]) -> None:
    used = {node.op_type for graph in graphs(fused["narrow-112"]) for node in graph.node}
    assert used <= FUSED | STANDARD
    assert used >= FUSED


def test_no_mask_is_added_to_scores(fused: dict[str, Path]) -> None:
    """The provider refuses a mask whose width is no multiple of eight, and few sequences have such a length."""
    nodes = [node for graph in graphs(fused["narrow-112"]) for node in graph.node if "HeadAttention" in node.op_type]
    assert nodes
    assert not any(node.input[5] for node in nodes if len(node.input) > 5)


@pytest.mark.parametrize("engine_name", ["onnx-cuda", "onnx"])
def test_nothing_is_computed_of_a_shape(engine_name: str, fused: dict[str, Path], narrow: Golden) -> None:
    """onnxruntime moves such arithmetic to the CPU, and then the graph does not run on the GPU alone."""
    artifact = fused["narrow-112"] if engine_name == "onnx-cuda" else narrow.artifact
    for part in open_artifact(artifact).manifest.engines[engine_name].values():
        graph = onnx.load(artifact / part).graph
        shapes = {node.output[0] for node in graph.node if node.op_type == "Shape"}
        assert shapes
        for node in graph.node:
            for i, value in enumerate(node.input):
                if value in shapes:
                    assert node.op_type in ("Expand", "Slice", "Reshape") and i > 0, node.name


def test_what_lies_between_is_float16(fused: dict[str, Path]) -> None:
    for graph in graphs(fused["narrow-448"]):
        weights = {i.name: i.data_type for i in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMul"]
        halves = [weights[node.input[1]] == onnx.TensorProto.FLOAT16 for node in products]
        assert len(halves) - sum(halves) == 1  # the patches' or the head's


@pytest.mark.parametrize("folder", FOLDERS)
def test_scores_stay_within_a_hundredth_of_upstreams(folder: str, fused: dict[str, Path]) -> None:
    golden = np.load(GOLDEN / folder / "expected.npz")
    engine = load_engine(fused[folder], LoadOptions(device="cpu"))
    assert (engine.name, engine.device, engine.precision) == ("onnx-cuda", "cpu", "fp16")
    tokens = engine.encode(golden["resized_uint8"])
    checked = 0
    for p in engine.prompts:
        inputs = [tokens] if p.medium == "image" else [tokens[:3].reshape(1, -1, tokens.shape[-1]), tokens[2:3]]
        if (name := f"score_{p.task}_{p.medium}") in golden:
            logits = np.concatenate([engine.decode(x, p) for x in inputs])
            found = [score_of(row, p.task).value for row in logits]
            np.testing.assert_allclose(found, golden[name], rtol=0, atol=1e-2)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 70])
def test_any_batch_gives_a_pictures_own_logits(
    engine: OnnxGpuEngine, expected: dict[str, np.ndarray], count: int
) -> None:
    pixels = expected["resized_uint8"]
    alone = np.concatenate([engine.decode(engine.encode(pixels[i : i + 1]), QUALITY) for i in range(6)])
    which = np.arange(count) % 6
    found = engine.decode(engine.encode(pixels[which]), QUALITY)
    np.testing.assert_allclose(found, alone[which], rtol=0, atol=2e-3)  # float16 sums in another order


def test_tokens_outlive_their_buffer(engine: OnnxGpuEngine, expected: dict[str, np.ndarray]) -> None:
    pixels = expected["resized_uint8"]
    first, second = engine.encode(pixels[:2]), engine.encode(pixels[2:4])
    assert (first.on_device, second.on_device) == (False, True)
    assert first.shape == second.shape == (2, *expected["visual_tokens"].shape[1:])
    again = engine.encode(pixels[:2])
    assert not second.on_device
    np.testing.assert_array_equal(first.numpy(), again.numpy())
    np.testing.assert_array_equal(engine.decode(first, QUALITY), engine.decode(again, QUALITY))
    assert not np.array_equal(first.numpy(), second.numpy())


def test_tokens_nobody_wants_are_not_fetched(engine: OnnxGpuEngine, expected: dict[str, np.ndarray]) -> None:
    class Fetched(DeviceTokens):
        def numpy(self) -> np.ndarray:
            raise AssertionError("fetched")

    tokens = engine.encode(expected["resized_uint8"][:1])
    tokens.__class__ = Fetched
    engine.decode(tokens, QUALITY)
    engine.decode(tokens, prompt("aesthetics"))  # both tasks read the tokens where they are
    del tokens
    gc.collect()
    engine.encode(expected["resized_uint8"][:1])


def test_tokens_are_cut_as_arrays_are(engine: OnnxGpuEngine, expected: dict[str, np.ndarray]) -> None:
    tokens = engine.encode(expected["resized_uint8"][:3])
    whole = engine.decode(tokens, QUALITY)
    np.testing.assert_allclose(engine.decode(tokens[1:3], QUALITY), whole[1:3], rtol=0, atol=2e-3)


def test_clips_and_tasks_are_scored(fused: dict[str, Path], expected: dict[str, np.ndarray]) -> None:
    scorer = Scorer(OnnxGpuEngine(open_artifact(fused["narrow-112"]), "onnx-cuda", CPU))
    frames = [PICTURES / name for name in expected["picture_names"][:3]]
    assert abs(scorer.score_video(frames).value - expected["score_quality_video"][0]) < 1e-2
    both = scorer.score_tasks([*expected["resized_uint8"]])
    for task in ("quality", "aesthetics"):
        found = [scores[task].value for scores in both]
        np.testing.assert_allclose(found, expected[f"score_{task}_image"], rtol=0, atol=1e-2)


def test_the_cuda_graphs_are_fp16s(tmp_path: Path) -> None:
    for precision in ("fp32", "int8", "bf16"):
        with pytest.raises(DeviceError, match=f"do not compute in {precision}; available: fp16"):
            export_artifact(GOLDEN / "narrow-112", tmp_path / "a", ExportOptions(precision, ("onnx-cuda",)))


def test_both_kinds_of_graph_lie_in_one_artifact(tmp_path: Path) -> None:
    engines = ("onnx", "onnx-cuda")
    path = export_artifact(GOLDEN / "narrow-112", tmp_path / "a", ExportOptions("fp16", engines, external_from=0))
    manifest = open_artifact(path).manifest
    assert tuple(manifest.engines) == engines
    names = [name for parts in manifest.engines.values() for name in parts.values()]
    assert sorted(names) == [
        "onnx/decoder_model_fp16.onnx",
        "onnx/decoder_model_fp16_cuda.onnx",
        "onnx/vision_encoder_fp16.onnx",
        "onnx/vision_encoder_fp16_cuda.onnx",
    ]
    assert all(f"{name}_data" in manifest.files for name in names)
    assert load_engine(path, LoadOptions(engine="onnx-cuda")).precision == "fp16"


# The errors on a machine without a GPU


def refused(artifact: Path, **choice: str) -> str:
    with pytest.raises(DeviceError) as caught:
        load_engine(artifact, LoadOptions(**choice))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_onnxruntime_without_cuda_is_no_gpu(fused: dict[str, Path], narrow: Golden) -> None:
    for artifact, engine in ((fused["narrow-112"], "auto"), (narrow.artifact, "onnx"), (narrow.artifact, "tensorrt")):
        text = refused(artifact, device="cuda:1", engine=engine)
        assert "device 'cuda:1': the installed onnxruntime" in text
        assert "pip install 'qalign-fast[gpu]'" in text
    assert "no TensorrtExecutionProvider" in refused(narrow.artifact, engine="tensorrt")
    assert load_engine(fused["narrow-112"]).device == "cpu"  # "auto"


def test_where_graphs_do_not_run_is_said(narrow: Golden, rounded: Callable[[str, str], Path]) -> None:
    assert "fp32 graphs run on a CPU or an NVIDIA GPU; `" in refused(narrow.artifact, device="mps")
    assert "fp32 graphs run on an NVIDIA GPU; `" in refused(narrow.artifact, device="cpu", engine="tensorrt")
    eight = rounded("narrow-112", "int8")
    assert "int8 graphs run on a CPU; `qalign-fast export --engine" in refused(eight, device="cuda", engine="onnx")
    assert "int8 graphs run on a CPU; `" in refused(eight, engine="tensorrt")


def test_auto_takes_the_gpu_for_graphs_made_for_it(
    fused: dict[str, Path], narrow: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_session, "has_cuda", lambda: True)
    monkeypatch.setattr(devices, "cuda_problem", lambda *_: "none")
    all_of_them = export_artifact(
        GOLDEN / "narrow-112", tmp_path / "a", ExportOptions("fp16", ("onnx", "onnx-cuda", "torch"))
    )
    chosen = [
        choose(open_artifact(artifact), LoadOptions(device, engine=engine))
        for artifact, device, engine in (
            (fused["narrow-112"], "auto", "auto"),
            (fused["narrow-112"], "cuda", "auto"),
            (fused["narrow-112"], "cpu", "auto"),
            (narrow.artifact, "auto", "auto"),
            (narrow.artifact, "cuda:2", "auto"),
            (narrow.artifact, "auto", "tensorrt"),
            (all_of_them, "auto", "auto"),
        )
    ]
    assert [(c.engine, c.place) for c in chosen] == [
        ("onnx-cuda", "cuda:0"),
        ("onnx-cuda", "cuda:0"),
        ("onnx-cuda", "cpu"),
        ("onnx", "cpu"),  # these graphs run on a CPU unless a GPU is named
        ("onnx", "cuda:2"),
        ("tensorrt", "cuda:0"),
        ("onnx-cuda", "cuda:0"),  # torch sees no GPU
    ]


class Absent:
    """An onnxruntime that has the provider, but no device for it."""

    __version__ = "1.31.1"

    class OrtValue:
        @staticmethod
        def ortvalue_from_shape_and_type(*_: object) -> None:
            raise RuntimeError("CUDA Provider not available, can't get interface for it\n")

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_provider_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_session, "import_onnxruntime", Absent)
    for provider in (cuda("cuda:0"), tensorrt("cuda:0", "fp16")):
        with pytest.raises(DeviceError, match=r"onnxruntime cannot use it \(CUDA Provider not available, .* it\); its"):
            require_provider(provider)


class Session:
    """onnxruntime returns such a session if it could not start the provider that was asked for."""

    @staticmethod
    def get_providers() -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_session_on_another_provider_is_no_session(fused: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session)
    artifact = open_artifact(fused["narrow-112"])
    with pytest.raises(
        DeviceError, match=r"does not run vision_encoder_fp16_cuda.onnx wholly on CUDA.*took CPU.*instead"
    ):
        onnx_session.open_sessions(artifact, "onnx-cuda", cuda("cuda:0"))


def test_operators_left_to_a_cpu_are_refused(fused: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Azure provider, which onnxruntime for CPUs has, runs none of the operators. It is not sent over a network."""
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that starts and takes nothing")
    artifact = open_artifact(fused["narrow-112"])
    with pytest.raises(
        DeviceError, match=r"not run .* wholly on Azure.* fallback to CPU EP has been explicitly disabled"
    ):
        onnx_session.open_sessions(artifact, "onnx-cuda", Provider("AzureExecutionProvider"))


def test_a_missing_engine_is_an_artifact_error(narrow: Golden) -> None:
    with pytest.raises(ArtifactError, match="engine onnx-cuda has the parts none; expected encode, decode"):
        onnx_session.open_sessions(open_artifact(narrow.artifact), "onnx-cuda", CPU)
