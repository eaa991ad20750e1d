"""The peers that engines are compared with: their processes answer commands, and each computes upstream's function."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qalign_bench.peers import bnb
from qalign_bench.peers.hf_eager import EagerPeer, load
from qalign_bench.peers.loop import Clock, PeerError, parse_spec
from qalign_bench.peers.measured_process import random_pictures
from qalign_export import random_numbers
from qalign_export.options import ExportOptions
from qalign_export.parameters import open_parameters
from qalign_export.writer import export_artifact
from qalign_fast.engines.load import load_engine
from qalign_fast.families.mplug_owl2.model.checkpoint import TensorOrigin, origins
from qalign_fast.families.mplug_owl2.prompts import LEVEL_IDS, prompt
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.levels import score_of
from qalign_fast.pixels.picture import load_pixels
from support.goldens import GOLDEN, PICTURES, ROOT

PEERS = ROOT / "bench/qalign_bench/peers"
NARROW = str(GOLDEN / "narrow-112")
RANDOM = f"random:{NARROW}"
TASKS = ["quality", "aesthetics"]
LATENCY = {"run": "latency", "batch": 2, "tasks": TASKS, "repeat": 2, "warmup": 0}
UPSTREAM, UPSTREAM_PYTHON = os.environ.get("QALIGN_UPSTREAM"), os.environ.get("QALIGN_UPSTREAM_PYTHON")
needs_upstream = pytest.mark.skipif(
    not (UPSTREAM and UPSTREAM_PYTHON), reason="QALIGN_UPSTREAM: a checkout; QALIGN_UPSTREAM_PYTHON: what runs it"
)


def talk(
    script: str, spec: dict[str, Any], *lines: Any, python: str = sys.executable, status: int = 0
) -> list[dict[str, Any]]:
    """A peer's answers to lines of stdin. A line that is an object is sent as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    run = subprocess.run(
        [python, str(PEERS / script), json.dumps(spec)],
        input="".join(f"{text}\n" for text in texts),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == status, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def our_scores(folder: str | Path, pixels: np.ndarray) -> list[list[float]]:
    engine = load_engine(folder)
    tokens = engine.encode(pixels)
    return [[score_of(row, task).value for row in engine.decode(tokens, prompt(task))] for task in TASKS]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "narrow-112" / "expected.npz"))


@pytest.fixture(scope="module")
def eager() -> EagerPeer:
    return load(parse_spec(json.dumps({"model": NARROW, "precision": "fp32"})))


@pytest.mark.parametrize("task", ["quality", "aesthetics", "quality-paper"])
def test_upstreams_way_gives_upstreams_logits(eager: EagerPeer, expected: dict[str, np.ndarray], task: str) -> None:
    with torch.inference_mode():
        logits = eager.model(eager.prepare(expected["resized_uint8"]), prompt(task))
    p = prompt(task)
    assert logits.shape == (6, len(p.prefix) + 9 + len(p.suffix), 32000)  # 9 = 8 queries + the end token
    np.testing.assert_allclose(logits[:, -1, list(LEVEL_IDS)], expected[f"logits_{task}_image"], rtol=0, atol=2e-4)
    scores = eager.score(eager.prepare(expected["resized_uint8"]), task)
    np.testing.assert_allclose(scores, expected[f"score_{task}_image"], rtol=0, atol=1e-4)


def test_a_peers_process_scores_the_pictures_of_the_seed() -> None:
    ready, answer = talk("hf_eager.py", {"model": NARROW, "precision": "fp32", "seed": 3}, LATENCY, {"end": True}, "{")
    assert ready["ready"]
    assert "not upstream's code" in ready["name"]
    # the embeddings and the head of the whole vocabulary, and all else
    assert ready["weights_bytes"] > 2 * 32000 * 32 * 4
    np.testing.assert_allclose(answer["scores"], our_scores(NARROW, random_pictures(3, 2, 112)), rtol=0, atol=1e-4)
    assert len(answer["ms"]) == 2
    assert answer["stations_ms"].keys() == {"vision", "abstractor", "decoder", "head"}
    assert answer["peak_memory_bytes"]["host"] > 1e8  # torch alone is more
    assert answer["peak_memory_bytes"]["device"] is None


def test_a_wrong_command_is_one_line_and_the_next_one_is_answered() -> None:
    wrong = {
        "no JSON": "not JSON",
        "[]": "expected an object",
        '{"run": "pipeline"}': "no run 'pipeline'",
        '{"run": "pixels", "files": [], "repeat": 1}': "has no pixel path of its own",
        '{"run": "latency", "batch": 1}': "no 'repeat'",
        json.dumps(LATENCY | {"batch": 0}): "batch is 0",
        json.dumps(LATENCY | {"tasks": ["beauty"]}): "task 'beauty'",
    }
    _, *answers, last = talk("hf_eager.py", {"model": NARROW}, *wrong, LATENCY)
    for answer, words in zip(answers, wrong.values(), strict=True):
        assert words in answer["error"]
    assert len(last["scores"]) == 2  # and the end of stdin ended the process with status 0


