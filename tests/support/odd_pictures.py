"""What a picture is read as, and what is said of it: helpers of the tests of odd pictures."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from qalign_fast import PictureLimits
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.picture import load_pixels
from qalign_fast.pixels.rule import Pixels
from support.pictures import pad_then_resize

RULE = pixel_rule(112)


def encode(picture: Image.Image, kind: str, *frames: Image.Image, **options: object) -> bytes:
    """A file of copies: Pillow leaves what it saves changed. `frames` follow the picture."""
    file = io.BytesIO()
    if frames:
        options |= {"save_all": True, "append_images": [frame.copy() for frame in frames]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.copy().save(file, kind, **options)
    return file.getvalue()


def read(picture: object, **limits: object) -> tuple[Pixels, list[str]]:
    """The pixels, and what was said. A warning of Pillow is an error."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_pixels(picture, RULE, limits=PictureLimits(**limits), warn=said.append), said


def check(picture: object, expected: Image.Image, *said: str, **limits: object) -> None:
    """Holds the pixels of what is read against those of `expected`, and what is said."""
    pixels, found = read(picture, **limits)
    np.testing.assert_array_equal(pixels, pad_then_resize(expected.convert("RGB"), RULE.side))
    assert found == list(said)
