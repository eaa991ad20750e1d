"""Names and their levels in, the entries of a list that Q-Align's training reads out; and such a list read again.

An entry is a question with a picture's mark, and an answer that ends in a level word. The form is that of the lists in
upstream's playground/data. Its training removes all marks of a question and puts one in front, so how many there are
makes no difference to it; its own lists have one for a picture and eight for a clip.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from qalign_fast.errors import ListError, one_line
from qalign_fast.evaluation.training_data.conversion import Conversion
from qalign_fast.evaluation.training_data.labels import Labels
from qalign_fast.levels import LEVELS

Entry: TypeAlias = dict[str, Any]

MARK = "<|image|>"  # where visual tokens go
_QUESTION = "How would you rate the {task} of this {medium}?\n{marks}"  # upstream's lists for fine-tuning have no other
_ANSWER = "The {task} of the {medium} is {level}."
_ANSWERED = re.compile(r"The (?:quality|aesthetics) of the (?:image|video) is (.+)\.")


class Task(StrEnum):
    """What people rated."""

    quality = "quality"
    aesthetics = "aesthetics"


class Medium(StrEnum):
    """What they rated it of."""

    image = "image"
    video = "video"

    @property
    def marks(self) -> str:
        """The marks that upstream's lists write."""
        return MARK * (8 if self is Medium.video else 1)


@dataclass(frozen=True)
class Wording:
    """What the questions of a data set ask, and the folder that its names are in, from the folder of training data."""

    task: Task = Task.quality
    medium: Medium = Medium.image
    prefix: str = ""


def make_entries(labels: Labels, conversion: Conversion, wording: Wording) -> list[Entry]:
    """An entry for each label, in order."""
    folder = f"{wording.prefix.rstrip('/')}/" if wording.prefix else ""
    question = _QUESTION.format(task=wording.task, medium=wording.medium, marks=wording.medium.marks)
    made = []
    for name, value, level in zip(labels.names, labels.values, conversion.words, strict=True):
        answer = _ANSWER.format(task=wording.task, medium=wording.medium, level=level)
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        image = folder + name
        made.append({"id": f"{image}->{value!r}", "image": image, "conversations": talk, "gt_score": value})
    return made


def list_text(entries: Sequence[Entry]) -> str:
    """The list as JSON, an entry a line, in ASCII as json.load reads it under any locale."""
    return "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n"


def read_entries(path: Path) -> list[Entry]:
    """The entries of a list that is in this form already, as they are.

    Raises ListError, which names the entry, for what upstream's training would not read as one picture or clip, one
    question with a mark and one answer with a level.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ListError(f"{path}: {error.strerror or one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ListError(f"{path}: no JSON ({one_line(error)}); expected a list of conversations") from error
    if not isinstance(found, list) or not found:
        raise ListError(f"{path}: no list of conversations; expected a JSON array with an object for each picture")
    for number, entry in enumerate(found, 1):
        if wrong := _fault(entry):
            raise ListError(f"{path}: entry {number}: {wrong}")
    return found


def level_in(entry: Entry) -> str:
    """The word that an entry's answer ends in."""
    match = _ANSWERED.fullmatch(entry["conversations"][1]["value"])
    assert match  # read_entries has looked
    return match[1]


def count_levels(entries: Sequence[Entry]) -> dict[str, int]:
    """How many entries have each level, the best first, and after them every other word."""
    found = Counter(map(level_in, entries))
    return {word: found.pop(word, 0) for word in LEVELS} | dict(found)


def _fault(entry: Any) -> str | None:
    """What is wrong with an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        return "no 'image'; expected an object with the path of a picture or clip"
    talk = entry.get("conversations")
    turns = [turn if isinstance(turn, dict) else {} for turn in talk] if isinstance(talk, list) else []
    if [turn.get("from") for turn in turns] != ["human", "gpt"]:
        return "its 'conversations' are not a question of 'human' and an answer of 'gpt'"
    question, answer = (turn.get("value") for turn in turns)
    if not isinstance(question, str) or MARK not in question:
        return f"its question has no {MARK}"
    if not isinstance(answer, str) or not _ANSWERED.fullmatch(answer):
        return f"its answer is {answer!r}; expected one such as 'The quality of the image is good.'"
    return None
