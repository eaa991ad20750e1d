"""Scores of pictures and clips by OneAlign / Q-Align, as people would rate them, from a purpose-built engine.

    bytes -> pixels/ -> uint8 [448, 448, 3] -> engine.encode -> visual tokens [65, 4096] (times frames, for a clip)
    visual tokens and a prompt's constants -> engine.decode -> logits [5] -> levels.py -> Score

`Scorer.load().score("photo.jpg").value` is a number from 1 (bad) to 5 (excellent).
"""

from qalign_fast.errors import (
    ArtifactError,
    CheckpointError,
    DeviceError,
    ImageError,
    InternalError,
    MissingExtraError,
    OptionError,
    QAlignError,
    ServerError,
    TaskError,
    VideoError,
)
from qalign_fast.levels import LEVELS, Score, level_of
from qalign_fast.pixels.limits import PictureLimits
from qalign_fast.scorer import Scorer
from qalign_fast.version import __version__

__all__ = [
    "LEVELS",
    "ArtifactError",
    "CheckpointError",
    "DeviceError",
    "ImageError",
    "InternalError",
    "MissingExtraError",
    "OptionError",
    "PictureLimits",
    "QAlignError",
    "Score",
    "Scorer",
    "ServerError",
    "TaskError",
    "VideoError",
    "__version__",
    "level_of",
]
