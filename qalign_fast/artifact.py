"""An artifact directory in, its verified manifest out: what every engine reads and `qalign_export` writes.

qalign.json names every other file with its size and SHA-256; nothing reaches a runtime before both match.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qalign_fast.config import AbstractorConfig, DecoderConfig, ModelConfig, PixelRule, VisionConfig
from qalign_fast.errors import ArtifactError
from qalign_fast.prompt import Prompt

MANIFEST = "qalign.json"
PROMPTS = "prompts.safetensors"
SCHEMA = 1
EMBEDDED = Path(__file__).parent / "mini"


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class PromptEntry:
    """One task in one medium: its prompt and where in prompts.safetensors its constants are."""

    prompt: Prompt
    prefix: str  # name of the keys and values [L, 2, P, H, Dh]
    suffix: str  # name of the embeddings [S, D]


@dataclass(frozen=True)
class Manifest:
    """What qalign.json says; `to_json` and `parse_manifest` are each other's inverse."""

    name: str
    source: Mapping[str, Any]  # what it was made from: name, sha256
    license: str  # the weights'
    config: ModelConfig
    levels: tuple[tuple[str, int], ...]  # word and token id, excellent first
    prompts: tuple[PromptEntry, ...]
    precision: str
    engines: Mapping[str, Mapping[str, str]]  # engine -> {"encode": path, "decode": path}
    files: Mapping[str, FileEntry]
    fidelity: Mapping[str, Any] | None
    made_with: Mapping[str, str]

    def to_json(self) -> str:
        tasks: dict[str, dict[str, Any]] = {}
        for entry in self.prompts:
            tasks.setdefault(entry.prompt.task, {})[entry.prompt.medium] = {
                "prefix_ids": entry.prompt.prefix,
                "suffix_ids": entry.prompt.suffix,
                "prefix": entry.prefix,
                "suffix": entry.suffix,
            }
        content = {
            "schema": SCHEMA,
            "name": self.name,
            "family": "mplug_owl2",
            "source": self.source,
            "license": self.license,
            "precision": self.precision,
            "sizes": {
                part: dataclasses.asdict(getattr(self.config, part)) for part in ("vision", "abstractor", "decoder")
            },
            "pixels": dataclasses.asdict(self.config.pixels) | {"pad": self.config.pixels.pad},
            "levels": dict(self.levels),
            "tasks": tasks,
            "engines": self.engines,
            "files": {path: dataclasses.asdict(entry) for path, entry in self.files.items()},
            "fidelity": self.fidelity,
            "made_with": self.made_with,
        }
        return json.dumps(content, indent=2) + "\n"


@dataclass(frozen=True)
class Artifact:
    """A directory whose manifest was read, and whose files were checked if asked for."""

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        return self.directory / name


def open_artifact(directory: str | Path, *, verify: bool = True) -> Artifact:
    """Reads the manifest and, with `verify`, hashes every file it names. Raises ArtifactError naming the file."""
    directory = Path(directory)
    manifest = read_manifest(directory / MANIFEST)
    for name, entry in manifest.files.items():
        _check_file(directory, name, entry, verify)
    for name in (PROMPTS, *(name for parts in manifest.engines.values() for name in parts.values())):
        if name not in manifest.files:
            raise ArtifactError(f"{directory / MANIFEST}: {name!r} is not among the manifest's files")
    return Artifact(directory, manifest)


def read_manifest(path: Path) -> Manifest:
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error})") from error
    return parse_manifest(raw, str(path))


def parse_manifest(raw: Any, where: str) -> Manifest:
    """The manifest from its JSON content. Raises ArtifactError for another schema or a field missing or malformed."""
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        newer = type(schema) is int and schema > SCHEMA
        hint = "; a newer qalign-fast reads it" if newer else ""
        raise ArtifactError(f"{where}: schema {schema!r}; this version reads schema {SCHEMA}{hint}")
    try:
        sizes, pixels = raw["sizes"], raw["pixels"]
        return Manifest(
            name=_text(raw["name"]),
            source=dict(raw["source"]),
            license=_text(raw["license"]),
            config=ModelConfig(
                VisionConfig(**_positive(sizes["vision"])),
                AbstractorConfig(**_positive(sizes["abstractor"])),
                DecoderConfig(**_positive(sizes["decoder"])),
                PixelRule(int(pixels["side"]), tuple(pixels["mean"]), tuple(pixels["std"])),
            ),
            levels=tuple((word, int(token)) for word, token in raw["levels"].items()),
            prompts=tuple(
                PromptEntry(
                    Prompt(task, medium, tuple(entry["prefix_ids"]), tuple(entry["suffix_ids"])),
                    _text(entry["prefix"]),
                    _text(entry["suffix"]),
                )
                for task, media in raw["tasks"].items()
                for medium, entry in media.items()
            ),
            precision=_text(raw["precision"]),
            engines={engine: dict(parts) for engine, parts in raw["engines"].items()},
            files={
                path: FileEntry(_text(entry["sha256"]), int(entry["bytes"])) for path, entry in raw["files"].items()
            },
            fidelity=raw["fidelity"],
            made_with=dict(raw["made_with"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: a field is missing or malformed ({type(error).__name__}: {error})") from error


def hash_file(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(digest, path.stat().st_size)


def _check_file(directory: Path, name: str, entry: FileEntry, verify: bool) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise ArtifactError(f"{directory / MANIFEST}: file {name!r} lies outside the artifact")
    path = directory / name
    try:
        if not path.resolve(strict=True).is_relative_to(directory.resolve()):
            raise ArtifactError(f"{path}: a link that leads out of the artifact")
        found = path.stat().st_size
        if found != entry.bytes:
            raise ArtifactError(f"{path}: {found} bytes; the manifest says {entry.bytes}")
        if verify and hash_file(path) != entry:
            raise ArtifactError(
                f"{path}: its SHA-256 is not the manifest's {entry.sha256}; the file was damaged or changed"
            )
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; the manifest lists it") from error


def _positive(sizes: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in sizes.items():
        if type(value) not in (int, float) or value <= 0:
            raise TypeError(f"{name} is {value!r}, expected a positive number")
    return sizes


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {value!r}")
    return value
