"""An artifact's directory in, its verified manifest out. Every engine reads it and `qalign_export` writes it.

qalign.json names every other file with its size and SHA-256; no file reaches a runtime before both match. It ends with
a SHA-256 of itself, so damage to any byte of an artifact is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalign_fast.artifact.seal import is_sealed, parse_strict, seal
from qalign_fast.artifact.trusted_files import lies_inside, matches, open_regular, real_path
from qalign_fast.errors import ArtifactError
from qalign_fast.families.family import Family
from qalign_fast.families.prompt import MEDIA, Anchor, Prompt
from qalign_fast.families.registry import FAMILIES, find_family
from qalign_fast.json_values import count, counts, object_of, one_of, sha256, text, texts
from qalign_fast.version import __version__
from qalign_kernels.contract.precisions import PRECISIONS

MANIFEST = "qalign.json"
PROMPTS = "prompts.safetensors"
SCHEMA = 1
PARTIAL = ".partial-"  # marks the folder of an unfinished export by its name

_MOST_BYTES = 4 << 20  # of a manifest; OneAlign's has 8 KB
_FILE_NAME = re.compile(r"(?!.{256})[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)
_VERSION = r"\d{1,6}(\.\d{1,6}){1,3}"


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file: its SHA-256 in hexadecimal digits and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class PromptEntry:
    """A prompt, and the names of its constants in prompts.safetensors. `parts` are of the prompt's parts, in order."""

    prompt: Prompt
    prefix: str  # name of the keys and values [L, 2, P, H, Dh]
    suffix: str  # name of the embeddings [S, D]
    parts: tuple[PromptEntry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The manifest's content of it; the inverse of `_prompt_entry`."""
        content: dict[str, Any] = {
            "prefix_ids": self.prompt.prefix,
            "suffix_ids": self.prompt.suffix,
            "prefix": self.prefix,
            "suffix": self.suffix,
        }
        if self.prompt.anchor:
            content["anchor"] = {"number": self.prompt.anchor.number, "ids": self.prompt.anchor.after}
        return content | ({"parts": {part.prompt.part: part.to_json() for part in self.parts}} if self.parts else {})


@dataclass(frozen=True)
class Manifest:
    """The content of qalign.json. `to_json` and `parse_manifest` are each other's inverse."""

    name: str
    source: Mapping[str, Any]  # the checkpoint that it was made from: name, sha256
    license: str  # of the weights
    family: Family
    config: Any  # the family's sizes (`Sizes`)
    levels: tuple[tuple[str, int], ...]  # word and token id, the best first
    prompts: tuple[PromptEntry, ...]
    precision: str
    quantization: Mapping[str, Any] | None  # the calibration, and linears in a higher precision
    engines: Mapping[str, Mapping[str, str]]  # engine -> part -> path: encode and decode, or weights
    files: Mapping[str, FileEntry]
    fidelity: Mapping[str, Any] | None
    made_with: Mapping[str, str]

    @property
    def task_prompts(self) -> tuple[Prompt, ...]:
        """Every prompt that the artifact can answer."""
        return tuple(entry.prompt for entry in self.prompts)

    @property
    def prompt_entries(self) -> tuple[PromptEntry, ...]:
        """Those of every prompt, each followed by those of its parts: all that constants are kept of."""
        return tuple(one for entry in self.prompts for one in (entry, *entry.parts))

    def to_json(self) -> str:
        """The text of qalign.json with its seal."""
        tasks: dict[str, dict[str, Any]] = {}
        for entry in self.prompts:
            tasks.setdefault(entry.prompt.task, {})[entry.prompt.medium] = entry.to_json()
        content = {
            "schema": SCHEMA,
            "name": self.name,
            "family": self.family.name,
            "source": self.source,
            "license": self.license,
            "precision": self.precision,
            "quantization": self.quantization,
            **self.family.sizes_to_json(self.config),
            "levels": dict(self.levels),
            "tasks": tasks,
            "engines": self.engines,
            "files": {path: dataclasses.asdict(entry) for path, entry in self.files.items()},
            "fidelity": self.fidelity,
            "made_with": self.made_with,
        }
        return seal(content)


@dataclass(frozen=True)
class Artifact:
    """A directory whose manifest was read and whose files were checked, as `open_artifact` does."""

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The path of a file that the manifest names."""
        return self.directory / name


def is_artifact(directory: Path) -> bool:
    """Whether a directory has an entry called qalign.json. Raises ArtifactError if the directory cannot be read."""
    try:
        (directory / MANIFEST).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ArtifactError(f"{directory / MANIFEST}: {error.strerror}") from error
    return True


def open_artifact(directory: str | Path, *, verify: bool = True, remembered: bool = False) -> Artifact:
    """Reads the manifest and checks every file it names: its place, its size and, with `verify`, its SHA-256.

    With `remembered`, a large file that matched before and is unchanged is not hashed again (see trusted_files.py).
    Raises ArtifactError, which names the file.
    """
    directory = Path(directory)
    if PARTIAL in real_path(directory).name:
        raise ArtifactError(f"{directory}: an export that was not finished; export again")
    manifest = read_manifest(directory / MANIFEST)
    for name, entry in manifest.files.items():
        _check_file(directory, name, entry, verify=verify, remembered=remembered)
    for name in (PROMPTS, *(name for parts in manifest.engines.values() for name in parts.values())):
        if name not in manifest.files:
            raise ArtifactError(f"{directory / MANIFEST}: {name!r} is not among the manifest's files")
    return Artifact(directory, manifest)


def read_manifest(path: Path) -> Manifest:
    """Reads and checks a manifest, without the files that it names.

    Raises ArtifactError for a file that is damaged, of another schema, or not a manifest.
    """
    try:
        if not lies_inside(path, path.parent):
            raise ArtifactError(f"{path}: a link that leads out of the artifact")
        with open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise ArtifactError(f"{path}: more than {_MOST_BYTES} bytes, which no manifest has")
    try:
        raw = parse_strict(data)
        _check_schema(raw, str(path))  # before the seal, which a newer schema may have changed
        if not is_sealed(data):
            raise ArtifactError(f"{path}: its last field is not its own SHA-256; the file was damaged or changed")
        return parse_manifest(raw, str(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({str(error)[:200]})") from error


def parse_manifest(raw: Any, where: str) -> Manifest:
    """The manifest from its JSON content; errors name it `where`.

    Raises ArtifactError for another schema, or for a field that is missing or malformed.
    """
    _check_schema(raw, where)
    try:
        family = _find_family(raw["family"])
        if tuple(raw["levels"]) != family.scale.words:
            raise ValueError(f"levels {list(raw['levels'])}, expected {list(family.scale.words)}")
        if not raw["tasks"] or not all(raw["tasks"].values()):
            raise ValueError("it has no task, or one without a prompt")
        prompts = tuple(
            _prompt_entry(task, one_of(MEDIA, medium), entry)
            for task, media in raw["tasks"].items()
            for medium, entry in media.items()
        )
        _check_parts(family, prompts)
        return Manifest(
            name=text(raw["name"]),
            source=object_of(raw["source"]),
            license=text(raw["license"]),
            family=family,
            config=family.sizes_from_json(raw),
            levels=tuple((word, count(token)) for word, token in raw["levels"].items()),
            prompts=prompts,
            precision=one_of(tuple(PRECISIONS), text(raw["precision"])),
            quantization=None if raw["quantization"] is None else object_of(raw["quantization"]),
            engines={engine: texts(parts) for engine, parts in raw["engines"].items()},
            files={
                path: FileEntry(sha256(entry["sha256"]), count(entry["bytes"])) for path, entry in raw["files"].items()
            },
            fidelity=None if raw["fidelity"] is None else object_of(raw["fidelity"]),
            made_with=texts(raw["made_with"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        cause = f"{type(error).__name__}: {str(error)[:200]}"
        raise ArtifactError(f"{where}: a field is missing or malformed ({cause})") from error


def _prompt_entry(task: str, medium: str, raw: Mapping[str, Any], part: str | None = None) -> PromptEntry:
    """Raises KeyError, TypeError, ValueError or AttributeError for what is not as `to_json` gives it."""
    parts: tuple[PromptEntry, ...] = ()
    if "parts" in raw:
        if part is not None:
            raise ValueError(f"part {part!r} has parts of its own")
        parts = tuple(_prompt_entry(task, medium, entry, text(name)) for name, entry in raw["parts"].items())
        if not parts or "" in raw["parts"]:
            raise ValueError(f"task {task!r} has no parts, or one without a name")
    anchor = Anchor(count(raw["anchor"]["number"]), counts(raw["anchor"]["ids"])) if "anchor" in raw else None
    prompts = tuple(entry.prompt for entry in parts)
    prompt = Prompt(task, medium, counts(raw["prefix_ids"]), counts(raw["suffix_ids"]), part, prompts, anchor)
    return PromptEntry(prompt, text(raw["prefix"]), text(raw["suffix"]), parts)


def _check_parts(family: Family, prompts: Sequence[PromptEntry]) -> None:
    """Raises ValueError for a prompt that the family's `answer` could not answer."""
    known = {(p.task, p.medium): tuple(part.part for part in p.parts) for p in family.prompts}
    for prompt in (entry.prompt for entry in prompts):
        found, expected = tuple(part.part for part in prompt.parts), known.get((prompt.task, prompt.medium), ())
        if found != expected:
            raise ValueError(f"task {prompt.task!r} has the parts {found}, expected {expected}")


def hash_file(path: Path) -> FileEntry:
    """The entry of a file, whose every byte is read. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(digest, path.stat().st_size)


def _check_schema(raw: Any, where: str) -> None:
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if type(schema) is int and schema == SCHEMA:
        return
    hint = ""
    if type(schema) is int and schema > SCHEMA:
        hint = f"; {_newer(raw.get('made_with'), __version__)} reads it"
    raise ArtifactError(
        f"{where}: schema {repr(schema)[:80]}; this version ({__version__}) reads schema {SCHEMA}{hint}"
    )


def _newer(made_with: Any, ours: str) -> str:
    """The version that reads a newer schema: the one that wrote it, if the manifest names it."""
    made = made_with.get("qalign-fast") if isinstance(made_with, dict) else None
    if isinstance(made, str) and re.fullmatch(_VERSION, made) and _release(made) > _release(ours):
        return f"qalign-fast {made} or newer"
    return "a newer qalign-fast"


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _check_file(directory: Path, name: str, entry: FileEntry, *, verify: bool, remembered: bool) -> None:
    if not _FILE_NAME.fullmatch(name):
        raise ArtifactError(
            f"{directory / MANIFEST}: file {name[:256]!r} lies outside the artifact, or is named with other characters "
            "than letters, digits and _ . -"
        )
    path = directory / name
    try:
        if not lies_inside(path, directory):
            raise ArtifactError(f"{path}: a link that leads out of the artifact")
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{path}: not a regular file; the manifest lists it")
        if found.st_size != entry.bytes:
            raise ArtifactError(f"{path}: {found.st_size} bytes; the manifest says {entry.bytes}")
        if verify and not matches(path, entry.sha256, remembered=remembered):
            raise ArtifactError(
                f"{path}: its SHA-256 is not the manifest's {entry.sha256}; the file was damaged or changed"
            )
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; the manifest lists it") from error


def _find_family(name: Any) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family {name!r}, expected one of: {', '.join(FAMILIES)}")
    return find_family(name)
