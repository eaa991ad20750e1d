"""The C++ sources in, a shared library with its description beside it out: by g++ or clang, in about a minute.

What finds and loads a library is native.py. This file is imported only where something is compiled.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qalign_kernels.cpu.description import described_in, objection, write_description
from qalign_kernels.cpu.sources import FLAGS, SOURCES, BuildError, fingerprint, instruction_sets, this_machine


def build(path: Path, machine: str | None = None) -> Path:
    """Compiles the library of a kind of machine, by default this one's, into a path, and returns the path.

    A file that is there is kept where it could be loaded here. Raises BuildError, also where nothing can be written.
    """
    machine = machine or this_machine()
    if path.exists() and objection(path) is None:
        return path
    try:
        return _build(path, machine)
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from error


def _build(path: Path, machine: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made, command = Path(work) / path.name, compiler(machine)
        objects = compile_objects(Path(work), command, machine)
        _call([*command, "-shared", "-pthread", "-o", str(made), *map(str, objects)])
        write_description(made, machine)
        described_in(made).replace(described_in(path))  # first: no library is there without its description
        made.replace(path)  # whole or not at all
    return path


def compile_objects(folder: Path, compiler: Sequence[str], machine: str) -> list[Path]:
    """Compiles the sources into object files in a folder, to be linked into a library or a program. Raises BuildError.

    `compiler` makes code for that kind of machine.
    """
    jobs = [
        (folder / f"{isa}.o", [*flags.split(), f"-DQK_ISA={isa}", str(SOURCES / "kernels.cpp")])
        for isa, flags in instruction_sets(machine).items()
    ]
    jobs += [(folder / f"{p.stem}.o", [str(p)]) for p in sorted(SOURCES.glob("*.cpp")) if p.stem != "kernels"]
    command = [*compiler, *FLAGS.split(), identity(machine)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: _call([*command, *job[1], "-c", "-o", str(job[0])]), jobs))
    return [output for output, _ in jobs]


def compiler(machine: str | None = None) -> list[str]:
    """The command that compiles for a kind of machine, by default this one's.

    Here it is $CXX, else g++, else c++ (which is clang on macOS); for another machine GCC's cross compiler.
    """
    if machine and machine != this_machine():
        return [f"{machine}-linux-gnu-g++"]
    asked = os.environ.get("CXX") or ("g++" if shutil.which("g++") else "c++")
    try:
        return shlex.split(asked)
    except ValueError as error:
        raise BuildError(f"$CXX is {asked!r}, which is no command ({error})") from error


def identity(machine: str) -> str:
    """The flag that lets a library say what it was compiled from."""
    return f'-DQK_SOURCES="{fingerprint(machine)}"'


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        needed = "the kernels need g++ 10 or clang 12, or newer"
        raise BuildError(f"{command[0]} cannot be run ({error.strerror}); {needed}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else f'status {done.returncode}'}")
