"""Label Studio's tasks in, a prediction for each out: numbers, stars and levels for the tags of a label config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from qalign_fast.errors import ImageError, OptionError, one_line
from qalign_fast.feed.items import Item, Medium, Scores

if TYPE_CHECKING:
    from qalign_fast.levels import Scale, Score
    from qalign_fast.scorer import Scorer

LabelTask: TypeAlias = Mapping[str, Any]  # Label Studio's: {"id": ..., "data": {"image": ...}}
Prediction: TypeAlias = dict[str, Any]
ReadFile: TypeAlias = Callable[..., str]  # (address, task_id=...) -> a file's path: LabelStudioMLBase.get_local_path

_MEDIA: dict[str, Medium] = {"image": "image", "video": "video"}  # by the tag that shows one
_STARS = 5  # of a Rating that does not say how many
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A tag that takes what a picture or a video scores.

    name, kind: the tag's name, and "number", "rating" or "choices".
    shown, field: the name of the tag that shows the medium, and where a task's data have the medium's address.
    task: the model's task: the tag's name if the model has such a task, or its usual one.
    stars: of a rating.
    words: of choices, by the level in small letters.
    """

    name: str
    kind: str
    shown: str
    field: str
    medium: Medium
    task: str
    stars: int
    words: Mapping[str, str]

    def region(self, score: Score) -> dict[str, Any]:
        """What Label Studio shows: the score to four digits, whole stars from 1, or the level's word."""
        value: float | int | list[str] = round(score.value, 4)
        if self.kind == "rating":
            value = 1 + round(score.unit * (self.stars - 1))
        elif self.kind == "choices":
            value = [self.words[score.level]]
        return {"from_name": self.name, "to_name": self.shown, "type": self.kind, "value": {self.kind: value}}


def find_targets(interface: Any, scorer: Scorer) -> tuple[Target, ...]:
    """The tags of a `label_studio_sdk.label_interface.LabelInterface` that scores go to.

    A Number whose min and max hold the model's scale, a Rating, and Choices of the model's level words can take one,
    where they are about an Image or a Video as a whole. Of each kind, and of each Image or Video, those that are named
    after a task of the model are taken, or else the first. Raises OptionError where there is none.
    """
    scale = scorer.engine.family.scale
    groups: dict[tuple[str, str], list[Target]] = {}
    for target in (target for control in interface.controls for target in _targets(control, scorer, scale)):
        groups.setdefault((target.kind, target.shown), []).append(target)
    if not groups:
        raise OptionError(
            "the label config has no tag that a score can go to; expected, for an Image or a Video, a Rating, a Number "
            f"with room for {scale.low:g} to {scale.high:g}, or Choices of {', '.join(scale.words)}"
        )
    chosen = ([target for target in group if target.name == target.task] or group[:1] for group in groups.values())
    return tuple(target for group in chosen for target in group)


def predict(
    scorer: Scorer, targets: Sequence[Target], tasks: Sequence[LabelTask], read: ReadFile, version: str
) -> list[Prediction]:
    """A prediction for each task, in order. Where a file cannot be had or read it has no result, and a line is logged.

    A prediction's score is how sure the model is: the largest probability, and of several tags the smallest of these.
    Raises what the engine raises.
    """
    scores: dict[tuple[int, str], Scores] = {}  # by a task's place, and the tag that shows the medium
    for medium in _MEDIA.values():
        of_medium = [target for target in targets if target.medium == medium]
        names = tuple(dict.fromkeys(target.task for target in of_medium))
        for scored in scorer.feed.run(_items(of_medium, tasks, read), names) if names else ():
            if scored.error is None:
                scores[scored.key] = scored.get()
            else:
                _LOG.warning("task %s: not scored: %s", tasks[scored.key[0]].get("id"), one_line(scored.error))
    return [
        _prediction([(t, scores[i, t.shown][t.task]) for t in targets if (i, t.shown) in scores], version)
        for i in range(len(tasks))
    ]


def _targets(control: Any, scorer: Scorer, scale: Scale) -> Iterator[Target]:
    """A tag's targets: one for each Image or Video that it is about, if it can take a score."""
    kind, attributes = control.tag.lower(), control.attr or {}
    words = {word.lower(): word for word in control.labels or ()}
    if not _takes(kind, attributes, words, scale) or attributes.get("perRegion") == "true":
        return
    for shown in control.objects or ():
        medium = _MEDIA.get(shown.tag.lower())
        if medium and (usual := scorer.usual_tasks(medium)) and "valueList" not in shown.attr:
            task = control.name if control.name in scorer.tasks(medium) else usual[0]
            stars = int(attributes.get("maxRating", _STARS))
            yield Target(control.name, kind, shown.name, shown.value.lstrip("$"), medium, task, stars, words)


def _takes(kind: str, attributes: Mapping[str, str], words: Mapping[str, str], scale: Scale) -> bool:
    if kind == "number":
        low, high = float(attributes.get("min", scale.low)), float(attributes.get("max", scale.high))
        return low <= scale.low and scale.high <= high
    return kind == "rating" or (kind == "choices" and set(words) == set(scale.words))


def _items(targets: Sequence[Target], tasks: Sequence[LabelTask], read: ReadFile) -> Iterator[Item[tuple[int, str]]]:
    fields = {target.shown: (target.field, target.medium) for target in targets}
    for i, task in enumerate(tasks):
        for shown, (field, medium) in fields.items():
            yield Item((i, shown), _path(task, field, read), medium)


def _path(task: LabelTask, field: str, read: ReadFile) -> str | ImageError:
    """A task's file on this machine, or the error of getting it. requests' errors are OSErrors."""
    address = task.get("data", {}).get(field)
    if not isinstance(address, str):
        return ImageError(f"the task's data have no address in {field!r}")
    try:
        return read(address, task_id=task.get("id"))
    except (OSError, ValueError) as error:
        return ImageError(f"{address}: {one_line(error)}")


def _prediction(scored: Sequence[tuple[Target, Score]], version: str) -> Prediction:
    sure = min((max(score.probabilities.values()) for _, score in scored), default=0.0)
    return {"model_version": version, "score": sure, "result": [target.region(score) for target, score in scored]}
