"""A task and a medium in, token ids out: what stands before and after the visual tokens.

The ids are fixed, so that no tokenizer runs. The text is "USER: How would you rate the {task} of this {medium}?\\n",
the visual tokens, "\\nASSISTANT: The {task} of the {medium} is". Each part is tokenized as a string of its own. The
first begins with BOS, the second with the bare piece 29871.

Source: upstream's q_align/evaluate/scorer.py.
"""

from __future__ import annotations

from qalign_fast.families.prompt import MEDIA, Prompt

_USER = (1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278)  # <s>USER: How would you rate the
_OF_THIS = (310, 445)
_ASK = (29973, 13)  # ?\n
_ANSWER = (29871, 13, 22933, 9047, 13566, 29901, 450)  # \nASSISTANT: The
_PAPER_ANSWER = (29871, 319, 1799, 9047, 13566, 29901, 450)  # " ASSISTANT: The", on the image's own line
_OF_THE = (310, 278)
_IS = (338,)
_MEDIUM = {"image": (1967,), "video": (4863,)}

# task -> (the task's words, how the answer begins)
_TASKS = {
    "quality": ((11029,), _ANSWER),
    "aesthetics": ((263, 342, 9188, 1199), _ANSWER),
    "aesthetic": ((263, 342, 29882, 7492), _ANSWER),  # pyiqa's singular
    "quality-paper": ((11029,), _PAPER_ANSWER),  # the paper's evaluation scripts: its published figures
}
TASKS = tuple(_TASKS)
LEVEL_IDS = (15129, 1781, 6534, 6460, 4319)  # the tokens of the level words, excellent first


def prompt(task: str, medium: str = "image") -> Prompt:
    """The prompt of a task in TASKS for a medium in MEDIA. Raises KeyError for others."""
    words, answer = _TASKS[task]
    what = _MEDIUM[medium]
    return Prompt(
        task=task,
        medium=medium,
        prefix=_USER + words + _OF_THIS + what + _ASK,
        suffix=answer + words + _OF_THE + what + _IS,
    )


ALL_PROMPTS = tuple(prompt(task, medium) for task in TASKS for medium in MEDIA)
