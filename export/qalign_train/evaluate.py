"""A model in, the figures of MODEL_CARD.md out: how well it ranks damage on photographs that it never saw.

    PYTHONPATH=export python -m qalign_train.evaluate [MODEL]

They are Spearman's correlation of score and severity, over five severities of each held-out picture and family. -1 is
perfect.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qalign_export.distortions import DISTORTIONS
from qalign_fast import Scorer
from qalign_fast.analysis.measures import spearman

FAMILIES = ("blur", "noise", "jpeg", "rescale")
SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Result:
    """One picture's scores on 1..5: pristine, and for each family five from mild to ruined."""

    name: str
    pristine: float
    scores: dict[str, list[float]]

    def spearman(self, family: str) -> float:
        """Of severity and score; -1 is perfect."""
        return spearman(np.array(SEVERITIES), np.array(self.scores[family])) or 0.0

    @property
    def margin(self) -> float:
        """The pristine picture's score minus that of its worst version."""
        return self.pristine - min(min(scores) for scores in self.scores.values())


def held_out() -> dict[str, Image.Image]:
    """Pictures of scikit-image, scikit-learn and matplotlib, none of them ever trained on."""
    from matplotlib.cbook import get_sample_data
    from skimage import data
    from sklearn.datasets import load_sample_image

    hopper = Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("RGB")
    arrays = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(array) for name, array in arrays.items()} | {"grace_hopper": hopper}


def evaluate(scorer: Scorer) -> list[Result]:
    """The held-out pictures' scores, pristine and distorted."""
    rng = np.random.default_rng(0)
    results = []
    for name, picture in held_out().items():
        versions = [DISTORTIONS[f](picture, s, rng) for f in FAMILIES for s in SEVERITIES]
        pristine, *scores = (score.value for score in scorer.score([picture, *versions]))
        rows = np.array(scores).reshape(len(FAMILIES), len(SEVERITIES)).tolist()
        results.append(Result(name, pristine, dict(zip(FAMILIES, rows, strict=True))))
    return results


def distorted(severities: int = 16) -> list[Image.Image]:
    """The held-out pictures, each in every family at that many severities, to judge a precision by."""
    rng = np.random.default_rng(0)
    steps = np.linspace(0.05, 1, severities)
    return [DISTORTIONS[f](picture, s, rng) for picture in held_out().values() for f in FAMILIES for s in steps]


def family_means(results: list[Result]) -> dict[str, float]:
    """Each family's correlation, in the mean over pictures."""
    return {family: float(np.mean([r.spearman(family) for r in results])) for family in FAMILIES}


def main() -> None:
    """Prints the model card's table."""
    results = evaluate(Scorer.load(sys.argv[1] if len(sys.argv) > 1 else None))
    print("| picture | pristine | " + " | ".join(FAMILIES) + " | above its worst |")
    print("|---|---|" + "---|" * (len(FAMILIES) + 1))
    for r in results:
        print(
            f"| {r.name} | {r.pristine:.2f} | "
            + " | ".join(f"{r.spearman(f):.2f}" for f in FAMILIES)
            + f" | {r.margin:.2f} |"
        )
    means = family_means(results)
    print(
        "| **mean** | | "
        + " | ".join(f"{means[f]:.3f}" for f in FAMILIES)
        + f" | {min(r.margin for r in results):.2f} min |"
    )
    print(f"\nmean of all: {np.mean(list(means.values())):.3f}")


if __name__ == "__main__":
    main()
