"""Clips that are damaged, cut off, or wrong about their rate and times: what is left, where it belongs, and told."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from qalign_fast import VideoError
from qalign_fast.pixels import stream
from support import clips
from support.clips import FILM, film, load, numbers, pictures, write_frames


@pytest.mark.parametrize(
    ("codec", "suffix", "hit"),
    [
        ("png", ".mov", [7]),
        ("png", ".mov", [3, 9, 11]),
        ("mjpeg", ".mov", [1, 2]),
        ("mjpeg", ".avi", [7, 19]),
        ("libvpx-vp9", ".webm", [9]),  # the last before a keyframe: others refer to those before it
        ("libx265", ".mp4", [9]),
    ],
)
def test_a_packet_that_cannot_be_decoded_costs_its_own_frame(codec: str, suffix: str, hit: list[int]) -> None:
    clip = load(clips.damaged(film(codec, suffix).read_bytes(), hit))
    assert clip.warnings == (f"{len(hit)} packet{'s' * (len(hit) > 1)} could not be decoded",)
    assert np.array_equal(clip.pixels, load(film(codec, suffix)).pixels)


@pytest.mark.parametrize(("codec", "suffix"), [("png", ".mov"), ("mjpeg", ".avi")])
@pytest.mark.parametrize(("sampling", "expected"), [("index", [1, 11, 20]), ("time", [1, 9, 20])])
def test_the_frame_beside_stands_for_one_that_is_lost(
    codec: str, suffix: str, sampling: str, expected: list[int]
) -> None:
    data = clips.damaged(film(codec, suffix).read_bytes(), [0, 10])
    assert numbers(data, film(codec, suffix), sampling=sampling) == expected


def test_a_last_packet_that_is_damaged_matters_where_it_is_scored() -> None:
    data = clips.damaged(film("png", ".mov").read_bytes(), [29])
    assert load(data).warnings == ()
    clip = load(data, fps=10)
    assert len(clip.pixels) == 29
    assert clip.warnings == ("1 packet could not be decoded", "the stream breaks off: 29 of 30 frames could be decoded")


def test_a_clip_without_a_whole_packet_is_refused() -> None:
    with pytest.raises(VideoError, match="not a single frame can be decoded"):
        load(clips.damaged(film("png", ".mov").read_bytes(), range(30)))


def test_frames_that_a_decoder_patches_up_are_counted() -> None:
    data = bytearray(film("mpeg4", ".mp4").read_bytes())
    with av.open(io.BytesIO(data)) as opened:
        places = [(p.pos or 0, p.size) for p in opened.demux(video=0) if p.size]
    for number in (10, 20):
        at, size = places[number]
        data[at + size // 2 : at + size] = bytes(size - size // 2)
    assert load(bytes(data)).warnings == ("2 frames of those scored may be damaged",)


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", ".mp4"), ("libx264", ".mkv"), ("libvpx", ".webm"), ("mpeg4", ".avi"), ("ffv1", ".mkv")],
)
def test_threads_do_not_change_what_becomes_of_damage(codec: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        noise, data = np.random.default_rng(seed), bytearray(film(codec, suffix).read_bytes())
        for at in noise.integers(len(data) // 4, len(data) - len(data) // 10, 5):
            data[at] ^= 16
        with monkeypatch.context() as patch:
            threaded = load(bytes(data), fps=10)
            patch.setattr(stream, "_THREADED", frozenset())
            alone = load(bytes(data), fps=10)
        assert np.array_equal(threaded.pixels, alone.pixels)
        assert threaded.warnings == alone.warnings


def fast_start(path: Path, copy: Path) -> bytes:
    """An MP4 whose header stands before its packets, as on the web."""
    with av.open(str(path)) as read, av.open(str(copy), "w", options={"movflags": "faststart"}) as write:
        clips.copy_packets(path, write, write.add_stream_from_template(read.streams.video[0]))
    return copy.read_bytes()


@pytest.mark.parametrize(
    ("codec", "suffix"), [("mpeg4", ".mp4"), ("ffv1", ".mkv"), ("libvpx", ".webm"), ("png", ".avi")]
)
def test_a_file_that_is_cut_off_is_told(tmp_path: Path, codec: str, suffix: str) -> None:
    source = film(codec, suffix)
    data = fast_start(source, tmp_path / "fast.mp4") if suffix == ".mp4" else source.read_bytes()
    assert load(data).warnings == ()
    cut = data[: len(data) * 6 // 10]
    assert numbers(cut, source)[0] == 0
    (warning,) = load(cut).warnings
    assert warning.startswith("the stream breaks off: ")
    with pytest.raises(VideoError):
        load(data[:40])


@pytest.mark.parametrize(("codec", "suffix"), [("ffv1", ".mkv"), ("libx264", ".mkv"), ("libvpx", ".webm")])
@pytest.mark.parametrize("rate", [1000, 90000, 100, 30, 20, 3, 1])
def test_a_rate_that_cannot_be_true_is_measured(codec: str, suffix: str, rate: int) -> None:
    data = clips.with_rate(film(codec, suffix).read_bytes(), rate)
    assert numbers(data, film(codec, suffix)) == [0, 10, 20]
    (warning,) = load(data).warnings
    assert warning.endswith(" frames a second; the 10 that were measured count")
    assert numbers(data, film(codec, suffix), sampling="time") == [0, 10, 20]
    assert load(data, sampling="time").warnings == ()


@pytest.mark.parametrize(("rate", "expected"), [(13, [0, 13]), (7.5, [0, 7, 15, 22])])
@pytest.mark.parametrize(("codec", "suffix"), [("ffv1", ".mkv"), ("libvpx", ".webm")])
def test_a_rate_that_may_be_true_is_believed(codec: str, suffix: str, rate: float, expected: list[int]) -> None:
    data = clips.with_rate(film(codec, suffix).read_bytes(), rate)
    assert numbers(data, film(codec, suffix)) == expected
    assert load(data).warnings == ()


@pytest.mark.parametrize("b_frames", [0, 2])
def test_by_time_the_last_frames_have_their_own_times(tmp_path: Path, b_frames: int) -> None:
    times = [Fraction(i, 20) for i in range(40)] + [2 + Fraction(i, 2) for i in range(10)]
    frames, tick = pictures(50), Fraction(1, 1000)
    path = write_frames(tmp_path / "vfr.mp4", "libx264", frames, 20, times=times, tick=tick, b_frames=b_frames)
    exact = load(write_frames(tmp_path / "exact.mkv", "ffv1", frames), fps=10).pixels.astype(int)
    taken = load(path, fps=2, sampling="time").pixels
    found = [int(np.abs(exact - frame).mean((1, 2, 3)).argmin()) for frame in taken]
    assert found == [0, 10, 20, 30, *range(40, 49)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("codec", "suffix"), [("ffv1", ".mkv"), ("libx264", ".ts"), ("mpeg4", ".avi"), ("png", ".mov")]
)
def test_one_frame_and_two(tmp_path: Path, count: int, codec: str, suffix: str) -> None:
    path = write_frames(tmp_path / f"c{suffix}", codec, FILM[:count])
    for sampling in ("index", "time"):
        clip = load(path, sampling=sampling)
        assert len(clip.pixels) == 1
        assert clip.warnings == ()
    assert len(load(path, fps=10).pixels) == count


@pytest.mark.parametrize("start", [0, 1000, 90_000])  # seconds; 26 hours is where MPEG's clock begins anew
@pytest.mark.parametrize("sampling", ["index", "time"])
def test_streams_that_were_joined_go_on_where_times_jump(tmp_path: Path, start: int, sampling: str) -> None:
    times, tick = [start + Fraction(i, 10) for i in range(30)], Fraction(1, 10)
    parts = [
        write_frames(tmp_path / "1.ts", "mpeg2video", FILM),
        write_frames(tmp_path / "2.ts", "mpeg2video", pictures(30, seed=1), times=times, tick=tick),
    ]
    separate = [load(part, sampling=sampling).pixels for part in parts]
    for first, second in ((0, 1), (1, 0)):
        joined = load(parts[first].read_bytes() + parts[second].read_bytes(), sampling=sampling)
        assert np.array_equal(joined.pixels, np.concatenate([separate[first], separate[second]]))
        assert joined.warnings == ()
