"""A caller's array or tensor in, uint8 [H, W, 3] out, by rules that leave nothing to guess.

Arrays are [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA); tensors also [C, H, W], torch's order. One more axis
of length 1 before them is dropped. Values are uint8, or floats on 0..1, which are times 255 and rounded.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from qalign_fast.errors import ImageError, one_line
from qalign_fast.pixels.limits import check_size

if TYPE_CHECKING:
    import torch

    from qalign_fast.pixels.rule import Pixels

_CHANNELS = (1, 3, 4)
_TYPES = ("uint8", "float16", "bfloat16", "float32", "float64")
_ROUNDS_TO_0, _ROUNDS_TO_255 = -0.5 / 255, 255.5 / 255  # floats between them are on 0..1, but for rounding


def is_tensor(picture: object) -> TypeGuard[torch.Tensor]:
    """Whether it is torch's, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(picture, torch.Tensor)


def is_array(picture: object) -> bool:
    """Whether it is a tensor, a numpy array, or what numpy can read as one (JAX, TensorFlow). No Pillow picture."""
    if isinstance(picture, str | bytes):  # numpy's are arrays too
        return False
    return is_tensor(picture) or hasattr(picture, "__array__")


def as_array(array: Any, name: str) -> Any:
    """A tensor as it is, anything else as numpy reads it. Raises ImageError whatever reading it raises."""
    if is_tensor(array) or type(array) is np.ndarray:
        return array
    try:
        return np.asarray(array)
    except Exception as error:  # the array's own: it lies on a device that numpy cannot read
        raise ImageError(f"{name}: cannot be read as an array ({one_line(error)})") from error


def check_array(array: Any, name: str, max_pixels: int) -> None:
    """Raises ImageError for a shape or a type that no rule takes, and for one over the limit."""
    if is_tensor(array) and (array.is_meta or array.is_nested or str(array.layout) != "torch.strided"):
        raise ImageError(f"{name}: a sparse, a nested or a meta tensor; expected a dense one")
    shape, first = _picture_shape(array, name)
    height, width = shape[1:] if first else shape[:2]
    check_size((width, height), name, max_pixels)
    if _kind(array) not in _TYPES:
        raise ImageError(f"{name}: {_kind(array)} values; expected uint8, or floats on 0..1")


def array_bytes(array: Any, name: str) -> npt.NDArray[np.uint8]:
    """uint8 [H, W] or [H, W, 3 or 4] of what passed `check_array`. Raises ImageError for floats beyond 0..1."""
    shape, first = _picture_shape(array, name)
    values = array.detach().cpu() if is_tensor(array) else array
    values = np.asarray(values.float() if _kind(array) == "bfloat16" else values).reshape(shape)
    values = np.moveaxis(values, 0, -1) if first else values  # [H, W] or [H, W, C]
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.dtype != np.uint8:
        check_range(float(values.min()), float(values.max()), name)
        scaled: npt.NDArray[Any] = values.astype(np.float64 if values.dtype.itemsize == 8 else np.float32)
        scaled *= 255
        values = np.rint(scaled, out=scaled).astype(np.uint8)
    return np.ascontiguousarray(values)


def device_bytes(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """uint8 [H, W, 3] of a grey or RGB tensor that passed `check_array`, where it lies. Raises as `array_bytes`."""
    import torch

    shape, first = _picture_shape(tensor, name)
    values = tensor.detach().reshape(shape)
    values = values.movedim(0, -1) if first else values  # [H, W] or [H, W, C]
    if values.dtype != torch.uint8:
        wide = values if values.dtype == torch.float64 else values.float()
        low, high = torch.aminmax(wide)
        check_range(float(low), float(high), name)
        values = (wide * 255).round_().to(torch.uint8)
    values = values if values.ndim == 3 else values[..., None]
    return values.expand(-1, -1, 3)


def has_alpha(array: Any, name: str) -> bool:
    """Whether an array that passed `check_array` is RGBA."""
    shape, first = _picture_shape(array, name)
    return len(shape) == 3 and shape[0 if first else -1] == 4


def rgb_bytes(array: npt.NDArray[np.uint8]) -> Pixels:
    """uint8 [H, W] or [H, W, 3] -> [H, W, 3]."""
    return np.ascontiguousarray(np.broadcast_to(array[..., None], (*array.shape, 3)) if array.ndim == 2 else array)


def check_range(low: float, high: float, name: str) -> None:
    """Raises ImageError for floats whose smallest or largest is beyond 0..1 by more than rounding, or no number."""
    if not (low > _ROUNDS_TO_0 and high < _ROUNDS_TO_255):  # also where one is not a number
        hint = "undo a normalization?" if low < 0 else "divide by 255?"
        raise ImageError(f"{name}: its values go from {low:g} to {high:g}; floats are on 0..1 ({hint})")


def _kind(array: Any) -> str:
    return str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")


def _picture_shape(array: Any, name: str) -> tuple[tuple[int, ...], bool]:
    """The shape without a leading axis of one picture, and whether channels come first in it. Raises ImageError."""
    shape = tuple(map(int, array.shape))
    if len(shape) == 4:
        if shape[0] != 1:
            raise ImageError(f"{name}: {shape[0]} pictures; one was expected (a list of them is scored one by one)")
        shape = shape[1:]
    if len(shape) == 2:
        return shape, False
    rules = "[H, W, 3 or 4 or 1] or [H, W]"
    if len(shape) == 3:
        first, last = shape[0] in _CHANNELS, shape[-1] in _CHANNELS
        if first and last and (is_tensor(array) or 1 not in (shape[0], shape[-1])):
            raise ImageError(f"{name}: its first or its last axis may be the channels; expected one that is 1, 3 or 4")
        if last or (first and (is_tensor(array) or shape[0] == 1)):
            return shape, not last
        if first:
            raise ImageError(f"{name}: channels come first; expected {rules} (numpy.moveaxis(array, 0, -1) turns it)")
    raise ImageError(f"{name}: expected an array of shape {rules}, or a tensor with channels first")
