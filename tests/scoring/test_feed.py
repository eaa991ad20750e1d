"""The work loop: keys, whose pixels are scored, and what it holds in memory."""

from __future__ import annotations

import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from threading import Barrier, current_thread

import numpy as np
import pytest
from PIL import Image, ImageSequence

from qalign_fast import ImageError, PictureLimits, Score, Scorer, TaskError, VideoError
from qalign_fast.errors import InternalError, MissingExtraError, OptionError
from qalign_fast.feed import reading
from qalign_fast.feed.batching import Feed
from qalign_fast.feed.items import ClipOptions, Item, Medium
from support.clips import constant, write_clip
from support.feeds import GREYS, SAME, of_greys, values
from support.goldens import Golden

# whose pixels are scored


def test_one_array_that_a_generator_fills_again_is_scored_as_it_was(scorer: Scorer) -> None:
    def frames() -> Iterator[np.ndarray]:
        frame = np.zeros((40, 50, 3), np.uint8)
        for grey in GREYS:
            frame[:] = (grey, 0, 255 - grey)
            yield frame
        frame[:] = 0

    np.testing.assert_allclose(values(scorer, frames()), of_greys(scorer), rtol=0, atol=SAME)


def test_frames_of_a_sequence_are_scored_one_by_one(scorer: Scorer) -> None:
    """An ImageSequence iterator yields one picture again and again, each time at another frame."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (50, 40), (grey, 0, 255 - grey)) for grey in GREYS]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    found = values(scorer, ImageSequence.Iterator(Image.open(file)))
    np.testing.assert_allclose(found, of_greys(scorer), rtol=0, atol=SAME)


def test_a_picture_that_its_owner_closes_is_scored(scorer: Scorer, tmp_path: Path) -> None:
    def opened() -> Iterator[Image.Image]:
        for grey in GREYS:
            path = tmp_path / f"{grey}.png"
            Image.new("RGB", (50, 40), (grey, 0, 255 - grey)).save(path)
            with Image.open(path) as picture:
                yield picture

    np.testing.assert_allclose(values(scorer, opened()), of_greys(scorer), rtol=0, atol=SAME)


def test_a_file_that_its_owner_closes_or_reads_again_is_scored(scorer: Scorer, narrow: Golden) -> None:
    def files() -> Iterator[object]:
        for path in narrow.pictures[:3]:
            with path.open("rb") as file:
                yield file

    expected = [scorer.score(path).value for path in narrow.pictures[:3]]
    np.testing.assert_allclose(values(scorer, files()), expected, rtol=0, atol=SAME)


def test_one_lazily_opened_picture_in_a_list_many_times(scorer: Scorer, narrow: Golden) -> None:
    picture = Image.open(narrow.pictures[1])
    found = [score.value for score in scorer.score([picture] * 12)]
    np.testing.assert_allclose(found, scorer.score(narrow.pictures[1]).value, rtol=0, atol=SAME)


def test_pixels_are_taken_in_the_thread_that_asks(scorer: Scorer) -> None:
    seen = []

    class Watched(Image.Image):
        def load(self) -> object:
            seen.append(threading.current_thread())
            return super().load()

    picture = Image.new("RGB", (50, 40), "red")
    picture.__class__ = Watched
    list(scorer.score_iter([picture] * 5))
    assert set(seen) == {threading.current_thread()}


def test_exif_orientation_of_a_picture_is_known_before_it_is_copied(narrow: Golden) -> None:
    """Of a TIFF's, a copy has no more."""
    rotating = Scorer.load(narrow.artifact, limits=PictureLimits(exif_rotate=True))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(narrow.pictures[0]).convert("RGB").save(file, "TIFF", exif=exif)
    alone = rotating.score(Image.open(file)).value
    assert values(rotating, [Image.open(file)] * 2) == pytest.approx([alone] * 2, abs=SAME)
    assert alone == pytest.approx(rotating.score(file.getvalue()).value, abs=SAME)


