"""OneAlign and Q-Align, as one value: LLaMA-2 7B with a CLIP-like tower and an abstractor (mPLUG-Owl2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qalign_fast.families.family import Family
from qalign_fast.families.mplug_owl2.config_json import read_config
from qalign_fast.families.mplug_owl2.folded_schema import constants, interface, schema
from qalign_fast.families.mplug_owl2.prompts import ALL_PROMPTS, LEVEL_IDS
from qalign_fast.families.mplug_owl2.sizes import describe, sizes_from_json, sizes_to_json
from qalign_fast.levels import FIVE_LEVELS


def _recognizes(config: Mapping[str, Any], _: Path) -> bool:
    return "visual_config" in config


FAMILY = Family(
    name="mplug_owl2",
    scale=FIVE_LEVELS,
    level_ids=LEVEL_IDS,
    prompts=ALL_PROMPTS,
    clip_frames=31,  # what 2048 positions hold at OneAlign's 65 tokens a frame
    engines=("native", "torch", "torch-cuda", "bitsandbytes", "onnx", "onnx-cuda", "openvino", "tensorrt"),
    recognizes=_recognizes,
    read_config=read_config,
    sizes_to_json=sizes_to_json,
    sizes_from_json=sizes_from_json,
    describe=describe,
    constants=constants,
    schema=schema,
    interface=interface,
    model="qalign_fast.families.mplug_owl2.model.models",
    folded="qalign_fast.families.mplug_owl2.model.folded",
)
