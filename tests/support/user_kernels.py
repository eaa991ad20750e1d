"""A cache folder of a user who has built the C++ kernels, for this process and those that it starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qalign_kernels.cpu import native
from qalign_kernels.cpu.description import described_in


@contextmanager
def user_kernels(library: Path, folder: Path) -> Iterator[Path]:
    """For as long as a block lasts, engines compute with the library: their scores do not depend on a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        place = native.library_path()
        place.parent.mkdir()
        shutil.copy(library, place)
        shutil.copy(described_in(library), described_in(place))
        native._find.cache_clear()
        yield folder
    native._find.cache_clear()
