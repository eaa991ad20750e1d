"""The ids that prompts.py composes equal the published ones, which are spelled out here."""

from __future__ import annotations

import pytest

from qalign_fast.families.mplug_owl2.prompts import TASKS, prompt

ASK = [1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278]
ANSWER = [319, 1799, 9047, 13566, 29901, 450, 263, 342, 9188, 1199, 310, 278, 1967, 338]
EXPECTED = {
    ("quality", "image"): (
        [*ASK, 11029, 310, 445, 1967, 29973, 13],
        [29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338],
    ),
    ("aesthetics", "video"): (
        [*ASK, 263, 342, 9188, 1199, 310, 445, 4863, 29973, 13],
        [29871, 13, 22933, 9047, 13566, 29901, 450, 263, 342, 9188, 1199, 310, 278, 4863, 338],
    ),
    ("aesthetic", "image"): (
        [*ASK, 263, 342, 29882, 7492, 310, 445, 1967, 29973, 13],
        [29871, 13, 22933, 9047, 13566, 29901, 450, 263, 342, 29882, 7492, 310, 278, 1967, 338],
    ),
    ("quality-paper", "image"): (
        [*ASK, 11029, 310, 445, 1967, 29973, 13],
        [29871, 319, 1799, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338],
    ),
    ("aesthetics-paper", "image"): (
        [1, 3148, 1001, 29901, 29871],
        [*ASK[4:], 263, 342, 9188, 1199, 310, 445, 1967, 29973, *ANSWER],
    ),
}


@pytest.mark.parametrize(("task", "medium"), list(EXPECTED))
def test_prompts_have_the_familys_ids(task: str, medium: str) -> None:
    p = prompt(task, medium)
    assert ([*p.prefix], [*p.suffix]) == EXPECTED[task, medium]


def test_a_video_prompt_differs_in_one_word() -> None:
    for task in TASKS:
        image, video = prompt(task, "image"), prompt(task, "video")
        swapped = [4863 if i == 1967 else i for i in image.prefix + image.suffix]
        assert swapped == [*video.prefix, *video.suffix]
