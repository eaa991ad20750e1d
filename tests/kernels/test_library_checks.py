"""Which libraries of kernels are loaded: what a description says of one, and what is said of one that does not fit."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qalign_kernels.cpu import building, description, native
from qalign_kernels.cpu.sources import fingerprint, this_machine
from support.command_line import python

pytestmark = pytest.mark.filterwarnings(r"ignore:C\+\+ kernels refused:RuntimeWarning")
ELF_CLASS, ELF_KIND, ELF_MACHINE = 4, 16, 18  # where an ELF file says them
ODD = {"x86_64": 0xB7, "aarch64": 0x3E}  # each other's number


@pytest.fixture
def copied(library: Path, tmp_path: Path) -> Path:
    """A library, and its description, that a test may damage."""
    shutil.copyfile(description.described_in(library), tmp_path / "kernels.json")
    return Path(shutil.copyfile(library, tmp_path / "kernels.so"))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries cannot be opened."""

    def refuse(path: str) -> None:
        raise AssertionError(f"{path} was opened")

    class Never(ctypes.CDLL):
        __init__ = refuse

    monkeypatch.setattr(ctypes, "CDLL", Never)


def say(library: Path, **changed: object) -> None:
    file = description.described_in(library)
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def overwrite(library: Path, place: int, value: int, *, described: bool) -> None:
    """Changes one byte; the description's hash is then the changed file's, or that of before."""
    data = bytearray(library.read_bytes())
    assert data[place] != value
    data[place] = value
    library.write_bytes(data)
    if described:
        say(library, sha256=hashlib.sha256(data).hexdigest())


def test_a_built_library_is_loaded_and_says_its_instruction_set_and_place(copied: Path) -> None:
    assert native.chosen(copied) in native.instruction_sets()
    assert native.describe(copied) in (
        f"native {native.chosen(copied)}, from {copied}",
        f"native portable (slow: this CPU has no vector instructions that the kernels know), from {copied}",
    )


def test_a_description_is_true(library: Path) -> None:
    said = description.read_description(library)
    assert said == {
        "system": sys.platform,
        "machine": this_machine(),
        "libc": said["libc"],
        "sources": fingerprint(),
        "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("field", "other"),
    [("machine", "riscv64"), ("system", "darwin"), ("libc", "glibc 99.0"), ("libc", "no glibc"), ("sources", "0" * 16)],
)
@pytest.mark.usefixtures("unopened")
def test_a_library_for_another_place_is_skipped(copied: Path, field: str, other: str) -> None:
    say(copied, **{field: other})
    assert (native.load(copied), native.chosen(copied)) == (None, None)
    said = native.describe(copied)
    assert said.startswith(f"skipped: {copied} ")
    assert other in said or "other sources" in said


@pytest.mark.parametrize(
    ("needed", "here", "runs"),
    [
        ("glibc 2.17", "glibc 2.17", True),
        ("glibc 2.9", "glibc 2.17", True),  # versions are numbers, not text
        ("glibc 2.17", "glibc 2.9", False),
        ("glibc 2.17", "no glibc", False),  # musl
        ("no glibc", "no glibc", True),
    ],
)
def test_a_c_library_must_be_the_one_and_not_older(
    monkeypatch: pytest.MonkeyPatch, copied: Path, needed: str, here: str, runs: bool
) -> None:
    say(copied, libc=needed)
    monkeypatch.setattr(description, "this_libc", lambda: here)
    assert (description.objection(copied) is None) == runs


def test_a_system_that_has_no_name_for_its_c_library_has_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)  # as on musl
    assert description.this_libc() == "no glibc"


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(
    ("place", "value", "described", "said"),
    [
        (-1, 0x5A, False, "another SHA-256"),
        (ELF_CLASS, 1, True, "no shared library for"),  # 32 bits
        (ELF_KIND, 2, True, "no shared library for"),  # a program
        (ELF_MACHINE, ODD.get(this_machine(), 0), True, "no shared library for"),
        (0, 0, True, "no shared library for"),  # no ELF file at all
    ],
)
def test_a_file_that_is_not_what_is_described_is_refused(
    copied: Path, place: int, value: int, described: bool, said: str
) -> None:
    overwrite(copied, place, value, described=described)
    assert native.load(copied) is None
    assert native.describe(copied).startswith(f"refused: {copied} ")
    assert said in native.describe(copied)


@pytest.mark.usefixtures("unopened")
def test_another_machines_library_under_this_ones_description_is_refused(
    compiled: Callable[[str], Path], copied: Path
) -> None:
    other = compiled("aarch64" if this_machine() == "x86_64" else "x86_64")
    shutil.copyfile(other, copied)
    say(copied, sha256=hashlib.sha256(other.read_bytes()).hexdigest())
    assert f"no shared library for {this_machine()}" in native.describe(copied)


@pytest.mark.usefixtures("unopened")
def test_a_file_that_is_cut_off_is_refused(copied: Path) -> None:
    os.truncate(copied, copied.stat().st_size // 2)
    with pytest.warns(RuntimeWarning, match="refused: .* has another SHA-256"):
        assert "another SHA-256" in native.describe(copied)


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"system": "linux"}'])
def test_a_library_without_a_whole_description_is_refused(copied: Path, text: str | None) -> None:
    if text is None:
        description.described_in(copied).unlink()
    else:
        description.described_in(copied).write_text(text)
    assert native.describe(copied).startswith(f"refused: {copied} has no whole description, kernels.json, beside it; ")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('const char* qk_sources() { return "of others"; }', "other sources than its description says"),
        ("int nothing;", "qk_sources"),
        ("int missing(); int nothing() { return missing(); }", "missing"),
    ],
)
def test_a_library_that_says_it_is_another_is_refused(tmp_path: Path, code: str, said: str) -> None:
    source, made = tmp_path / "other.cpp", tmp_path / "kernels.so"
    source.write_text(f'extern "C" {{ {code} }}')
    subprocess.run([*building.compiler(), "-shared", "-fPIC", "-Wl,-z,now", "-o", made, source], check=True)
    description.write_description(made, this_machine())
    say(made, libc=description.this_libc())  # of which it has no symbol
    assert native.load(made) is None
    assert native.describe(made).startswith(f"refused: {made} ")
    assert said in native.describe(made)


def test_a_library_in_the_cache_that_was_changed_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copied: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = native.library_path()
    own.parent.mkdir()
    for suffix in (".so", ".json"):
        copied.with_suffix(suffix).rename(own.with_suffix(suffix))
    code = "from qalign_kernels.cpu import native; print(native.describe())"
    assert python(code).endswith(f", from {own}\n")
    overwrite(own, -1, 0x5A, described=False)
    said = f"refused: {own} has another SHA-256 than its description says; `qalign-fast build` compiles them\n"
    assert python(code) == said


def test_build_keeps_a_whole_library_and_replaces_a_damaged_one(monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.build(copied) == copied
    overwrite(copied, -1, 0x5A, described=False)
    with pytest.raises(native.BuildError, match="no-such-compiler"):
        native.build(copied)


def test_finding_a_library_imports_nothing_that_only_compiling_needs(library: Path) -> None:
    load = f"native.load(Path({str(library)!r}))"
    code = f"import sys; from pathlib import Path; from qalign_kernels.cpu import native; {load}; print(*sys.modules)"
    heavy = {"subprocess", "tempfile", "concurrent.futures", "shutil", "platform", "numpy", "torch"}
    assert set(python(code).split()) & heavy == set()
