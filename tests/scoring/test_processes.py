"""One scorer in many processes and threads: pickled, forked, in a data loader, awaited. All give the parent's bits."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from qalign_fast import DeviceError, ImageError, PictureLimits, QAlignError, Score, Scorer, errors
from qalign_fast.engines import options
from qalign_fast.engines.candidates import Candidate
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions, threads_remark
from qalign_fast.feed.items import ClipOptions
from qalign_fast.references import from_anywhere
from qalign_kernels.cores import cores
from support.feeds import SAME
from support.goldens import GOLDEN, PICTURES, ROOT, Golden
from support.processes import Named, Pictures, score, take

PATHS = sorted(PICTURES.iterdir())
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


pytestmark = pytest.mark.usefixtures("kernels")  # this process and its children all compute with them


@pytest.fixture(scope="module")
def scorer(kernels: Path) -> Scorer:
    scorer = Scorer.load()
    assert scorer.engine.kernels.startswith("native ")
    return scorer


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[Score]:
    return scorer.score(PATHS)


def logits(scores: list[Score]) -> list[tuple[float, ...]]:
    return [score.logits for score in scores]


# --- pickling


def test_a_pickled_scorer_is_loaded_anew_by_the_same_arguments(expected: list[Score]) -> None:
    small, large = PICTURES / "noise_37x91.png", PATHS[0]
    limits = PictureLimits(exif_rotate=True, max_pixels=37 * 91)
    asked = {"device": "cpu", "precision": "int8", "engine": "native", "threads": 1, "verify": False, "limits": limits}
    asked["base"] = None
    loaded = Scorer.load(None, **asked)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = pickle.loads(pickle.dumps(loaded, protocol))
        assert found._load_again.keywords == loaded._load_again.keywords == asked
        assert found.engine is not loaded.engine
    assert found.score(small) == expected[PATHS.index(small)]
    with pytest.raises(ImageError, match="over the limit of 3367 pixels"):
        found.score(large)
    assert {"cls", "model", "api_key", *asked} == {"cls", *inspect.signature(Scorer.load).parameters}


def test_a_subclass_stays_one() -> None:
    assert type(pickle.loads(pickle.dumps(Named.load()))) is Named


@pytest.mark.parametrize("kind", [str, Path])
def test_a_local_model_is_found_from_another_folder(
    kind: type, narrow: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "models").mkdir(parents=True)
    (tmp_path / "work" / "models" / "narrow").symlink_to(narrow.artifact)
    monkeypatch.chdir(tmp_path / "work")
    loaded = Scorer.load(kind("models/narrow"))
    pickled = pickle.dumps(loaded)
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickled).score(PATHS[0]).logits == loaded.score(PATHS[0]).logits
    assert str(tmp_path / "work" / "models" / "narrow").encode() in pickled
    assert [from_anywhere(one) for one in (None, "q-future/one-align")] == [None, "q-future/one-align"]


def test_a_scorer_that_was_made_of_an_engine_says_why_it_cannot_be_pickled(scorer: Scorer) -> None:
    with pytest.raises(pickle.PicklingError) as caught:
        pickle.dumps(Scorer(scorer.engine))
    assert str(caught.value) == "a scorer made of an engine cannot be pickled; one that Scorer.load made can"


def test_a_copy_is_the_scorer_itself(scorer: Scorer) -> None:
    held = {"scorer": scorer, "again": [scorer], "unpickled": Scorer(scorer.engine)}
    copied = copy.deepcopy(held)
    assert copied == held
    assert copied is not held
    assert copy.copy(scorer) is scorer


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QAlignError)]


def test_what_goes_in_and_what_comes_out_can_be_pickled(expected: list[Score]) -> None:
    clip = replace(expected[0], frames=2, warnings=("2 of 3 frames are scored",))
    for value in (clip, PictureLimits(max_bytes=5), ClipOptions(2.0, 7, "time")):
        assert pickle.loads(pickle.dumps(value)) == value
    assert len(ERRORS) >= 10
    for kind in ERRORS:
        found = pickle.loads(pickle.dumps(kind("photo.jpg: what was found")))
        assert (type(found), str(found)) == (kind, "photo.jpg: what was found")


# --- processes


def test_a_pool_of_processes_gives_the_parents_scores(scorer: Scorer, expected: list[Score]) -> None:
    with multiprocessing.get_context("spawn").Pool(2, take, (scorer,)) as pool:
        assert pool.map(score, PATHS, chunksize=1) == expected


def test_a_task_may_carry_the_scorer(scorer: Scorer, expected: list[Score]) -> None:
    """It is loaded for each task, so that this is no way to score many pictures."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(scorer.score, PATHS[:3])) == expected[:3]
        error = pool.submit(scorer.score, b"junk").exception()
    assert type(error).__name__ == "ImageError"
    assert "4 bytes" in str(error)


def test_a_data_loaders_workers_give_the_parents_scores(scorer: Scorer, expected: list[Score]) -> None:
    loader = DataLoader(
        Pictures(scorer, PATHS),  # type: ignore[arg-type]
        batch_size=2,
        num_workers=2,
        collate_fn=list,
        multiprocessing_context="spawn",
        timeout=60,
    )
    assert [item for batch in loader for item in batch] == list(zip(PATHS, logits(expected), strict=True))