def test_errors_name_a_picture_by_its_owner_s_name(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    with path.open("rb") as file:
        pictures = [Image.open(path), file, np.zeros((3, 3, 4), np.uint8), 5]
        found = [str(error) for error in scorer.score_iter(pictures, errors="yield")]
    assert all(name in error for name, error in zip(("cut.png", "cut.png", "array [3, 3, 4]", "<int>"), found))
    assert "damaged or truncated PNG" in found[0]


# items, keys and errors


def test_pictures_and_clips_come_back_in_order_with_their_keys(scorer: Scorer, narrow: Golden, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mkv", constant(60, 20), 20)
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    options = ClipOptions(fps=2, max_frames=4)
    picture = narrow.pictures[0]
    items = [
        Item(0, picture),
        Item(("any", "key"), narrow.pictures[1]),
        Item("clip", clip, "video", options),
        Item("junk", tmp_path / "junk.mp4", "video"),
        Item("frames", [picture] * 6, "video", options),
        Item("missing", "missing.jpg"),
        Item("no frames", [], "video"),
        Item("too many", [picture], "video", ClipOptions(max_frames=10_000)),
        Item(None, picture),
    ]
    found = list(scorer.feed.run(iter(items), ("quality", "aesthetics"), batch_size=4))
    assert [scored.key for scored in found] == [item.key for item in items]
    kinds = [type(scored.error) for scored in found]
    none = type(None)
    assert kinds == [none, none, none, VideoError, none, ImageError, VideoError, VideoError, none]
    assert all((scored.scores is None) == (scored.error is not None) for scored in found)
    alone = scorer.score_video_tasks(clip, fps=2, max_frames=4)
    assert found[2].get() == alone
    assert "4 of 6 frames" in alone["quality"].warnings[0]
    assert found[4].get()["quality"].frames == 4
    assert found[8].get()["quality"].value == pytest.approx(scorer.score(picture).value, abs=SAME)
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        found[5].get()


def test_clips_are_decoded_on_the_pool(scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qalign_fast.pixels import clip

    seen, load = [], clip.load_clip

    def watched(*arguments: object, **options: object) -> clip.Clip:
        seen.append(threading.current_thread().name)
        return load(*arguments, **options)

    monkeypatch.setattr(clip, "load_clip", watched)
    path = write_clip(tmp_path / "c.mkv", constant(30, 20), 20)
    items = [Item(i, path, "video") for i in range(3)]
    assert [scored.error for scored in scorer.feed.run(items, ("quality",))] == [None] * 3
    assert seen == ["qalign-pixels"] * 3


def test_a_missing_package_is_the_error_of_the_item_that_needs_it(
    scorer: Scorer, narrow: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.mp4").write_bytes(b"junk")
    (tmp_path / "c.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for module in ("av", "pillow_heif.as_plugin"):
        monkeypatch.setitem(sys.modules, module, None)
    heic = Scorer(scorer.engine, PictureLimits(formats=("heic",)))
    items = [Item(0, narrow.pictures[0]), Item(1, tmp_path / "c.mp4", "video"), Item(2, tmp_path / "c.heic")]
    found = [scored.error for scored in heic.feed.run([*items, items[0]], ("quality",))]
    assert [type(error) for error in found] == [type(None), MissingExtraError, MissingExtraError, type(None)]
    assert [str(error).partition("pip install ")[2] for error in found[1:3]] == [
        "'qalign-fast[video]'",
        "'qalign-fast[formats]'",
    ]


def test_what_is_no_item_s_fault_is_raised(scorer: Scorer) -> None:
    with pytest.raises(ZeroDivisionError):
        list(scorer.feed.run((Item(0, 1 // 0) for _ in range(3)), ("quality",)))  # the caller's own error
    [scored] = scorer.feed.run([Item(0, "a.jpg")], ("beauty",))
    assert isinstance(scored.error, TaskError)
    with pytest.raises(OptionError, match="batch_size is 0, workers 4; both must be 1 or more"):
        list(scorer.score_iter([], batch_size=0))
    with pytest.raises(OptionError, match="errors is 'ignore'; expected 'raise' or 'yield'"):
        list(scorer.score_iter([], errors="ignore"))  # type: ignore[arg-type]
    for clip in ("clip.mp4", ["a.jpg"]):
        with pytest.raises(OptionError, match="sampling is 'idx'; expected 'index' or 'time'"):
            scorer.score_video(clip, sampling="idx")  # type: ignore[arg-type]
    assert issubclass(OptionError, ValueError)


# memory


def test_bytes_that_wait_are_bounded(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of 3 MB, of which 10 MB may wait."""
    monkeypatch.setattr(reading, "_MOST_BYTES", 10_000_000)
    waiting = most = 0
    load, take = reading.load_pixels, reading.snapshot

    def watched_take(picture: object, limits: PictureLimits) -> object:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return take(picture, limits)

    def watched_load(*arguments: object, **options: object) -> np.ndarray:
        nonlocal waiting
        pixels = load(*arguments, **options)
        waiting -= 1
        return pixels

    monkeypatch.setattr(reading, "load_pixels", watched_load)
    monkeypatch.setattr(reading.Reader.take, "__defaults__", (watched_take,))
    array = np.zeros((1000, 1000, 3), np.uint8)
    assert len(list(scorer.score_iter(repeat(array, 40), batch_size=16))) == 40
    assert 2 <= most <= 5


def test_a_batch_is_filled_whatever_its_bytes(scorer: Scorer, narrow: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_BYTES", 0)
    sizes, score = [], Feed.score_read
    monkeypatch.setattr(Feed, "score_read", lambda *a, **k: sizes.append(len(a[1])) or score(*a, **k))
    items = [Item(i, narrow.pictures[i % 6]) for i in range(10)]
    clips = [Item(i, [narrow.pictures[0]], "video") for i in range(3)]
    assert len(list(scorer.feed.run([*items, *clips], ("quality",), batch_size=4))) == 13
    assert sizes == [4, 4, 2, 1, 1, 1]


def test_what_was_scored_is_held_no_longer(scorer: Scorer) -> None:
    class Media(np.ndarray):
        alive = 0

    def arrays() -> Iterator[np.ndarray]:
        for _ in range(40):
            array = np.zeros((40, 40, 3), np.uint8).view(Media)
            array.alive = Alive()
            yield array

    class Alive:
        count = 0

        def __init__(self) -> None:
            Alive.count += 1

        def __del__(self) -> None:
            Alive.count -= 1

    most = 0
    for _ in scorer.score_iter(arrays(), batch_size=2):
        most = max(most, Alive.count)
    assert most <= 2  # the arrays themselves: what waits are copies


class BadFile(io.BytesIO):
    """A file of a library whose errors are its own."""

    name = "a.zip/photo.jpg"

    def read(self, *_: object) -> bytes:
        raise zipfile.BadZipFile("no such member")


def test_another_librarys_error_comes_when_its_item_s_turn_comes(scorer: Scorer, narrow: Golden) -> None:
    pictures = [narrow.pictures[0], narrow.pictures[1], BadFile()]
    scores = scorer.score_iter(pictures, batch_size=1)
    assert len([next(scores) for _ in range(2)]) == 2
    with pytest.raises(ImageError, match=r"photo\.jpg: cannot be read \(no such member\)") as caught:
        next(scores)
    assert isinstance(caught.value.__cause__, zipfile.BadZipFile)


class Broken(os.PathLike):
    def __fspath__(self) -> str:
        raise RuntimeError("a path of somebody's")


@pytest.mark.parametrize("medium", ["image", "video"])
def test_whatever_is_raised_while_one_is_read_the_others_go_on(
    scorer: Scorer, narrow: Golden, medium: Medium, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(picture: object, *arguments: object, **options: object) -> np.ndarray:
        if picture == "fault.jpg":
            raise KeyError("a mistake of ours")
        return load_pixels(picture, *arguments, **options)

    load_pixels = reading.load_pixels
    monkeypatch.setattr(reading, "load_pixels", load)
    good, wrap = str(narrow.pictures[0]), (lambda x: [x]) if medium == "video" else (lambda x: x)
    bad = [wrap("fault.jpg"), Broken(), ImageError("could not be had")]
    items = [Item(i, media, medium) for i, media in enumerate([wrap(good), *bad, wrap(good)])]
    first, fault, broken, given, last = scorer.feed.run(items, ("quality",), batch_size=2)
    assert first.error is last.error is None
    assert isinstance(fault.error, InternalError) and isinstance(fault.error.__cause__, KeyError)
    assert "internal error (KeyError: 'a mistake of ours')" in str(fault.error)
    assert medium == "video" or str(fault.error).startswith("fault.jpg: ")
    assert isinstance(broken.error, InternalError) and "<Broken>: internal error (RuntimeError" in str(broken.error)
    assert given.error is bad[2]


def test_one_that_cannot_be_read_never_ends_a_run_of_a_scorer(scorer: Scorer, narrow: Golden) -> None:
    good = narrow.pictures[0]
    kinds = [type(found) for found in scorer.score_iter([good, Broken(), good], errors="yield")]
    assert kinds == [Score, InternalError, Score]
    with pytest.raises(InternalError, match="somebody"):
        scorer.score(Broken())


def test_the_next_batch_is_read_in_parallel_however_large_its_pixels_are(
    scorer: Scorer, narrow: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only snapshots make a batch wait: its pixels are needed in any case."""
    monkeypatch.setattr(reading, "_MOST_BYTES", 3 * 112 * 112)  # one picture's
    together = Barrier(3)

    class Meeting(os.PathLike):
        def __fspath__(self) -> str:
            if current_thread().name.startswith("qalign-pixels"):
                together.wait(timeout=30)
            return str(narrow.pictures[0])

    assert len(list(scorer.score_iter([Meeting() for _ in range(3)], batch_size=3, workers=3))) == 3


# what is read elsewhere, in tasks of its own


def test_what_was_read_is_scored_in_tasks_of_its_own_whatever_is_beside_it(scorer: Scorer, narrow: Golden) -> None:
    wanted = [("quality",), ("aesthetics", "quality"), ("aesthetics",)]
    feed = scorer.feed
    reads = [feed.read(Item(i, narrow.pictures[i]), tasks) for i, tasks in enumerate(wanted)]
    clip = feed.read(Item("clip", [narrow.pictures[0], narrow.pictures[1]], "video"), ("quality",))
    bad = feed.read(Item("bad", b"no picture"), ("quality",))
    found = feed.score_read([reads[0], clip, reads[1], bad, reads[2]])
    assert [scored.key for scored in found] == [0, "clip", 1, "bad", 2]
    assert isinstance(found[3].error, ImageError) and found[3].scores is None
    assert found[1].get()["quality"].value == scorer.score_video(narrow.pictures[:2]).value
    for i, scored in enumerate((found[0], found[2], found[4])):
        alone = scorer.score_tasks(narrow.pictures[i], wanted[i])
        assert list(scored.get()) == list(alone)
        for task in wanted[i]:
            assert scored.get()[task].value == pytest.approx(alone[task].value, abs=SAME)


@pytest.mark.parametrize("listed", [True, False])
def test_a_timeline_has_each_sampled_frame_scored_as_a_picture(scorer: Scorer, tmp_path: Path, listed: bool) -> None:
    pictures = [Image.new("RGB", (50, 40), (grey, 0, 255 - grey)) for grey in GREYS]
    media: object = pictures
    if not listed:
        media = tmp_path / "clip.webp"
        pictures[0].save(media, save_all=True, append_images=pictures[1:], duration=1000, lossless=True)
    item = Item("clip", media, "video", ClipOptions(timeline=True))
    scored = scorer.feed.score(item, ("quality",))
    assert [moment.index for moment in scored.timeline] == [0, 1, 2, 3]
    assert [moment.time for moment in scored.timeline] == ([None] * 4 if listed else [0.0, 1.0, 2.0, 3.0])
    found = [moment.scores["quality"].value for moment in scored.timeline]
    np.testing.assert_allclose(found, of_greys(scorer), rtol=0, atol=SAME)
    assert scored.get()["quality"].value == scorer.score_video(media).value
    assert not scorer.feed.score(Item("clip", media, "video"), ("quality",)).timeline
