"""A file that was hashed once is not hashed again until an ordinary write may have changed it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qalign_fast import ArtifactError, Scorer
from qalign_fast.artifact import trusted_files
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.artifact.trusted_files import matches
from support.goldens import Golden

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx_data"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that remembers hashes. Files of any size are remembered, and the clock is ten seconds ahead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trusted_files, "LARGE", 0)
    now = time.time_ns
    monkeypatch.setattr(trusted_files.time, "time_ns", lambda: now() + 10_000_000_000)
    return tmp_path / "cache/qalign-fast/verified.json"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed."""
    names: list[str] = []
    digest = hashlib.file_digest

    def counted(file, *rest):
        names.append(Path(file.name).name)
        return digest(file, *rest)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def test_an_unchanged_file_is_hashed_once(file: Path, memory: Path, hashed: list[str]) -> None:
    assert matches(file, SHA256)
    assert matches(file, SHA256, remembered=True)
    assert len(hashed) == 1
    assert not matches(file, "0" * 64, remembered=True)  # the same file, but another hash is asked for
    assert matches(file, SHA256)  # this check trusts nothing that is remembered
    assert len(hashed) == 3
    assert [path.name for path in memory.parent.iterdir()] == [memory.name]
    assert memory.stat().st_mode & 0o077 == 0


def rewrite(path: Path) -> None:
    """Writes a file in place and sets its modification time back."""
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"W" + CONTENT[1:])
    shutil.copystat(path, other)
    other.replace(path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"W" + CONTENT[1:])
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("change", [rewrite, replace, grow, link])
def test_a_changed_file_is_noticed(file: Path, memory: Path, change: Callable[[Path], None]) -> None:
    assert matches(file, SHA256)
    assert memory.exists()
    change(file)
    assert not matches(file, SHA256, remembered=True)


def test_a_file_changed_a_moment_ago_is_not_remembered(
    file: Path, memory: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = max(file.stat().st_mtime_ns, file.stat().st_ctime_ns)
    for age, remembers in ((0, False), (1_900_000_000, False), (-5_000_000_000, False), (2_000_000_000, True)):
        monkeypatch.setattr(trusted_files.time, "time_ns", lambda age=age: changed + age)
        assert matches(file, SHA256)
        assert memory.exists() is remembers


def test_small_files_are_always_hashed_and_leave_no_trace(
    file: Path, memory: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trusted_files, "LARGE", len(CONTENT) + 1)
    assert matches(file, SHA256, remembered=True) and matches(file, SHA256, remembered=True)
    assert len(hashed) == 2
    assert not memory.parent.parent.exists()


def test_a_file_that_does_not_match_is_not_remembered(file: Path, memory: Path) -> None:
    assert not matches(file, "0" * 64)
    assert not memory.exists()


def entry(path: Path) -> None:
    path.write_text(json.dumps({str(path.parents[2] / "model.onnx_data"): ["x"], "other": {}}))


@pytest.mark.parametrize(
    "spoil",
    [
        entry,
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("/dev/zero"),
        *(
            lambda path, data=data: path.write_bytes(data)
            for data in (b"", b"\xff", b"[]", b"null", b"{", b"[" * 100_000, b" " * (2 << 20), b'{"a": 1e999}')
        ),
    ],
)
def test_a_memory_that_cannot_be_read_is_not_used(file: Path, memory: Path, hashed: list[str], spoil) -> None:
    memory.parent.mkdir(parents=True)
    spoil(memory)
    assert matches(file, SHA256, remembered=True)
    assert hashed == [file.name]


def test_a_memory_that_cannot_be_written_is_not_used(
    file: Path, memory: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.parents[1].write_text("a file where the folder would be")
    assert matches(file, SHA256, remembered=True) and matches(file, SHA256, remembered=True)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts as not set
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert matches(file, SHA256, remembered=True)
    assert len(hashed) == 3


def test_the_memory_is_bounded_and_has_a_file_once(file: Path, memory: Path) -> None:
    for i in range(trusted_files._ENTRIES + 10):
        trusted_files._remember(f"/some/file/{i}", [i])
    trusted_files._remember("/some/file/20", ["new"])
    found = json.loads(memory.read_text())
    assert len(found) == trusted_files._ENTRIES
    assert "/some/file/9" not in found
    assert list(found.items())[-1] == ("/some/file/20", ["new"])
    assert matches(file, SHA256)
    assert len(json.loads(memory.read_text())) == trusted_files._ENTRIES


def test_loading_remembers_and_verifying_does_not(
    narrow: Golden, tmp_path: Path, memory: Path, hashed: list[str]
) -> None:
    artifact = shutil.copytree(narrow.artifact, tmp_path / "artifact")
    files = len(open_artifact(artifact).manifest.files)
    for _ in range(2):
        Scorer.load(artifact)
    assert len(hashed) == files
    open_artifact(artifact)
    assert len(hashed) == 2 * files
    rewrite(artifact / "prompts.safetensors")
    with pytest.raises(ArtifactError, match=r"prompts\.safetensors"):
        Scorer.load(artifact)