@pytest.mark.parametrize(
    ("script", "spec", "words"),
    [
        ("upstream.py", {"checkout": "/nowhere", "model": "random:one-align"}, "/nowhere: no checkout of Q-Align"),
        ("upstream.py", {"model": "random:one-align"}, "no checkout of Q-Align"),
        ("hf_eager.py", {"model": "random:none"}, "random:none"),
        ("hf_eager.py", {"model": NARROW, "precision": "int8"}, "'int8' is not one this peer has: fp32, fp16, bf16"),
        ("hf_eager.py", {"model": NARROW, "device": "tpu"}, "device 'tpu' is not available"),
        ("hf_eager.py", {"model": None}, "no model"),
    ],
)
def test_what_cannot_be_loaded_is_one_line_and_status_1(script: str, spec: dict[str, Any], words: str) -> None:
    (answer,) = talk(script, spec, status=1)
    assert answer.keys() == {"error"}
    assert words in answer["error"]


def test_bitsandbytes_that_is_missing_is_a_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bitsandbytes.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (answer,) = talk("bnb.py", {"model": NARROW, "precision": "int8"}, status=1)
    assert answer["error"].startswith(sys.executable)
    assert "pip install 'qalign-fast[bnb]'" in answer["error"]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (bnb.int8_linear, 0.02),  # 127 steps a row's largest weight, and the same for activations: .008 was seen
        (bnb.nf4_linear, 0.12),  # 16 values a block of 64 normal ones: .092 was seen
    ],
)
def test_bitsandbytes_linears_are_near_the_ones_they_replace(make: Any, error: float) -> None:
    package = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    linear = nn.Linear(128, 96).to(torch.bfloat16).requires_grad_(False).eval()
    x = torch.randn(7, 128, dtype=torch.bfloat16)
    exact = linear(x).float()
    found = make(package, linear).to("cpu")(x).float()
    assert 0 < (found - exact).norm() < error * exact.norm()


def test_bitsandbytes_int8_scores_are_near_upstreams(expected: dict[str, np.ndarray]) -> None:
    pytest.importorskip("bitsandbytes")
    peer = bnb.load(parse_spec(json.dumps({"model": NARROW, "precision": "int8", "device": "cpu"})))
    found = peer.score(peer.prepare(expected["resized_uint8"]), "quality")
    np.testing.assert_allclose(found, expected["score_quality_image"], rtol=0, atol=0.2)  # .044 was seen


def test_nf4_on_a_cpu_is_refused_where_bitsandbytes_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnb, "import_bitsandbytes", lambda: None)
    with pytest.raises(PeerError, match=r"linears with \[32, 48, 88\] inputs"):
        bnb.load(parse_spec(json.dumps({"model": NARROW, "precision": "nf4", "device": "cpu"})))


