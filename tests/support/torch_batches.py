"""Pictures as the tensors that torch's users have: floats on 0..1, channels first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def floats(picture: str | Path) -> torch.Tensor:
    """A file -> float32 [1, 3, H, W]."""
    return torch.tensor(np.asarray(Image.open(picture).convert("RGB"))).movedim(-1, 0)[None].float() / 255


def random_batch(*shape: int, seed: int = 0) -> torch.Tensor:
    """Floats on .1...9, away from where clipping begins."""
    return 0.1 + 0.8 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