# In a process of its own: a test process has other libraries' threads, whose locks a forked child may wait for.
SERVES_BOTH = """
import multiprocessing, sys
from torch.utils.data import DataLoader
from qalign_fast import Scorer
from support.processes import Pictures, score, take
paths = sys.argv[1:]
scorer = Scorer.load()
expected = list(scorer.score_iter(paths))  # its readers are there, in the parent
take(scorer)
with multiprocessing.get_context("fork").Pool(2) as pool:
    under_way = pool.map_async(score, paths * 10, chunksize=1)
    found = [scorer.score(path) for path in paths * 10]
    assert found == under_way.get(timeout=60) == expected * 10
data = Pictures(scorer, paths)
loader = DataLoader(data, 2, num_workers=2, collate_fn=list, multiprocessing_context="fork", timeout=60)
assert [item for batch in loader for item in batch] == [(p, e.logits) for p, e in zip(paths, expected)]
print(scorer.engine.kernels, len(found))
"""


@forks
def test_a_scorer_from_before_a_fork_serves_parent_and_children_at_once(scorer: Scorer) -> None:
    command = [sys.executable, "-c", SERVES_BOTH, *map(str, PATHS)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{scorer.engine.kernels} {10 * len(PATHS)}\n"


FORK = """
import gc, json, os, signal, sys
from qalign_fast import Scorer
model, engine, end, *paths = sys.argv[1:]
scorer = Scorer.load(model or None, engine=engine, threads=2)
if end == "collect":  # only the collector ends it
    scorer.itself = scorer
expected = scorer.score(paths)
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(30)  # ends it if it waits
    os.write(writing, json.dumps([scorer.score(path).value for path in paths]).encode())
    if end == "collect":
        del scorer
        gc.collect()
    if end != "exit":
        os._exit(0)
    sys.exit()
os.close(writing)
found = json.loads(os.fdopen(reading).read() or "null")
print(json.dumps([[score.value for score in expected], found, os.waitpid(child, 0)[1]]))
"""


@forks
@pytest.mark.parametrize("end", ["collect", "exit"])
@pytest.mark.parametrize("engine", ["native", "torch", "torch, plain", "onnx", "openvino"])
def test_a_forked_child_does_not_wait_for_the_parents_threads(engine: str, end: str, narrow: Golden) -> None:
    """The mini model on the C++ kernels, a checkpoint in plain torch, an artifact on onnxruntime and OpenVINO."""
    model = {"torch, plain": GOLDEN / "narrow-112", "onnx": narrow.artifact, "openvino": narrow.artifact}.get(
        engine, ""
    )
    command = [sys.executable, "-c", FORK, str(model), engine.partition(",")[0], end, *map(str, PATHS[:2])]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    parents, childs, status = json.loads(run.stdout)
    assert childs == pytest.approx(parents, abs=SAME)
    assert status == 0


LOADED_ANEW = """
import os, signal, sys
from qalign_fast import Scorer
expected = Scorer.load(engine="torch", threads=2).score(sys.argv[1]).value
child = os.fork()
if child == 0:
    signal.alarm(30)  # ends it if it waits
    found = Scorer.load(engine="torch", threads=2).score(sys.argv[1]).value
    os._exit(0 if abs(found - expected) < 1e-4 else 1)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@forks
def test_a_forked_child_that_loads_a_model_of_its_own_keeps_to_the_thread_that_it_has() -> None:
    """Whatever number it asks for: torch would wait for those of the parent."""
    subprocess.run([sys.executable, "-c", LOADED_ANEW, str(PATHS[0])], timeout=120, check=True)


# --- threads


def test_scores_may_be_awaited(scorer: Scorer, expected: list[Score]) -> None:
    async def many() -> list[Score]:
        return list(await asyncio.gather(*(asyncio.to_thread(scorer.score, path) for path in PATHS * 3)))

    assert asyncio.run(many()) == expected * 3


def test_a_pool_of_threads_gives_the_same_scores(scorer: Scorer, expected: list[Score]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(scorer.score, PATHS * 3)) == expected * 3


@pytest.mark.parametrize("threads", [0, -1, 4097, 1.5, "2"])
def test_a_number_of_threads_that_is_none_is_refused(threads: Any) -> None:
    with pytest.raises(DeviceError) as caught:
        Scorer.load(threads=threads)
    assert str(caught.value) == f"threads is {threads!r}; expected a whole number, 1 to 4096"


def test_more_threads_than_cores_are_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "cores", lambda: 3)
    assert [threads_remark(count) for count in (None, 1, 3)] == [None] * 3
    assert threads_remark(1000) == "threads: 1000 asked, 3 used, one for each core here"


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretends that there are so many, and puts torch's threads back."""
    monkeypatch.setattr(options, "cores", lambda: 3)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("asked", "used"), [(2, 2), (1000, 3)])
@pytest.mark.usefixtures("three_cores")
def test_engines_compute_on_no_more_threads_than_cores(
    asked: int, used: int, narrow: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    load = Candidate.load
    monkeypatch.setattr(
        Candidate, "load", lambda self, artifact, threads: taken.append(threads) or load(self, artifact, threads)
    )
    graphs = load_engine(narrow.artifact, LoadOptions(engine="onnx", threads=asked))
    for session in (graphs._encoder, graphs._decoder):
        assert session.get_session_options().intra_op_num_threads == used
    for model, engine in ((None, "native"), (None, "torch"), (narrow.checkpoint, "torch")):
        torch.set_num_threads(1)
        load_engine(model, LoadOptions(engine=engine, threads=asked))
        assert torch.get_num_threads() == (1 if engine == "native" else used)
    assert taken == [used] * 3  # artifacts


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list a process's threads")
def test_a_thousand_threads_are_not_started() -> None:
    code = (
        "import os, sys; from qalign_fast import Scorer\n"
        "Scorer.load(threads=1000).score(sys.argv[1])\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    run = subprocess.run([sys.executable, "-c", code, PATHS[0]], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 2 * cores()  # a core's own, and one of numpy's
