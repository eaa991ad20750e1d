"""A made-up data set: pictures of scenes, damaged in known degrees, and the list of their labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from qalign_export.distortions import DISTORTIONS
from qalign_export.pictures import dead_leaves

SEVERITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
KINDS = ("blur", "noise", "jpeg", "rescale")


def write_set(folder: Path, scenes: int, side: int = 160, *, quality: int = 92) -> Path:
    """Writes 21 pictures of each scene, `set/SCENE_KIND_DEGREE.jpg`, and `labels.json`; returns the list's path.

    The label falls from 4.9 by the degree of damage; observers' noise is added.
    """
    dice, entries = np.random.default_rng(scenes), []
    (folder / "set").mkdir(parents=True, exist_ok=True)
    for scene in range(scenes):
        pristine = dead_leaves(dice, side * 3 // 2, side)
        versions: list[tuple[str, float, Image.Image]] = [("none", 0.0, pristine)]
        versions += [(k, s, DISTORTIONS[k](pristine, s, dice)) for k in KINDS for s in SEVERITIES]
        for kind, severity, picture in versions:
            name = f"set/s{scene:03d}_{kind}_{round(10 * severity)}.jpg"
            picture.save(folder / name, quality=quality)
            label = 4.9 - 3.6 * severity + 0.25 * dice.standard_normal()
            entries.append({"image": name, "gt_score": round(float(label), 4), "unit": f"s{scene:03d}"})
    (folder / "labels.json").write_text(json.dumps(entries))
    return folder / "labels.json"
