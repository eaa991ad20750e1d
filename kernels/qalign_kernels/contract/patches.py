"""A picture's pixels in, a row of numbers for each of its square patches out: what the patch embedding reads.

Letters: B pictures, S side of a picture, p side of a patch, g = S / p patches along a side, n = g² patches.
"""

from __future__ import annotations

from torch import Tensor


def split_patches(pixels: Tensor, patch: int) -> Tensor:
    """[B, S, S, 3] -> [B, n, p*p*3] of the same dtype. Patches, and pixels in a patch, are in reading order."""
    grid = pixels.shape[1] // patch
    x = pixels.unflatten(2, (grid, patch)).unflatten(1, (grid, patch))  # [B, g, p, g, p, 3]
    return x.transpose(2, 3).flatten(3).flatten(1, 2)
