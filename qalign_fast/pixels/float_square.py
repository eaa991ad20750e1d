"""Float pictures in, padded and resized float squares out, with a gradient: square.py's formula without its rounding.

Pillow's weights are linear, so each direction is one product with a matrix:

    y = clip(R clip(x Cᵀ))        R [S, H] and C [S, W]: the weights of `qalign_kernels.cpu.resize` over 2^22

square.py also rounds to 8 bits: its input, and what each product gives. Nothing else differs.

Letters: B pictures, H height, W width, S side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qalign_fast.pixels.device_square import Colour, pad_and_resize_tensor
from qalign_kernels.cpu.resize import windows

if TYPE_CHECKING:
    from torch import Tensor

_SLACK = 1e-5  # a white area whose sum comes out a little above 1 keeps its gradient


def pad_and_resize_floats(images: Tensor, side: int, pad: Colour, rounded: bool = False) -> Tensor:
    """[B, 3, H, W] on 0..1, float32 or float64, on any device -> [B, 3, S, S] of the same dtype, there.

    `pad` is the colour around the picture, on 0..255. What overshoots 0..1 is clipped, and has no gradient. With
    `rounded` the values are square.py's, and the gradient is that of the formula without rounding.
    """
    height, width = images.shape[2:]
    square = max(height, width)
    colour = images.new_tensor(pad).view(3, 1, 1) / 255
    rows, columns = (_matrix(length, square, side, images) for length in (height, width))
    # what a sum of weights lacks to 1 is read from the padding
    narrow = _clip(_clip(images) @ columns.T + colour * (1 - columns.sum(1)))  # [B, 3, H, S]
    smooth = _clip(rows @ narrow + colour * (1 - rows.sum(1, keepdim=True)))
    return smooth + (_exact(images.detach(), side, pad) - smooth.detach()) if rounded else smooth


def _exact(images: Tensor, side: int, pad: Colour) -> Tensor:
    """square.py's pixels over 255."""
    import torch

    pictures = (255 * images).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
    squares = torch.stack([pad_and_resize_tensor(picture, side, pad) for picture in pictures])
    return squares.movedim(-1, 1).to(images) / 255


def _clip(x: Tensor) -> Tensor:
    return x.clamp(-_SLACK, 1 + _SLACK)


def _matrix(length: int, square: int, side: int, beside: Tensor) -> Tensor:
    """[S, length] in the dtype of `beside` and where it lies."""
    import torch

    return torch.from_numpy(_weights(length, square, side)).to(beside)


@lru_cache(maxsize=8)
def _weights(length: int, square: int, side: int) -> npt.NDArray[np.float64]:
    """What each output reads of a picture that is `length` long and lies in the middle of the square."""
    first, weights = windows(square, side)
    matrix = np.zeros((side, square + weights.shape[1]))
    places = first[:, None] + np.arange(weights.shape[1])
    np.put_along_axis(matrix, places, weights / weights.sum(1, keepdims=True), 1)
    begin = (square - length) // 2
    return np.ascontiguousarray(matrix[:, begin : begin + length])
