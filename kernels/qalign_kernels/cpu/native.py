"""The C++ kernels of csrc/ as one shared library: `build` compiles it when it is asked to, `load` finds it.

    python -m qalign_kernels.cpu.native        # builds; needs g++ or c++ (or $CXX) once, for a few seconds

The library holds a copy of the kernels for each instruction set, and the best one is chosen when it is loaded: AMX,
AVX512 with bfloat16, AVX512-VNNI, AVX-VNNI or AVX2; on ARM, NEON with bfloat16, with i8mm or with dotprod; else plain
C++. The library lies in the user's cache folder. Its name is made from its sources, so that another version of this
package never loads it. This file imports neither torch nor numpy.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from qalign_kernels.cache_folder import cache_folder

SOURCES = Path(__file__).with_name("csrc")
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wno-psabi -Wno-ignored-attributes"
_AVX2 = "-mavx2 -mfma -mf16c"
_AVX512 = f"{_AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512"
_X64 = {
    "avx2": _AVX2,
    "avxvnni": f"{_AVX2} -mavxvnni",
    "avx512vnni": _AVX512,
    "avx512bf16": f"{_AVX512} -mavx512bf16",
    "amx": f"{_AVX512} -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16",
}
_DOTPROD = "-march=armv8.2-a+dotprod"
_ARM64 = {
    "neon_dotprod": _DOTPROD,
    "neon_i8mm": f"{_DOTPROD}+i8mm",
    "neon_bf16": f"{_DOTPROD}+i8mm+bf16",
}
SLOW = "portable"


class BuildError(Exception):
    """No compiler was found, it failed, or there is no folder for the library. The text is one line."""


def instruction_sets(machine: str | None = None) -> dict[str, str]:
    """The copies that are built for a kind of machine, by default this one's, and each one's compiler flags."""
    machine = (machine or platform.machine()).lower()
    if machine in ("x86_64", "amd64"):
        return {SLOW: "", **_X64}
    return {SLOW: "", **_ARM64} if machine in ("aarch64", "arm64") else {SLOW: ""}


def library_path() -> Path:
    """The path of the library of these sources, built or not. Raises BuildError for a user without a home folder."""
    try:
        return cache_folder() / f"kernels-{_fingerprint()}.so"
    except RuntimeError as error:
        raise BuildError("this user has no home folder to keep the kernels in: set XDG_CACHE_HOME") from error


def build(path: Path | None = None) -> Path:
    """Compiles into a path, by default `library_path`, and returns it. An existing file is kept. Raises BuildError."""
    path = path or library_path()
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        objects = compile_objects(Path(work), compiler(), instruction_sets())
        made = Path(work) / path.name
        _call([*compiler(), "-shared", "-pthread", "-o", str(made), *map(str, objects)])
        made.replace(path)  # whole or not at all
    return path


def is_built() -> bool:
    """Whether the library of these sources exists."""
    try:
        return library_path().exists()
    except BuildError:
        return False


@cache
def load(path: Path | None = None) -> ctypes.CDLL | None:
    """The library, or None where it was not built."""
    if path is None and not is_built():
        return None
    path = path or library_path()
    return ctypes.CDLL(str(path)) if path.exists() else None


def chosen(path: Path | None = None) -> str | None:
    """The name of the instruction set that this CPU computes with, or None where no library was built."""
    library = load(path)
    if library is None:
        return None
    # a table begins with its name
    table = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_char_p), ctypes.c_char_p)(("qk_table", library))
    return (table(None)[0] or b"").decode()


def describe(path: Path | None = None) -> str:
    """The same in words for people."""
    name = chosen(path)
    if name is None:
        return "not built; `qalign-fast build` compiles them"
    slow = " (slow: this CPU has no vector instructions that the kernels know)" if name == SLOW else ""
    return f"native {name}{slow}"


def compile_objects(folder: Path, compiler: Sequence[str], sets: Mapping[str, str]) -> list[Path]:
    """Compiles the sources into object files in a folder, to be linked into a library or a program. Raises BuildError.

    `sets` are a machine's copies, as `instruction_sets` gives them; `compiler` makes code for that machine.
    """
    jobs = [
        (folder / f"{isa}.o", [*flags.split(), f"-DQK_ISA={isa}", str(SOURCES / "kernels.cpp")])
        for isa, flags in sets.items()
    ]
    jobs += [(folder / f"{p.stem}.o", [str(p)]) for p in sorted(SOURCES.glob("*.cpp")) if p.stem != "kernels"]
    command = [*compiler, *FLAGS.split()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: _call([*command, *job[1], "-c", "-o", str(job[0])]), jobs))
    return [output for output, _ in jobs]


def compiler() -> list[str]:
    """The command of this machine's compiler: $CXX, else g++, else c++ (which is clang on macOS)."""
    return shlex.split(os.environ.get("CXX") or ("g++" if shutil.which("g++") else "c++"))


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        needed = "the kernels need g++ 10 or clang 12, or newer"
        raise BuildError(f"{command[0]} cannot be run ({error.strerror}); {needed}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed: {lines[0] if lines else f'status {done.returncode}'}")


@cache
def _fingerprint() -> str:
    """A hash of the sources, the flags and the kind of machine."""
    whole = hashlib.sha256(f"{platform.machine()} {FLAGS} {instruction_sets()}".encode())
    for path in sorted(SOURCES.iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


if __name__ == "__main__":
    print(build())
