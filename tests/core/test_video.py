"""Clips made here, whose frames say their own number, through both sampling rules."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from qalign_fast import PictureLimits, Scorer, VideoError
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.clip import load_clip
from qalign_fast.pixels.stream import VideoFile
from support.clips import constant, write_clip
from support.goldens import Golden

RULE = pixel_rule(112)


def numbers(path: Path, **options: object) -> list[int]:
    """The numbers of the frames that were taken."""
    clip = load_clip(path, RULE, **{"max_frames": 31, **options})
    return [round((float(frame.mean()) - 3.5) / 2) for frame in clip.pixels]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "c.mkv", constant(100, 25), 25)


def test_one_frame_a_second_by_index(clip: Path) -> None:
    assert numbers(clip) == [0, 25, 50, 75]


def test_other_rates(clip: Path) -> None:
    assert numbers(clip, fps=2) == [0, 12, 25, 37, 50, 62, 75, 87]
    assert numbers(clip, fps=0.5) == [0, 50]
    assert numbers(clip, fps=2, sampling="time") == [0, 12, 25, 37, 50, 62, 75, 87]


def test_a_budget_spreads_frames_evenly_with_a_warning(clip: Path) -> None:
    loaded = load_clip(clip, RULE, max_frames=3, fps=25)
    assert [round((float(f.mean()) - 3.5) / 2) for f in loaded.pixels] == [0, 50, 99]
    assert "3 of 100 frames" in loaded.warnings[0]
    assert load_clip(clip, RULE, max_frames=4).warnings == ()


def test_a_clip_under_a_second_gives_its_first_frame(tmp_path: Path) -> None:
    for frames in (1, 2, 9):
        path = write_clip(tmp_path / f"{frames}.mkv", constant(frames, 25), 25)
        assert numbers(path) == [0]
        assert numbers(path, sampling="time") == [0]


def test_time_follows_a_varying_frame_rate_where_index_does_not(tmp_path: Path) -> None:
    # ten frames in the first second, then two a second for five
    times = [Fraction(i, 10) for i in range(10)] + [1 + Fraction(i, 2) for i in range(10)]
    path = write_clip(tmp_path / "vfr.mkv", times, 10)
    assert numbers(path, sampling="time")[:5] == [0, 10, 12, 14, 16]
    assert numbers(path, sampling="index")[:5] != [0, 10, 12, 14, 16]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm"])
def test_containers(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"c{suffix}", constant(60, 20), 20)
    found = numbers(path)
    assert len(found) == 3
    np.testing.assert_allclose(found, [0, 20, 40], atol=1)  # lossy codecs shift a grey a little


def test_a_broken_stream_gives_what_can_be_decoded_and_says_so(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", constant(100, 25), 25).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    found = numbers(path)
    assert found[0] == 0
    assert len(found) >= 1


@pytest.mark.parametrize(
    "content", [b"", b"junk" * 100, b"\0\0\0\x18ftypmp42" + bytes(300), b"\x1a\x45\xdf\xa3" + bytes(100)]
)
def test_files_that_are_no_clip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        load_clip(path, RULE, max_frames=31)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_files_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="No such file"):
        load_clip(tmp_path / "missing.mp4", RULE, max_frames=31)
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="no video stream"):
        load_clip(path, RULE, max_frames=31)


def test_a_file_scores_as_its_frames(tmp_path: Path, narrow: Golden) -> None:
    scorer = Scorer.load(narrow.artifact)
    path = write_clip(tmp_path / "c.mkv", constant(75, 25), 25)
    frames = [np.full((64, 64, 3), 4 + 2 * i, np.uint8) for i in (0, 25, 50)]
    from_file, from_list = scorer.score_video(path), scorer.score_video(frames)
    assert from_file.frames == 3
    assert from_file.value == pytest.approx(from_list.value, abs=0.05)


@pytest.mark.parametrize("limits", [{"max_pixels": 64 * 64 - 1}, {"max_bytes": 1000}])
def test_limits_hold_for_clips_before_a_pixel_is_decoded(
    clip: Path, limits: dict[str, int], narrow: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.load(narrow.artifact, limits=PictureLimits(**limits))
    monkeypatch.setattr("qalign_fast.pixels.stream.VideoFile.frames", None)
    with pytest.raises(VideoError, match=r"c\.mkv.* over the limit of"):
        scorer.score_video(clip)


def test_a_clip_within_the_limits_scores(clip: Path) -> None:
    limits = PictureLimits(max_pixels=64 * 64, max_bytes=clip.stat().st_size)
    assert len(load_clip(clip, RULE, max_frames=31, limits=limits).pixels) == 4


def test_frames_larger_than_the_header_says_are_over_the_limit(clip: Path) -> None:
    with clip.open("rb") as file, VideoFile(file, "c.mkv", PictureLimits()) as video:
        video._limits = PictureLimits(max_pixels=100)
        frame = next(video.frames())
        with pytest.raises(VideoError, match="64x64 is over the limit of 100 pixels"):
            frame.rgb()
