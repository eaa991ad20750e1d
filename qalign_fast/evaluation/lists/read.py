"""A file of labels in, a `LabelList` out. What the file is, its content says, never its name."""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path, PurePosixPath

from qalign_fast.errors import ListError, one_line
from qalign_fast.evaluation.lists.checks import LIVE_NAME, oddities
from qalign_fast.evaluation.lists.direction import find_direction, inverted_words
from qalign_fast.evaluation.lists.entries import KnownList, LabelList, Parsed
from qalign_fast.evaluation.lists.json_lists import parse_json
from qalign_fast.evaluation.lists.known import find_known, find_like
from qalign_fast.evaluation.lists.matlab import parse_mat
from qalign_fast.evaluation.lists.spreadsheets import parse_xlsx
from qalign_fast.evaluation.lists.tables import parse_table, read_csv
from qalign_fast.evaluation.lists.text_lists import parse_lines
from qalign_fast.records import printable
from qalign_fast.sources import CLIP_SUFFIXES

MEDIA = ("image", "video")
_CLIPS = CLIP_SUFFIXES | {".yuv"}


def read_list(
    path: str | Path,
    *,
    lower_better: bool | None = None,
    medium: str | None = None,
    column: str | None = None,
    split: str | None = None,
) -> LabelList:
    """A list of labels in any form of docs/evaluation_lists.md.

    lower_better: None is the known list's direction, or the form's, or what names and labels tell, else False.
    medium: "image" or "video"; None is the known list's, or what names end in.
    column: the column of the labels, where a table has several.
    split: which part of a table: "test", "all", a column of splits, or COLUMN=VALUE.

    Raises ListError with the file, the entry and what was expected; MissingExtraError where a package is needed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        parsed = _parse(path, data, column, split)
        if not parsed.entries:
            raise ListError("it has no entries")
        return _describe(path, hashlib.sha256(data).hexdigest(), parsed, lower_better, medium)
    except OSError as error:
        raise ListError(f"{path}: {error.strerror or one_line(error)}") from error
    except ListError as error:
        raise ListError(f"{path}: {printable(str(error))}") from error


def _parse(path: Path, data: bytes, column: str | None, split: str | None) -> Parsed:
    if data.startswith(b"PK\x03\x04"):
        return parse_xlsx(data, column, split)
    if data.startswith(b"MATLAB ") or path.suffix.casefold() == ".mat":
        if column is not None:
            raise ListError(f"column {column!r}: a .mat file has no columns to choose from")
        return parse_mat(path, split)
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ListError("its text is UTF-16; save it as UTF-8")
    if b"\0" in data:
        raise ListError("it is no text; expected JSON, CSV, lines of labels, .xlsx or .mat")
    # names that are not UTF-8 come out as the file system has them
    text = data.decode("utf-8-sig", "surrogateescape")
    if text.lstrip().startswith(("[", "{")):
        parsed = parse_json(text, column)
    elif (lines := parse_lines(text, column)) is not None:
        parsed = lines
    else:
        return parse_table(read_csv(text), column, split)
    if split is not None:
        raise ListError(f"split {split!r}: lists of the form {parsed.form} have no splits")
    return parsed


def _describe(path: Path, sha256: str, parsed: Parsed, lower_better: bool | None, medium: str | None) -> LabelList:
    same_bytes = find_known(sha256)
    known = same_bytes if parsed.usual else None
    like = None if known else same_bytes or find_like(parsed)
    direction, notes = _direction(parsed, known, lower_better)
    words = inverted_words(parsed.words, direction)
    return LabelList(
        path=path,
        name=known.name if known else path.stem,
        sha256=sha256,
        form=parsed.form,
        entries=parsed.entries,
        medium=_medium(parsed, known, medium),
        task=known.task if known else parsed.task or (like.task if like else None),
        lower_better=direction,
        known=known,
        looks_like=like,
        notes=(*parsed.notes, *oddities(parsed.entries), *notes, *([words] if words else [])),
    )


def _direction(parsed: Parsed, known: KnownList | None, wish: bool | None) -> tuple[bool, list[str]]:
    """Whether lower is better, and notes. A wish may contradict a form's rule, but not a known list."""
    says = {True: "lower is better", False: "higher is better"}
    if known is not None:
        if wish not in (None, known.lower_better):
            raise ListError(
                f"it is {known.title}, where {says[known.lower_better]}; lower_better={wish} contradicts it"
            )
        return known.lower_better, []
    rule = parsed.lower_better
    if parsed.form == "pyiqa" and all(LIVE_NAME.fullmatch(entry.name) for entry in parsed.entries):
        rule = True  # its table of LIVE calls DMOS "mos"
    if wish is not None:
        other = rule is not None and rule != wish
        return wish, [f"{says[wish]}, as was asked; in the form {parsed.form} {says[not wish]}"] if other else []
    if rule is not None:
        return rule, []
    found, note = find_direction(parsed.entries, parsed.label)
    return found, [note] if note else []


def _medium(parsed: Parsed, known: KnownList | None, wish: str | None) -> str:
    if wish not in (None, *MEDIA):
        raise ListError(f"medium {wish!r}; expected one of: {', '.join(MEDIA)}")
    if known is not None:
        if wish not in (None, known.medium):
            raise ListError(f"it is {known.title}, a list of {known.medium}s; medium={wish} contradicts it")
        return known.medium
    if wish is not None:
        return wish
    clips = sum(PurePosixPath(entry.name).suffix.casefold() in _CLIPS for entry in parsed.entries)
    if 0 < clips < len(parsed.entries):
        raise ListError(f"{clips} of {len(parsed.entries)} names are clips'; say which medium: image or video")
    return "video" if clips else "image"
