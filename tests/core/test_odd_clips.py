"""Video files as phones, taggers and cutters leave them: the right frames, upright, and warnings that are true."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from qalign_fast import PictureLimits, VideoError
from qalign_fast.pixels import container
from qalign_fast.pixels.paths import PLAIN
from support import clips
from support.clips import FILM, ONE, RULE, film, first_frame, load, numbers, pictures, write_frames


@pytest.mark.parametrize("suffix", [".mp4", ".m4v"])
@pytest.mark.parametrize("covers", [1, 2])
def test_the_film_is_scored_and_not_its_cover(tmp_path: Path, suffix: str, covers: int) -> None:
    source = film("mpeg4", ".mp4")
    path = clips.write_with_covers(source, tmp_path / f"c{suffix}", covers)
    data = clips.cover_first(path.read_bytes())
    with av.open(io.BytesIO(data)) as opened:
        assert opened.streams.video[0].width == 32  # a cover is the first stream
    assert numbers(data, source) == numbers(path, source) == [0, 10, 20]


@pytest.mark.parametrize(("suffix", "codec"), [(".m4a", "aac"), (".mp3", "libmp3lame"), (".flac", "flac")])
@pytest.mark.parametrize("cover", [True, False])
def test_music_has_no_video_stream_though_it_has_a_cover(tmp_path: Path, suffix: str, codec: str, cover: bool) -> None:
    path = clips.write_sound(tmp_path / f"song{suffix}", codec, cover)
    with pytest.raises(VideoError, match=rf"song\{suffix}: has no video stream"):
        load(path)


def test_subtitles_have_no_video_stream() -> None:
    with pytest.raises(VideoError, match="has no video stream"):
        load(b"1\n00:00:00,000 --> 00:00:02,000\nA subtitle.\n")


@pytest.mark.parametrize("default", [0, 1])
def test_of_two_films_the_default_one_is_scored(tmp_path: Path, default: int) -> None:
    sources = [film("ffv1", ".mkv"), write_frames(tmp_path / "other.mkv", "ffv1", pictures(30, seed=1))]
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as write:
        for i, source in enumerate(sources):
            with av.open(str(source)) as read:
                copy = write.add_stream_from_template(read.streams.video[0])
                copy.disposition = av.stream.Disposition(int(i == default))
        for i, source in enumerate(sources):
            clips.copy_packets(source, write, write.streams[i])
    assert numbers(path, sources[default]) == [0, 10, 20]


def test_a_codec_without_a_decoder_is_told() -> None:
    data = film("libx264", ".mp4").read_bytes()
    at = data.index(b"avc1", data.index(b"stsd"))
    with pytest.raises(VideoError, match="no decoder for its video"):
        load(data[:at] + b"encv" + data[at + 4 :])  # an encrypted stream


TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[Any], Any]]] = {
    "not at all": ((ONE, 0, 0, ONE), lambda rgb: rgb),
    "clockwise": ((0, ONE, -ONE, 0), lambda rgb: np.rot90(rgb, -1)),
    "upside down": ((-ONE, 0, 0, -ONE), lambda rgb: np.rot90(rgb, 2)),
    "counterclockwise": ((0, -ONE, ONE, 0), np.rot90),
    "left to right": ((-ONE, 0, 0, ONE), lambda rgb: rgb[:, ::-1]),
    "top to bottom": ((ONE, 0, 0, -ONE), lambda rgb: rgb[::-1]),
    "along the diagonal": ((0, ONE, ONE, 0), lambda rgb: rgb.transpose(1, 0, 2)),
    "along the other": ((0, -ONE, -ONE, 0), lambda rgb: np.rot90(rgb, 2).transpose(1, 0, 2)),
    "by less than a degree more": ((300, ONE, -ONE, 300), lambda rgb: np.rot90(rgb, -1)),
    "to nothing": ((0, 0, 0, 0), lambda rgb: rgb),  # no player takes this matrix
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("png", ".mov")])
def test_a_display_matrix_turns_and_flips(tmp_path: Path, codec: str, suffix: str, turn: str) -> None:
    frames = pictures(3, 50, 34)  # no multiples of 16
    data = write_frames(tmp_path / f"c{suffix}", codec, frames).read_bytes()
    matrix, expected = TURNS[turn]
    turned, remarks = first_frame(clips.with_matrix(data, *matrix))
    assert np.array_equal(turned, expected(first_frame(data)[0]))
    assert remarks == []
    assert np.array_equal(load(clips.with_matrix(data, *matrix)).pixels[0], RULE.apply(turned, PLAIN))


@pytest.mark.parametrize("turn", ["clockwise", "upside down", "counterclockwise", "left to right"])
def test_matroska_turns_by_its_projection(tmp_path: Path, turn: str) -> None:
    data = film("libx264", ".mp4").read_bytes()
    matrix, expected = TURNS[turn]
    (turned := tmp_path / "turned.mp4").write_bytes(clips.with_matrix(data, *matrix))
    found = first_frame(clips.remux(turned, tmp_path / "turned.mkv").read_bytes())[0]
    assert np.array_equal(found, expected(first_frame(data)[0]))


def test_another_angle_is_told_and_left() -> None:
    data = film("libx264", ".mp4").read_bytes()
    found, remarks = first_frame(clips.with_matrix(data, 46341, 46341, -46341, 46341))  # 45 degrees
    assert np.array_equal(found, first_frame(data)[0])
    assert remarks == ["its display matrix turns it by another angle than a right one; it was not turned"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("start", [4, 7, 13])
def test_a_lead_in_that_is_not_shown_does_not_count(tmp_path: Path, suffix: str, codec: str, start: int) -> None:
    source = film(codec, suffix)
    path = clips.remux(source, tmp_path / f"cut{suffix}", Fraction(start, 10))
    for sampling in ("index", "time"):
        assert numbers(path, source, fps=10, sampling=sampling) == list(range(start, 30))
        assert numbers(path, source, sampling=sampling) == list(range(start, 30 - 9, 10))
        assert load(path, fps=10, sampling=sampling).warnings == ()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_clip_that_was_cut_and_turned(tmp_path: Path, codec: str) -> None:
    cut = clips.remux(film(codec, ".mp4"), tmp_path / "cut.mp4", Fraction(7, 10)).read_bytes()
    turned = first_frame(clips.with_matrix(cut, *TURNS["clockwise"][0]))[0]
    assert np.array_equal(turned, np.rot90(first_frame(cut)[0], -1))


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_an_end_that_is_not_shown_does_not_count(suffix: str) -> None:
    data = film("mpeg4", suffix).read_bytes()
    at = data.index(b"elst") + 12
    shown = int.from_bytes(data[at : at + 4], "big") * 2 // 3  # 2 of 3 s
    clip = load(data[:at] + shown.to_bytes(4, "big") + data[at + 4 :], fps=10)
    assert len(clip.pixels) == 20
    assert clip.warnings == ()


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_pictures_that_are_only_referred_to_do_not_count(tmp_path: Path, suffix: str) -> None:
    """Those of VP8 are packets of their own. VP9's lie in a packet together with one that is shown."""
    path = tmp_path / f"hidden{suffix}"
    with av.open(str(film("libvpx", ".webm"))) as read, av.open(str(path), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(p for p in read.demux(video=0) if p.size):
            data = bytes(packet)
            if number % 4 == 3:
                hidden = av.Packet(bytes([data[0] & ~16]) + data[1:])  # without the bit that shows it
                hidden.pts = hidden.dts = (packet.pts or 0) - 50
                hidden.time_base, hidden.stream = packet.time_base, copy
                write.mux(hidden)
            packet.stream = copy
            write.mux(packet)
    for sampling in ("index", "time"):
        assert len(load(path, fps=10, sampling=sampling).pixels) == 30
        assert len(load(path, sampling=sampling).pixels) == 3
        assert load(path, sampling=sampling).warnings == load(path, fps=10, sampling=sampling).warnings == ()


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_empty_packets_of_avi_show_nothing_and_end_nothing(tmp_path: Path, codec: str) -> None:
    times = [Fraction(i, 10) for i in range(10)] + [2 + Fraction(i, 5) for i in range(10)]
    path = write_frames(tmp_path / "gap.avi", codec, pictures(20), times=times, tick=Fraction(1, 10))
    clip = load(path, sampling="time")
    assert len(clip.pixels) == 4  # at 0, 1, 2 and 3 s
    assert clip.warnings == ()


def test_b_frames_in_avi_are_in_order() -> None:
    in_avi = load(film("libx264", ".avi"), fps=10)  # AVI has no presentation times
    assert np.array_equal(in_avi.pixels, load(film("libx264", ".mkv"), fps=10).pixels)
    assert in_avi.warnings == ()


@pytest.mark.parametrize(("curve", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_scored_as_it_is_and_told_or_mapped(tmp_path: Path, curve: int, name: str) -> None:
    path = write_frames(tmp_path / "hdr.mkv", "ffv1", FILM, pix_fmt="yuv420p10le", hdr=curve)
    clip, mapped = load(path), load(path, limits=PictureLimits(tone_map=True))
    assert clip.warnings == (f"HDR ({name}) was scored as if it were SDR; tone_map changes that",)
    assert mapped.warnings == ()
    assert np.abs(mapped.pixels.astype(int) - clip.pixels).mean() > 10


@pytest.mark.parametrize("order", ["tff=1", "bff=1"])
def test_an_interlaced_clip_is_told(tmp_path: Path, order: str) -> None:
    path = write_frames(tmp_path / "i.mp4", "libx264", FILM, options={"x264-params": order})
    assert load(path).warnings == ("it is interlaced; each frame's two fields were scored as one picture",)


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [
        ("libx264", ".mp4", "yuv444p"),
        ("ffv1", ".mkv", "yuv420p10le"),
        ("ffv1", ".mkv", "gray"),
        ("ffv1", ".mkv", "gray16le"),
        ("ffv1", ".mkv", "yuva420p"),
        ("png", ".mov", "rgba"),
        ("qtrle", ".mov", "argb"),
        ("rawvideo", ".avi", "rgb24"),
    ],
)
def test_pixel_formats(tmp_path: Path, codec: str, suffix: str, pix_fmt: str) -> None:
    path = write_frames(tmp_path / f"c{suffix}", codec, FILM, pix_fmt=pix_fmt)
    with av.open(str(path)) as opened:
        expected = [f.to_ndarray(format="rgb24") for i, f in enumerate(opened.decode(video=0)) if i % 10 == 0]
    assert np.array_equal(load(path).pixels, [RULE.apply(frame, PLAIN) for frame in expected])


def test_frames_may_change_their_size(tmp_path: Path) -> None:
    sizes = (64, 32, 48)
    parts = [write_frames(tmp_path / f"{s}.ts", "mpeg2video", pictures(20, s, 2 * s)) for s in sizes]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert np.array_equal(load(path).pixels, np.concatenate([load(part).pixels for part in parts]))


def test_a_frame_larger_than_the_first_is_over_the_limit(tmp_path: Path) -> None:
    parts = [write_frames(tmp_path / f"{s}.ts", "mpeg2video", pictures(20, s, 2 * s)) for s in (32, 64)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError, match=r"joined\.ts: 128x64 is over the limit of 2048 pixels"):
        load(path, limits=PictureLimits(max_pixels=32 * 64))


@pytest.mark.parametrize(("codec", "suffix"), [("ffv1", ".mkv"), ("mpeg4", ".mp4"), ("mpeg4", ".avi")])
def test_names_in_a_file_need_not_be_utf_8(tmp_path: Path, codec: str, suffix: str) -> None:
    path = tmp_path / f"c{suffix}"
    with av.open(str(path), "w") as write:
        write.metadata["title"] = "TITLE"
        made: Any = write.add_stream(codec, rate=10)
        made.height, made.width, made.pix_fmt = 64, 64, "yuv420p"
        for picture in FILM:
            write.mux(made.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        write.mux(made.encode())
    data = path.read_bytes()
    assert b"TITLE" in data
    assert np.array_equal(load(data.replace(b"TITLE", b"\xe9t\xff\xfe\x80")).pixels, load(data).pixels)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("ffv1", ".mkv"), ("mpeg2video", ".ts")])
def test_packets_too_large_to_be_kept_are_read_again(codec: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load(film(codec, suffix), fps=10)
    monkeypatch.setattr(container, "_KEPT", 2000)
    assert np.array_equal(load(film(codec, suffix), fps=10).pixels, kept.pixels)
