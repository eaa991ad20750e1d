"""Clips that are animated pictures, or frames that come one by one: the same frames as those of a list."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageSequence

from qalign_fast import ImageError, InternalError, PictureLimits, Scorer, VideoError
from qalign_fast.feed.items import ClipOptions, Item
from qalign_fast.feed.reading import Reader
from qalign_fast.pixels.limits import LIMITS
from support.clips import FILM, animation, first_frame, load, pictures

Frames = list[npt.NDArray[np.uint8]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("loop", [{}, {"loop": 0}, {"loop": 3}])
def test_an_animated_picture_is_a_clip(kind: str, loop: dict[str, int]) -> None:
    data = animation(kind, **loop)
    with Image.open(io.BytesIO(data)) as opened:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]
    for sampling in ("index", "time"):
        clip = load(data, sampling=sampling)
        assert np.array_equal(clip.pixels, [load(Image.fromarray(frames[i])).pixels[0] for i in (0, 10, 20)])
        assert clip.warnings == ()


@pytest.mark.parametrize(
    ("kind", "duration", "seconds"),
    [
        ("GIF", 0, 3),  # shown for 100 ms, as by browsers
        ("GIF", 10, 3),
        ("GIF", 500, 15),
        ("WEBP", 0, 3),
        ("WEBP", 33, 0.99),
        ("WEBP", 16, 0.48),
        ("PNG", 0, 3),
        ("PNG", 200, 6),
    ],
)
def test_how_long_an_animations_frames_are_shown(kind: str, duration: int, seconds: float) -> None:
    clip = load(animation(kind, duration=duration), fps=50, sampling="time")
    assert len(clip.pixels) == int(50 * seconds)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_whose_frames_differ_in_length(kind: str) -> None:
    data = animation(kind, duration=[1000, *[100] * 29])
    found = load(data, sampling="time")
    every = [load(Image.fromarray(np.asarray(f.convert("RGB")))).pixels[0] for f in all_frames(data)]
    assert np.array_equal(found.pixels, [every[i] for i in (0, 1, 11)])


def all_frames(data: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(data)) as opened:
        return [frame.copy() for frame in ImageSequence.Iterator(opened)]


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_what_a_gif_disposes_of_and_leaves_clear(disposal: int) -> None:
    shown = []
    for i in range(12):
        picture = Image.new("RGBA", (64, 64))
        picture.paste((255, 20 * i, 0, 255), (4 * i, 10, 4 * i + 12, 30))
        shown.append(picture)
    shown[0].save(out := io.BytesIO(), "GIF", save_all=True, append_images=shown[1:], duration=250, disposal=disposal)
    clip = load(out.getvalue(), fps=4)
    frames = all_frames(out.getvalue())
    assert np.array_equal(clip.pixels, [load(frame.convert("RGB")).pixels[0] for frame in frames])
    assert sum(warning.startswith("alpha hides") for warning in clip.warnings) == 1


def test_a_picture_for_readers_without_animations_is_no_frame() -> None:
    red = Image.new("RGB", (64, 64), "red")
    shown = [red, *(Image.fromarray(f) for f in pictures(30))]
    assert np.array_equal(load(animation("PNG", shown, default_image=True)).pixels, load(animation("PNG")).pixels)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "JPEG", "TIFF", "BMP", "AVIF"])
def test_a_still_picture_is_a_clip_of_one_frame(kind: str) -> None:
    Image.fromarray(pictures(1)[0]).save(out := io.BytesIO(), kind)
    clip = load(out.getvalue())
    assert len(clip.pixels) == 1
    assert clip.warnings == ()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_turns_a_still_only_where_it_is_asked_for(orientation: int) -> None:
    (exif := Image.Exif())[274] = orientation
    picture = Image.fromarray(pictures(1, 64, 48)[0])
    picture.save(plain := io.BytesIO(), "JPEG")
    picture.save(turned := io.BytesIO(), "JPEG", exif=exif)
    expected = first_frame(plain.getvalue())[0]
    assert np.array_equal(first_frame(turned.getvalue())[0], expected)
    upright = first_frame(turned.getvalue(), PictureLimits(exif_rotate=True))[0]
    assert np.array_equal(upright, np.rot90(expected, {1: 0, 3: 2, 6: -1, 8: 1}[orientation]))


def test_an_animated_avif_is_a_clip() -> None:
    data = animation("AVIF")
    assert len(load(data).pixels) == 3


@pytest.mark.parametrize("frame", [0, 7])
def test_an_animated_pillow_picture_is_a_clip_and_stays_where_it_stood(frame: int) -> None:
    data = animation("GIF")
    with Image.open(io.BytesIO(data)) as picture:
        picture.seek(frame)
        stood = np.asarray(picture.convert("RGB"))
        assert np.array_equal(load(picture).pixels, load(data).pixels)
        assert picture.tell() == frame
        assert np.array_equal(np.asarray(picture.convert("RGB")), stood)
        with pytest.raises(VideoError, match="over the limit of 20 frames"):
            load(picture, limits=PictureLimits(max_frames=20))
        assert picture.tell() == frame


def test_a_damaged_frame_ends_an_animation_and_is_told() -> None:
    data = bytearray(animation("PNG"))
    at = data.index(b"fdAT", len(data) // 2) + 20
    data[at : at + 8] = bytes(8)
    clip = load(bytes(data), fps=10)
    assert 10 < len(clip.pixels) < 20
    assert clip.warnings == (f"frame {len(clip.pixels)} and those after it are damaged",)
    with pytest.raises(VideoError, match="damaged"):
        load(animation("WEBP")[:300])


@pytest.fixture(scope="module")
def read() -> Callable[..., Any]:
    """How the mini model reads frames: pixels [F, S, S, 3] and warnings. Raises what is wrong."""
    engine = Scorer.load().engine

    def reading(frames: Any, limits: PictureLimits = LIMITS, **options: Any) -> Any:
        found = Reader(engine, limits, ("quality",)).read(Item(None, frames, "video", ClipOptions(**options)))
        if found.error:
            raise found.error
        return found

    return reading


def one_buffer(frames: Frames) -> Iterator[npt.NDArray[np.uint8]]:
    buffer = np.empty_like(frames[0])
    for frame in frames:
        buffer[:] = frame
        yield buffer


def mixed(frames: Frames) -> list[Any]:
    Image.fromarray(frames[1]).save(png := io.BytesIO(), "PNG")
    Image.fromarray(frames[2]).save(file := io.BytesIO(), "PNG")
    file.seek(0)
    picture, tensor = Image.fromarray(frames[0]), torch.from_numpy(frames[3].copy())
    return [picture, png.getvalue(), file, tensor, {"bytes": png.getvalue()}][:4] + list(frames[4:])


FORMS: dict[str, Callable[[Frames], Any]] = {
    "tuple": tuple,
    "generator": lambda frames: (frame for frame in frames),
    "map": lambda frames: map(np.copy, frames),
    "deque": deque,
    "values of a dict": lambda frames: dict(enumerate(frames)).values(),
    "array": np.stack,
    "array of floats": lambda frames: np.stack(frames).astype(np.float32) / 255,
    "tensor [F, 3, H, W]": lambda frames: torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2),
    "tensor [F, H, W, 3]": lambda frames: torch.from_numpy(np.stack(frames)),
    "tensor of floats": lambda frames: torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255,
    "Pillow's pictures": lambda frames: [Image.fromarray(frame) for frame in frames],
    "one buffer, filled again and again": one_buffer,
    "of several kinds": mixed,
    "of several kinds, as a stream": lambda frames: iter(mixed(frames)),
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_in_any_form_are_those_of_a_list(form: str, read: Any) -> None:
    expected = read(FILM)
    found = read(FORMS[form](FILM))
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.warnings == expected.warnings == ()


def test_pillows_iterator_gives_each_frame(read: Any) -> None:
    with Image.open(io.BytesIO(animation("GIF"))) as opened:
        copies = [frame.copy() for frame in ImageSequence.Iterator(opened)]
        opened.seek(0)
        assert np.array_equal(read(ImageSequence.Iterator(opened)).pixels, read(copies).pixels)


def test_an_animated_picture_is_a_clip_for_a_scorer_too(read: Any) -> None:
    data = animation("WEBP")
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(read(opened).pixels, read(data).pixels)


def small(count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames that show their number in red and green."""
    for i in range(count):
        frame = np.zeros((8, 8, 3), np.uint8)
        frame[..., :2] = i // 256, i % 256
        yield frame


