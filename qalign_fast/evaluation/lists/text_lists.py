"""Lines without a header in, a parsed list out: labels.txt of FAST-VQA and DOVER, AVA.txt, labels of CSIQ as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists.checks import label_of, labelled, shown
from qalign_fast.evaluation.lists.csiq import CSIQ_FOLDERS, picture_of
from qalign_fast.evaluation.lists.entries import Labelled, Parsed

Lines: TypeAlias = Sequence[tuple[int, str]]  # with their numbers

_NUMBER = r"[+-]?[\d.]+(?:[eE][+-]?\d+)?"
_FASTVQA = re.compile(rf"[^,].*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*")
_AVA = re.compile(r"\d+(\s+\d+){11,}\s*")
_CSIQ = re.compile(rf"\S+\.(?:AWGN|BLUR|contrast|fnoise|JPEG|jpeg2000)\.\d(?:\.png)?\s+{_NUMBER}\s*")
_COLUMNS = {"technical": 0, "aesthetic": 1, "overall": 2, "mos": 2}  # of MaxWell's three numbers


def parse_lines(text: str, column: str | None) -> Parsed | None:
    """None where the first line is of none of these forms. Raises ListError that names the line."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    first = lines[0][1].strip() if lines else ""
    parse: Callable[[Lines, str | None], Parsed]
    if _AVA.fullmatch(first):
        parse = _parse_ava
    elif _CSIQ.fullmatch(first) or (len(fields := first.split("\t")) == 6 and fields[2].strip() in CSIQ_FOLDERS):
        parse = _parse_csiq
    elif _FASTVQA.fullmatch(first):
        return _parse_fastvqa(lines, column)
    else:
        return None
    if column is not None:
        raise ListError(f"column {column!r}: this form has one label")
    return parse(lines, column)


def _parse_fastvqa(lines: Lines, column: str | None) -> Parsed:
    """`path, duration, fps, mos`; of MaxWell `path, technical, aesthetic, overall`. The path may have commas."""
    if column is not None and column.casefold() not in _COLUMNS:
        raise ListError(f"it has no column {column!r}; MaxWell's lists have: technical, aesthetic, overall")
    place = _COLUMNS[(column or "overall").casefold()]
    entries = []
    for number, line in lines:
        fields = [field.strip() for field in line.rsplit(",", 3)]
        if len(fields) != 4:
            raise ListError(f"line {number} has {len(fields)} fields; expected path, duration, fps, mos")
        for field in fields[1:]:
            label_of(field, f"line {number} ({fields[0]})")
        entries.append(labelled(fields[0], fields[1 + place], f"line {number}"))
    if place != 2 and not all(1 <= entry.label <= 5 for entry in entries):
        raise ListError(f"no column {column!r}: values are not on 1..5, so this is no list of MaxWell's")
    return Parsed("fastvqa", tuple(entries), usual=place == 2, task="aesthetics" if place == 1 else None)


def _parse_ava(lines: Lines, column: str | None) -> Parsed:
    """AVA.txt: index, id, votes for 1 .. 10, two tags, challenge. The label is the mean vote, sum(i c) / sum(c)."""
    entries = []
    for number, line in lines:
        fields = line.split()
        if len(fields) < 12 or not all(field.isdecimal() for field in fields):
            raise ListError(f"line {number} is {shown(line)}; expected whole numbers: index, id, ten votes, tags")
        votes = [int(field) for field in fields[2:12]]
        if not sum(votes):
            raise ListError(f"line {number} ({fields[1]}): it has no votes, so no mean")
        mean = sum(i * count for i, count in enumerate(votes, 1)) / sum(votes)
        entries.append(labelled(f"{fields[1]}.jpg", mean, f"line {number}"))
    return Parsed("ava", tuple(entries), lower_better=False, task="aesthetics")


def _parse_csiq(lines: Lines, column: str | None) -> Parsed:
    """`1600.AWGN.1.png 0.06`, or csiq.beta.txt's tabs: picture, index and name of the distortion, level, std, DMOS."""
    return Parsed("csiq", tuple(_csiq_entry(number, line) for number, line in lines), None, "quality", label="dmos")


def _csiq_entry(number: int, line: str) -> Labelled:
    place = f"line {number}"
    if len(fields := line.split("\t")) == 6:
        return labelled(picture_of(fields[0], fields[2], fields[3], place), fields[5], place)
    if len(words := line.split()) != 2:
        raise ListError(f"{place} is {shown(line)}; expected a picture and its DMOS")
    return labelled(words[0] if words[0].endswith(".png") else f"{words[0]}.png", words[1], place)
