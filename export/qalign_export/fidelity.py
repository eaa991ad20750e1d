"""Two models' scores of the same pictures in, a report of their differences out: what a precision costs.

The comparison is `qalign_fast.analysis.paired`'s: each picture with itself, and 95 % intervals over scenes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qalign_export.pictures import BUNDLED, VERSIONS, bundled_pictures
from qalign_fast import Score, Scorer
from qalign_fast.analysis.paired import PairedChange, paired_change
from qalign_fast.analysis.resampling import Bootstrap, Interval
from qalign_fast.artifact.manifest import MANIFEST, open_artifact
from qalign_fast.errors import ArtifactError
from qalign_fast.pixels.picture import Picture


@dataclass(frozen=True)
class Fidelity:
    """How one model's scores, on its scale, and logits differ from another's, over all pictures and tasks.

    Of several tasks, correlations are the lowest and shares of ranks the highest. An interval is of 95 %, over scenes;
    it is None where there are fewer than three.
    """

    against: str
    pictures: str
    scores: int
    scenes: int  # pictures, of which the distorted versions of one count once
    mean_delta: float  # of scores, absolute
    max_delta: float
    mean_shift: float  # of scores, with its sign
    mean_shift_interval: tuple[float, float] | None
    mean_logit_delta: float
    max_logit_delta: float
    srcc: float  # Spearman's rank correlation
    srcc_interval: tuple[float, float] | None
    plcc: float  # Pearson's
    rank_flips: float  # share of all pairs of pictures whose order is reversed
    changed_ranks: float  # share of pictures whose rank differs
    level_flips: float  # share of scores whose level differs


def verify(
    artifact: str | Path,
    against: str | Path,
    pictures: Sequence[Picture] = (),
    *,
    count: int = 104,
    base: str | Path | None = None,
) -> dict[str, Fidelity]:
    """Compares each engine of an artifact with the model `against`, its source, and writes reports into its manifest.

    All score `pictures` or, without any, `count` bundled ones. Returns engine -> report. `base` is that of `against`,
    if it is an adapter. Raises ArtifactError for fewer than two pictures, or if the two models share no task; and what
    `Scorer.load` and `score_tasks` raise.
    """
    opened = open_artifact(artifact)
    chosen = list(pictures) or bundled_pictures(count)
    if len(chosen) < 2:
        raise ArtifactError(f"{artifact}: a comparison needs two pictures or more, found {len(chosen)}")
    theirs = Scorer.load(against, base=base)
    tasks = [e.prompt.task for e in opened.manifest.prompts if e.prompt.medium == "image"]
    tasks = [task for task in tasks if task in theirs.tasks()]
    if not tasks:
        raise ArtifactError(f"{artifact}: shares no task with {against}")
    expected = _by_task(theirs, chosen, tasks)
    del theirs  # two large models at a time would not fit into memory
    reports = {}
    what = f"{len(chosen)} given" if pictures else f"{len(chosen)} {BUNDLED}"
    scenes = None if pictures else [str(i // VERSIONS) for i in range(len(chosen))]
    for engine in opened.manifest.engines:
        found = _by_task(Scorer.load(artifact, engine=engine, verify=False), chosen, tasks)  # open_artifact hashed it
        reports[engine] = compare(found, expected, against=Path(against).name, pictures=what, scenes=scenes)
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
    found: dict[str, list[Score]],
    expected: dict[str, list[Score]],
    *,
    against: str,
    pictures: str,
    scenes: Sequence[str] | None = None,
) -> Fidelity:
    """The report on two models' scores, by task and in the same order of pictures.

    `against` names the model that gave the expected scores, `pictures` says in words what was scored, and `scenes` the
    scene of each picture; without them, each picture is one.
    """
    pairs = [pair for task in found for pair in zip(found[task], expected[task], strict=True)]
    logits = np.array([np.abs(np.subtract(a.logits, b.logits)) for a, b in pairs])
    names = list(scenes or map(str, range(len(pairs) // len(found))))
    of_tasks = [_change(expected[task], found[task], Bootstrap(names)) for task in found]
    of_all = _change([b for _, b in pairs], [a for a, _ in pairs], Bootstrap(names * len(found)))
    worst = min(of_tasks, key=lambda change: _correlation(change.srcc, change))
    return Fidelity(
        against=against,
        pictures=pictures,
        scores=len(pairs),
        scenes=of_all.mean.units,
        mean_delta=of_all.mean_absolute or 0.0,
        max_delta=of_all.largest or 0.0,
        mean_shift=of_all.mean.value or 0.0,
        mean_shift_interval=_ends(of_all.mean),
        mean_logit_delta=float(logits.mean()),
        max_logit_delta=float(logits.max()),
        srcc=_correlation(worst.srcc, worst),
        srcc_interval=_ends(worst.srcc),
        plcc=min(_correlation(change.plcc, change) for change in of_tasks),
        rank_flips=max(change.rank_flips or 0.0 for change in of_tasks),
        changed_ranks=max(change.changed_ranks or 0.0 for change in of_tasks),
        level_flips=of_all.level_flips or 0.0,
    )


def _change(old: Sequence[Score], new: Sequence[Score], bootstrap: Bootstrap) -> PairedChange:
    a, b = (np.array([score.value for score in scores]) for scores in (old, new))
    before, after = (np.array([score.level for score in scores]) for scores in (old, new))
    return paired_change(a, b, (before, after), bootstrap)


def _correlation(found: Interval, change: PairedChange) -> float:
    """Where a model gives all pictures one score: 1 if the other gives the same, else 0, which no gate lets pass."""
    return float(change.largest == 0) if found.value is None else found.value


def _ends(found: Interval) -> tuple[float, float] | None:
    return None if found.low is None or found.high is None else (found.low, found.high)