@pytest.mark.parametrize("count", [1, 30, 31, 32, 100, 124])
def test_a_stream_up_to_four_times_the_budget_gives_a_lists_frames(count: int, read: Any) -> None:
    stream, listed = read(small(count)), read(list(small(count)))
    assert np.array_equal(stream.pixels, listed.pixels)
    assert stream.warnings == listed.warnings


def test_a_long_stream_gives_frames_near_a_lists_and_holds_few(read: Any) -> None:
    held, most = 0, 0

    class Frame(np.ndarray):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def counted() -> Iterator[Any]:
        nonlocal held, most
        for frame in small(5000):
            held, most = held + 1, max(most, held + 1)
            yield frame.view(Frame)

    found = read(counted())
    numbers = found.pixels[:, 0, 0, 0].astype(int) * 256 + found.pixels[:, 0, 0, 1]
    assert np.abs(numbers - np.linspace(0, 4999, 31)).max() <= 5000 / (4 * 31)
    assert found.warnings == ("31 of 5000 frames, spread evenly; max_frames is 31",)
    assert most < 10


@pytest.mark.parametrize(
    ("frames", "error", "cause"),
    [
        ([], VideoError, "at least one frame"),
        ((), VideoError, "at least one frame"),
        (iter(()), VideoError, "at least one frame"),
        (np.zeros((0, 8, 8, 3), np.uint8), VideoError, "at least one frame"),
        (np.zeros((8, 8, 3), np.uint8), VideoError, r"an array \[8, 8, 3\] is no clip"),
        ([None], ImageError, "<NoneType>: not a picture"),
        (iter([FILM]), ImageError, "<list>: not a picture"),
        (5, VideoError, "<int>: not a clip"),
        ({"array": 1}, VideoError, "expected 'bytes' or 'path'"),
    ],
)
def test_what_is_no_frames_is_told(frames: Any, error: type[Exception], cause: str, read: Any) -> None:
    with pytest.raises(error, match=cause):
        read(frames)


def test_an_error_of_the_callers_stream_is_told_with_its_cause(read: Any) -> None:
    def camera() -> Iterator[Any]:
        yield FILM[0]
        raise OSError("the camera is gone")

    with pytest.raises(InternalError, match="the camera is gone") as caught:
        read(camera())
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("form", ["tuple", "generator", "array"])
def test_limits_hold_for_frames(form: str, read: Any) -> None:
    assert len(read(FORMS[form](FILM), PictureLimits(max_frames=30, max_pixels=64 * 64)).pixels) == 30
    with pytest.raises(VideoError, match="over the limit of 29 frames"):
        read(FORMS[form](FILM), PictureLimits(max_frames=29))
    with pytest.raises(ImageError, match="over the limit of 4095 pixels"):
        read(FORMS[form](FILM), PictureLimits(max_pixels=4095))
