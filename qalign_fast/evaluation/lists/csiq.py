"""How CSIQ's tables name a distorted picture, and where its archive has it: below dst_imgs."""

from __future__ import annotations

from typing import Any

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists.checks import shown

# the name of a distortion in the tables -> folder, and the word in names of files
CSIQ_FOLDERS = {
    "noise": ("awgn", "AWGN"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}


def picture_of(reference: Any, distortion: Any, level: Any, place: str) -> str:
    """1600, "noise", 1 -> awgn/1600.AWGN.1.png. Raises ListError for another distortion."""
    kind = str(distortion).strip()
    if kind not in CSIQ_FOLDERS:
        raise ListError(f"{place}: distortion {shown(distortion)}; expected one of: {', '.join(CSIQ_FOLDERS)}")
    folder, word = CSIQ_FOLDERS[kind]
    return f"{folder}/{_whole(reference)}.{word}.{_whole(level)}.png"


def _whole(value: Any) -> str:
    """1600.0 of a spreadsheet as 1600."""
    return str(value).strip().removesuffix(".0")
