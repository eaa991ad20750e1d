"""A tensor's name and shape in a checkpoint in, its random numbers out: the same on every machine and in any order.

`parameter` makes them on a CPU with numpy alone. It uses only a generator's bits, which are the same in every version
of numpy. `counted` makes other numbers, on any device of torch: 8 billion of them take one core more than a minute. A
peer of the bench runs this file in an interpreter of its own.

Models of such numbers have true sizes and therefore true speed. Their rows keep a size near 1 through all layers. Their
scores mean nothing.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 16  # numbers made at a time: a core's cache holds them
_SUM = 147.8  # the deviation of four bytes' sum
_PART = 1 << 26  # numbers made at a time on a device
_MIX = (0x7FEB352D, 0x846CA68B - (1 << 32))  # Wellons' lowbias32, as int32


def parameter(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Float32 numbers of that shape: around 1 if they are a norm's gains, else around 0."""
    values = _noise(name, math.prod(shape)).reshape(shape)
    values *= np.float32(deviation(name, shape) / _SUM)
    if is_gain(name, shape):
        values += np.float32(1)
    return values


def counted(name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Other numbers of that kind, the same on every device: hashes of their indices, in whole numbers, rounded once."""
    import torch

    values = torch.empty(math.prod(shape), dtype=torch.float32, device=device)
    scale = float(np.float32(deviation(name, shape) / _SUM))
    for start in range(0, len(values), _PART):
        part = values[start : start + _PART]
        x = _hashed(torch.arange(start, start + len(part), dtype=torch.int32, device=device), name)
        part.copy_(sum((x << left >> 24 for left in (16, 8, 0)), (x << 24 >> 24) + 2)).mul_(scale)
    if is_gain(name, shape):
        values += 1
    return values.view(shape)


def _hashed(x: torch.Tensor, name: str) -> torch.Tensor:
    """Replaces each int32 by its hash, in place."""
    digest = hashlib.sha256(name.encode()).digest()
    before, between = (int.from_bytes(digest[i : i + 4], "big", signed=True) for i in (0, 4))
    x ^= before
    for i, factor in enumerate(_MIX * 2):
        x ^= (x >> (16 - i % 2)) & (0xFFFF if i % 2 == 0 else 0x1FFFF)  # the sign is not to be shifted in
        x *= factor
        if i == 1:
            x ^= between
    x ^= (x >> 16) & 0xFFFF
    return x


def deviation(name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation: 1 / sqrt(inputs) for weights, and less for those that end a wide MLP.

    An MLP's output is added to the residual rows, which would grow. Attention's is too, but it adds averages.
    """
    if name == "model.embed_tokens.weight":
        return 1.0
    if len(shape) in (1, 3):  # gains, biases, tokens and positions
        return 0.02
    into_residual = name.split(".")[-2] in ("fc2", "w2", "down_proj")
    return 1 / math.sqrt(math.prod(shape[1:]) * (32 if into_residual else 1))  # 32: the decoder's layers


def is_gain(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is a norm's gain."""
    return len(shape) == 1 and name.endswith(".weight")


def _noise(name: str, count: int) -> npt.NDArray[np.float32]:
    """Sums of four random bytes, around 0: close to a normal distribution, and the same on every machine."""
    bits = np.random.SFC64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    out = np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        part = out[start : start + _BLOCK]
        a, b, c, d = bits.random_raw(_BLOCK // 2).view(np.int8).reshape(4, _BLOCK)
        total = np.add(a, b, dtype=np.int16)
        total += c
        total += d
        total += 2  # a byte's mean is -1/2
        part[:] = total[: len(part)]
    return out
