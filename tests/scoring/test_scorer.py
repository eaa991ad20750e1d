"""The front door: order, batches, laziness, tasks, and what no surrounding may change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Event, Lock, Thread

import numpy as np
import pytest

from qalign_fast import DeviceError, ImageError, Score, Scorer, TaskError, VideoError
from qalign_fast.engines.contract import Engine, Tokens
from qalign_fast.families.prompt import Prompt
from support.feeds import SAME, Stuck
from support.goldens import PICTURES, ROOT, Golden

TASKS = ("quality", "aesthetics", "aesthetic", "quality-paper")


@pytest.fixture
def scorer(engine: Engine) -> Scorer:
    return Scorer(engine)


@pytest.fixture(scope="module")
def fast(narrow: Golden) -> Scorer:
    return Scorer.load(narrow.artifact)


def test_score_does_not_depend_on_batch_neighbours(golden: Golden, scorer: Scorer) -> None:
    rng = np.random.default_rng(0)
    others = [rng.integers(0, 256, (50, 70, 3), np.uint8), *golden.pictures[1:]]
    alone = scorer.score(golden.pictures[0]).value
    for place in (0, 3, 6):
        batch = [*others[:place], golden.pictures[0], *others[place:]]
        assert len(batch) == 7
        assert scorer.score(batch)[place].value == pytest.approx(alone, abs=SAME)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_score_does_not_depend_on_batch_size(golden: Golden, scorer: Scorer, batch_size: int) -> None:
    values = [s.value for s in scorer.score_iter(golden.pictures, batch_size=batch_size)]
    np.testing.assert_allclose(values, golden.expected["score_quality_image"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(values, [s.value for s in scorer.score(golden.pictures)], rtol=0, atol=SAME)


def test_score_does_not_depend_on_task_order(golden: Golden, scorer: Scorer) -> None:
    picture = golden.pictures[2]
    there, back = scorer.score_tasks(picture, TASKS), scorer.score_tasks(picture, TASKS[::-1])
    for task in TASKS:
        assert there[task].value == pytest.approx(back[task].value, abs=SAME)
        assert there[task].value == pytest.approx(scorer.score(picture, task).value, abs=SAME)
        assert there[task].task == task


@pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
def test_score_does_not_depend_on_threads(golden: Golden, kind: str) -> None:
    values = [[s.value for s in Scorer.load(getattr(golden, kind), threads=n).score(golden.pictures)] for n in (1, 2)]
    np.testing.assert_allclose(*values, rtol=0, atol=SAME)


def test_one_in_one_out_a_list_in_a_list_out(narrow: Golden, fast: Scorer) -> None:
    one, many = fast.score(narrow.pictures[0]), fast.score(narrow.pictures[:1])
    assert isinstance(many, list)
    assert many[0].value == pytest.approx(one.value, abs=SAME)
    assert fast.score([]) == []
    assert fast.score(iter([])) == []
    assert [score.value for score in fast.score(picture for picture in narrow.pictures[:1])] == [many[0].value]
    with narrow.pictures[0].open("rb") as file:  # an iterator too, and one picture
        assert fast.score(file).value == pytest.approx(one.value, abs=SAME)
    assert fast.score_tasks([], ("quality",)) == []


def test_the_iterator_is_lazy_and_bounded(narrow: Golden, fast: Scorer) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield narrow.pictures[taken % 6]

    results = fast.score_iter(endless(), batch_size=4, workers=2)
    assert taken == 0
    for _ in range(8):
        next(results)
    results.close()
    assert taken <= 8 + 3 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are the process's")
@pytest.mark.parametrize("workers", [1, 3])
def test_several_workers_give_way_to_the_engine(narrow: Golden, fast: Scorer, workers: int) -> None:
    own, seen = os.getpriority(os.PRIO_PROCESS, 0), []

    class Watched(os.PathLike):
        def __fspath__(self) -> str:
            seen.append(os.getpriority(os.PRIO_PROCESS, 0))  # of the thread that asks
            return str(narrow.pictures[0])

    assert len(list(fast.score_iter([Watched() for _ in range(9)], workers=workers))) == 9
    assert len(seen) >= 9
    assert all(nice > own for nice in seen) if workers > 1 else set(seen) == {own}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_a_bad_picture_is_raised_or_stands_in_its_place(narrow: Golden, fast: Scorer) -> None:
    pictures = [narrow.pictures[0], b"junk", narrow.pictures[1], "missing.jpg"]
    with pytest.raises(ImageError, match="4 bytes"):
        fast.score(pictures)
    results = list(fast.score_iter(pictures, errors="yield", batch_size=2))
    assert [isinstance(r, ImageError) for r in results] == [False, True, False, True]
    assert results[2].value == pytest.approx(fast.score(narrow.pictures[1]).value, abs=SAME)
    assert len(list(fast.score_iter([b"", b"x"], errors="yield"))) == 2


def test_an_unknown_task_is_an_error_that_lists_what_there_is(narrow: Golden, fast: Scorer) -> None:
    with pytest.raises(TaskError, match=r"'beauty' is not in this model; for images it has: quality, aesthetics"):
        fast.score(narrow.pictures[0], "beauty")


def test_a_clip_of_one_picture_is_not_a_picture(narrow: Golden, fast: Scorer) -> None:
    """The words differ, so the scores do."""
    clip = fast.score_video([narrow.pictures[2]])
    assert clip.frames == 1
    assert clip.value != pytest.approx(fast.score(narrow.pictures[2]).value, abs=1e-3)


def test_frames_over_the_budget_are_spread_evenly_with_a_warning(narrow: Golden, fast: Scorer) -> None:
    frames = [narrow.pictures[i % 6] for i in range(9)]
    score = fast.score_video(frames, max_frames=3)
    assert score.frames == 3
    assert "3 of 9 frames" in score.warnings[0]
    assert score.value == pytest.approx(fast.score_video([frames[0], frames[4], frames[8]]).value, abs=SAME)
    assert fast.score_video(frames[:3], max_frames=3).warnings == ()


def test_more_frames_than_positions_are_refused(goldens: dict[str, Golden]) -> None:
    scorer = Scorer.load(goldens["narrow-448"].artifact)
    with pytest.raises(VideoError, match="positions hold 1 to 31"):
        scorer.score_video([PICTURES / "chelsea_small.png"], max_frames=32)
    with pytest.raises(VideoError, match="at least one frame"):
        scorer.score_video([])


def test_what_this_machine_lacks_is_a_device_error(narrow: Golden) -> None:
    with pytest.raises(DeviceError, match="available: cpu"):
        Scorer.load(narrow.artifact, device="cuda")
    with pytest.raises(DeviceError, match="available: fp32"):
        Scorer.load(narrow.artifact, precision="int8")
    with pytest.raises(DeviceError, match="available: torch; `qalign-fast export`"):
        Scorer.load(narrow.checkpoint, engine="onnx")


class Meeting:
    """An engine that a second batch has to enter before the first one leaves, as a GPU's may."""

    in_flight = 2

    def __init__(self, engine: Engine) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.family, self.config, self.prompts = engine.family, engine.config, engine.prompts
        self.kernels = engine.kernels
        self._engine, self._meet, self._alone = engine, Barrier(2), Lock()

    def encode(self, pixels: np.ndarray) -> Tokens:
        self._meet.wait(timeout=30)  # or BrokenBarrierError
        with self._alone:
            return self._engine.encode(pixels)

    def decode(self, tokens: Tokens, prompt: Prompt) -> np.ndarray:
        with self._alone:
            return self._engine.decode(tokens, prompt)


