"""An RGB picture on a device in, a padded and resized square on the same device out: the bits of square.py, in torch.

Pillow resizes in whole numbers, with 32 bits for a sum and 8 bits between columns and rows. The order of such sums is
free, so that any device gives its bits. `qalign_kernels.cpu.resize` has the formula, and makes the weights.

A tap is one of the inputs that an output reads. For each tap two kernels are launched: one gathers the input of every
output, one multiplies and adds. A product of matrices would need float64, in which most GPUs are slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from qalign_fast.pixels.paths import PLAIN
from qalign_fast.pixels.rule import PixelPath
from qalign_kernels.cpu.resize import windows

if TYPE_CHECKING:
    from torch import Tensor, device

Colour: TypeAlias = tuple[int, int, int]

_BITS = 22  # after the point of a weight
_BAND = 128 << 20  # bytes of memory at a time, beside the picture and its narrow form


def pad_and_resize_tensor(rgb: Tensor, side: int, pad: Colour) -> Tensor:
    """uint8 [H, W, 3] with any strides, on any device -> uint8 [side, side, 3] there, the bits of `pad_and_resize`.

    The work is queued on the stream that is current in this thread, and not waited for. Raises MemoryError where the
    device has no room.
    """
    import torch

    assert rgb.dtype == torch.uint8
    assert rgb.ndim == 3
    assert rgb.shape[2] == 3
    height, width, _ = rgb.shape
    square = max(height, width)
    columns, rows = (_axis(length, square, side) for length in (width, height))
    try:
        inside = _down(_across(rgb, columns, pad), rows, pad)
        out = rgb.new_empty((side, side, 3))
        for colour, value in zip(out.unbind(2), pad):
            colour.fill_(value)
        out[rows.outputs, columns.outputs] = inside
        return out
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error


# Its square takes and gives tensors, where the other paths have arrays. A file is never decoded on a device.
ON_DEVICE = PixelPath("device", PLAIN.decode, cast(Any, pad_and_resize_tensor))


def for_another_thread(x: Tensor) -> Callable[[], Tensor]:
    """Returns x, once all that this thread has queued so far on x's device is done. It may be called in any thread.

    Streams of CUDA are a thread's own: what another thread queues does not wait for them.
    """
    if x.device.type != "cuda":
        return lambda: x
    import torch

    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # a thread that waits for it sleeps
    done.record(torch.cuda.current_stream(x.device))

    def wait() -> Tensor:
        done.synchronize()
        return x

    return wait


@dataclass(frozen=True)
class _Axis:
    """The tables of one direction, for N outputs: those that read the picture. All others are padding."""

    outputs: slice
    inputs: npt.NDArray[np.int32]  # [taps, N]
    weights: npt.NDArray[np.int32]  # [taps, N]
    padding: npt.NDArray[np.int64]  # [N], the sum of the weights of the padding that an output reads


@lru_cache(maxsize=32)
def _axis(length: int, square: int, side: int) -> _Axis:
    """The tables of one direction: a picture `length` long in the middle of the square.

    They are kept on the host. A copy that is kept on a device would belong to the stream that made it.
    """
    first, weights = windows(square, side)
    taps = weights.shape[1]
    first -= (square - length) // 2
    most = int((np.minimum(first + taps, length) - np.maximum(first, 0)).max())
    inputs = np.clip(first, 0, length - most)[:, None] + np.arange(most)  # all that an output reads of the picture
    tap = inputs - first[:, None]
    read = (tap >= 0) & (tap < taps)
    inside = np.where(read, np.take_along_axis(weights, np.clip(tap, 0, taps - 1), 1), 0)
    padding = weights.sum(1, dtype=np.int64) - inside.sum(1)
    seen = np.flatnonzero(read.any(1))
    outputs = slice(int(seen[0]), int(seen[-1]) + 1)
    inputs, inside = (table[outputs].T.astype(np.int32, "C") for table in (inputs, inside))
    return _Axis(outputs, inputs, inside, padding[outputs])


def _across(rgb: Tensor, axis: _Axis, pad: Colour) -> Tensor:
    """[H, W, 3] -> [H, N, 3], a band of rows at a time."""
    height, width, _ = rgb.shape
    outputs = axis.inputs.shape[1]
    tables = _tables(axis, pad, rgb.device)
    # a byte each for the copied band, what was gathered and the result, 4 for a sum, and 4 where a CPU widens a byte
    rows = max(1, _BAND // (3 * (width + 10 * outputs)))
    narrow = rgb.new_empty((height, outputs, 3))
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        narrow[band] = _resize(rgb[band].contiguous().unsqueeze(2), *tables).squeeze(2)
    return narrow


def _down(narrow: Tensor, axis: _Axis, pad: Colour) -> Tensor:
    """[H, N, 3] -> [N', N, 3]"""
    return _resize(narrow.unsqueeze(0), *_tables(axis, pad, narrow.device)).squeeze(0)


def _tables(axis: _Axis, pad: Colour, place: device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and weights of each tap, and the sums [N, 1, 3] with the padding and a half alone, on the device."""
    sums = (1 << _BITS - 1) + axis.padding[:, None, None] * np.array(pad)
    return (
        _upload(axis.inputs, place),
        _upload(axis.weights[:, :, None, None], place),
        _upload(sums.astype(np.int32), place),
    )


def _upload(table: npt.NDArray[np.int32], place: device) -> Tensor:
    """From pinned memory, because a copy from other memory would wait for all that is queued."""
    import torch

    host = torch.from_numpy(table)
    return host.pin_memory().to(place, non_blocking=True) if place.type == "cuda" else host.to(place)


def _resize(x: Tensor, inputs: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """uint8 [A, length, B, 3] -> uint8 [A, N, B, 3]"""
    import torch

    sums = start.repeat(len(x), 1, x.shape[2], 1)
    for i, weight in zip(inputs, weights, strict=True):
        sums.addcmul_(x.index_select(1, i), weight)
    return sums.bitwise_right_shift_(_BITS).clamp_(0, 255).to(torch.uint8)
