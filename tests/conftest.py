"""The golden folders, as checkpoints and as artifacts exported from them once a run."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_streams import FakeCuda

from qalign_export.fidelity import generate_pictures
from qalign_export.pack import Recipe, pack
from qalign_export.source import open_source
from qalign_export.writer import export_artifact
from qalign_fast import cuda_engine
from qalign_fast.engine import Engine
from qalign_fast.loading import load_engine
from qalign_fast.model.packed import PackedModel
from qalign_fast.prompt import ALL_PROMPTS
from qalign_kernels import native
from qalign_kernels.ops import Ops

# Kernels that this user has built are not seen: engines run in plain torch unless a test asks for others.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="qalign-fast-tests-")

# Test processes side by side share the cores.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))

# Kernels of models as small as the tests' are compiled as they come: a pool of processes for each load costs more.
cuda_engine.compile_ahead = lambda *_: False

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
PICTURES = GOLDEN / "pictures"
FOLDERS = ("narrow-112", "narrow-448", "outlier-112")

# minutes each: they begin, so that the last process ends early
LONG = ("test_mini", "test_triton", "test_native", "test_triton_ahead")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@dataclass(frozen=True)
class Golden:
    """One model folder: upstream's checkpoint and the numbers upstream's code gave."""

    checkpoint: Path
    artifact: Path
    expected: dict[str, np.ndarray]

    @property
    def pictures(self) -> list[Path]:
        return [PICTURES / name for name in self.expected["picture_names"]]


@pytest.fixture(scope="session")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Golden]:
    out = tmp_path_factory.mktemp("artifacts")
    return {
        name: Golden(
            GOLDEN / name, export_artifact(GOLDEN / name, out / name), dict(np.load(GOLDEN / name / "expected.npz"))
        )
        for name in FOLDERS
    }


@pytest.fixture(scope="session")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(golden folder, precision) -> its artifact, calibrated on generated pictures, with the weights of each engine
    that has the precision.
    """
    out = tmp_path_factory.mktemp("rounded")

    @cache
    def make(folder: str, precision: str) -> Path:
        return export_artifact(
            GOLDEN / folder,
            out / f"{folder}-{precision}",
            recipe=Recipe(precision),
            engines=("torch",) if precision == "fp8" else ("onnx", "torch"),
            calibration=generate_pictures(16),
        )

    return make


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ kernels, built once a run, by the first of its processes that asks."""
    folder = tmp_path_factory.getbasetemp() / (".." if processes else ".")
    try:
        with (folder / "kernels.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return native.build(folder.resolve() / "kernels.so")
    except native.BuildError as error:
        if "cannot be run" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """In place of torch.cuda's streams, events and graphs, on a CPU."""
    cuda = FakeCuda()
    for name, value in cuda.functions().items():
        monkeypatch.setattr(torch.cuda, name, value)
    with cuda:
        yield cuda


@pytest.fixture(params=FOLDERS)
def golden(request: pytest.FixtureRequest, goldens: dict[str, Golden]) -> Golden:
    return goldens[request.param]


@pytest.fixture(scope="session")
def narrow(goldens: dict[str, Golden]) -> Golden:
    return goldens["narrow-112"]


@pytest.fixture(params=["torch", "onnx"])
def engine(request: pytest.FixtureRequest, golden: Golden) -> Engine:
    return load_engine(golden.checkpoint if request.param == "torch" else golden.artifact)


def assert_goldens(folder: str, ops: Ops) -> None:
    """The packed model in float32 gives upstream's numbers on these operations."""
    source, tensors = open_source(GOLDEN / folder), {}
    packed = pack(source, Recipe("fp32"), ALL_PROMPTS, torch.empty(0), tensors.__setitem__)
    model, expected = PackedModel(source.config, tensors, ops), np.load(GOLDEN / folder / "expected.npz")
    tokens = model.encode(torch.from_numpy(expected["resized_uint8"]))
    size = np.abs(expected["visual_tokens"]).max()
    np.testing.assert_allclose(tokens, expected["visual_tokens"], rtol=0, atol=2e-5 * size)
    for p in ALL_PROMPTS:
        inputs = [tokens] if p.medium == "image" else [tokens[:3].reshape(1, -1, tokens.shape[-1]), tokens[2:3]]
        logits = [model.decode(x, packed.prefixes[p.prefix], packed.suffixes[p.suffix]) for x in inputs]
        if (name := f"logits_{p.task}_{p.medium}") in expected:
            np.testing.assert_allclose(torch.cat(logits), expected[name], rtol=0, atol=2e-4)
