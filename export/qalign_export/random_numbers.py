"""A tensor's name and shape in a checkpoint in, its random numbers out: the same wherever, and in whatever order, made.

numpy alone, and of it no more than the bits of a generator, which every version gives alike: a peer of the bench runs
this file in an interpreter of its own. Models of such numbers have true sizes, and so true speed; rows keep a size near
1 through their layers; scores mean nothing.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16  # numbers made at a time: what a core's cache holds
_SUM = 147.8  # the deviation of four bytes' sum


def parameter(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Float32, a norm's gains around 1, all else around 0."""
    values = _noise(name, math.prod(shape)).reshape(shape)
    values *= np.float32(deviation(name, shape) / _SUM)
    if is_gain(name, shape):
        values += np.float32(1)
    return values


def deviation(name: str, shape: tuple[int, ...]) -> float:
    """1 / sqrt(inputs) for weights, less where the wide layers add to the residual rows; attention adds averages."""
    if name == "model.embed_tokens.weight":
        return 1.0
    if len(shape) in (1, 3):  # gains, biases, tokens and positions
        return 0.02
    into_residual = name.split(".")[-2] in ("fc2", "w2", "down_proj")
    return 1 / math.sqrt(math.prod(shape[1:]) * (32 if into_residual else 1))  # 32: the decoder's layers


def is_gain(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a norm multiplies by it."""
    return len(shape) == 1 and name.endswith(".weight")


def _noise(name: str, count: int) -> npt.NDArray[np.float32]:
    """Sums of four random bytes, around 0: near enough to a normal distribution, of the same numbers on any machine."""
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
