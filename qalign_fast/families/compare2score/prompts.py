"""The prompts of the family: each shows one of the model's five anchors, and asks how the second picture compares.

The text is "USER: ", the anchor, " ", the picture, " Compared with the first image, what is your quality rating for
second image? \\nASSISTANT: The quality of the second image is". Each part is tokenized as a string of its own.

Source: Compare2Score's q_align/evaluate/scorer.py.
"""

from __future__ import annotations

from qalign_fast.families.prompt import Anchor, Prompt

WORD_IDS = (11558, 2253, 2788, 15029, 20773)  # superior, better, similar, worse, inferior
ANCHORS = 5

_USER = (1, 3148, 1001, 29901, 29871)  # <s>USER:_
_BETWEEN = (259,)  # one space, after the one that the tokenizer puts before every string
_COMPARED = (29871, 3831, 1965, 411, 278, 937, 1967, 29892)
_WHAT = (825, 338, 596, 11029, 21700, 363, 1473, 1967, 29973, 29871, 13)
_ANSWER = (22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1473, 1967, 338)


def _prompt(number: int, parts: tuple[Prompt, ...] = ()) -> Prompt:
    return Prompt(
        task="quality",
        medium="image",
        prefix=_USER,
        suffix=_COMPARED + _WHAT + _ANSWER,
        part=f"anchor{number + 1}" if number else None,
        parts=parts,
        anchor=Anchor(number, _BETWEEN),
    )


# the first anchor's prompt has the others as its parts
PROMPTS = (_prompt(0, tuple(_prompt(number) for number in range(1, ANCHORS))),)
