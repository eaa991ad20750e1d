"""The golden folders: checkpoints, and the artifacts that are exported from them once in a run."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import wheels
from qalign_export.options import ExportOptions
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines import torch_cuda
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.native_cpu import load_native_engine
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.cpu import building
from qalign_kernels.cpu.numpy_ops import load_numpy
from qalign_kernels.cpu.plain_numpy import PLAIN
from qalign_kernels.cpu.sources import BuildError, this_machine
from support.fake_streams import FakeCuda
from support.goldens import FOLDERS, GOLDEN, Golden, Rounded
from support.user_kernels import user_kernels

# Tests inside others' tools run in environments of their own: `make tools`.
collect_ignore = ["tools"]

# Hides kernels that this user has built: engines run in plain torch unless a test asks for others.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="qalign-fast-tests-")

# Test processes side by side share the cores.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))

# The tests' small models compile kernels when they launch them: a pool of processes for each load would cost more.
torch_cuda.compile_ahead = lambda *_: False

# These take minutes each. They run first, so that all processes end at about the same time.
LONG = (
    *("test_mini", "test_native", "test_triton_ahead", "test_triton_linear", "test_triton_model"),
    *("test_soak", "test_page", "test_failures", "test_openapi", "test_server_load"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


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
    """(golden folder, precision) -> its artifact, calibrated on generated pictures, for all engines that have it."""
    out = tmp_path_factory.mktemp("rounded")

    @cache
    def make(folder: str, precision: str) -> Path:
        engines = [engine for engine in ("onnx", "torch") if engine in PRECISIONS[precision].engines]
        return export_artifact(
            GOLDEN / folder,
            out / f"{folder}-{precision}",
            ExportOptions(precision, engines, calibration=generate_pictures(16)),
        )

    return make


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The C++ kernels of a kind of machine. The first process that asks builds them, once in a run."""
    folder = (tmp_path_factory.getbasetemp() / (".." if processes else ".")).resolve()

    def build(machine: str) -> Path:
        path = folder / machine / "kernels.so"
        try:
            with (folder / "kernels.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return path if path.exists() else building.build(path, machine)
        except BuildError as error:
            if "cannot be run" not in str(error):
                raise
            pytest.skip(str(error))

    return build


@pytest.fixture(scope="session")
def library(compiled: Callable[[str], Path]) -> Path:
    """The C++ kernels of this machine."""
    return compiled(this_machine())


@pytest.fixture(scope="module")
def kernels(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder with the C++ kernels in it: this process and those that it starts compute with them."""
    with user_kernels(library, tmp_path_factory.mktemp("user")) as folder:
        yield folder


@pytest.fixture(scope="session")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without kernels."""
    for module in ("build", "setuptools", "wheel", "auditwheel"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: the extra `wheels` has it")
    return wheels.build_pure(tmp_path_factory.mktemp("pure"))


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, pure: Path, compiled: Callable[[str], Path]
) -> Callable[[str], Path]:
    """A machine's wheel."""
    return cache(lambda machine: wheels.add_library(pure, compiled(machine), machine, tmp_path_factory.mktemp(machine)))


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Replaces torch.cuda's streams, events and graphs on a CPU."""
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


@pytest.fixture
def copy(narrow: Golden, tmp_path: Path) -> Path:
    """An artifact that a test may damage."""
    return Path(shutil.copytree(narrow.artifact, tmp_path / "artifact"))


@pytest.fixture(params=["torch", "onnx", "native", "plain numpy"])
def engine(request: pytest.FixtureRequest, golden: Golden, rounded: Rounded) -> Engine:
    if request.param in ("torch", "onnx"):
        return load_engine(golden.checkpoint if request.param == "torch" else golden.artifact)
    ops = PLAIN
    if request.param == "native":
        ops = load_numpy(library_path=request.getfixturevalue("library"))
    return load_native_engine(open_artifact(rounded(golden.checkpoint.name, "fp32")), ops=ops)
