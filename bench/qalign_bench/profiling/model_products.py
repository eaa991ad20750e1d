"""A model's sizes and batches in, the matrix products that its linears compute out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from qalign_export.parameters import ONE_ALIGN
from qalign_fast.families.mplug_owl2.sizes import ModelConfig

BATCHES = (1, 8, 64)
_SHRINK = 128  # of every size, on a CPU


class Shape(NamedTuple):
    """M rows, K inputs, N output channels."""

    m: int
    k: int
    n: int


class Product(NamedTuple):
    """A shape and what the model does to the result."""

    shape: Shape
    bias: bool = False
    gelu: bool = False
    residual: bool = False


def by_matrix(batches: Sequence[int]) -> list[list[Product]]:
    """OneAlign's products in groups: those of the same weights at each of the batches."""
    every = [model_products(ONE_ALIGN, [batch]) for batch in batches]
    return [list(group) for group in zip(*every, strict=True)]


def model_products(config: ModelConfig, batches: Sequence[int]) -> list[Product]:
    """What linears compute at those batches. For each batch the products with the most arithmetic come first."""
    vision, abstractor, decoder = config.vision, config.abstractor, config.decoder
    v, d, visual, text = vision.width, decoder.width, abstractor.tokens, 12  # quality's suffix
    of_vision = [(v, 3 * v), (v, v), (v, vision.mlp), (vision.mlp, v)]
    of_decoder = [(d, d), (d, d), (d, 2 * decoder.mlp), (decoder.mlp, d)]
    uses = [
        *((vision.layers, vision.tokens, k, n) for k, n in of_vision),
        (1, vision.tokens, v, 2 * abstractor.width * abstractor.layers),
        *((decoder.layers, visual + text, k, n) for k, n in of_decoder),
        (decoder.layers, visual, d, 2 * d),
        (decoder.layers, text, d, 2 * d),
        (decoder.layers, visual + text, d, 3 * d),  # q with k and v of each modality, where they are one product
    ]
    work: Counter[tuple[int, int, int]] = Counter()
    for times, *shape in uses:
        work[shape[0], shape[1], shape[2]] += times * shape[0] * shape[1] * shape[2]
    return [as_used(config, Shape(batch * m, k, n)) for batch in batches for (m, k, n), _ in work.most_common()]


def as_used(config: ModelConfig, shape: Shape) -> Product:
    """A shape as the model uses it. Where two linears have the shape, as q and o do, it is the one that does more."""
    v, d, (_, k, n) = config.vision.width, config.decoder.width, shape
    of_vision = v in (k, n)
    return Product(shape, bias=of_vision, gelu=(k, n) == (v, config.vision.mlp), residual=n == (v if of_vision else d))


def shrunk(shape: Shape) -> Shape:
    """The shape for a trial on a CPU: every size is divided by 128, and is a multiple of 16."""
    return Shape(*(max(16, size // _SHRINK // 16 * 16) for size in shape))
