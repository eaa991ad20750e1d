"""The one table of the folded tensors: name, shape and role of each, for a model of given sizes.

`docs/artifact.md` shows it. The export writes tensors under these names; `FoldedModel` and the graphs read them.

Letters: T vision tokens, D width, Q queries, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

from qalign_fast.families.mplug_owl2.sizes import AbstractorConfig, DecoderConfig, ModelConfig, VisionConfig
from qalign_fast.families.prompt import Prompt
from qalign_fast.families.schema import FoldedTensor, Interface, Linear, Plain, Shape, Values


def schema(config: ModelConfig) -> Iterator[FoldedTensor]:
    """Every folded tensor, in the order in which the model reads them: vision, abstractor, decoder."""
    yield from _vision(config.vision)
    yield from _abstractor(config.abstractor, config.vision, config.decoder.width)
    yield from _decoder(config.decoder)
    yield Linear("decoder.head", config.outputs, config.decoder.width)


def constants(config: ModelConfig, prompt: Prompt) -> tuple[Shape, Shape]:
    """The shapes of a prompt's prefix keys and values [L, 2, P, H, Dh] and suffix embeddings [S, D]."""
    decoder = config.decoder
    before = len(prompt.prefix)
    if prompt.anchor:
        before += config.picture_tokens + len(prompt.anchor.after)
    prefix = (decoder.layers, 2, before, decoder.heads, decoder.width // decoder.heads)
    return prefix, (len(prompt.suffix), decoder.width)


def interface(config: ModelConfig) -> Interface:
    """The graphs' inputs and outputs. The prompt is an input, so one graph serves every task and custom prompt."""
    side, width, heads = config.pixels.side, config.decoder.width, config.decoder.heads
    real = "tensor(float)"
    pixels: Values = {"pixels": ("tensor(uint8)", (None, side, side, 3))}
    tokens: Values = {"visual_tokens": (real, (None, config.abstractor.tokens, width))}
    asked: Values = {
        "visual_tokens": (real, (None, None, width)),
        "prefix_key_values": (real, (config.decoder.layers, 2, None, heads, width // heads)),
        "suffix_embeds": (real, (None, width)),
    }
    logits: Values = {"logits": (real, (None, config.outputs))}
    return Interface((pixels, tokens), (asked, logits))


def _vision(vision: VisionConfig) -> Iterator[FoldedTensor]:
    width = vision.width
    # The number of its inputs is no multiple of 16 (OneAlign has 588). No other linear is padded, also where a small
    # model's inputs are no multiple of 16: rows that come to it in 8 bits have no room for zeros.
    yield Linear("vision.patch", width, 3 * vision.patch**2, bias_last=True, padded=True)
    yield Plain("vision.class_token", (1, width), "rows")
    yield Plain("vision.patch_table", (vision.tokens - 1, width), "rows")
    yield from _norm("vision.pre_norm", width)
    for i in range(vision.layers):
        name = f"vision.layers.{i}."
        yield from _norm(f"{name}attention_norm", width)
        yield Linear(f"{name}qkv", 3 * width, width, bias_last=True)
        yield Linear(f"{name}out", width, width)
        yield from _norm(f"{name}mlp_norm", width)
        yield Linear(f"{name}fc1", vision.mlp, width)
        yield Linear(f"{name}fc2", width, vision.mlp)
    yield from _norm("vision.post_norm", width)


def _abstractor(config: AbstractorConfig, vision: VisionConfig, out: int) -> Iterator[FoldedTensor]:
    queries, width = config.queries, config.width
    yield from _norm("abstractor.features.norm", vision.width)
    yield Linear("abstractor.features.kv", 2 * config.layers * width, vision.width, bias_last=True)
    for i in range(config.layers):
        name = f"abstractor.layers.{i}."
        yield Plain(f"{name}key_table", (vision.tokens, width), "rows")
        if i:
            yield from _norm(f"{name}query_norm", width)
            yield Linear(f"{name}qkv", 3 * width, width, bias_last=True)
            yield Plain(f"{name}qkv_table", (queries, 3 * width), "rows")
        else:  # the queries of the first layer are constants
            yield from (Plain(f"{name}{part}", (queries, width), "rows") for part in "xqkv")
        yield Linear(f"{name}out", width, width)
        yield from _norm(f"{name}mlp_norm", width)
        yield Linear(f"{name}gate_up", 2 * config.mlp, width, bias_last=True)
        yield from _norm(f"{name}inner_norm", config.mlp)
        yield Linear(f"{name}down", width, config.mlp)
    yield Linear("abstractor.project", out, width, bias_last=True)
    yield Plain("abstractor.end_token", (1, out), "rows")


def _decoder(config: DecoderConfig) -> Iterator[FoldedTensor]:
    width = config.width
    for i in range(config.layers):
        name = f"decoder.layers.{i}."
        yield from _gains(f"{name}attention_norm", width)
        for part, outputs in (("q", width), ("kv_visual", 2 * width), ("kv_text", 2 * width)):
            yield Linear(f"{name}{part}", outputs, width, bias_last=True, stacked=f"{name}qkv")
        yield Linear(f"{name}o", width, width)
        yield from _gains(f"{name}mlp_norm", width)
        yield Linear(f"{name}gate_up", 2 * config.mlp, width, bias_last=True)
        yield Linear(f"{name}down", width, config.mlp)
    yield Plain("decoder.norm", (width,), "norm")


def _norm(name: str, width: int) -> Iterator[Plain]:
    yield Plain(f"{name}.weight", (width,), "norm")
    yield Plain(f"{name}.bias", (width,), "norm")


def _gains(name: str, width: int) -> Iterator[Plain]:
    yield from (Plain(f"{name}_{modality}", (width,), "norm") for modality in ("visual", "text"))
