"""Compare2Score, as one value: mPLUG-Owl2's trunk and five anchors, on 0 to 100."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qalign_fast.families.anchors import FOLDER, Pixels, read_anchors
from qalign_fast.families.compare2score.answer import answer
from qalign_fast.families.compare2score.prompts import ANCHORS, PROMPTS, WORD_IDS
from qalign_fast.families.mplug_owl2.family import FAMILY as ONE_ALIGN
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.levels import LEVELS, Scale


def _recognizes(config: Mapping[str, Any], directory: Path) -> bool:
    return "visual_config" in config and (directory / FOLDER).is_dir()  # its config.json is as OneAlign's


def _anchors(directory: Path, config: ModelConfig) -> Pixels:
    return read_anchors(directory, config.pixels, ANCHORS)


FAMILY = replace(
    ONE_ALIGN,
    name="compare2score",
    scale=Scale(LEVELS, (100.0, 75.0, 50.0, 25.0, 0.0)),  # of scores; its own words compare, superior to inferior
    level_ids=WORD_IDS,
    prompts=PROMPTS,
    clip_frames=1,  # its authors compare pictures alone, so that no prompt is for clips
    recognizes=_recognizes,
    model="qalign_fast.families.compare2score.models",
    answer=answer,
    anchors=_anchors,
)
