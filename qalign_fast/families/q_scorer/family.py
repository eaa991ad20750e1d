"""Q-Scorer, as one value: mPLUG-Owl2's trunk with five score tokens and an MLP, on 0 to 5.

Source: Q-Scorer (AAAI 2026) and its code's `score`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qalign_fast.families.adapters import is_adapter
from qalign_fast.families.mplug_owl2.family import FAMILY as ONE_ALIGN
from qalign_fast.families.q_scorer.answer import answer, tail
from qalign_fast.families.q_scorer.prompts import PROMPTS, SCORE_IDS
from qalign_fast.families.q_scorer.sizes import describe, read_config, sizes_from_json, sizes_to_json
from qalign_fast.levels import LEVELS, Scale
from qalign_fast.references import name_of


def _recognizes(config: Mapping[str, Any], directory: Path) -> bool:
    """By what a merged checkpoint's config.json says; an adapter's says nothing, and its authors go by the name."""
    told = "score_token_id" in config or "deepmlp_hidden_dims" in config
    named = is_adapter(directory) and "qscorer" in name_of(directory).lower().replace("-", "").replace("_", "")
    return "visual_config" in config and (told or named)


FAMILY = replace(
    ONE_ALIGN,
    name="q_scorer",
    scale=Scale(LEVELS, (5.0, 3.75, 2.5, 1.25, 0.0)),  # its tokens have no words, so they have those of OneAlign
    level_ids=SCORE_IDS,
    prompts=PROMPTS,
    clip_frames=1,  # its authors score pictures alone, so that no prompt is for clips
    recognizes=_recognizes,
    read_config=read_config,
    sizes_to_json=sizes_to_json,
    sizes_from_json=sizes_from_json,
    describe=describe,
    model="qalign_fast.families.q_scorer.models",
    answer=answer,
    tail=tail,
)
