"""Every size of a tiny model, and its checkpoint's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qalign_fast.errors import CheckpointError
from qalign_fast.pixels.rule import Pixels


@dataclass(frozen=True)
class KeepAspect:
    """Pictures keep their aspect: the longer side becomes `longest`, both sides multiples of `patch`."""

    patch: int
    longest: int

    @property
    def most_bytes(self) -> int:
        return 3 * self.longest**2

    def apply(self, rgb: Image.Image | Pixels, path: Any) -> Pixels:
        picture = Image.fromarray(rgb[..., :3]) if isinstance(rgb, np.ndarray) else rgb
        scale = self.longest / max(picture.size)
        width, height = (max(1, round(side * scale / self.patch)) * self.patch for side in picture.size)
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class TinySizes:
    width: int
    patch: int
    longest: int

    @property
    def pixels(self) -> KeepAspect:
        return KeepAspect(self.patch, self.longest)

    @property
    def picture_tokens(self) -> None:
        return None

    def vision_rows(self, height: int, width: int) -> int:
        return (height // self.patch) * (width // self.patch)

    def max_frames(self, prompt_tokens: int) -> int:
        return 8


def to_json(sizes: TinySizes) -> dict[str, Any]:
    return {"sizes": asdict(sizes), "pixels": {"longest": sizes.longest}}


def from_json(manifest: Mapping[str, Any]) -> TinySizes:
    return TinySizes(**manifest["sizes"])


def read_config(directory: Path, base: Path | None = None) -> TinySizes:
    raw = json.loads((directory / "config.json").read_text())
    try:
        return TinySizes(raw["width"], raw["patch"], raw["longest"])
    except KeyError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error} is missing") from error
