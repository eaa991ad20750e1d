"""A model's pixel rule as preprocessor_config.json, the file in which other tools look for it."""

from __future__ import annotations

import json
from pathlib import Path

from qalign_fast.pixels.rule import SquareRule


def write_preprocessor(rule: SquareRule, directory: Path) -> None:
    """Writes the file into an artifact's or a checkpoint's directory."""
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": rule.side},
        "crop_size": {"height": rule.side, "width": rule.side},
        "resample": 3,  # Pillow's BICUBIC
        "image_mean": rule.mean,
        "image_std": rule.std,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
