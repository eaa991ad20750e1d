"""Arrays and tensors: equal pictures give equal pixels in every form, and what leaves something to guess is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qalign_fast import ImageError
from support.odd_pictures import check, read
from support.pictures import random_picture

PICTURE = random_picture(np.random.default_rng(0), 60, 40)
RGB = np.asarray(PICTURE)
GREY = np.asarray(PICTURE.convert("L"))
OPAQUE = np.dstack([RGB, np.full_like(GREY, 255)])


class Foreign:
    """An array of another library, which numpy can read."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self._values


def arrays(values: np.ndarray, folder: Path) -> Iterator[object]:
    """The same values in every form of an array."""
    yield values
    yield values[None]
    yield np.asfortranarray(values)
    yield np.ascontiguousarray(values[::-1, ::-1])[::-1, ::-1]
    yield np.repeat(np.repeat(values, 2, 0), 3, 1)[::2, ::3]
    yield np.ma.array(values)
    yield Foreign(values)
    fixed = values.copy()
    fixed.flags.writeable = False
    yield fixed
    mapped = np.memmap(folder / "values", values.dtype, "w+", shape=values.shape)
    mapped[:] = values
    yield mapped


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8", ">f2", ">f4", ">f8"])
def test_equal_arrays_give_equal_pixels(dtype: str, tmp_path: Path) -> None:
    shapes = {"RGB": RGB, "RGBA": OPAQUE, "grey": GREY, "one channel": GREY[..., None]}
    for kind, values in shapes.items():
        expected = PICTURE if kind.startswith("RGB") else Image.fromarray(GREY)
        for array in arrays(values if dtype == "u1" else (values / 255).astype(dtype), tmp_path):
            check(array, expected)


