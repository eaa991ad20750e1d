"""What a file says of one entry in; its name, label and source unit out, or an error that names the entry."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists.entries import Labelled

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LARGEST = 1e100  # of a label or a score; sums of squares of it are finite
_DRIVE = re.compile(r"[A-Za-z]:")

CSIQ_NAME = re.compile(r"(?:.*/)?([^/.]+)\.(?:AWGN|BLUR|contrast|fnoise|JPEG|jpeg2000)\.\d\.png")  # 1600.AWGN.1.png
LIVE_NAME = re.compile(r"(?:.*/)?(?:jp2k|jpeg|wn|gblur|fastfading)/img\d+(?:\.bmp)?")  # tells no reference
# names of data sets whose entries depend on each other, and the part of the name that says on what
_UNITS = (
    re.compile(r"(?:.*/)?([Ii]\d\d)_\d\d_\d\d?\.(?:png|bmp)", re.IGNORECASE),  # KADID-10k, TID2013: I01_01_01.png
    CSIQ_NAME,
    # AGIQA-3K: the number of the prompt
    re.compile(r"(?:.*/)?(?:AttnGAN|DALLE2|glide|midjourney|sd1\.5|xl2\.2)_[a-z]+_(\d{3})\.(?:jpg|png)"),
)


def labelled(name: Any, label: Any, place: str, unit: str | None = None) -> Labelled:
    """The entry. `place` is how errors call it: "entry 3", "line 7". Raises ListError."""
    checked = name_of(name, place)
    return Labelled(checked, label_of(label, f"{place} ({checked})"), unit or unit_of(checked))


def name_of(value: Any, place: str) -> str:
    """A path below the root: stripped, with forward slashes. Raises ListError for one that would leave the root."""
    if not isinstance(value, str) or not (name := value.strip().replace("\\", "/")):
        raise ListError(f"{place}: its name is {shown(value)}; expected the path of a picture or clip below the root")
    if name.startswith("/") or _DRIVE.match(name) or ".." in name.split("/") or "\0" in name:
        raise ListError(f"{place}: its name {shown(value)} leaves the root; expected a path below it")
    return name


def label_of(value: Any, place: str) -> float:
    """A finite number of which sums can be made, or text that is one but for blanks around it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        if abs(number) <= LARGEST:
            return number
    raise ListError(f"{place}: its label is {shown(value)}; expected a finite number")


def shown(value: Any) -> str:
    """The value for an error's text, and no more of it than helps."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(names: Iterable[Any]) -> str:
    """The names for an error's text, at most the first 12."""
    texts = [shown(name).strip("'") for name in names]
    return (", ".join(texts[:12]) or "nothing") + (f" and {len(texts) - 12} more" if len(texts) > 12 else "")


def unit_of(name: str) -> str:
    """The reference picture or prompt that the name tells; else the name."""
    for pattern in _UNITS:
        if match := pattern.fullmatch(name):
            return match[1].upper() if pattern is _UNITS[0] else match[1]
    return name


def oddities(entries: Sequence[Labelled]) -> list[str]:
    """What is odd about entries that can all be used."""
    labels: dict[str, set[float]] = {}
    counts = Counter(entry.name for entry in entries)
    for entry in entries:
        labels.setdefault(entry.name, set()).add(entry.label)
    notes = []
    if twice := [name for name, count in counts.items() if count > 1]:
        other = sum(len(labels[name]) > 1 for name in twice)
        notes.append(f"{len(twice)} names come more than once, {other} of them with different labels")
    if len(entries) > 1 and len({entry.label for entry in entries}) == 1:
        notes.append(f"all {len(entries)} labels are {entries[0].label:g}: nothing agrees or disagrees with them")
    unknown = sum(bool(LIVE_NAME.fullmatch(entry.name)) and entry.unit == entry.name for entry in entries)
    if unknown:
        notes.append(f"{unknown} names do not tell the reference picture, so each is a unit: intervals are too narrow")
        if zeros := sum(entry.label == 0 for entry in entries):
            notes.append(f"{zeros} labels are 0: in LIVE these are the references")
    return notes
