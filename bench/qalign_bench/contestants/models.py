"""A model reference, a precision and an engine in, an artifact that has them out. What is no artifact is exported once.

An export made here is rounded without calibration. Its speed is that of any export of this geometry whose linears all
keep the precision. To measure its scores and their fidelity, export it yourself and give the artifact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalign_bench.cli.options import DEFAULT_PRECISION, TASKS
from qalign_bench.contestants.worker import weights_bytes
from qalign_fast.artifact.manifest import MANIFEST, Artifact, Manifest, is_artifact, read_manifest
from qalign_fast.engines.candidates import by_name_of, choose, engines_of, weights_of
from qalign_fast.engines.engine_times import rank
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import ArtifactError, DeviceError, TaskError
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.references import find_model
from qalign_fast.version import __version__
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.cpu import native
from qalign_kernels.cpu.table import KINDS

RANDOM = "random:"
_NF4_BYTES = 0.55  # of a weight in bitsandbytes' 4 bits, its share of scales included


@dataclass(frozen=True)
class Model:
    """An artifact and the engine that runs it."""

    reference: str  # what was asked for
    directory: Path | None  # None: random numbers, which are made on their device when they are loaded
    manifest: Manifest
    checkpoint: str | None  # what it was exported from here: a directory, or `random:` and a geometry
    engine: str  # or "auto": the one that `load_engine` picks
    choice: str | None = None  # the engine that was picked and why, where "auto" was asked for

    @property
    def config(self) -> ModelConfig:
        config: ModelConfig = self.manifest.config
        return config

    @property
    def weights_bytes(self) -> int:
        """Bytes of the engine's weights; of the largest engine's where it is not known which one will run."""
        if self.directory is None:
            return 0
        engines = self.manifest.engines if self.engine == "auto" else (self.engine,)
        return max(weights_bytes(self.directory, engine) or 0 for engine in engines)

    def fidelity(self, engine: str) -> dict[str, Any] | None:
        """What `qalign-fast verify` wrote about an engine's scores; None where it did not run."""
        report: dict[str, Any] | None = (self.manifest.fidelity or {}).get(weights_of(engine))
        return report

    @property
    def parameters(self) -> str | None:
        """The checkpoint or `random:` geometry that a peer can load too; None where an artifact does not name one."""
        if self.checkpoint:
            return self.checkpoint
        name = self.manifest.source.get("name", "")
        return name if name.startswith(RANDOM) else None

    @property
    def loaded(self) -> str:
        """The reference that a worker loads."""
        return self.reference if self.directory is None else str(self.directory)

    @property
    def numbers(self) -> str | None:
        """The kind of `random_numbers` that gives a peer this model's numbers: "parameter" or "counted".

        None where neither does, since random numbers may have been made in another way. A checkpoint has numbers of its
        own, so that either kind will do.
        """
        from qalign_bench.contestants.random_model import DeviceParameters
        from qalign_export.parameters import open_parameters

        assert self.parameters
        if self.directory is not None and self.checkpoint:
            return "parameter"
        sha256 = self.manifest.source["sha256"]
        if sha256 == DeviceParameters(self.parameters).sha256():
            return "counted"
        return "parameter" if sha256 == open_parameters(self.parameters).sha256() else None


def prepare(
    reference: str | None,
    precision: str | None,
    engine: str,
    work: Path,
    remark: Callable[[str], None],
    done: Callable[[int, int], None],
    device: str = "auto",
    in_file: bool = False,
) -> Model:
    """Finds the artifact or makes it below `work`.

    Random numbers for a named CUDA device are made on that device, unless they must be in a file (`in_file`). `done`
    is told how many steps of how many an export has done.

    Raises what `export_artifact` and `find_model` raise, and DeviceError for a precision or engine that a given
    artifact does not have.
    """
    on_device = device.startswith("cuda") and engine in ("auto", "torch") and not in_file
    if reference and reference.startswith(RANDOM) and on_device:
        return _on_device(reference, precision or DEFAULT_PRECISION)
    directory = None if reference and reference.startswith(RANDOM) else find_model(reference)
    checkpoint = choice = None
    if directory is None or not is_artifact(directory):
        assert reference is not None  # the embedded model is an artifact
        checkpoint = reference if directory is None else str(directory)
        chosen = precision or DEFAULT_PRECISION
        if engine == "auto":
            engine, choice = _default_engine(chosen)
        weights = weights_of(engine)
        out = work / f"{_name(reference, checkpoint)}-{chosen}-{weights}-{__version__}"
        directory = _export(checkpoint, out, chosen, weights, remark, done)
    manifest = read_manifest(directory / MANIFEST)
    _check("precision", precision, (manifest.precision,), directory)
    _check(
        "weights for engine",
        None if engine == "auto" else engine,
        (*engines_of(manifest), *by_name_of(manifest)),
        directory,
    )
    if engine == "auto":
        choice = str(choose(Artifact(directory, manifest), LoadOptions(device, engine=engine)))
    shown = reference or f"the embedded {manifest.name} model"
    return Model(shown, directory, manifest, checkpoint, engine, choice)


