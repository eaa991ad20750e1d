"""A published checkpoint's name in; its tasks, its Hub id, and what else its users should know, out.

A checkpoint computes every prompt of its family, also those that it was not trained for. Nothing in its files says
which those are, so its name has to. Sources: the names and training scripts of their authors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from qalign_fast.errors import ModelWarning


@dataclass(frozen=True)
class Training:
    """The tasks that a checkpoint was trained for, by medium."""

    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (
            f"{' and '.join(tasks)} of {what}" for tasks, what in ((self.images, "images"), (self.videos, "videos"))
        )
        return ", ".join(part for part in parts if not part.startswith(" "))


_QUALITY, _AESTHETICS = ("quality",), ("aesthetics",)

# A pattern of whole names, in small letters -> the tasks. The first that fits holds.
_TRAINED = {
    r"one-align": Training(_QUALITY + _AESTHETICS, _QUALITY),
    r"q-align-image": Training(_QUALITY + _AESTHETICS),
    r"q-align-iaa-vqa": Training(_AESTHETICS, _QUALITY),
    r"q-align-quality": Training(_QUALITY, _QUALITY),
    r"q-align-(vqa|maxwell-lora(-\d+)?)": Training((), _QUALITY),
    r"q-align-aesthetic": Training(_AESTHETICS),
    r"q-align-(iqa|koniq|spaq)(-lora)?": Training(_QUALITY),
    r"q-align-(agi|cgi|csiq|live|livec)-lora(-\d+)?": Training(_QUALITY),
    r"deqa-score(-lora)?-mix3": Training(_QUALITY),
    r"qscorer.*|compare2score": Training(_QUALITY),
}

# The owners on the Hub of checkpoints with exactly these names.
_OWNERS = {
    r"one-align|q-align-(image|quality|iaa-vqa|iqa|vqa|aesthetic)|Compare2Score": "q-future",
    r"q-align-(agi|cgi|csiq|live|livec|maxwell)-lora-\d+": "q-future",
    r"DeQA-Score-(LoRA-)?Mix3": "zhiyuanyou",
    r"Qscorer_merged|Qscorer_lora_5_1": "2kxx",
}
_SAME = {"aesthetic": "aesthetics", "quality-paper": "quality"}  # another wording of a task

# LIVE, but not LIVE in the Wild (LIVE-C, LIVE-Challenge, LIVE-W), LIVE-VQC or LIVE-FB, whose words are right
_INVERTED = re.compile(r"(?<![a-z0-9])(csiq|live(?![-_. ]?(c|w|challenge|wild|itw|vqc|fb|in)(?![a-z0-9])))(?![a-z])")


def trained_for(name: str) -> Training | None:
    """The tasks of the checkpoint of that name, without its owner; None for a name that is not known."""
    return next((tasks for pattern, tasks in _TRAINED.items() if re.fullmatch(pattern, name.lower())), None)


def published_id(name: str) -> str | None:
    """The Hub id of the published checkpoint of that name; None for a name that is not known."""
    owner = next((owner for pattern, owner in _OWNERS.items() if re.fullmatch(pattern, name)), None)
    return owner and f"{owner}/{name}"


def task_remark(name: str, tasks: Iterable[str]) -> str | None:
    """What a user should know who asks the checkpoint of that name for these tasks; None if there is nothing."""
    if (training := trained_for(name)) is None:
        return None
    known = {*_QUALITY, *_AESTHETICS}
    asked = [task for task in tasks if _SAME.get(task, task) in known - {*training.images, *training.videos}]
    return f"{name} was trained for {training}; it was not trained for {', '.join(asked)}" if asked else None


def inverted_remark(name: str) -> str | None:
    """A warning if an adapter's name says that it was trained on Q-Align's splits of CSIQ or LIVE; else None.

    The words of these two splits follow DMOS, the difference from an undistorted picture, which is high for a bad one.
    """
    if (found := _INVERTED.search(name.lower())) is None:
        return None
    return (
        f"{name}: its name says that it was trained on Q-Align's split of {found[1].upper()}, where 'excellent' is the "
        "worst: if so, its high scores mean bad pictures"
    )


def tell(*remarks: str | None) -> None:
    """Gives those that are there as ModelWarnings, each once in a process."""
    for remark in remarks:
        if remark is not None:
            warnings.warn(remark, ModelWarning, stacklevel=1)
