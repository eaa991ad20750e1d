"""The CUDA engine's batches, buckets and streams. It runs here in plain torch on a CPU, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from qalign_fast.engines.common import BUCKETS, bucket_of, fill_up
from qalign_fast.engines.cuda_graphs import Direct, Graphs, Pixels
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Weight
from support.cuda_engines import QUALITY, Watched, engine_of, some
from support.fake_streams import FakeCuda, FakeStream
from support.goldens import FOLDERS, GOLDEN, PICTURES


def test_buckets_hold_what_is_put_into_them() -> None:
    assert [bucket_of(n) for n in range(1, 10)] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert [bucket_of(n) for n in (17, 33, 63, 64)] == [32, 64, 64, 64]


def test_what_fills_a_bucket_up_is_a_real_picture() -> None:
    x = torch.arange(6).view(3, 2)
    assert torch.equal(fill_up(x, 5, torch.cat), x[[0, 1, 2, 2, 2]])
    assert fill_up(x, 3, torch.cat) is x


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 12])
def test_any_batch_gives_upstreams_logits(folded: Path, expected: dict[str, np.ndarray], count: int) -> None:
    engine = engine_of(folded, Direct(torch.device("cpu")))
    which = some(expected, count, first=count)
    logits = engine.decode(engine.encode(expected["resized_uint8"][which]), QUALITY)
    np.testing.assert_allclose(logits, expected["logits_quality_image"][which], rtol=0, atol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_golden_in_every_mix(folder: str, tmp_path: Path) -> None:
    """Pictures among others and in another order give upstream's logits for every image prompt, in float32."""
    path = export_artifact(GOLDEN / folder, tmp_path / "a", ExportOptions("fp32", ("torch",)))
    engine, golden = engine_of(path, Direct(torch.device("cpu"))), np.load(GOLDEN / folder / "expected.npz")
    for which in ([2], [5, 0, 3], [1, 1, 4, 2, 0], [*range(6)][::-1]):
        tokens = engine.encode(golden["resized_uint8"][which])
        for p in engine.prompts:
            if p.medium == "image":
                found, upstreams = engine.decode(tokens, p), golden[f"logits_{p.task}_image"][which]
                np.testing.assert_allclose(found, upstreams, rtol=0, atol=1e-4)