def _on_device(reference: str, precision: str) -> Model:
    from qalign_bench.contestants.random_model import DeviceParameters, manifest_of

    manifest = manifest_of(DeviceParameters(reference), precision)
    return Model(reference, None, manifest, reference, "torch")


def require_tasks(model: Model, tasks: tuple[str, ...]) -> None:
    """Raises TaskError unless the artifact has these tasks for pictures."""
    has = [entry.prompt.task for entry in model.manifest.prompts if entry.prompt.medium == "image"]
    for task in tasks:
        if task not in has:
            raise TaskError(f"task {task!r} is not in {model.reference}; it has: {', '.join(has)}")


def upstream_bytes(config: ModelConfig, precision: str) -> int:
    """About how many bytes upstream's model has of weights, with the vocabulary's embeddings and head."""
    from qalign_export.parameters import weight_count

    decoder = config.decoder
    of_each = _NF4_BYTES if precision == "nf4" else PRECISIONS[precision].bytes
    return int((weight_count(config) + 2 * decoder.vocab * decoder.width) * of_each)


def is_one_align(config: ModelConfig) -> bool:
    """Whether all sizes are OneAlign's."""
    from qalign_export.parameters import ONE_ALIGN

    known = ONE_ALIGN
    return (config.vision, config.abstractor, config.decoder) == (known.vision, known.abstractor, known.decoder)


def _default_engine(precision: str) -> tuple[str, str]:
    """The engine that `load_engine` would pick on the CPU for an artifact with both engines' weights, and why."""
    if PRECISIONS[precision].engines == ("torch",):
        only = "native" if native.chosen() and PRECISIONS[precision].weight in KINDS else "torch"
        return only, f"{only}: onnxruntime has no {precision}"
    ranking = rank(precision, native.chosen())
    return ranking.engines[0], f"{ranking.engines[0]}: {ranking.why}"


def _check(what: str, asked: str | None, has: tuple[str, ...], directory: Path) -> None:
    if asked is not None and asked not in has:
        raise DeviceError(f"{directory}: has no {what} {asked!r}; available: {', '.join(has)}")


def _export(
    checkpoint: str,
    out: Path,
    precision: str,
    engine: str,
    remark: Callable[[str], None],
    done: Callable[[int, int], None],
) -> Path:
    from qalign_export.options import ExportOptions
    from qalign_export.writer import export_artifact

    if is_artifact(out):
        return out
    remark(f"exporting {checkpoint} in {precision} for {engine}, uncalibrated, into {out} (kept for the next time)")
    try:
        return export_artifact(checkpoint, out, ExportOptions(precision, (engine,), TASKS), done=done)
    except OSError as error:
        raise ArtifactError(f"{out}: {error.strerror}") from error


def _name(reference: str, checkpoint: str) -> str:
    """A file name for a model: its reference in plain letters, and a hash that changes when the model does."""
    if checkpoint.startswith(RANDOM):
        from qalign_export.parameters import open_parameters

        source = open_parameters(checkpoint)
        identity = repr((source.config, source.sha256()))
    else:
        files = [path for path in sorted(Path(checkpoint).iterdir()) if path.is_file()]
        identity = repr([(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files])
    words = re.sub(r"[^A-Za-z0-9]+", "-", reference).strip("-")[-60:]
    return f"{words}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