def tensors(values: np.ndarray) -> Iterator[torch.Tensor]:
    """The same values [H, W, C] in every form of a tensor."""
    last = torch.from_numpy(values.copy())
    first = last.permute(2, 0, 1)
    yield last
    yield last[None]
    yield first
    yield first.contiguous()
    yield first[None]
    yield first[None].contiguous(memory_format=torch.channels_last)
    yield torch.from_numpy(np.repeat(values, 2, 1).copy())[:, ::2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_equal_tensors_give_equal_pixels(dtype: torch.dtype) -> None:
    for values in (RGB, OPAQUE, GREY[..., None]):
        expected = Image.fromarray(GREY) if values.shape[-1] == 1 else PICTURE
        for tensor in tensors(values):
            check(tensor if dtype == torch.uint8 else (tensor.double() / 255).to(dtype), expected)
    check(torch.from_numpy(GREY.copy()), Image.fromarray(GREY))


def test_a_tensor_with_a_gradient_is_read() -> None:
    tensor = torch.from_numpy(RGB / 255).float()
    check(tensor.clone().requires_grad_(), PICTURE)
    check(torch.nn.Parameter(tensor.permute(2, 0, 1)), PICTURE)


def test_bfloat16_is_read_as_the_floats_that_it_holds() -> None:
    half = torch.from_numpy(RGB / 255).bfloat16()
    np.testing.assert_array_equal(read(half)[0], read(half.double().numpy())[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_255th_is_exactly_one_step(dtype: type) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    check((ramp / 255).astype(dtype), Image.fromarray(ramp))
    check((ramp / dtype(255)).astype(dtype), Image.fromarray(ramp))


def test_floats_that_round_to_0_and_to_255_are_within() -> None:
    check(np.full((30, 30), -0.0019), Image.new("L", (30, 30), 0))
    check(np.full((30, 30), 1.0019, np.float32), Image.new("L", (30, 30), 255))


def test_alpha_of_an_array_is_as_a_picture_s() -> None:
    alpha = np.repeat(np.uint8([[255] * 20 + [0] * 40]), 40, 0)
    values = np.dstack([RGB, alpha])
    ground = Image.new("RGBA", (60, 40), (200, 30, 7, 255))
    expected = Image.alpha_composite(ground, Image.fromarray(values))
    said = "alpha hides 67% of it, and its hidden colours were scored; a background covers them"
    for form in (values, values / 255, torch.from_numpy(values), torch.from_numpy(values).permute(2, 0, 1)):
        check(form, PICTURE, said)
        check(form, expected, background=(200, 30, 7))


CHANNELS = "its first or its last axis may be the channels; expected one that is 1, 3 or 4"
SHAPE = "expected an array of shape [H, W, 3 or 4 or 1] or [H, W], or a tensor with channels first"
REFUSED: dict[str, tuple[object, str]] = {
    "RGB first or last": (np.zeros((3, 50, 3), np.uint8), CHANNELS),
    "RGBA or RGB": (np.zeros((4, 50, 3), np.uint8), CHANNELS),
    "a tensor's RGB first or last": (torch.zeros(3, 50, 3), CHANNELS),
    "a tensor of one row, or grey": (torch.zeros(1, 50, 3), CHANNELS),
    "channels first": (
        np.zeros((3, 50, 60), np.uint8),
        "channels come first; expected [H, W, 3 or 4 or 1] or [H, W] (numpy.moveaxis(array, 0, -1) turns it)",
    ),
    "two channels": (np.zeros((5, 5, 2), np.uint8), SHAPE),
    "five axes": (np.zeros((1, 1, 5, 5, 3), np.uint8), SHAPE),
    "one number": (np.float32(0.5), SHAPE),
    "two pictures": (
        torch.zeros(2, 3, 5, 5),
        "2 pictures; one was expected (a list of them is scored one by one)",
    ),
    "no pixels": (torch.zeros(3, 0, 5), "5x0 has no pixels"),
    "over the limit": (
        np.broadcast_to(np.float32(0), (20_000, 20_000, 3)),
        "20000x20000 is over the limit of 120000000 pixels (max_pixels)",
    ),
    "whole numbers": (np.zeros((5, 5, 3), int), "int64 values; expected uint8, or floats on 0..1"),
    "16 bits": (np.zeros((5, 5), np.uint16), "uint16 values; expected uint8, or floats on 0..1"),
    "a tensor's whole numbers": (
        torch.zeros(5, 5, dtype=torch.int32),
        "int32 values; expected uint8, or floats on 0..1",
    ),
    "objects": (np.zeros((5, 5), object), "object values; expected uint8, or floats on 0..1"),
    "up to 255": (np.full((5, 5), 255.0), "its values go from 255 to 255; floats are on 0..1 (divide by 255?)"),
    "a little beyond 1": (
        np.full((5, 5), 1.01),
        "its values go from 1.01 to 1.01; floats are on 0..1 (divide by 255?)",
    ),
    "normalized": (
        torch.linspace(-1, 1, 25).reshape(5, 5),
        "its values go from -1 to 1; floats are on 0..1 (undo a normalization?)",
    ),
    "not a number": (np.full((5, 5), np.nan), "its values go from nan to nan; floats are on 0..1 (divide by 255?)"),
    "infinite": (torch.full((5, 5), torch.inf), "its values go from inf to inf; floats are on 0..1 (divide by 255?)"),
    "sparse": (torch.zeros(5, 5).to_sparse(), "a sparse, a nested or a meta tensor; expected a dense one"),
    "without values": (torch.zeros(5, 5, device="meta"), "a sparse, a nested or a meta tensor; expected a dense one"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_leaves_something_to_guess_is_refused(kind: str) -> None:
    array, why = REFUSED[kind]
    with pytest.raises(ImageError, match=re.escape(f"<array {list(array.shape)}>: {why}") + "$"):  # type: ignore[attr-defined]
        read(array)


def test_an_array_that_numpy_cannot_read_is_an_image_error() -> None:
    class OnAnotherDevice:
        shape = (5, 5, 3)

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise TypeError("implicit conversion is not allowed")

    with pytest.raises(
        ImageError, match=r"\[5, 5, 3\]>: cannot be read as an array \(implicit conversion is not allowed"
    ):
        read(OnAnotherDevice())


@pytest.mark.parametrize("shape", [(5, 5, 3), None, lambda: (5, 5), 7])
def test_what_merely_has_a_shape_is_no_picture(shape: object) -> None:
    thing = type("Thing", (), {"shape": shape})()
    with pytest.raises(ImageError, match="not a picture; expected a path, bytes, a binary file, a PIL image"):
        read(thing)


def test_a_caller_s_array_and_tensor_are_not_changed() -> None:
    for values in (RGB.copy(), (RGB / 255).astype(np.float32), OPAQUE.copy()):
        before = values.copy()
        read(values, background=(1, 2, 3))
        np.testing.assert_array_equal(values, before)
        tensor = torch.from_numpy(values)
        read(tensor, background=(1, 2, 3))
        np.testing.assert_array_equal(tensor.numpy(), before)
