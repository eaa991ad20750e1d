"""Models of random numbers, made where they run. An artifact, a model in memory and a peer have the same numbers."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.goldens import GOLDEN, ROOT

pytest.importorskip("triton", reason="Triton is for Linux")

from device_export import export
from qalign_bench.contestants import worker
from qalign_bench.contestants.models import prepare
from qalign_bench.contestants.random_model import DeviceParameters, make, open_engine, round_on_device
from qalign_bench.peers import hf_eager
from qalign_bench.peers.loop import parse_spec
from qalign_bench.peers.measured_process import random_pictures
from qalign_bench.profiling.graph_check import largest_difference
from qalign_export import random_numbers
from qalign_export.random_numbers import counted
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.torch_cpu import load_folded
from qalign_fast.errors import DeviceError
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_kernels.contract.ops import PLAIN

NARROW = f"random:{GOLDEN / 'narrow-112'}"


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_a_random_artifact_scores(precision: str, tmp_path: Path) -> None:
    export(DeviceParameters(NARROW), tmp_path / "a", precision)
    scorer = Scorer.load(tmp_path / "a")
    assert scorer.engine.precision == precision
    scores = scorer.score([ROOT / "samples/coffee.jpg", ROOT / "samples/rocket.jpg"])
    assert scores[0].value != scores[1].value


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_all_of_a_random_model_is_made_on_its_device(precision: str) -> None:
    """The meta device stands in for a GPU: there it is an error to mix in a tensor on the CPU."""
    places = set()
    source = DeviceParameters(NARROW, torch.device("meta"))
    result = round_on_device(source, precision, [prompt("quality")], lambda _, x: places.add(x.device.type))
    places |= {x.device.type for x in (*result.prefixes.values(), *result.suffixes.values())}
    assert places == {"meta"}


def test_counted_numbers_are_the_same_in_any_part_and_spread_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, name = torch.device("cpu"), "model.layers.0.mlp.up_proj.weight"
    whole = counted(name, (300, 400), cpu)
    monkeypatch.setitem(counted.__globals__, "_PART", 1000)
    assert torch.equal(counted(name, (300, 400), cpu), whole)
    assert whole.std().item() == pytest.approx(1 / 20, rel=0.01)  # 400 inputs
    assert abs(whole.mean().item()) < 1e-3
    other = counted("model.layers.1.mlp.up_proj.weight", (300, 400), cpu)
    assert abs(torch.corrcoef(torch.stack((whole.flatten(), other.flatten())))[0, 1].item()) < 0.02
    assert counted("model.norm.weight", (1000,), cpu).mean().item() == pytest.approx(1, abs=0.01)
    expected = [counted_by_hand(place, name) / 147.8 / 20 for place in (0, 1, 99_999)]
    assert whole.flatten()[[0, 1, 99_999]].tolist() == pytest.approx(expected)


def counted_by_hand(place: int, name: str) -> int:
    """The sum of a hash's four bytes, in Python's whole numbers, which do not overflow."""
    digest = hashlib.sha256(name.encode()).digest()
    x = place ^ int.from_bytes(digest[:4], "big")
    for i, factor in enumerate((0x7FEB352D, 0x846CA68B) * 2):
        x ^= x >> (16 - i % 2)
        x = x * factor % 2**32
        x ^= int.from_bytes(digest[4:8], "big") if i == 1 else 0
    x ^= x >> 16
    return 2 + sum(byte - 256 * (byte > 127) for byte in x.to_bytes(4, "big"))


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_a_model_in_memory_is_the_one_in_a_file(precision: str, tmp_path: Path) -> None:
    export(DeviceParameters(NARROW), tmp_path / "a", precision)
    written = load_folded(open_artifact(tmp_path / "a"), ops=PLAIN)
    made = open_engine(NARROW, precision, "cpu")
    assert made.prompts == written.prompts
    assert largest_difference(made, written, 2, seed=0) == 0
    assert largest_difference(made, open_engine(NARROW, "fp32", "cpu"), 2, seed=0) > 0


def test_random_models_for_a_gpu_are_in_no_file(tmp_path: Path) -> None:
    def get(*rest: Any, reference: str = NARROW, precision: str | None = None, engine: str = "torch") -> Any:
        return prepare(reference, precision, engine, tmp_path, print, lambda *_: None, *rest)

    for engine in ("torch", "auto"):
        model = get("cuda", engine=engine, precision="fp8")
        assert (model.directory, model.loaded, model.engine) == (None, NARROW, "torch")
        assert (model.manifest.precision, model.numbers, model.parameters) == ("fp8", "counted", NARROW)
    assert get("cuda:1").manifest.precision == "int8"
    assert not list(tmp_path.iterdir())
    assert get("cuda", True).directory is not None  # what is read from files
    assert get("cpu").directory is not None
    export(DeviceParameters(NARROW), tmp_path / "a", "int8")
    assert get("cuda", reference=str(tmp_path / "a")).numbers == "counted"  # a peer can have these too


def test_a_worker_makes_what_is_random(tmp_path: Path) -> None:
    spec = {"model": NARROW, "device": "cpu", "precision": "int8", "engine": "torch", "threads": None, "seed": 0}
    ready, handlers = worker.load(spec)
    assert (ready["engine"], ready["precision"], ready["device"]) == ("torch", "int8", "cpu")
    assert ready["weights_bytes"] == make(NARROW, "int8", torch.device("cpu")).bytes
    answer = handlers["latency"]({"batch": 2, "tasks": ["quality"], "warmup": 0, "repeat": 1})
    assert len(answer["scores"][0]) == 2


def test_a_worker_and_a_peer_score_the_same_pictures() -> None:
    """The pictures are those of the seed. One model in float32 is computed in two ways, so the scores must agree."""
    spec = {"model": str(GOLDEN / "narrow-112"), "device": "cpu", "precision": "fp32", "threads": None, "seed": 5}
    _, handlers = worker.load(spec | {"engine": None})
    [ours] = handlers["latency"]({"batch": 3, "tasks": ["quality"], "warmup": 0, "repeat": 1})["scores"]
    peer = hf_eager.load(parse_spec(json.dumps(spec)))
    np.testing.assert_allclose(ours, peer.score(peer.prepare(random_pictures(5, 3, 112)), "quality"), atol=1e-4)
    other = peer.score(peer.prepare(random_pictures(6, 3, 112)), "quality")
    assert np.abs(np.array(ours) - other).max() > 1e-3


def test_a_peer_has_the_numbers_of_a_model_in_memory() -> None:
    spec = {"model": NARROW, "device": "cpu", "precision": "fp32", "numbers": "counted"}
    peer = hf_eager.load(parse_spec(json.dumps(spec)))
    pixels = random_pictures(1, 2, 112)
    mine = open_engine(NARROW, "fp32", "cpu")
    found = Scorer(mine).engine.decode(mine.encode(pixels), prompt("quality"))
    weights = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    expected = weights @ np.array([5, 4, 3, 2, 1], np.float32)
    np.testing.assert_allclose(peer.score(peer.prepare(pixels), "quality"), expected, atol=1e-4)
    other = hf_eager.load(parse_spec(json.dumps(spec | {"numbers": "parameter"})))
    assert np.abs(np.array(other.score(other.prepare(pixels), "quality")) - expected).max() > 1e-3


def test_upstreams_own_model_has_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(hf_eager.__file__).parent))  # it is a script's sibling there
    own = importlib.import_module("upstream_model")

    class Small(torch.nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.norm, self.up = torch.nn.LayerNorm(8), torch.nn.Linear(8, 6, bias=False)

    spec = {"model": NARROW, "device": "cpu", "precision": "fp16", "random_numbers": random_numbers.__file__}
    model = own.random_model(Small, None, parse_spec(json.dumps(spec | {"numbers": "counted"})))
    assert torch.equal(model.up.weight, counted("up.weight", (6, 8), torch.device("cpu")).half())
    assert torch.equal(model.norm.weight, counted("norm.weight", (8,), torch.device("cpu")).half())
    before = own.random_model(Small, None, parse_spec(json.dumps(spec)))
    assert torch.equal(before.up.weight, torch.from_numpy(random_numbers.parameter("up.weight", (6, 8))).half())


def test_only_random_models_are_launched_one_kernel_after_another(tmp_path: Path) -> None:
    from qalign_fast.engines.cuda_graphs import Direct

    with pytest.raises(DeviceError, match=r"only random:\.\.\. models take another runner"):
        open_engine(str(tmp_path), None, "cuda:0", Direct(torch.device("cpu")))
