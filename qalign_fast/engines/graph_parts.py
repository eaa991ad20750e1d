"""An artifact and an engine's name in, the paths of its two graphs out, which read no file but the manifest's."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from qalign_fast.artifact.manifest import MANIFEST, Artifact
from qalign_fast.errors import ArtifactError
from qalign_fast.families.schema import Values

PARTS = ("encode", "decode")


def graph_paths(artifact: Artifact, engine: str) -> dict[str, Path]:
    """Part -> the graph that the manifest has for the engine of that name. Graphs read only files of the manifest.

    Raises ArtifactError for a part that is missing, and for a file that is not among the manifest's.
    """
    parts = artifact.manifest.engines.get(engine, {})
    if parts.keys() != set(PARTS):
        has = ", ".join(parts) or "none"
        raise ArtifactError(f"{artifact.path(MANIFEST)}: engine {engine} has the parts {has}; expected encode, decode")
    return {part: _checked(artifact, parts[part]) for part in PARTS}


def check_interface(artifact: Artifact, path: Path, part: str, inputs: Values, outputs: Values) -> None:
    """Raises ArtifactError for a graph whose inputs and outputs are not those that the manifest's sizes ask for."""
    expected = getattr(artifact.manifest.family.interface(artifact.manifest.config), part)
    if (inputs, outputs) != expected:
        raise ArtifactError(
            f"{path}: has the inputs and outputs {(inputs, outputs)}; the manifest's sizes ask for {expected}"
        )


def _checked(artifact: Artifact, name: str) -> Path:
    path = artifact.path(name)
    for data in _data_files(path):
        if str(PurePosixPath(name).parent / data) not in artifact.manifest.files:
            raise ArtifactError(f"{path}: reads {data!r}, which is not among the manifest's files")
    return path


_LOCATION = b"\x0a\x08location\x12"  # protobuf: a map entry whose key is "location"; its value's length follows


def _data_files(graph: Path) -> Iterator[str]:
    """The files beside a graph that it reads weights from."""
    if not graph.stat().st_size:
        return
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_LOCATION)
        while at >= 0:
            start = at + len(_LOCATION) + 1
            yield data[start : start + sum(data[start - 1 : start])].decode("utf-8", "replace")
            at = data.find(_LOCATION, start)
