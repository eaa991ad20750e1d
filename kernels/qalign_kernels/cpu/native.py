"""The C++ kernels as one shared library: `load` finds and checks it, `build` compiles it when it is asked to.

    python -m qalign_kernels.cpu.native        # builds; needs g++ or c++ (or $CXX), for about a minute

The library holds a copy of the kernels for each instruction set, and the best one is chosen when it is loaded: AMX,
AVX512 with bfloat16, AVX512-VNNI, AVX-VNNI or AVX2; on ARM, NEON with bfloat16, with i8mm or with dotprod; else plain
C++. What the user has built lies in the user's cache folder, under a name made from its sources. Where there is none,
the package's library is loaded: wheels for Linux have one. No library is loaded that description.py objects to.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

from qalign_kernels.cache_folder import cache_folder
from qalign_kernels.cpu.description import REFUSED, objection, read_description
from qalign_kernels.cpu.sources import SLOW, BuildError, are_here, fingerprint, instruction_sets

__all__ = ["BuildError", "build", "chosen", "describe", "instruction_sets", "is_built", "library_path", "load"]
PREBUILT = Path(__file__).with_name("prebuilt") / "kernels.so"


class _Found(NamedTuple):
    library: ctypes.CDLL | None
    path: Path | None
    objections: tuple[str, ...]  # to the libraries that come before it


def library_path() -> Path:
    """The path of the library that this user builds of these sources, built or not.

    Raises BuildError for a user without a home folder, and where the sources are not here.
    """
    if not are_here():
        raise BuildError("the C++ sources are not here; an installed package has them")
    try:
        return cache_folder() / f"kernels-{fingerprint()}.so"
    except RuntimeError as error:
        raise BuildError("this user has no home folder to keep the kernels in: set XDG_CACHE_HOME") from error


def build(path: Path | None = None) -> Path:
    """Compiles into a path, by default `library_path`, and returns it.

    A file that is there is kept, unless there is an objection to it. Raises BuildError.
    """
    from qalign_kernels.cpu import building

    return building.build(path or library_path())


def is_built() -> bool:
    """Whether this user has built the library of these sources."""
    try:
        return os.path.exists(library_path())  # noqa: PTH110 (False where the folder may not be entered)
    except BuildError:
        return False


def load(path: Path | None = None) -> ctypes.CDLL | None:
    """The library at a path, by default the user's own or else the package's; None where none may be loaded here."""
    return _find(path).library


def chosen(path: Path | None = None) -> str | None:
    """The name of the instruction set that this CPU computes with, or None where `load` gives no library."""
    library = load(path)
    if library is None:
        return None
    # a table begins with its name
    table = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_char_p), ctypes.c_char_p)(("qk_table", library))
    return (table(None)[0] or b"").decode()


def describe(path: Path | None = None) -> str:
    """In words for people: what computes and from which file, or why nothing does; and each objection to a library."""
    name, found = chosen(path), _find(path)
    if name is None:
        return "; ".join([*(found.objections or ["not built"]), "`qalign-fast build` compiles them"])
    slow = " (slow: this CPU has no vector instructions that the kernels know)" if name == SLOW else ""
    return "; ".join([f"native {name}{slow}, from {found.path}", *found.objections])


@cache
def _find(path: Path | None) -> _Found:
    objections: list[str] = []
    for place in _places() if path is None else [path]:
        if os.path.exists(place):  # noqa: PTH110
            opened = _open(place)
            if isinstance(opened, ctypes.CDLL):
                return _Found(opened, place, tuple(objections))
            objections.append(opened)
            if opened.startswith(REFUSED):  # no library should ever be so: whoever scores slowly must hear of it
                warnings.warn(f"C++ kernels {opened}", RuntimeWarning, stacklevel=3)
    return _Found(None, None, tuple(objections))


def _places() -> list[Path]:
    return [library_path(), PREBUILT] if is_built() else [PREBUILT]


def _open(path: Path) -> ctypes.CDLL | str:
    """The library, or the objection to it. What it says of itself is asked first of all."""
    if reason := objection(path):
        return reason
    try:
        library = ctypes.CDLL(str(path))
        sources = ctypes.CFUNCTYPE(ctypes.c_char_p)(("qk_sources", library))()
    except (OSError, AttributeError) as error:
        return f"{REFUSED}: {path} cannot be loaded: {error}"
    said = read_description(path)
    if said is None or sources.decode() != said["sources"]:
        return f"{REFUSED}: {path} says of itself that it was compiled from other sources than its description says"
    return library


if __name__ == "__main__":
    print(build())