def test_two_batches_are_under_way_where_an_engine_gains_by_it(narrow: Golden, fast: Scorer) -> None:
    scorer = Scorer(Meeting(fast.engine))
    pictures = [narrow.pictures[i % 6] for i in range(12)]
    found = [score.value for score in scorer.score_iter(pictures, batch_size=3)]
    np.testing.assert_allclose(found, [score.value for score in fast.score(pictures)], rtol=0, atol=SAME)


def test_errors_come_in_their_place_with_batches_in_flight(narrow: Golden, fast: Scorer, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    pictures = [*narrow.pictures[:4], tmp_path / "bad.jpg", *narrow.pictures[:3]]
    scorer = Scorer(Meeting(fast.engine))
    kinds = [type(found) for found in scorer.score_iter(pictures, batch_size=2, errors="yield")]
    assert kinds == [Score] * 4 + [ImageError] + [Score] * 3
    found = []
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        for score in Scorer(Meeting(fast.engine)).score_iter(pictures[:6], batch_size=2):
            found.append(score)
    assert len(found) == 4  # all of the batches before it


def test_no_more_is_read_ahead_with_batches_in_flight(narrow: Golden, fast: Scorer) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield narrow.pictures[0]

    scores = Scorer(Meeting(fast.engine)).score_iter(endless(), batch_size=2)
    next(scores)
    assert taken <= 2 * 2 + 3 * 2  # two batches under way and three read
    scores.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_iterator_nobody_finishes_waits_for_no_thread(narrow: Golden, fast: Scorer, in_flight: int) -> None:
    """It may end where garbage is collected: in a thread that is starting, whose lock every wait for a thread takes."""
    free = Event()
    scorer = fast if in_flight == 1 else Scorer(Meeting(fast.engine))
    scores = scorer.score_iter([*narrow.pictures[:4], *(Stuck(free) for _ in range(4))], batch_size=2, workers=2)
    next(scores)
    closing = Thread(target=scores.close, daemon=True)  # type: ignore[attr-defined]
    closing.start()
    closing.join(timeout=20)
    ended = not closing.is_alive()
    free.set()
    assert ended


def test_after_warming_a_first_score_imports_nothing(narrow: Golden) -> None:
    code = (
        "import sys; from qalign_fast import Scorer\n"
        f"scorer = Scorer.load({str(narrow.artifact)!r}).warm()\n"
        "before = set(sys.modules)\n"
        f"scorer.score_tasks([{str(narrow.pictures[0])!r}, {str(ROOT / 'samples' / 'coffee.jpg')!r}])\n"
        "print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_tasks_may_come_once(narrow: Golden, fast: Scorer) -> None:
    found = fast.score_tasks(narrow.pictures[:2], (task for task in ("quality", "aesthetics")))
    assert [list(scores) for scores in found] == [["quality", "aesthetics"]] * 2
