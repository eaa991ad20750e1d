"""The golden folders: upstream's checkpoints, small, and the numbers that upstream's code gave for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qalign_export.parameters import open_parameters
from qalign_export.rounding.blockwise import fold_and_round
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.prompts import ALL_PROMPTS
from qalign_kernels.contract.ops import Ops

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PICTURES = GOLDEN / "pictures"
FOLDERS = ("narrow-112", "narrow-448", "outlier-112")


@dataclass(frozen=True)
class Golden:
    """One model folder: upstream's checkpoint and the numbers upstream's code gave."""

    checkpoint: Path
    artifact: Path
    expected: dict[str, np.ndarray]

    @property
    def pictures(self) -> list[Path]:
        return [PICTURES / name for name in self.expected["picture_names"]]


def assert_goldens(folder: str, ops: Ops) -> None:
    """The folded model in float32 gives upstream's numbers on these operations."""
    source, tensors = open_parameters(GOLDEN / folder), {}
    rounded = fold_and_round(source, "fp32", ALL_PROMPTS, torch.empty(0), tensors.__setitem__)
    model, expected = FoldedModel(source.config, tensors, ops), np.load(GOLDEN / folder / "expected.npz")
    tokens = model.encode(torch.from_numpy(expected["resized_uint8"]))
    size = np.abs(expected["visual_tokens"]).max()
    np.testing.assert_allclose(tokens, expected["visual_tokens"], rtol=0, atol=2e-5 * size)
    for p in ALL_PROMPTS:
        inputs = [tokens] if p.medium == "image" else [tokens[:3].reshape(1, -1, tokens.shape[-1]), tokens[2:3]]
        logits = [model.decode(x, rounded.prefixes[p.prefix], rounded.suffixes[p.suffix]) for x in inputs]
        if (name := f"logits_{p.task}_{p.medium}") in expected:
            np.testing.assert_allclose(torch.cat(logits), expected[name], rtol=0, atol=2e-4)


Rounded = Callable[[str, str], Path]
