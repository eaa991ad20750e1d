"""The wheels that kernels/wheels.py makes: what is in them, where they run, and that their libraries compute."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from io import StringIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import wheels
from qalign_export.rounding.quantizer import quantize
from qalign_kernels.contract.linear import Weight
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.cpu import native
from qalign_kernels.cpu.description import read_description
from qalign_kernels.cpu.ops import NativeOps
from qalign_kernels.cpu.sources import fingerprint, this_machine
from support.emulated import ARM, X64, EmulatedTable, build_program

PREBUILT = "qalign_kernels/cpu/prebuilt/"
LIBSTDCXX = {"GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}  # of GCC 8, which systems with glibc 2.28 have


@pytest.fixture(scope="module")
def taken_out(tmp_path_factory: pytest.TempPathFactory, made: Callable[[str], Path]) -> Callable[[str], Path]:
    """The library out of a machine's wheel, where the wheel's files are unpacked."""

    def unpack(machine: str) -> Path:
        folder = tmp_path_factory.mktemp(f"unpacked-{machine}")
        with ZipFile(made(machine)) as archive:
            archive.extractall(folder)
        return folder / PREBUILT / "kernels.so"

    return cache(unpack)


def files(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def only(found: dict[str, bytes], name: str) -> str:
    (text,) = (data for path, data in found.items() if path.endswith(f".dist-info/{name}"))
    return text.decode()


@pytest.mark.parametrize("machine", [X64, ARM])
def test_a_machines_wheel_is_the_pure_one_and_a_library(
    pure: Path, made: Callable[[str], Path], machine: str, compiled: Callable[[str], Path]
) -> None:
    before, found = files(pure), files(made(machine))
    assert found.keys() - before.keys() == {f"{PREBUILT}kernels.so", f"{PREBUILT}kernels.json"}
    assert found[f"{PREBUILT}kernels.so"] == compiled(machine).read_bytes()
    changed = {name.rpartition("/")[2] for name, data in before.items() if found[name] != data}
    assert changed == {"WHEEL", "RECORD"}
    assert not any(name.startswith(("wheels", "tests")) for name in found)


@pytest.mark.parametrize(
    ("machine", "tag"),
    [(None, "py3-none-any"), (X64, "py3-none-manylinux_2_28_x86_64"), (ARM, "py3-none-manylinux_2_28_aarch64")],
)
def test_a_wheels_tag_is_in_its_name_and_in_it(
    pure: Path, made: Callable[[str], Path], machine: str | None, tag: str
) -> None:
    wheel = made(machine) if machine else pure
    assert wheel.stem == f"qalign_fast-{wheel.stem.split('-')[1]}-{tag}"
    lines = only(files(wheel), "WHEEL").splitlines()
    assert [line for line in lines if line.startswith("Tag:")] == [f"Tag: {tag}"]
    assert f"Root-Is-Purelib: {'false' if machine else 'true'}" in lines


@pytest.mark.parametrize("machine", [X64, ARM])
def test_a_wheels_record_has_every_file_and_its_hash(made: Callable[[str], Path], machine: str) -> None:
    found = files(made(machine))
    rows = {name: (code, size) for name, code, size in csv.reader(StringIO(only(found, "RECORD")))}
    assert rows.keys() == found.keys()
    for name, (code, size) in rows.items():
        if not name.endswith("/RECORD"):
            digest = base64.urlsafe_b64encode(hashlib.sha256(found[name]).digest()).rstrip(b"=").decode()
            assert (code, int(size)) == (f"sha256={digest}", len(found[name])), name


@pytest.mark.parametrize("machine", [X64, ARM])
def test_a_wheels_library_needs_no_newer_system_than_the_tag_says(
    taken_out: Callable[[str], Path], machine: str
) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    library = taken_out(machine)
    said = subprocess.run(["readelf", "-VW", library], capture_output=True, text=True, check=True).stdout
    needed: dict[str, tuple[int, ...]] = {}
    for name, version in re.findall(r"Name: ([A-Z]+)_([\d.]+) ", said):
        needed[name] = max(needed.get(name, ()), tuple(map(int, version.split("."))))
    described = read_description(library)
    assert described is not None
    assert described["libc"] == "glibc {}.{}".format(*needed["GLIBC"])
    assert needed["GLIBC"] <= wheels.OLDEST
    assert all(needed[name] <= most for name, most in LIBSTDCXX.items())


def test_a_library_that_needs_a_newer_system_makes_no_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pure: Path, library: Path
) -> None:
    monkeypatch.setattr(wheels, "OLDEST", (2, 12))
    with pytest.raises(wheels.WheelError, match="not what its tag promises"):
        wheels.add_library(pure, library, this_machine(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_library_of_another_machine_makes_no_wheel(tmp_path: Path, pure: Path, library: Path) -> None:
    with pytest.raises((wheels.WheelError, subprocess.CalledProcessError)):
        wheels.add_library(pure, library, ARM if this_machine() == X64 else X64, tmp_path)
    assert not list(tmp_path.iterdir())


def described_by(package: Path, cache_folder: Path) -> str:
    """What `native.describe` says in a process that imports the files of a wheel."""
    code = "from qalign_kernels.cpu import native; print(native.describe())"
    environment = os.environ | {"PYTHONPATH": str(package), "XDG_CACHE_HOME": str(cache_folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_a_users_own_library_comes_before_the_wheels(
    taken_out: Callable[[str], Path], tmp_path: Path, library: Path
) -> None:
    prebuilt = taken_out(this_machine())
    package = prebuilt.parents[3]
    assert described_by(package, tmp_path).endswith(f", from {prebuilt}")
    own = tmp_path / "qalign-fast" / f"kernels-{fingerprint()}.so"
    own.parent.mkdir()
    for suffix in (".so", ".json"):
        shutil.copyfile(library.with_suffix(suffix), own.with_suffix(suffix))
    assert described_by(package, tmp_path).endswith(f", from {own}")
    os.truncate(own, 1000)
    assert described_by(package, tmp_path).endswith(
        f", from {prebuilt}; refused: {own} has another SHA-256 than its description says"
    )


def test_a_wheel_on_another_machine_is_not_loaded(taken_out: Callable[[str], Path], tmp_path: Path) -> None:
    other = taken_out(ARM if this_machine() == X64 else X64)
    said = described_by(other.parents[3], tmp_path)
    assert said.startswith(f"skipped: {other} is for linux {read_description(other)['machine']} with glibc ")


@pytest.mark.parametrize("name", native.instruction_sets(ARM))
def test_the_arm_wheels_library_computes_right(taken_out: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 96, generator=generator), torch.randn(33, 96, generator=generator)
    weight = Weight("int8", **quantize(w, "int8"))
    with EmulatedTable(build_program(tmp_path, ARM, taken_out(ARM)), name, tmp_path) as table:
        ops = NativeOps(table)
        torch.testing.assert_close(ops.swiglu(x), PLAIN.swiglu(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ops.linear(x, weight), PLAIN.linear(x, weight), rtol=1e-4, atol=1e-4)


def test_a_wheels_library_is_loaded_where_the_sources_were_left_out(
    taken_out: Callable[[str], Path], tmp_path: Path
) -> None:
    """As by a tool that freezes a program and does not know that C++ files are wanted."""
    package = Path(shutil.copytree(taken_out(this_machine()).parents[3], tmp_path / "frozen"))
    shutil.rmtree(package / "qalign_kernels/cpu/csrc")
    assert described_by(package, tmp_path).endswith(f", from {package / PREBUILT / 'kernels.so'}")
    with (package / PREBUILT / "kernels.so").open("ab") as library:
        library.write(b"\0")
    assert "another SHA-256" in described_by(package, tmp_path)
