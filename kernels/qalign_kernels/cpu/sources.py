"""The C++ sources of csrc/, the copies that a machine's library gets of them, and the hash that names all this.

This file and the others that find and load a library import neither torch nor numpy, and little else: every start pays
for it.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).with_name("csrc")
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wno-psabi -Wno-ignored-attributes"
SLOW = "portable"
_AVX2 = "-mavx2 -mfma -mf16c"
_AVX512 = f"{_AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512"
_DOTPROD = "-march=armv8.2-a+dotprod"
_SETS = {
    "x86_64": {
        SLOW: "",
        "avx2": _AVX2,
        "avxvnni": f"{_AVX2} -mavxvnni",
        "avx512vnni": _AVX512,
        "avx512bf16": f"{_AVX512} -mavx512bf16",
        "amx": f"{_AVX512} -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16",
    },
    "aarch64": {
        SLOW: "",
        "neon_dotprod": _DOTPROD,
        "neon_i8mm": f"{_DOTPROD}+i8mm",
        "neon_bf16": f"{_DOTPROD}+i8mm+bf16",
    },
}
_OTHER_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


class BuildError(Exception):
    """No compiler was found, it failed, or there is no folder for the library. The text is one line."""


def this_machine() -> str:
    """The kind of this machine's CPU as Linux names it: x86_64, aarch64 or another."""
    if hasattr(os, "uname"):
        name = os.uname().machine.lower()
    else:
        import platform

        name = platform.machine().lower()
    return _OTHER_NAMES.get(name, name)


def instruction_sets(machine: str | None = None) -> dict[str, str]:
    """The copies that are built for a kind of machine, by default this one's, and each one's compiler flags."""
    return _SETS.get(machine or this_machine(), {SLOW: ""})


def are_here() -> bool:
    """Whether the sources are. A program that was frozen into one folder may have left them out."""
    return SOURCES.is_dir()


@cache
def fingerprint(machine: str | None = None) -> str:
    """A hash of the sources, the flags and the kind of machine, by default this one's: 16 hexadecimal digits."""
    machine = machine or this_machine()
    whole = hashlib.sha256(f"{machine} {FLAGS} {instruction_sets(machine)}".encode())
    for path in sorted(SOURCES.iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]
