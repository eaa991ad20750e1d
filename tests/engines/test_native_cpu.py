"""The native engine: the same bits as on torch's memory, for any batch and from many threads, and files refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qalign_fast import ArtifactError, Scorer
from qalign_fast.artifact.manifest import Artifact, open_artifact
from qalign_fast.artifact.mapped_tensors import map_tensors, weights_file
from qalign_fast.engines import native_cpu
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.native_cpu import load_native_engine
from qalign_fast.engines.torch_cpu import load_folded
from qalign_fast.references import EMBEDDED
from qalign_kernels.cores import cores
from qalign_kernels.cpu import native
from qalign_kernels.cpu.numpy_ops import NumpyOps, load_numpy
from qalign_kernels.cpu.ops import load_native
from qalign_kernels.cpu.plain_numpy import PLAIN
from qalign_kernels.cpu.table import exact_for
from support.goldens import GOLDEN, PICTURES, ROOT, Rounded

PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int4"]


@pytest.fixture(scope="module")
def ops(library: Path) -> NumpyOps:
    found = load_numpy(library_path=library)
    assert found is not None
    return found


def results(engine: Engine, folder: str) -> list[np.ndarray]:
    """Tokens, and logits of every prompt: the pictures' for an image's, of two clips for a clip's."""
    tokens = engine.encode(np.load(GOLDEN / folder / "expected.npz")["resized_uint8"])
    clips = [tokens[:3].reshape(1, -1, tokens.shape[-1]), tokens[2:3]]
    inputs = {"image": [tokens], "video": clips}
    return [np.asarray(tokens), *(engine.decode(x, p) for p in engine.prompts for x in inputs[p.medium])]


def assert_same_bits(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected) > 4
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("folder", ["narrow-112", "outlier-112"])
def test_bits_are_those_of_torchs_memory(folder: str, precision: str, rounded: Rounded, library: Path) -> None:
    artifact, exact = open_artifact(rounded(folder, precision)), exact_for(precision)
    ours = load_native_engine(artifact, ops=load_numpy(library_path=library, exact=exact))
    held = load_folded(artifact, ops=load_native(library_path=library, exact=exact))
    assert (ours.name, held.name, ours.kernels) == ("native", "torch", held.kernels)
    assert_same_bits(results(ours, folder), results(held, folder))


