"""One rule for where caches lie, on all systems."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qalign_kernels.cache_folder import cache_folder


@pytest.mark.parametrize(
    ("system", "set_to", "expected"),
    [
        ("linux", "/caches", "/caches/qalign-fast"),
        ("darwin", "/caches", "/caches/qalign-fast"),
        ("linux", "", "/home/me/.cache/qalign-fast"),
        ("linux", "caches", "/home/me/.cache/qalign-fast"),  # the specification: a relative path is ignored
        ("darwin", "", "/home/me/Library/Caches/qalign-fast"),
        ("win32", "", "/local/qalign-fast"),
    ],
)
def test_the_folder_by_system(system: str, set_to: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setenv("XDG_CACHE_HOME", set_to)
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder() == Path(expected)
