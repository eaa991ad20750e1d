"""`measure_pixels`: which time counts as decoding and which as the rest, and that every path gives the same pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qalign_bench.contestants.pixel_times import forms, measure_pixels
from qalign_fast import ImageError
from qalign_fast.pixels.paths import PLAIN
from qalign_fast.pixels.rule import PixelPath, Pixels
from support.pictures import pad_then_resize, random_picture


def test_each_file_in_each_form_with_the_pixels_that_are_right(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jpg", "b.png")]
    for i, file in enumerate(files):
        random_picture(np.random.default_rng(i), 90, 60).save(file)
    results = measure_pixels(files, repeat=3)
    assert [(r.file, r.form) for r in results] == [(str(f), form.name) for f in files for form in forms()]
    for result in results:
        expected = pad_then_resize(Image.open(result.file))
        assert result.sha256 == hashlib.sha256(expected.tobytes()).hexdigest()
        assert len(result.whole_ms) == len(result.decode_ms) == 3
        assert all(0 < decode < whole for decode, whole in zip(result.decode_ms, result.whole_ms))


def test_time_is_counted_where_it_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the two steps move the clock: 3 s to decode, 1 s for the rest."""
    now = 0.0

    def decode(picture: Image.Image) -> Image.Image | Pixels:
        nonlocal now
        now += 3
        return PLAIN.decode(picture)

    def square(rgb: Image.Image | Pixels, side: int, pad: tuple[int, int, int]) -> Pixels:
        nonlocal now
        now += 1
        return PLAIN.square(rgb, side, pad)

    monkeypatch.setattr("qalign_bench.contestants.pixel_times.time.perf_counter", lambda: now)
    file = tmp_path / "a.png"
    random_picture(np.random.default_rng(2), 9, 6).save(file)
    [result] = measure_pixels([file], repeat=2, chosen=[PixelPath("steps", decode, square)])
    assert (result.whole_ms, result.decode_ms) == ([4000, 4000], [3000, 3000])


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        measure_pixels([tmp_path / "missing.jpg"])