@pytest.mark.parametrize("name", native.instruction_sets())
def test_bits_are_those_of_torchs_memory_on_each_instruction_set(name: str, rounded: Rounded, library: Path) -> None:
    ours = load_numpy(name, library_path=library)
    if ours is None:
        pytest.skip(f"this CPU has no {name}")
    artifact = open_artifact(rounded("narrow-112", "int8"))
    held = load_folded(artifact, ops=load_native(name, library_path=library))
    assert_same_bits(results(load_native_engine(artifact, ops=ours), "narrow-112"), results(held, "narrow-112"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_pictures_at_a_time_change_no_bit(
    precision: str, rounded: Rounded, ops: NumpyOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_native_engine(open_artifact(rounded("narrow-112", precision)), ops=ops)
    whole = results(engine, "narrow-112")
    monkeypatch.setattr(native_cpu, "ROWS", 1)
    assert_same_bits(results(engine, "narrow-112"), whole)


def test_many_threads_on_one_scorer_give_equal_scores(ops: NumpyOps) -> None:
    artifact = open_artifact(ROOT / "qalign_fast/mini")
    scorer = Scorer(load_native_engine(artifact, ops=ops))
    paths = sorted(PICTURES.iterdir())
    expected = [score.logits for score in scorer.score(paths)]

    def work(first: int) -> list[tuple[float, ...]]:
        return [scorer.score(paths[i % len(paths)]).logits for i in range(first, first + 8)]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(work, range(16)))
    assert found == [[expected[i % len(paths)] for i in range(first, first + 8)] for first in range(16)]


ALIVE = """
import re, sys, threading
from pathlib import Path
import numpy as np
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.native_cpu import load_native_engine
from qalign_fast.references import EMBEDDED
from qalign_kernels.cpu.numpy_ops import load_numpy

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

engine = load_native_engine(open_artifact(EMBEDDED), ops=load_numpy(library_path=Path(sys.argv[1])))
pixels = np.zeros((16, 448, 448, 3), np.uint8)
engine.encode(pixels)
before = []
for count in (1, 16):
    done, all_there = threading.Event(), threading.Barrier(count + 1)
    def work():
        engine.encode(pixels)
        all_there.wait()
        done.wait()
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    all_there.wait()
    before.append(anonymous())
    done.set()
print(before[1] - before[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_threads_that_have_scored(library: Path) -> None:
    """The kernels' scratch memory goes from turn to turn, and what the arrays take comes from one heap."""
    run = subprocess.run([sys.executable, "-c", ALIVE, library], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 16e6


STARVED = """
import os, resource, sys
from pathlib import Path
import numpy as np
from qalign_fast import DeviceError
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.native_cpu import load_native_engine
from qalign_fast.references import EMBEDDED
from qalign_kernels.cpu.numpy_ops import load_numpy

engine = load_native_engine(open_artifact(EMBEDDED), ops=load_numpy(library_path=Path(sys.argv[1])))
pixels = np.zeros((1, 448, 448, 3), np.uint8)

def encode(room):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, -1))
    taken = []
    try:
        while True:
            taken.append(bytearray(1 << 16))
    except MemoryError:
        del taken[:room]
    try:
        engine.encode(pixels)
    except DeviceError as error:
        return 4 if "C++ kernels" in str(error) else 3
    return 0

ends = set()
for room in range(0, 400, 6):  # pieces of 64 KB that are left free
    child = os.fork()
    if child == 0:
        os._exit(encode(room))
    ends.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*sorted(ends))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_too_little_memory_is_a_device_error_wherever_it_ends(library: Path) -> None:
    """0: there was enough; 3: an array found none; 4: the kernels found none. A process that aborts ends below 0."""
    run = subprocess.run([sys.executable, "-c", STARVED, library], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "3", "4"]


RELOAD = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.native_cpu import load_native_engine
from qalign_fast.references import EMBEDDED
from qalign_kernels.cores import cores
from qalign_kernels.cpu import native
from qalign_kernels.cpu.numpy_ops import load_numpy

def scorer(threads):
    ops = load_numpy(threads=threads, library_path=Path(sys.argv[1]))
    return Scorer(load_native_engine(open_artifact(EMBEDDED), ops=ops))

one = scorer(2)
expected = one.score(sys.argv[2]).logits
done = threading.Event()
def work():
    found = set()
    while not done.is_set():
        found.add(one.score(sys.argv[2]).logits)
    return found
with ThreadPoolExecutor(2) as pool:
    workers = [pool.submit(work) for _ in range(2)]
    for i in range(40):
        scorer(1 + i % 3)
    done.set()
    sys.exit(any(worker.result() != {expected} for worker in workers))
"""


def test_a_model_may_be_loaded_for_other_threads_while_one_scores(library: Path) -> None:
    """The kernels' threads are one pool for the process. It is replaced between two operations."""
    command = [sys.executable, "-c", RELOAD, str(library), str(PICTURES / "chelsea_small.png")]
    assert subprocess.run(command, timeout=120, check=False).returncode == 0


FORK = """
import os, sys
from qalign_fast import Scorer
scorer = Scorer.load(engine="native")
expected = scorer.score(sys.argv[1]).logits
scorer.engine._turns.acquire()  # as if another thread were scoring
child = os.fork()
if child == 0:
    os._exit(0 if scorer.score(sys.argv[1]).logits == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    command = [sys.executable, "-c", FORK, str(PICTURES / "chelsea_small.png")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_weights_are_mapped_and_cannot_be_written(rounded: Rounded) -> None:
    tensors, found = map_tensors(weights_file(open_artifact(rounded("narrow-112", "bf16"))))
    weight = tensors["decoder.layers.0.q.weight"]
    assert (weight.dtype, found["decoder.layers.0.q.weight"].dtype) == (np.uint16, "bfloat16")
    assert not weight.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        weight[0] = 0


def header(text: bytes, data: bytes = b"\0" * 16) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not readable as safetensors"),
        (b"\xff" * 64, "not readable as safetensors"),
        (header(b"[]"), "not readable as safetensors"),
        (header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 17]}}'), "not readable as safetensors"),
        (header(b'{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}'), "not readable as safetensors"),
        (header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}}'), "not readable as safetensors"),
        (header(b'{"a": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}'), "has no tensor 'vision.patch"),
        (header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'), "has no tensor 'vision.patch"),
    ],
)
def test_weights_that_cannot_be_read_are_refused(content: bytes, says: str, rounded: Rounded, tmp_path: Path) -> None:
    found = open_artifact(rounded("narrow-112", "int8"))
    artifact = Artifact(Path(shutil.copytree(found.directory, tmp_path / "a")), found.manifest)
    weights_file(artifact).write_bytes(content)
    with pytest.raises(ArtifactError, match=says) as caught:
        load_native_engine(artifact, ops=PLAIN)
    assert str(weights_file(artifact)) in str(caught.value)


def test_the_embedded_model_scores_without_kernels_as_with_them(ops: NumpyOps) -> None:
    """Plain numpy sums in another order, so that some numbers are rounded to another of 255."""
    artifact = open_artifact(ROOT / "qalign_fast/mini")
    paths = sorted(PICTURES.iterdir())
    found, plain = (
        [score.value for score in Scorer(load_native_engine(artifact, ops=one)).score(paths)] for one in (ops, PLAIN)
    )
    np.testing.assert_allclose(plain, found, rtol=0, atol=5e-3)


def changed(rounded: Rounded, tmp_path: Path, **change: torch.Tensor) -> Artifact:
    """An int8 artifact with other tensors, as somebody could make one whose hashes are right."""
    found = open_artifact(rounded("narrow-112", "int8"))
    artifact = Artifact(Path(shutil.copytree(found.directory, tmp_path / "a")), found.manifest)
    tensors = load_file(weights_file(artifact))
    save_file(tensors | {name.replace("__", "."): x for name, x in change.items()}, weights_file(artifact))
    return artifact


@pytest.mark.parametrize(
    ("part", "tensor", "says"),
    [
        ("decoder__layers__0__q__groups", torch.zeros(1, dtype=torch.uint8), "which a weight of int8 does not have"),
        ("decoder__head__scale", torch.ones(1), "which a weight of float32 does not have"),
        ("decoder__layers__0__o__scale", torch.ones(1), "o.scale is float32"),
        ("other", torch.ones(1).to(torch.float8_e4m3fn), "engine native has no kernels for"),
    ],
)
def test_no_tensor_reaches_the_kernels_that_they_would_read_beyond(
    part: str, tensor: torch.Tensor, says: str, rounded: Rounded, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=says):
        load_native_engine(changed(rounded, tmp_path, **{part: tensor}), ops=PLAIN)


def test_tensors_that_nothing_reads_are_ignored(rounded: Rounded, tmp_path: Path) -> None:
    artifact = changed(rounded, tmp_path, other=torch.ones(1, dtype=torch.float64))
    assert load_native_engine(artifact, ops=PLAIN).name == "native"


@pytest.mark.parametrize(("threads", "at_once"), [(None, 1), (1, cores()), (2, 1)])
def test_calls_with_one_thread_each_run_side_by_side(threads: int | None, at_once: int) -> None:
    assert load_native_engine(open_artifact(EMBEDDED), threads, PLAIN)._at_once == at_once
