"""Upstream's model class and its config in, the model out: from a checkpoint, or filled with random numbers.

Imported by upstream.py in an interpreter without this project's packages, so it imports torch and siblings alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from qalign_bench.peers.loop import Spec

_BOS = 1
_LEVELS = {"excellent": 15129, "good": 1781, "fair": 6534, "poor": 6460, "bad": 4319}
_TASKS = {"quality": (11029,), "aesthetics": (263, 342, 9188, 1199)}
_BLOCK = 2**26 - 5  # a prime: no two parameters of a power of two's size begin at one place in the block


class Tokenizer:
    """The family's tokenizer for the few texts that upstream's scorer asks it for; each begins with BOS."""

    bos_token_id = _BOS

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding  # transformers' BatchEncoding: what a tokenizer returns
        self._ids = {word: [_BOS, level] for word, level in _LEVELS.items()}
        for task, words in _TASKS.items():
            before, after = (
                f"USER: How would you rate the {task} of this image?\n",
                f"\nASSISTANT: The {task} of the image is",
            )
            self._ids[before] = [_BOS, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, *words, 310, 445, 1967, 29973, 13]
            self._ids[after] = [_BOS, 29871, 13, 22933, 9047, 13566, 29901, 450, *words, 310, 278, 1967, 338]

    def __call__(self, text: str | list[str]) -> Any:
        ids = self._ids[text] if isinstance(text, str) else [self._ids[word] for word in text]
        return self._encoding({"input_ids": ids})


def load_checkpoint(model_class: Any, config: Any, directory: str, spec: Spec) -> nn.Module:
    """As upstream's builder loads it, where it has fp16 always."""
    model: nn.Module = model_class.from_pretrained(
        directory, config=config, torch_dtype=spec.dtype(), low_cpu_mem_usage=find_spec("accelerate") is not None
    )
    return model.to(spec.device).eval()


def random_model(model_class: Any, config: Any, spec: Spec) -> nn.Module:
    """True sizes, random numbers by the spec's seed: true speed, and scores that mean nothing."""
    with default_dtype(spec.dtype()):  # as transformers does while it loads
        with torch.device("meta"):
            model: nn.Module = model_class(config)
        with torch.device(spec.device):
            rebuild_rotary(model)
    fill = Filler(spec)
    model.load_state_dict({name: fill(name, p) for name, p in model.named_parameters()}, strict=False, assign=True)
    model = model.to(spec.device).eval().requires_grad_(False)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rebuild_rotary(model: nn.Module) -> None:
    """Their tables are computed when they are made; on the meta device nothing was."""
    for module in model.modules():
        for name, child in module.named_children():
            if hasattr(child, "cos_cached"):
                setattr(module, name, type(child)(child.dim, child.max_position_embeddings, child.base))


class Filler:
    """Makes parameters from one block of normal numbers, each from where the last one ended: 8 B of them in seconds.

    Scaled so that rows keep a size near 1 through the layers.
    """

    def __init__(self, spec: Spec) -> None:
        generator = torch.Generator(spec.device).manual_seed(spec.seed)
        self._noise = torch.randn(_BLOCK, generator=generator, device=spec.device).to(spec.dtype())
        self._start = 0

    def __call__(self, name: str, like: Tensor) -> Tensor:
        values = self._take(like.numel()).view(like.shape)
        if like.ndim == 1 and name.endswith(".weight"):
            return values.mul_(0.02).add_(1)  # a norm's gains
        return values.mul_(deviation(name, tuple(like.shape)))

    def _take(self, count: int) -> Tensor:
        out = self._noise.new_empty(count)
        done = 0
        while done < count:
            piece = self._noise[self._start : self._start + count - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            self._start = (self._start + len(piece)) % _BLOCK
        return out


def deviation(name: str, shape: tuple[int, ...]) -> float:
    """Of a parameter's random numbers: 1 / sqrt(inputs) for weights, less where they add to the residual rows."""
    if name == "model.embed_tokens.weight":
        return 1.0
    if len(shape) in (1, 3) or name == "lm_head.weight":  # biases, tokens and positions
        return 0.02
    into_residual = name.split(".")[-2] in ("dense", "fc2", "out_proj", "w2", "o_proj", "down_proj")
    return 1 / math.sqrt(math.prod(shape[1:]) * (64 if into_residual else 1))  # 64: two branches in each of 32 layers
