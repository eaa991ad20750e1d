"""Two thousand ways to damage an artifact, drawn at random. Each raises an ArtifactError that names the file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_fast import ArtifactError, Scorer
from qalign_fast.artifact.manifest import MANIFEST
from support.artifacts import ODD_VALUES, change_manifest, places
from support.goldens import Golden

COUNT = 2000
LISTED = ("onnx/decoder_model.onnx", "onnx/vision_encoder.onnx", "preprocessor_config.json", "prompts.safetensors")
FILES = (MANIFEST, *LISTED)
ODD_PATHS = (
    *"../x onnx/../../x /etc/passwd //x C:x C:/x a\\b ..\\x . ./x onnx//x onnx/ ~/x x/. a:b onnx -x .x ü".split(),
    *("", " ", "\0", "\ud800", "a\nb", "x" * 300, "x/" * 2000 + "x"),
)


class Damage:
    """An artifact to damage, a sound one, and random numbers. Each damage returns the names that an error may have."""

    def __init__(self, work: Path, other: Path, rng: np.random.Generator) -> None:
        self.work, self.other, self.rng = work, other, rng

    def pick(self, options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def file(self, names: tuple[str, ...] = FILES) -> tuple[str, Path]:
        name = self.pick(names)
        return name, self.work / name

    def flipped_bits(self) -> tuple[str, ...]:
        name, path = self.file()
        data = bytearray(path.read_bytes())
        for at in self.rng.choice(len(data), self.rng.integers(1, 4), replace=False):
            data[at] ^= 1 << self.rng.integers(8)
        path.write_bytes(data)
        return (name,)

    def flipped_bit_of_the_manifest(self) -> tuple[str, ...]:
        data = bytearray((self.work / MANIFEST).read_bytes())
        data[self.rng.integers(len(data))] ^= 1 << self.rng.integers(8)
        (self.work / MANIFEST).write_bytes(data)
        return (MANIFEST,)

    def truncated(self) -> tuple[str, ...]:
        name, path = self.file()
        os.truncate(path, self.pick([0, 1, path.stat().st_size - 1, self.rng.integers(path.stat().st_size)]))
        return (name,)

    def extended(self) -> tuple[str, ...]:
        name, path = self.file()
        with path.open("ab") as file:
            file.write(self.pick([b"\0", b"\n", b" ", b"{}", self.rng.bytes(5000)]))
        return (name,)

    def overwritten(self) -> tuple[str, ...]:
        name, path = self.file()
        data = path.read_bytes()
        start, length = self.rng.integers(len(data)), self.rng.integers(1, 5000)
        length = min(length, len(data) - start)
        new = self.pick([self.rng.bytes(length), bytes(length), b"\xff" * length])
        if new == data[start : start + length]:
            new = bytes(byte ^ 1 for byte in new)
        path.write_bytes(data[:start] + new + data[start + length :])
        return (name,)

    def swapped(self) -> tuple[str, ...]:
        first, second = self.rng.choice(FILES, 2, replace=False)
        one, two = self.work / first, self.work / second
        data = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(data)
        return (str(first), str(second))

    def of_another_model(self) -> tuple[str, ...]:
        name, path = self.file(tuple(f for f in FILES if f != "preprocessor_config.json"))  # which is the same in both
        shutil.copy(self.other / name, path)
        return FILES if name == MANIFEST else (name,)

    def deleted(self) -> tuple[str, ...]:
        name, path = self.file((*FILES, "onnx"))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return (name,)

    def not_a_file(self) -> tuple[str, ...]:
        name, path = self.file()
        path.unlink()
        self.pick([Path.mkdir, os.mkfifo])(path)
        return (name,)

    def linked(self) -> tuple[str, ...]:
        name, path = self.file((*FILES, "onnx"))
        sound = self.work.parent / "sound" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        targets = (sound, os.path.relpath(sound, path.parent), path, "missing", ".", "/dev/zero", "/dev/null", "/")
        path.symlink_to(self.pick(targets))
        return (name,)

    def unreadable(self) -> tuple[str, ...]:
        name, path = self.file((*FILES, "onnx", "."))
        path.chmod(0)
        return (MANIFEST,) if name == "." else (name,)

    def field(self) -> tuple[str, ...]:
        """Changes or removes any value of the manifest. Its seal stays as it was."""
        content = json.loads((self.work / MANIFEST).read_text())
        holder, key = self.pick(list(places(content)))
        odd = self.pick([v for v in ODD_VALUES if v != holder[key] or type(v) is not type(holder[key])])
        holder[key] = odd
        if self.rng.random() < 0.2:
            del holder[key]
        (self.work / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
        return (MANIFEST,)

    def odd_path(self) -> tuple[str, ...]:
        """Makes a path in the manifest lead elsewhere, with a valid seal."""
        content, odd = json.loads((self.work / MANIFEST).read_text()), self.pick(ODD_PATHS)
        if self.rng.random() < 0.5:
            content["engines"]["onnx"][self.pick(["encode", "decode"])] = odd
        else:
            content["files"][odd] = content["files"].pop(self.pick(LISTED))
        change_manifest(self.work, **content)
        return (MANIFEST, "onnx")  # a folder is an odd path of its own

    def odd_entry(self) -> tuple[str, ...]:
        """Puts a wrong hash or size into the manifest, or leaves a file out, with a valid seal."""
        content, name = json.loads((self.work / MANIFEST).read_text()), self.file(LISTED)[0]
        entry = content["files"][name]
        wrong = {"sha256": self.pick(["", "0" * 64, entry["sha256"].upper(), entry["sha256"][1:]])}
        entry |= self.pick([wrong, {"bytes": entry["bytes"] + self.pick([-1, 1, 0.5, 1 << 70])}, {"bytes": None}])
        if name != "preprocessor_config.json" and self.rng.random() < 0.2:  # which no engine reads
            del content["files"][name]
        change_manifest(self.work, **content)
        return (MANIFEST, name)


KINDS = [kind for name, kind in vars(Damage).items() if name not in ("pick", "file") and not name.startswith("_")]


@contextlib.contextmanager
def without_roots_rights() -> Iterator[None]:
    """Root can read files that nobody may read."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder outside pytest's, which other users cannot look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def judge(work: Path, allowed: tuple[str, ...]) -> str | None:
    """What is wrong with the way in which the artifact was refused."""
    try:
        with without_roots_rights():
            Scorer.load(work)
    except ArtifactError as error:
        return None if any(name in str(error) for name in allowed) else f"names another file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def test_damage_is_always_refused_by_name(goldens: dict[str, Golden], folder: Path) -> None:
    rng = np.random.default_rng(1)
    work, sound = folder / "work", folder / "sound"
    shutil.copytree(goldens["narrow-112"].artifact, sound)
    Scorer.load(sound)
    kinds: Counter[str] = Counter()
    wrong = []
    for i in range(COUNT):
        shutil.copytree(sound, work)
        kind: Callable[[Damage], tuple[str, ...]] = KINDS[i % len(KINDS)]
        allowed = kind(Damage(work, goldens["outlier-112"].artifact, rng))
        if problem := judge(work, allowed):
            wrong.append(f"{i}, {kind.__name__} of {allowed}: {problem}")
        kinds[kind.__name__] += 1
        make_removable(work)
        shutil.rmtree(work)
    assert wrong == []
    assert kinds.total() == COUNT
    assert min(kinds.values()) >= COUNT // len(KINDS) >= 100


def make_removable(work: Path) -> None:
    for path in (work, work / "onnx"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
