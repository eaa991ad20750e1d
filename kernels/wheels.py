"""The sources in, a release out: a pure wheel, and one with compiled kernels for each kind of Linux machine.

    python kernels/wheels.py [FOLDER]        # on Linux, with the extra `wheels`, g++ and g++-aarch64-linux-gnu

A machine's wheel is the pure one with a library and its description. Its tag promises a C library, and auditwheel holds
the promise against the symbols that the library needs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from qalign_kernels.cpu.building import build, compiler
from qalign_kernels.cpu.description import described_in

ROOT = Path(__file__).parents[1]
MACHINES = ("x86_64", "aarch64")
OLDEST = (2, 28)  # of glibc: what wheels of numpy need
_PREBUILT = "qalign_kernels/cpu/prebuilt"
_AUDITED = re.compile(r'following\s+platform\s+tag:\s+"manylinux_(\d+)_(\d+)_(\w+)"')


class WheelError(Exception):
    """A wheel does not keep what its tag promises. The text is one line."""


def build_pure(folder: Path) -> Path:
    """Builds the source distribution and, of that, the pure wheel into a folder. Returns the wheel's path."""
    _python("build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return max(folder.glob("*-py3-none-any.whl"), key=lambda path: path.stat().st_mtime)


def add_library(pure: Path, library: Path, machine: str, folder: Path) -> Path:
    """Packs a machine's wheel into a folder: the pure one with a library of the kernels. Returns its path.

    Raises WheelError where the library needs a newer system than `OLDEST`, or another machine.
    """
    with tempfile.TemporaryDirectory() as work:
        _python("wheel", "unpack", "--dest", work, str(pure))
        (unpacked,) = Path(work).iterdir()
        prebuilt = unpacked / _PREBUILT
        prebuilt.mkdir()
        shutil.copyfile(library, prebuilt / "kernels.so")
        shutil.copyfile(described_in(library), described_in(prebuilt / "kernels.so"))
        _tag(next(unpacked.glob("*.dist-info")) / "WHEEL", "manylinux_{}_{}_{}".format(*OLDEST, machine))
        _python("wheel", "pack", "--dest-dir", work, str(unpacked))
        (packed,) = Path(work).glob("*.whl")
        _audit(packed, machine)
        return Path(shutil.copy(packed, folder))


def main() -> None:
    """Makes all wheels. A machine whose compiler is not installed is left out, and named."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")
    folder.mkdir(parents=True, exist_ok=True)
    print(pure := build_pure(folder))
    for machine in MACHINES:
        if shutil.which(tool := compiler(machine)[0]) is None:
            print(f"no wheel for {machine}: {tool} is not installed", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as work:
            print(add_library(pure, build(Path(work) / "kernels.so", machine), machine, folder))


def _tag(file: Path, platform: str) -> None:
    """Makes a pure wheel's WHEEL file one of a platform's wheel."""
    text = file.read_text().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    file.write_text(text.replace("Tag: py3-none-any", f"Tag: py3-none-{platform}"))


def _audit(wheel: Path, machine: str) -> None:
    said = _python("auditwheel", "show", str(wheel))
    found = _AUDITED.search(said)
    if found is None or (int(found[1]), int(found[2])) > OLDEST or found[3] != machine:
        raise WheelError(f"{wheel.name} is not what its tag promises: {' '.join(said.split())}")


def _python(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