def test_more_than_the_largest_bucket_is_split_in_order(folded: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    engine = engine_of(folded, runner)
    which = some(expected, 70)
    tokens = engine.encode(expected["resized_uint8"][which])
    logits = engine.decode(tokens, QUALITY)
    assert [key for key, _ in runner.runs] == [("encode", 64), ("encode", 8), (QUALITY.name, 64), (QUALITY.name, 8)]
    np.testing.assert_allclose(logits, expected["logits_quality_image"][which], rtol=0, atol=1e-4)
    last = engine.decode(tokens[66:67], QUALITY)  # tokens can be sliced like arrays
    np.testing.assert_allclose(last, logits[66:67], rtol=0, atol=1e-5)


def test_filling_up_changes_no_score(folded: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    engine = engine_of(folded, runner)
    pixels = expected["resized_uint8"][:4]
    three = engine.decode(engine.encode(pixels[:3]), QUALITY)
    (_, pictures), (_, tokens) = runner.runs
    assert len(pictures) == len(tokens) == 4
    assert torch.equal(pictures[3], pictures[2])
    assert torch.equal(tokens[3], tokens[2])
    four = engine.decode(engine.encode(pixels), QUALITY)
    np.testing.assert_allclose(three, four[:3], rtol=0, atol=1e-5)


def test_a_key_is_always_of_one_shape(folded: Path, expected: dict[str, np.ndarray]) -> None:
    """A graph is one step on one shape and dtype."""
    runner = Watched()
    scorer = Scorer(engine_of(folded, runner))
    for count in (1, 3, 5, 70):
        scorer.score_tasks([*expected["resized_uint8"][some(expected, count)]])
    scorer.score_video([PICTURES / expected["picture_names"][0]])
    shapes: dict[Hashable, set[tuple[object, ...]]] = {}
    for key, x in runner.runs:
        shapes.setdefault(key, set()).add((x.dtype, *x.shape))
    assert all(len(found) == 1 for found in shapes.values())
    assert {key[1] for key in shapes} <= set(BUCKETS)  # type: ignore[index]


def test_every_task_reads_one_encoding(folded: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    scores = Scorer(engine_of(folded, runner)).score_tasks([*expected["resized_uint8"]])
    assert sum(key[0] == "encode" for key, _ in runner.runs) == 1  # type: ignore[index]
    for task in ("quality", "aesthetics"):
        found = [score[task].value for score in scores]
        np.testing.assert_allclose(found, expected[f"score_{task}_image"], rtol=0, atol=1e-4)


def test_clips_of_any_length_are_decoded_without_a_bucket(folded: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    frames = [PICTURES / name for name in expected["picture_names"][:3]]
    found = Scorer(engine_of(folded, runner)).score_video(frames)
    assert [key for key, _ in runner.runs] == [("encode", 4)]
    np.testing.assert_allclose(found.logits, expected["logits_quality_video"][0], rtol=0, atol=1e-4)


def test_two_callers_on_streams_of_their_own_get_their_own_scores(
    folded: Path, expected: dict[str, np.ndarray], fake_cuda: FakeCuda
) -> None:
    """The engine's graphs run as far as a CPU can replay them."""
    engine, callers = engine_of(folded, Graphs(torch.device("cpu"))), [FakeStream("a"), FakeStream("b")]
    engine.decode(engine.encode(expected["resized_uint8"][:1]), QUALITY)  # as at load; then weights are there
    waiting = []
    for caller, count in zip(callers, (1, 2), strict=True):
        with torch.cuda.stream(caller):
            which = some(expected, count, first=count)
            waiting.append((caller, which, engine.encode(expected["resized_uint8"][which])))
    for task in ("quality", "aesthetics"):
        for caller, which, tokens in waiting:
            with torch.cuda.stream(caller):
                logits = engine.decode(tokens, prompt(task))
            np.testing.assert_allclose(logits, expected[f"logits_{task}_image"][which], rtol=0, atol=1e-4)
    assert not fake_cuda.races


class NoUpload(Watched):
    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        raise AssertionError("pixels on the device came from the host")


@pytest.mark.parametrize("count", [1, 3, 70])
def test_pixels_on_the_device_stay_there_and_give_the_same_logits(
    folded: Path, expected: dict[str, np.ndarray], count: int
) -> None:
    """As they come, and as planes [B, 3, H, W] whose axes were moved."""
    array = expected["resized_uint8"][some(expected, count)]
    host, runner = engine_of(folded, Direct(torch.device("cpu"))), NoUpload()
    engine, upstreams = engine_of(folded, runner), host.decode(host.encode(array), QUALITY)
    for pixels in (
        torch.from_numpy(array),
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    ):
        np.testing.assert_array_equal(engine.decode(engine.encode(pixels), QUALITY), upstreams)
    assert all(x.is_contiguous() for _, x in runner.runs)  # a graph's kernels read its memory as it was captured


def test_pixels_on_another_device_or_of_another_type_are_our_mistake(folded: Path) -> None:
    engine, pixels = engine_of(folded, NoUpload()), torch.zeros(1, 112, 112, 3)
    for wrong in (pixels, pixels.to("meta", torch.uint8)):
        with pytest.raises(AssertionError, match=r"^$"):
            engine.encode(wrong)


def test_pixels_that_a_caller_s_stream_makes_and_changes_afterwards_are_those_between(
    folded: Path, expected: dict[str, np.ndarray], fake_cuda: FakeCuda
) -> None:
    """The host waits for nothing. The first call captures a graph, the second runs it again."""
    engine, callers = engine_of(folded, Graphs(torch.device("cpu"))), [FakeStream("a"), FakeStream("b")]
    engine.decode(engine.encode(expected["resized_uint8"][:1]), QUALITY)  # as at load; then weights are there
    waiting = []
    for caller, count in zip(callers, (2, 2), strict=True):
        which = some(expected, count, first=count)
        with torch.cuda.stream(caller):
            pixels = torch.from_numpy(255 - expected["resized_uint8"][which]).bitwise_not()
            tokens = engine.encode(pixels)
            pixels.fill_(0)
            waiting.append((caller, which, tokens))
    for caller, which, tokens in waiting:
        with torch.cuda.stream(caller):
            logits = engine.decode(tokens, QUALITY)
        np.testing.assert_allclose(logits, expected["logits_quality_image"][which], rtol=0, atol=1e-4)
    assert not fake_cuda.races


class Scratch(Ops):
    """All steps share one scratch tensor, as kernels do that share tiles."""

    def __init__(self) -> None:
        self.scratch = torch.zeros(3)

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Tensor | QuantizedRows:
        self.scratch.fill_(1)
        return super().swiglu_for(readers, gate_up)


class Unwaited(Graphs):
    """The host waits for no result, as if another thread launched meanwhile."""

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        return lambda: x


def test_a_clip_and_a_picture_on_streams_of_their_own_do_not_meet(
    folded: Path, expected: dict[str, np.ndarray], fake_cuda: FakeCuda
) -> None:
    engine, pixels = engine_of(folded, Unwaited(torch.device("cpu")), Scratch()), expected["resized_uint8"]
    tokens = engine.encode(pixels[:3])
    engine.decode(tokens, QUALITY)
    with torch.cuda.stream(FakeStream("clip")):
        clip = engine.encode(pixels[:3]).flatten(0, 1).unsqueeze(0)
        logits = engine.decode(clip, prompt("quality", "video"))
    with torch.cuda.stream(FakeStream("picture")):
        engine.decode(engine.encode(pixels[:3]), QUALITY)
    assert not fake_cuda.races
    np.testing.assert_allclose(logits, expected["logits_quality_video"][:1], rtol=0, atol=1e-4)
