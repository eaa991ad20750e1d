"""A task and a medium in, token ids out: what stands before and after the visual tokens.

The ids are fixed, so that no tokenizer runs. The text is "USER: How would you rate the {task} of this {medium}?\\n",
the visual tokens, "\\nASSISTANT: The {task} of the {medium} is". Each part is tokenized as a string of its own. The
first begins with BOS, the second with the bare piece 29871. The tasks called -paper have the wording of the paper's
evaluation scripts; that of aesthetics puts the picture before the question.

Source: upstream's q_align/evaluate/scorer.py, iqa_eval.py, vqa_eval.py and iaa_eval.py.
"""

from __future__ import annotations

from qalign_fast.families.prompt import MEDIA, Prompt

_USER = (1, 3148, 1001, 29901)  # <s>USER:
_HOW = (1128, 723, 366, 6554, 278)  # How would you rate the
_OF_THIS = (310, 445)
_ASK = (29973,)  # ?
_LINE = (13,)  # \n
_BLANK = (29871,)
_ANSWER = (13, 22933, 9047, 13566, 29901, 450)  # \nASSISTANT: The
_PAPER_ANSWER = (319, 1799, 9047, 13566, 29901, 450)  # " ASSISTANT: The", on the same line
_OF_THE = (310, 278)
_IS = (338,)
_MEDIUM = {"image": (1967,), "video": (4863,)}

_QUALITY, _AESTHETICS = (11029,), (263, 342, 9188, 1199)
# task -> (the task's words, how the answer begins, whether the picture comes before the question)
_TASKS = {
    "quality": (_QUALITY, _ANSWER, False),
    "aesthetics": (_AESTHETICS, _ANSWER, False),
    "aesthetic": ((263, 342, 29882, 7492), _ANSWER, False),  # pyiqa's singular
    "quality-paper": (_QUALITY, _PAPER_ANSWER, False),  # the paper's evaluation scripts: its published figures
    "aesthetics-paper": (_AESTHETICS, _PAPER_ANSWER, True),
}
TASKS = tuple(_TASKS)
LEVEL_IDS = (15129, 1781, 6534, 6460, 4319)  # the tokens of the level words, excellent first


def prompt(task: str, medium: str = "image") -> Prompt:
    """The prompt of a task in TASKS for a medium in MEDIA. Raises KeyError for others."""
    words, answer, picture_first = _TASKS[task]
    what = _MEDIUM[medium]
    question, end = _HOW + words + _OF_THIS + what + _ASK, answer + words + _OF_THE + what + _IS
    if picture_first:
        return Prompt(task=task, medium=medium, prefix=_USER + _BLANK, suffix=question + end)
    return Prompt(task=task, medium=medium, prefix=_USER + question + _LINE, suffix=_BLANK + end)


ALL_PROMPTS = tuple(prompt(task, medium) for task in TASKS for medium in MEDIA)
