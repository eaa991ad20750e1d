"""Other versions of Python that are on this machine, and environments of theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path

import pytest

# It must have what makes an environment, which some systems leave out of it.
_VERSION = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"


def interpreter(version: str) -> Path | None:
    """A Python of a version such as "3.12": one on the path, beside this one, or in the user's or another pyenv."""
    return next((path for path in _places(version) if _is(path, version)), None)


def environment(python: Path, folder: Path, packages: Sequence[str], wheel: Path) -> Path:
    """The Python of a new environment with these packages, in the versions that this one has, and a wheel.

    Skips the test where they cannot be fetched, and fails it on a CI, which has a network.
    """
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    kept = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}  # where pip keeps wheels
    pins = [f"{name}=={installed(name)}" for name in packages]
    fetch = [*pip, "--retries", "1", "--only-binary", ":all:", *pins]
    done = subprocess.run(fetch, env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(f"pip fetches no {' '.join(pins)} for {python}: {done.stderr.strip().splitlines()[-1]}")
    subprocess.run([*pip, "--no-index", wheel], check=True)
    return folder / "bin" / "python"


def _places(version: str) -> Iterator[Path]:
    name = f"python{version}"
    if found := shutil.which(name):
        yield Path(found)
    for folder in (Path(sys.base_prefix).parent, *_pyenvs()):
        yield from sorted(folder.glob(f"{version}*/bin/{name}"), reverse=True)


def _pyenvs() -> Iterator[Path]:
    """HOME may be an empty folder, so the user's own is the one that the system knows."""
    if root := os.environ.get("PYENV_ROOT"):
        yield Path(root) / "versions"
    if sys.platform != "win32":
        import pwd

        with suppress(KeyError):  # a user whom the system does not know
            yield Path(pwd.getpwuid(os.getuid()).pw_dir) / ".pyenv" / "versions"


def _is(python: Path, version: str) -> bool:
    """Whether it runs: pyenv's names on the path do not, unless it was told to use that version."""
    done = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version
