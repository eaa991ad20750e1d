"""Two models' scores of the same pictures in, how far they differ out: what a precision or an export costs.

`verify` scores an artifact and its source on pictures, bundled ones unless the user has better, and writes the report
into the artifact's manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from qalign_export.distortions import DISTORTIONS
from qalign_fast import Score, Scorer
from qalign_fast.artifact.manifest import MANIFEST, open_artifact
from qalign_fast.errors import ArtifactError
from qalign_fast.pixels.picture import Picture

BUNDLED = "photographs and dead leaves, pristine and distorted"
_PHOTOGRAPHS = Path(__file__).parent / "photographs"  # coffee by Rachel Michetti (CC0), rocket by NASA (public domain)
_SEVERITIES = (0.3, 0.7)


@dataclass(frozen=True)
class Fidelity:
    """How one model's scores (on 1..5) and logits differ from another's, over pictures and tasks."""

    against: str
    pictures: str
    scores: int
    mean_delta: float  # of scores, absolute
    max_delta: float
    mean_logit_delta: float
    max_logit_delta: float
    srcc: float  # Spearman's rank correlation, the lowest over tasks
    plcc: float  # Pearson's, likewise
    changed_ranks: float  # share of pictures whose rank differs, the highest over tasks
    level_flips: float  # share of scores whose level differs


def verify(
    artifact: str | Path, against: str | Path, pictures: Sequence[Picture] = (), *, count: int = 104
) -> dict[str, Fidelity]:
    """Compares each engine of an artifact with what it was made from, and writes the reports into its manifest.

    `pictures` are scored by all, or `count` bundled ones. Raises ArtifactError for fewer than two pictures, or where
    the two models share no task.
    """
    opened = open_artifact(artifact)
    chosen = list(pictures) or bundled_pictures(count)
    if len(chosen) < 2:
        raise ArtifactError(f"{artifact}: a comparison needs two pictures or more, found {len(chosen)}")
    theirs = Scorer.load(against)
    tasks = [e.prompt.task for e in opened.manifest.prompts if e.prompt.medium == "image"]
    tasks = [task for task in tasks if task in theirs.tasks()]
    if not tasks:
        raise ArtifactError(f"{artifact}: shares no task with {against}")
    expected = _by_task(theirs, chosen, tasks)
    del theirs  # two large models at a time would not fit
    reports = {}
    for engine in opened.manifest.engines:
        found = _by_task(Scorer.load(artifact, engine=engine, verify=False), chosen, tasks)  # hashed a moment ago
        what = f"{len(chosen)} given" if pictures else f"{len(chosen)} {BUNDLED}"
        reports[engine] = compare(found, expected, against=Path(against).name, pictures=what)
    described = {engine: dataclasses.asdict(report) for engine, report in reports.items()}
    manifest = dataclasses.replace(opened.manifest, fidelity=described)
    partial = opened.path(f".{MANIFEST}.partial")
    partial.write_text(manifest.to_json(), "utf-8")
    partial.replace(opened.path(MANIFEST))
    return reports


def _by_task(scorer: Scorer, pictures: Sequence[Picture], tasks: Sequence[str]) -> dict[str, list[Score]]:
    scores = scorer.score_tasks(list(pictures), list(tasks))
    return {task: [both[task] for both in scores] for task in tasks}


def compare(
    found: dict[str, list[Score]], expected: dict[str, list[Score]], *, against: str, pictures: str
) -> Fidelity:
    """The report of two models' scores by task, picture by picture in the same order."""
    pairs = [pair for task in found for pair in zip(found[task], expected[task], strict=True)]
    deltas = np.array([abs(a.value - b.value) for a, b in pairs])
    logits = np.array([np.abs(np.subtract(a.logits, b.logits)) for a, b in pairs])
    values = [[np.array([s.value for s in scores[task]]) for scores in (found, expected)] for task in found]
    return Fidelity(
        against=against,
        pictures=pictures,
        scores=len(pairs),
        mean_delta=float(deltas.mean()),
        max_delta=float(deltas.max()),
        mean_logit_delta=float(logits.mean()),
        max_logit_delta=float(logits.max()),
        srcc=min(spearman(a, b) for a, b in values),
        plcc=min(pearson(a, b) for a, b in values),
        changed_ranks=max(float((ranks(a) != ranks(b)).mean()) for a, b in values),
        level_flips=float(np.mean([a.level != b.level for a, b in pairs])),
    )


def bundled_pictures(count: int) -> list[Image.Image]:
    """What precisions are judged by: two photographs and generated scenes, none of them those of calibration."""
    photographs = [Image.open(path).convert("RGB") for path in sorted(_PHOTOGRAPHS.iterdir())]
    return _versions(photographs, count, np.random.default_rng(1))


def generate_pictures(count: int) -> list[Image.Image]:
    """What precisions are calibrated on: pictures with the statistics of natural scenes."""
    return _versions([], count, np.random.default_rng(0))


def _versions(scenes: list[Image.Image], count: int, rng: np.random.Generator) -> list[Image.Image]:
    """The scenes, then generated ones, each sharp, blurred, noisy and compressed; the same for the same generator."""
    kinds = [None, *((name, s) for name in DISTORTIONS for s in _SEVERITIES)]
    pictures: list[Image.Image] = []
    while len(pictures) < count:
        scene = scenes.pop(0) if scenes else dead_leaves(rng)
        pictures += [scene if kind is None else DISTORTIONS[kind[0]](scene, kind[1], rng) for kind in kinds]
    return pictures[:count]


def dead_leaves(rng: np.random.Generator, width: int = 560, height: int = 420) -> Image.Image:
    """Discs that cover each other, their radii r distributed as r^-3: edges and spectrum are like a photograph's.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001.
    """
    picture = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(picture)
    smallest, largest = 3.0, 160.0
    for u in rng.random(2500):
        radius = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))
    return picture


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    grey, tint = rng.normal(118, 55), rng.normal(0, 22, 3)
    r, g, b = np.clip(grey + tint, 0, 255).astype(int).tolist()
    return r, g, b


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Rank correlation, ties at their mean rank; 1 where both are constant, 0 where one is."""
    return pearson(ranks(x), ranks(y))


def pearson(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Linear correlation; 1 where both are constant, 0 where one is."""
    a, b = (np.asarray(v, np.float64) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float(not a.any() and not b.any())


def ranks(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """From 1 upwards, ties at their mean rank."""
    _, inverse, counts = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse], np.float64)
