"""Upstream's model class and its config in, the model out: from a checkpoint, or filled with random numbers.

upstream.py imports this file in an interpreter without this project's packages, so it imports torch and siblings alone.
Another file of the project, which needs numpy and torch alone, makes the random numbers. The spec says where it is and
which of its two kinds are wanted.
"""

from __future__ import annotations

import contextlib
import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from qalign_bench.peers.loop import PeerError, Spec
else:  # a script's own folder is on its path
    from loop import PeerError

_BOS = 1
_LEVELS = {"excellent": 15129, "good": 1781, "fair": 6534, "poor": 6460, "bad": 4319}
_TASKS = {"quality": (11029,), "aesthetics": (263, 342, 9188, 1199)}


class Tokenizer:
    """The family's tokenizer for the few texts that upstream's scorer needs. Each begins with BOS."""

    bos_token_id = _BOS

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding  # transformers' BatchEncoding, which a tokenizer returns
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
    """Loads it as upstream's builder does, but in the spec's dtype; upstream's is always float16."""
    model: nn.Module = model_class.from_pretrained(
        directory, config=config, torch_dtype=spec.dtype(), low_cpu_mem_usage=find_spec("accelerate") is not None
    )
    return model.to(spec.device).eval()


def random_model(model_class: Any, config: Any, spec: Spec) -> nn.Module:
    """A model of the true sizes with random numbers. Its speed is the true one. Its scores mean nothing, but every
    engine with the same numbers has the same scores.

    Raises PeerError where the spec does not name the file that makes the numbers.
    """
    if "random_numbers" not in spec.own:
        raise PeerError(
            "model 'random:...' needs 'random_numbers' in the spec: the path of qalign_export/random_numbers.py"
        )
    numbers = runpy.run_path(spec.own["random_numbers"])

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if spec.own.get("numbers") == "counted":
            made: torch.Tensor = numbers["counted"](name, shape, spec.device)
            return made
        return torch.from_numpy(numbers["parameter"](name, shape))

    with default_dtype(spec.dtype()):  # as transformers does while it loads
        with torch.device("meta"):
            model: nn.Module = model_class(config)
        with torch.device(spec.device):
            rebuild_rotary(model)
    model.load_state_dict(
        {
            name: make(name, tuple(tensor.shape)).to(spec.device, spec.dtype())
            for name, tensor in model.state_dict().items()  # the positions in a checkpoint are buffers
        },
        assign=True,
    )
    model = model.to(spec.device).eval().requires_grad_(False)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype while the block lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rebuild_rotary(model: nn.Module) -> None:
    """Makes the rotary tables anew: they are computed when a module is made, and on the meta device nothing was."""
    for module in model.modules():
        for name, child in module.named_children():
            if hasattr(child, "cos_cached"):
                setattr(module, name, type(child)(child.dim, child.max_position_embeddings, child.base))
