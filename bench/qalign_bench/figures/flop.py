"""A model's sizes and prompts in, the arithmetic of one picture or clip out: FLOP by station, ours and upstream's.

A multiply-add of matrix products and attention is two FLOP; elementwise arithmetic is not counted. Ours is the folded
model: the prompt's prefix and layer 0's queries are constants, the last layer runs for the last row, the head has five
rows. Upstream's model runs every layer over the whole sequence and gives logits for every row and word.

Letters: F frames, T vision tokens, D width, Q queries, P prefix, S suffix and V visual tokens of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Prompt
from qalign_fast.levels import LEVELS


@dataclass(frozen=True)
class Work:
    """FLOP by station."""

    vision: int
    abstractor: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        """FLOP of all stations."""
        return self.vision + self.abstractor + self.decoder + self.head


def our_work(config: ModelConfig, prompts: Sequence[Prompt], frames: int = 1) -> Work:
    """What our engines compute: vision and abstractor once, decoder and head for every prompt."""
    return Work(
        frames * _vision(config),
        frames * _abstractor(config),
        sum(_decoder(config, len(p.prefix), frames * config.abstractor.tokens + len(p.suffix)) for p in prompts),
        len(prompts) * _product(1, config.decoder.width, len(LEVELS)),
    )


def upstream_work(config: ModelConfig, prompts: Sequence[Prompt], frames: int = 1) -> Work:
    """What upstream computes: all four stations for every prompt."""
    rows = [len(p.prefix) + frames * config.abstractor.tokens + len(p.suffix) for p in prompts]
    return Work(
        len(prompts) * frames * _vision(config),
        len(prompts) * frames * _upstream_abstractor(config),
        sum(_upstream_decoder(config, n) for n in rows),
        sum(_product(n, config.decoder.width, config.decoder.vocab) for n in rows),
    )


def _product(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _attention(pairs: int, width: int) -> int:
    """Scores and weighted sum for `pairs` of a query and a key, over all heads."""
    return 4 * pairs * width


def _vision(config: ModelConfig) -> int:
    c = config.vision
    layer = _product(c.tokens, c.width, 4 * c.width + 2 * c.mlp) + _attention(c.tokens**2, c.width)
    return _product(c.tokens - 1, 3 * c.patch**2, c.width) + c.layers * layer


def _abstractor(config: ModelConfig) -> int:
    c, t = config.abstractor, config.vision.tokens
    features = _product(t, c.width, 2 * c.width * c.layers)  # keys and values for all layers at once
    queries = _product(c.queries, c.width, 3 * c.width) * (c.layers - 1)  # layer 0's q, k and v are constants
    return features + queries + c.layers * _after_projections(config) + _to_decoder(config)


def _upstream_abstractor(config: ModelConfig) -> int:
    c, t = config.abstractor, config.vision.tokens
    projections = _product(c.queries + t, c.width, 2 * c.width) + _product(c.queries, c.width, c.width)
    return c.layers * (projections + _after_projections(config)) + _to_decoder(config)


def _after_projections(config: ModelConfig) -> int:
    """One abstractor layer's attention over queries and features, its output projection and its MLP."""
    c = config.abstractor
    attention = _attention(c.queries * (c.queries + config.vision.tokens), c.width)
    return attention + _product(c.queries, c.width, c.width + 3 * c.mlp)


def _to_decoder(config: ModelConfig) -> int:
    return _product(config.abstractor.queries, config.abstractor.width, config.decoder.width)


def _decoder(config: ModelConfig, prefix: int, rows: int) -> int:
    """rows: V + S. A row sees the prefix, the rows before it and itself. In the last layer only one row has a query."""
    c = config.decoder
    keys_values = c.layers * _product(rows, c.width, 2 * c.width)
    asking = (c.layers - 1) * rows + 1
    pairs = (c.layers - 1) * (rows * prefix + rows * (rows + 1) // 2) + prefix + rows
    return keys_values + _product(asking, c.width, 2 * c.width + 3 * c.mlp) + _attention(pairs, c.width)


def _upstream_decoder(config: ModelConfig, rows: int) -> int:
    """rows: P + V + S. Every layer runs over all of them; attention computes the whole square, then masks it."""
    c = config.decoder
    return c.layers * (_product(rows, c.width, 4 * c.width + 3 * c.mlp) + _attention(rows**2, c.width))