def test_clock_sums_a_modules_calls_in_each_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.001, 0.010, 0.012, 0.020, 0.025])  # two calls of 1 and 2 ms; one of 5 ms
    layer = nn.Linear(2, 2)
    monkeypatch.setattr("qalign_bench.peers.loop.time.perf_counter", lambda: next(ticks))
    with Clock({"layer": layer}, torch.device("cpu")) as clock:
        layer(torch.zeros(2))
        layer(torch.zeros(2))
        clock.lap()
        layer(torch.zeros(2))
        clock.lap()
    layer(torch.zeros(2))  # the hooks are gone, or the ticks would run out
    assert clock.medians() == {"layer": pytest.approx(4)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere ru_maxrss is all there is")
def test_a_peers_peak_memory_is_its_own_and_not_its_parents() -> None:
    parents = np.ones(1 << 30, np.uint8)  # resident, as ones are written
    code = "import sys; sys.path.insert(0, sys.argv[1]); import loop; print(loop.process.host_peak())"
    run = subprocess.run([sys.executable, "-c", code, str(PEERS)], capture_output=True, text=True, check=True)
    assert 5e7 < int(run.stdout) < len(parents)  # torch is imported, which is some hundred MB


@needs_upstream
@pytest.mark.parametrize("folder", ["narrow-112", "narrow-448", "outlier-112"])
def test_upstreams_own_code_gives_the_golden_scores(folder: str) -> None:
    """In the peer's own interpreter: what is timed computes the function of the goldens."""
    spec = {"checkout": UPSTREAM, "model": str(GOLDEN / folder), "precision": "fp32", "device": "cpu"}
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, loop, upstream\n"
        "peer = upstream.load(loop.parse_spec(sys.argv[2]))\n"
        "pixels = np.load(sys.argv[3])['resized_uint8']\n"
        "print(json.dumps([peer.score(peer.prepare(pixels), task) for task in ('quality', 'aesthetics')]))"
    )
    numbers = GOLDEN / folder / "expected.npz"
    command = [str(UPSTREAM_PYTHON), "-c", code, str(PEERS), json.dumps(spec), str(numbers)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    golden = np.load(numbers)
    wanted = [golden[f"score_{task}_image"] for task in TASKS]
    np.testing.assert_allclose(json.loads(run.stdout.splitlines()[-1]), wanted, rtol=0, atol=1e-4)


@needs_upstream
def test_upstreams_process_scores_as_ours_does_and_has_our_pixels() -> None:
    files = [str(path) for path in sorted(PICTURES.iterdir())]
    spec = {"checkout": UPSTREAM, "model": NARROW, "precision": "fp32", "device": "cpu", "seed": 3}
    pixels = {"run": "pixels", "files": files, "repeat": 1}
    _, scored, looked = talk("upstream.py", spec, LATENCY, pixels, python=str(UPSTREAM_PYTHON))
    np.testing.assert_allclose(scored["scores"], our_scores(NARROW, random_pictures(3, 2, 112)), rtol=0, atol=1e-4)
    assert looked["sha256"] == [sha256(file, 112) for file in files]
    assert [len(times) for times in looked["ms"]] == [1] * len(files)


@needs_upstream
def test_upstream_without_a_model_has_pixels_alone() -> None:
    file = str(PICTURES / "coffee_landscape.png")
    spec = {"checkout": UPSTREAM, "model": None}
    ready, refused, looked = talk(
        "upstream.py", spec, LATENCY, {"run": "pixels", "files": [file], "repeat": 2}, python=str(UPSTREAM_PYTHON)
    )
    assert ready["weights_bytes"] is None
    assert "pixels only" in refused["error"]
    assert looked["sha256"] == [sha256(file, 448)]


# --- random numbers: by the names in a checkpoint the same for everybody, so that scores can be compared at full size


@pytest.fixture(scope="module")
def random_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_artifact(RANDOM, tmp_path_factory.mktemp("random") / "narrow", ExportOptions(tasks=TASKS))


def test_upstreams_way_scores_as_ours_does_on_random_numbers(random_artifact: Path) -> None:
    pixels = random_pictures(3, 2, 112)
    _, answer = talk("hf_eager.py", {"model": RANDOM, "precision": "fp32", "seed": 3}, LATENCY)
    ours = our_scores(random_artifact, pixels)
    np.testing.assert_allclose(answer["scores"], ours, rtol=0, atol=1e-4)
    assert np.ptp(ours, axis=1).min() > 1e-3  # far more: they are not of the numbers alone, but of the picture


def test_upstreams_model_gets_the_numbers_that_ours_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PEERS))  # as a script has it
    upstream_model = importlib.import_module("upstream_model")
    source = open_parameters(RANDOM)
    places = origins(source.config)
    spec = parse_spec(json.dumps({"precision": "fp32", "device": "cpu", "random_numbers": random_numbers.__file__}))
    model = upstream_model.random_model(lambda _: Named(places.values()), None, spec)
    tensors = model.state_dict()
    assert tensors.keys() == {place.name for place in places.values()}
    for name, tensor in source.read(places).items():
        assert torch.equal(places[name].take(tensors[places[name].name]), tensor), name


class Named(nn.Module):
    """Tensors with a checkpoint's names. The abstractor's positions are buffers, as in upstream."""

    def __init__(self, places: Iterable[TensorOrigin]) -> None:
        super().__init__()
        for place in places:
            *path, last = place.name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if last.endswith("pos_embed"):
                module.register_buffer(last, torch.zeros(place.shape, device="cpu"))
            else:
                module.register_parameter(last, nn.Parameter(torch.empty(place.shape)))


def test_random_numbers_without_what_makes_them_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    upstream_model = importlib.import_module("upstream_model")
    with pytest.raises(upstream_model.PeerError, match=r"qalign_export/random_numbers\.py"):
        upstream_model.random_model(None, None, parse_spec(json.dumps({"device": "cpu"})))


@needs_upstream
def test_upstreams_own_code_scores_as_ours_does_on_random_numbers(random_artifact: Path) -> None:
    spec = {"checkout": UPSTREAM, "model": RANDOM, "precision": "fp32", "device": "cpu", "seed": 3}
    spec["random_numbers"] = random_numbers.__file__
    _, answer = talk("upstream.py", spec, LATENCY, python=str(UPSTREAM_PYTHON))
    ours = our_scores(random_artifact, random_pictures(3, 2, 112))
    np.testing.assert_allclose(answer["scores"], ours, rtol=0, atol=1e-4)


def sha256(file: str, side: int) -> str:
    return hashlib.sha256(load_pixels(Path(file), pixel_rule(side)).tobytes()).hexdigest()
