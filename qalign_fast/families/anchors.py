"""A checkpoint's directory in, its anchors out: the pictures that a family shows before the one it asks about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qalign_fast.errors import CheckpointError, ImageError

if TYPE_CHECKING:
    from qalign_fast.pixels.rule import SquareRule

Pixels = npt.NDArray[np.uint8]
FOLDER = "anchors"  # in the checkpoint's directory


def anchor_files(directory: Path) -> list[Path]:
    """The files of a checkpoint's anchors, in order of their names; hidden files are none."""
    return sorted(file for file in (directory / FOLDER).glob("*") if file.is_file() and not file.name.startswith("."))


def read_anchors(directory: Path, rule: SquareRule, count: int) -> Pixels:
    """The anchors' pixels [A, S, S, 3]. Raises CheckpointError for another number than `count` or for no picture."""
    from qalign_fast.pixels.picture import load_pixels

    files = anchor_files(directory)
    if len(files) != count:
        raise CheckpointError(f"{directory / FOLDER}: {len(files)} files; expected {count} pictures, the worst first")
    pixels = np.empty((count, rule.side, rule.side, 3), np.uint8)
    for i, file in enumerate(files):
        try:
            pixels[i] = load_pixels(file, rule)
        except ImageError as error:
            raise CheckpointError(f"{file}: not readable as an anchor ({error})") from error
    return pixels


def no_anchors(_: Path, config: Any) -> Pixels:
    """Those of a family whose prompts show none."""
    side = getattr(config.pixels, "side", 1)
    return np.empty((0, side, side, 3), np.uint8)
