"""What a list of labels is once it was read, and what is known of the lists that others published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Labelled:
    """One entry of a list.

    name: the picture's or clip's path below the root, as the list has it, with forward slashes.
    unit: the source unit by which a bootstrap draws: reference picture, source video or prompt; the name itself where
    entries do not depend on each other.
    """

    name: str
    label: float
    unit: str


@dataclass(frozen=True)
class Published:
    """What others report for a model on a list.

    protocol: "qalign", "deqa", "pyiqa" or "fastvqa". source: where the values are from, in words.
    """

    model: str
    protocol: str
    srcc: float
    plcc: float
    source: str


@dataclass(frozen=True)
class KnownList:
    """A list that others published.

    title: its name in tables.
    count: the entries that it has; 0 where no file of it could be had, and its count is not known.
    sha256: of the bytes of the files that hold it; empty where no file could be had.
    medium: "image" or "video". task: "quality" or "aesthetics".
    low, high: the range of its labels.
    note: what bites, in one sentence, or "".
    forms, names: how a file of the same kind is told: its form, and a pattern that its names match.
    """

    name: str
    title: str
    count: int
    sha256: tuple[str, ...]
    medium: str
    task: str
    lower_better: bool
    low: float
    high: float
    published: tuple[Published, ...]
    note: str
    forms: tuple[str, ...]
    names: str


@dataclass(frozen=True)
class LabelList:
    """A list of labels that was read.

    name: the known list's, else the file's name without its suffix. sha256: of the file's bytes.
    form: "qalign", "deqa", "pyiqa", "fastvqa", "table", or the name of the archive that the file is from.
    entries: in the file's order; a name that comes twice stays twice.
    task: None where neither the list nor its form tells it.
    known: the list that these bytes are. looks_like: a list of the same form and kind of names, where the bytes, the
    count or the chosen labels are others.
    notes: what was odd, counted, in plain words.
    """

    path: Path
    name: str
    sha256: str
    form: str
    entries: tuple[Labelled, ...]
    medium: str
    task: str | None
    lower_better: bool
    known: KnownList | None
    looks_like: KnownList | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Parsed:
    """A file's content, before it is compared with known lists.

    lower_better: the form's rule; None where it has none.
    usual: nothing was chosen that gives other entries or labels than the file gives by itself.
    label: the column of the labels, of tables. words: of lists that train, the level word of each entry and its label.
    """

    form: str
    entries: tuple[Labelled, ...]
    lower_better: bool | None = None
    task: str | None = None
    usual: bool = True
    notes: tuple[str, ...] = ()
    label: str = ""
    words: tuple[tuple[str, float], ...] = ()
