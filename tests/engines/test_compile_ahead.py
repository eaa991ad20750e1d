"""The kernels compiled ahead are those that a load launches. A pool that fails, or is not needed, changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.goldens import GOLDEN, ROOT

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_bench.contestants.random_model import launches, load, make
from qalign_fast.engines import compile_ahead as ahead_of
from qalign_fast.engines.cuda_model import build_model
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_kernels.cuda import ahead
from qalign_kernels.cuda.ahead import Pool
from qalign_kernels.cuda.launch import Device
from qalign_kernels.cuda.runtime import cache_hook, set_driver

H100 = Device(90, 132, 227 * 1024)
NARROW = f"random:{GOLDEN / 'narrow-112'}"
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def python(code: str, **settings: str) -> str:
    """Runs in a process of its own, because Triton's interpreter and driver are set for a whole process."""
    paths = os.pathsep.join([str(ROOT / "tests"), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": paths, **settings}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def compare_keys(precision: str) -> None:
    """Compiles and computes nothing. `launched` has the kernels that a process would have compiled."""
    launched: set[tuple[str, str]] = set()

    def keep(name: str, key: str) -> bool:
        launched.add((name, key))
        return True

    set_driver(ahead.Idle(H100))
    cache_hook(keep)
    there = launches(make(NARROW, precision, torch.device("cpu")))
    for batch in (1, 8):
        for _ in ahead_of.walk(H100, there.on_meta(), batches=[batch]):
            pass
        known = set(launched)
        launched.clear()
        model, constants = build_model(
            FAMILY, *there[1:3], dict(there.tensors), there.constants, torch.device("cpu"), H100
        )
        side = there.config.pixels.side
        with torch.inference_mode():
            tokens = model.encode(torch.zeros(batch, side, side, 3, dtype=torch.uint8))
            for prefix, suffix in constants.values():
                model.decode(tokens, prefix, suffix)
        assert len(known) > 10
        assert launched == known, launched ^ known
        launched.clear()


@pytest.mark.parametrize("precision", ["int8", "fp8", "fp16", "int4"])
def test_kernels_are_specialized_ahead_as_for_tensors_that_hold_data(precision: str) -> None:
    """The key of a kernel in memory that torch allocated, as on a GPU: types, divisibility by 16, ones, tiles."""
    python(f"import test_compile_ahead as t; t.compare_keys({precision!r})")


def walk_some(device: Device, path: str) -> Iterator[None]:
    """The function that a pool's processes run. Each process reports in a file of its own."""
    for part in range(3):
        Path(path, f"{os.getpid()}-{part}").touch()
        yield


def walk_badly(device: Device) -> Iterator[None]:
    yield
    raise RuntimeError("no compiler")


def walk_long(device: Device) -> Iterator[None]:
    yield
    time.sleep(600)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests"))


def test_every_process_runs_the_whole_walk(importable: None, tmp_path: Path) -> None:
    with Pool("test_compile_ahead:walk_some", H100, (str(tmp_path),), 2) as pool:
        assert pool.wait()
    assert len(list(tmp_path.iterdir())) == 6


def test_a_pool_that_fails_or_is_late_says_so_and_ends(importable: None) -> None:
    with Pool("test_compile_ahead:walk_badly", H100, (), 1) as pool:
        assert not pool.wait()
        assert pool.problem() == "RuntimeError: no compiler"
    with Pool("test_compile_ahead:walk_long", H100, (), 1) as pool:
        assert pool.wait(1)  # its first part is done
        assert not pool.wait(2, seconds=0.1)
        assert pool.problem() is None
    assert all(process.poll() is not None for process in pool._processes)
    with Pool("test_compile_ahead:walk_some", H100, (), 0) as none:
        assert none.wait()


def test_where_no_process_can_be_had_nothing_is_waited_for(importable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with Pool("test_compile_ahead:walk_long", H100, (), 2) as pool:
        assert not pool.wait()
        assert pool.problem() == "/nowhere/python: No such file or directory"


def test_one_process_compiles_what_the_other_does_not(tmp_path: Path) -> None:
    assert ahead._claim(tmp_path / "a")
    assert not ahead._claim(tmp_path / "a")
    assert ahead._claim(tmp_path / "b")


def walk_loudly(device: Device) -> Iterator[None]:
    print("a library says something\nand more", flush=True)
    time.sleep(600)
    yield


def test_what_libraries_print_is_no_part_that_is_done(importable: None) -> None:
    with Pool("test_compile_ahead:walk_loudly", H100, (), 1) as pool:
        assert not pool.wait(1, seconds=8)


@pytest.fixture
def pools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int | None]:
    """The number of processes that each pool was asked for. None is started, and each pool is done at once."""
    asked: list[int | None] = []
    fails: list[bool] = getattr(request, "param", [])

    class Pooled:
        def __init__(self, walk: str, device: Device, arguments: tuple[object, ...], processes: int | None) -> None:
            asked.append(processes)

        def wait(self) -> bool:
            return not fails

        def problem(self) -> str:
            return "no compiler"

        def __enter__(self) -> Pooled:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(ahead, "Pool", Pooled)
    monkeypatch.setattr("qalign_kernels.cores.cores", lambda: 16)
    monkeypatch.setattr("qalign_kernels.cuda.runtime.triton_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr("qalign_kernels.cuda.runtime.interprets", lambda: False)
    monkeypatch.setattr("qalign_kernels.cuda.runtime.device_of", lambda _: H100)
    return asked


def test_a_machine_compiles_once(pools: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:0")
    int8, fp16 = (launches(make(NARROW, precision, torch.device("meta"))) for precision in ("int8", "fp16"))
    assert ahead_of.compile_ahead([int8], device)
    assert ahead_of.compile_ahead([int8], device)
    assert len(pools) == 1
    assert ahead_of.compile_ahead([int8, fp16], device)
    assert len(pools) == 2
    another = H100._replace(processors=114)  # an H100 with other tiles
    monkeypatch.setattr("qalign_kernels.cuda.runtime.device_of", lambda _: another)
    assert ahead_of.compile_ahead([int8], device)
    assert len(pools) == 3


@pytest.mark.parametrize("pools", [[True]], indirect=True)
def test_a_pool_that_fails_is_said_and_tried_again(pools: list[int | None]) -> None:
    int8 = launches(make(NARROW, "int8", torch.device("meta")))
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"not compiled ahead \(no compiler\); each is compiled at its first launch"
        ):
            assert not ahead_of.compile_ahead([int8], torch.device("cuda:0"))
    assert len(pools) == 2


def test_few_cores_compile_as_they_go(pools: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qalign_kernels.cores.cores", lambda: 2)
    int8 = launches(make(NARROW, "int8", torch.device("meta")))
    assert not ahead_of.compile_ahead([int8], torch.device("cuda:0"))
    assert not pools
    assert ahead_of.compile_ahead([int8], torch.device("cuda:0"), processes=2)
    assert pools == [2]


@on_gpu
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_nothing_is_left_to_compile_on_a_gpu(precision: str, tmp_path: Path) -> None:
    python(f"import test_compile_ahead as t; t.load_compiled({precision!r})", TRITON_CACHE_DIR=str(tmp_path))


def load_compiled(precision: str) -> None:
    import triton

    compiled: list[str] = []
    place = torch.device("cuda:0")
    assert ahead_of.compile_ahead([launches(make(NARROW, precision, torch.device("meta")))], place, 4)
    listener: Callable[..., None] = lambda *, src, cache_hit, **_: cache_hit or compiled.append(src.name)  # noqa: E731
    triton.knobs.compilation.listener = listener
    engine = load(make(NARROW, precision, place), "cuda:0")
    side = engine.config.pixels.side
    for batch in (1, 3, 64):
        for prompt in engine.prompts:
            engine.decode(engine.encode(np.zeros((batch, side, side, 3), np.uint8)), prompt)
    assert not compiled
