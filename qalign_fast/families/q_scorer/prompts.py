"""The prompts of the family: OneAlign's question about quality, and the same with each score token after it."""

from __future__ import annotations

from dataclasses import replace

from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.prompt import Prompt

TOKENS = ("score5", "score4", "score3", "score2", "score1")  # the best first; they follow the 32000 of LLaMA
SCORE_IDS = (32004, 32003, 32002, 32001, 32000)


def _prompt() -> Prompt:
    asked = prompt("quality")
    answered = (
        replace(asked, suffix=(*asked.suffix, token), part=name) for name, token in zip(TOKENS, SCORE_IDS, strict=True)
    )
    return replace(asked, parts=tuple(answered))


PROMPTS = (_prompt(),)
