"""The CUDA engine on a real GPU: scores, graphs, threads and uploads."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.cuda_graphs import Direct, Graphs, Runner
from qalign_fast.engines.cuda_model import attention_of
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.engines.torch_cpu import load_folded
from qalign_fast.engines.torch_cuda import CudaEngine
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.levels import score_of
from qalign_kernels.contract.ops import PLAIN
from support.cuda_engines import QUALITY, engine_of, some
from support.goldens import GOLDEN, PICTURES, Golden, Rounded

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


CUDA = torch.device("cuda:0")


def scores(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    return np.array([score_of(row, "quality").value for row in engine.decode(engine.encode(pixels), QUALITY)])


@on_gpu
@pytest.mark.parametrize("folder", ["narrow-112", "narrow-448"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 1e-1)])
def test_floats_on_a_gpu_give_upstreams_scores(folder: str, precision: str, tolerance: float, tmp_path: Path) -> None:
    path = export_artifact(GOLDEN / folder, tmp_path / "a", ExportOptions(precision, ("torch",)))
    golden = np.load(GOLDEN / folder / "expected.npz")
    engine = load_engine(path, LoadOptions(device="cuda"))
    attention = attention_of(precision, "cuda:0")
    assert (engine.device, engine.kernels, engine.precision) == ("cuda:0", f"Triton, {attention} attention", precision)
    found = scores(engine, golden["resized_uint8"])
    np.testing.assert_allclose(found, golden["score_quality_image"], rtol=0, atol=tolerance)


@on_gpu
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_8_and_4_bits_on_a_gpu_are_the_cpus(precision: str, rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    """Equal up to rounding: float16 between products moves values across 8-bit steps, large in a small model."""
    path, pixels = rounded("narrow-112", precision), expected["resized_uint8"]
    found = scores(load_engine(path, LoadOptions(device="cuda", engine="torch")), pixels)
    np.testing.assert_allclose(found, scores(load_folded(open_artifact(path), ops=PLAIN), pixels), rtol=0, atol=0.1)


def on_triton(path: Path, runner: Runner) -> CudaEngine:
    from qalign_kernels.cuda.ops import TritonOps
    from qalign_kernels.cuda.runtime import device_of

    facts = device_of(CUDA)
    return engine_of(path, runner, TritonOps(facts, torch.float16), TritonOps(facts, torch.float32), "cuda:0")


@on_gpu
def test_graphs_compute_what_their_steps_do(rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    """Repeated with other pictures, and with other graphs in between, because the pool is shared."""
    path = rounded("narrow-112", "int8")
    graphs, direct = on_triton(path, Graphs(CUDA)), on_triton(path, Direct(CUDA))
    for count in (1, 4, 64, 1, 64, 3, 4, 130):
        pixels = expected["resized_uint8"][some(expected, count, first=count)]
        for task in ("quality", "aesthetics"):
            found, wanted = (e.decode(e.encode(pixels), prompt(task)) for e in (graphs, direct))
            np.testing.assert_array_equal(found, wanted)


@on_gpu
def test_threads_on_streams_of_their_own_get_their_own_scores(
    rounded: Rounded, expected: dict[str, np.ndarray]
) -> None:
    path, found = rounded("narrow-112", "int8"), dict[int, np.ndarray]()
    engine, direct = on_triton(path, Graphs(CUDA)), on_triton(path, Direct(CUDA))
    engine.decode(engine.encode(expected["resized_uint8"][:1]), QUALITY)

    def call(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(CUDA)):
            many = [some(expected, count, first) for count in (1, 8, 3, 64, 2) * 4]
            found[first] = np.concatenate([engine.decode(engine.encode(pixels[i]), QUALITY) for i in many])

    pixels = expected["resized_uint8"]
    threads = [Thread(target=call, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    for first, logits in found.items():
        alone = [direct.decode(direct.encode(pixels[some(expected, n, first)]), QUALITY) for n in (1, 8, 3, 64, 2) * 4]
        np.testing.assert_array_equal(logits, np.concatenate(alone))


@on_gpu
def test_scores_on_a_gpu_do_not_depend_on_neighbours(rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    engine = load_engine(rounded("narrow-112", "fp16"), LoadOptions(device="cuda", engine="torch"))
    alone = np.concatenate([scores(engine, expected["resized_uint8"][i : i + 1]) for i in range(6)])
    for count in (2, 3, 5, 66):
        which = some(expected, count, first=1)
        np.testing.assert_allclose(scores(engine, expected["resized_uint8"][which]), alone[which], rtol=0, atol=5e-3)


@on_gpu
def test_uploads_arrive_in_order_and_whole() -> None:
    batches = [
        np.random.default_rng(i).integers(0, 256, (n, 112, 112, 3)).astype(np.uint8)
        for i, n in enumerate((64, 64, 5, 64, 1))
    ]
    graphs = Graphs(CUDA)
    for _ in range(3):
        with graphs.scope():
            arrived = [x.clone() for x in graphs.upload(batches)]
        for found, sent in zip(arrived, batches, strict=True):
            np.testing.assert_array_equal(found.cpu().numpy(), sent)


@on_gpu
def test_clips_on_a_gpu_give_upstreams_scores(rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    engine = load_engine(rounded("narrow-112", "fp16"), LoadOptions(device="cuda", engine="torch"))
    found = Scorer(engine).score_video([PICTURES / name for name in expected["picture_names"][:3]])
    assert abs(found.value - expected["score_quality_video"][0]) < 1e-2


@on_gpu
def test_a_checkpoint_runs_on_a_named_gpu(narrow: Golden, expected: dict[str, np.ndarray]) -> None:
    engine = load_engine(narrow.checkpoint, LoadOptions(device="cuda"))
    assert engine.device == "cuda:0"
    np.testing.assert_allclose(
        scores(engine, expected["resized_uint8"]), expected["score_quality_image"], rtol=0, atol=1e-4
    )
