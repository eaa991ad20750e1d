"""Two models' scores of the same pictures in, a report of their differences out: what a precision costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qalign_export.correlations import pearson, ranks, spearman
from qalign_export.pictures import BUNDLED, bundled_pictures
from qalign_fast import Score, Scorer
from qalign_fast.artifact.manifest import MANIFEST, open_artifact
from qalign_fast.errors import ArtifactError
from qalign_fast.pixels.picture import Picture


@dataclass(frozen=True)
class Fidelity:
    """How one model's scores (on its scale) and logits differ from another's, over all pictures and tasks."""

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
    """Compares each engine of an artifact with the model `against`, its source, and writes reports into its manifest.

    All score `pictures` or, without any, `count` bundled ones. Returns engine -> report. Raises ArtifactError for fewer
    than two pictures, or if the two models share no task; and what `Scorer.load` and `score_tasks` raise.
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
    del theirs  # two large models at a time would not fit into memory
    reports = {}
    for engine in opened.manifest.engines:
        found = _by_task(Scorer.load(artifact, engine=engine, verify=False), chosen, tasks)  # open_artifact hashed it
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
    """The report on two models' scores, by task and in the same order of pictures.

    `against` names the model that gave the expected scores, `pictures` says in words what was scored.
    """
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
