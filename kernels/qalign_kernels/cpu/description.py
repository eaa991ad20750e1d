"""What a library of the kernels is, in a JSON file beside it, and whether it may be loaded here.

    {"system": "linux", "machine": "x86_64", "libc": "glibc 2.16", "sources": "52f0...", "sha256": "9a1c..."}

`libc` is the oldest C library that the library runs on, and `sources` the fingerprint of what it was compiled from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from qalign_kernels.cpu.sources import are_here, fingerprint, this_machine

REFUSED, _SKIPPED = "refused", "skipped"
_FIELDS = ("system", "machine", "libc", "sources", "sha256")
_NO_GLIBC = "no glibc"
# Where an ELF file says what it is: 64 bits and little-endian; a shared library; the machine's number.
_ELF_CLASS, _ELF_KIND, _ELF_SHARED = b"\x7fELF\x02\x01", 16, b"\x03\x00"
_ELF_MACHINES = {"x86_64": b"\x3e\x00", "aarch64": b"\xb7\x00"}

Description = dict[str, str]


def objection(library: Path) -> str | None:
    """Why a library must not be loaded here, as one line; None where all is right.

    "skipped" begins the line where the library was made for another place, "refused" where it is not what its
    description says. The library is read, and nothing in it is run.
    """
    said = read_description(library)
    if said is None:
        return f"{REFUSED}: {library} has no whole description, {described_in(library).name}, beside it"
    try:
        return _misfit(library, said) or _damage(library, said)
    except OSError as error:
        return f"{REFUSED}: {library} cannot be read: {error.strerror}"


def read_description(library: Path) -> Description | None:
    """What the file beside a library says; None where it is missing or not whole."""
    try:
        said = json.loads(described_in(library).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(said, dict) and all(isinstance(said.get(field), str) for field in _FIELDS)
    return said if whole else None


def write_description(library: Path, machine: str) -> None:
    """Writes the file beside a library that was compiled here, from these sources, for a kind of machine."""
    data = library.read_bytes()
    hashes = {"sources": fingerprint(machine), "sha256": hashlib.sha256(data).hexdigest()}
    said = {"system": sys.platform, "machine": machine, "libc": _needed_libc(data), **hashes}
    described_in(library).write_text(json.dumps(said, indent=2) + "\n")


def described_in(library: Path) -> Path:
    """The path of a library's description."""
    return library.with_suffix(".json")


def this_libc() -> str:
    """This system's C library, as a description names it: "glibc 2.36", or "no glibc"."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or _NO_GLIBC
    except (AttributeError, OSError, ValueError):  # Windows; systems without this name
        return _NO_GLIBC


def _needed_libc(library: bytes) -> str:
    """The newest glibc that a symbol of the library is from: its names are the only place for such text in it."""
    found = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", library)
    return "glibc {}.{}".format(*max((int(a), int(b)) for a, b in found)) if found else _NO_GLIBC


def _misfit(library: Path, said: Description) -> str | None:
    here = {"system": sys.platform, "machine": this_machine(), "libc": this_libc()}
    same = (said["system"], said["machine"]) == (here["system"], here["machine"])
    if not (same and _runs_on(said["libc"], here["libc"])):
        return f"{_SKIPPED}: {library} is for {_place(said)}, and this is {_place(here)}"
    if are_here() and said["sources"] != fingerprint():
        return f"{_SKIPPED}: {library} was compiled from other sources than this package has"
    return None


def _damage(library: Path, said: Description) -> str | None:
    data = library.read_bytes()
    if hashlib.sha256(data).hexdigest() != said["sha256"]:
        return f"{REFUSED}: {library} has another SHA-256 than its description says"
    if said["system"] == "linux" and said["machine"] in _ELF_MACHINES and not _is_elf(data, said["machine"]):
        return f"{REFUSED}: {library} is no shared library for {said['machine']}, which its description says it is"
    return None


def _is_elf(data: bytes, machine: str) -> bool:
    return data.startswith(_ELF_CLASS) and data[_ELF_KIND : _ELF_KIND + 4] == _ELF_SHARED + _ELF_MACHINES[machine]


def _runs_on(needed: str, here: str) -> bool:
    return _version(needed)[0] == _version(here)[0] and _version(needed) <= _version(here)


def _version(libc: str) -> tuple[str, list[int]]:
    """("glibc", [2, 36]) of "glibc 2.36"."""
    name, _, version = libc.partition(" ")
    return name, [int(number) for number in re.findall(r"\d+", version)]


def _place(facts: Description) -> str:
    return f"{facts['system']} {facts['machine']} with {facts['libc']}"
