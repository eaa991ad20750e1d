"""A .mat file of an archive in, a parsed list out: LIVE in the Wild (AllMOS_release.mat) and LIVE release 2 (dmos.mat).

Both need the file of names that the archive has beside them: AllImages_release.mat, refnames_all.mat.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from qalign_fast.errors import ListError, one_line
from qalign_fast.evaluation.lists.checks import labelled, listed, shown
from qalign_fast.evaluation.lists.entries import Labelled, Parsed
from qalign_fast.evaluation.lists.optional import load_optional
from qalign_fast.evaluation.lists.splits import ALL, TEST

_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}  # in the order of LIVE's arrays
_MOS, _IMAGES = "AllMOS_release", "AllImages_release"
# what scipy raises for damaged files, UnboundLocalError included
_DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    EOFError,
    NotImplementedError,
    NameError,
    MemoryError,
    zlib.error,
)
_TRAINING = 7  # LIVE in the Wild's first pictures trained its raters


def parse_mat(path: Path, split: str | None) -> Parsed:
    """`split`: "all" keeps what is left out otherwise. Raises ListError, and MissingExtraError without scipy."""
    if split not in (None, ALL, TEST):
        raise ListError(f"split {split!r}: expected {TEST} or {ALL}")
    variables = _load(path)
    keep_all = split == ALL
    if _MOS in variables or _IMAGES in variables:
        return _parse_wild(path, keep_all)
    if label := next((name for name in ("dmos", "dmos_new") if name in variables and "orgs" in variables), None):
        return _parse_release2(path, variables, label, keep_all)
    names = listed(name for name in variables if not name.startswith("__"))
    raise ListError(f"its variables are {names}; expected {_MOS} (LIVE in the Wild), or dmos and orgs (LIVE)")


def _parse_wild(path: Path, keep_all: bool) -> Parsed:
    """Names below Images/: the training pictures lie in trainingImages/ there."""
    names = _texts(_beside(path, _IMAGES))
    scores = _numbers(_beside(path, _MOS))
    if len(names) != len(scores):
        raise ListError(f"{len(scores)} labels for {len(names)} names; expected as many")
    paths = [f"trainingImages/{name}" if i < _TRAINING else name for i, name in enumerate(names)]
    entries = [labelled(name, score, f"entry {i}") for i, (name, score) in enumerate(zip(paths, scores), 1)]
    if keep_all:
        return Parsed("livec", tuple(entries), False, "quality", usual=False)
    note = f"the first {min(_TRAINING, len(entries))} pictures, which trained the raters, are left out"
    return Parsed("livec", tuple(entries[_TRAINING:]), False, "quality", notes=(note,))


def _parse_release2(path: Path, variables: dict[str, Any], label: str, keep_all: bool) -> Parsed:
    scores, is_reference = _numbers(variables[label]), _numbers(variables["orgs"])
    names = [f"{folder}/img{i}.bmp" for folder, count in _FOLDERS.items() for i in range(1, count + 1)]
    if not len(scores) == len(is_reference) == len(names):
        has = f"{len(scores)} labels and {len(is_reference)} marks of references"
        raise ListError(f"{has}; expected {len(names)} of both, as folders of LIVE release 2 hold")
    file = path.with_name("refnames_all.mat")
    references: Sequence[str | None] = _texts(_beside(path, "refnames_all")) if file.exists() else [None] * len(names)
    if len(references) != len(names):
        raise ListError(f"{file.name} has {len(references)} names; expected {len(names)}")
    rows = zip(names, scores, references, is_reference, strict=True)
    entries = [
        (labelled(name, score, f"entry {i}", unit and unit.rpartition(".")[0]), bool(original))
        for i, (name, score, unit, original) in enumerate(rows, 1)
    ]
    left: list[Labelled] = [entry for entry, original in entries if keep_all or not original]
    note = f"{len(entries) - len(left)} references are left out"
    return Parsed("live", tuple(left), True, "quality", usual=not keep_all, notes=() if keep_all else (note,))


def _beside(path: Path, variable: str) -> Any:
    """The variable from the file of its name in the same folder."""
    file = path.with_name(f"{variable}.mat")
    if not file.exists():
        raise ListError(f"it needs {file.name} beside it, as in the archive; there is none")
    variables = _load(file)
    if variable not in variables:
        raise ListError(f"{file.name} has no variable {variable}")
    return variables[variable]


def _load(path: Path) -> dict[str, Any]:
    io = load_optional("scipy.io", "MATLAB's files need")
    try:
        variables: dict[str, Any] = io.loadmat(path, appendmat=False)
    except (*_DAMAGED, io.matlab.MatReadError) as error:
        hint = "a file of MATLAB 7.3 is saved again with -v7"
        raise ListError(f"{path.name}: no .mat file that can be read ({one_line(error)}); {hint}") from error
    return variables


def _numbers(array: Any) -> list[float]:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise ListError(f"an array of numbers was expected, found {shown(array)}")
    return [float(value) for value in array.ravel()]


def _texts(cells: Any) -> list[str]:
    """A cell array of strings, which may be nested: scipy gives arrays of arrays."""
    flat = _flat(cells)
    if not all(isinstance(text, str) for text in flat):
        raise ListError("a cell array of names was expected")
    return [str(text) for text in flat]


def _flat(cell: Any) -> list[Any]:
    return list(chain.from_iterable(map(_flat, cell.ravel()))) if isinstance(cell, np.ndarray) else [cell]
