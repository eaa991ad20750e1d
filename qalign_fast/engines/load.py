"""A reference to a model in, an engine out: finds or fetches the directory, and loads the engine that is to run it."""

from __future__ import annotations

from pathlib import Path

from qalign_fast.artifact.manifest import MANIFEST, Artifact, is_artifact, open_artifact
from qalign_fast.engines.candidates import by_name_of, choose, engines_of, require_torch
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import ArtifactError, DeviceError, OptionError
from qalign_fast.families.adapters import base_remark, find_base, is_adapter
from qalign_fast.families.family import Family
from qalign_fast.families.published import inverted_remark, tell
from qalign_fast.families.registry import family_of_checkpoint
from qalign_fast.references import find_model, name_of


def load_engine(model: str | Path | None = None, options: LoadOptions | None = None) -> Engine:
    """The engine for a model: None (the embedded one), the directory of an artifact or a checkpoint, or a Hub id.

    A checkpoint may be a LoRA adapter's folder. `base` is the checkpoint that it is merged into, if that is not the one
    that it names. A ModelWarning is given for a base of another name, and for an adapter that was trained upside down.

    `device` is "cpu", "cuda", "cuda:1" (and so on), "mps", or "auto". For an artifact with torch weights, or with
    graphs for CUDA, "auto" is the first CUDA device if the packages that run them there are installed, and otherwise
    the CPU. On a CPU, an artifact that has weights for several engines runs on the one that was measured to be the
    fastest on such a CPU. `engine_times.rank` is the rule, and `qalign-fast info` names the engine. A checkpoint runs
    on torch. In float32, "auto" is the CPU. With `precision` "bnb-int8" or "bnb-nf4" it runs on bitsandbytes' linears,
    and "auto" is the first CUDA device that they run on.

    `engine` is "auto", one that the artifact has weights for ("onnx"; "onnx-cuda" for graphs made for a GPU; "torch";
    "native", which runs torch weights on a CPU without torch), "openvino", which runs "onnx" graphs on a CPU, or
    "tensorrt", which runs them in float32 or float16.

    Raises ArtifactError or CheckpointError for a model that cannot be read, OptionError for a base of what is no
    adapter, DeviceError for an engine, device or precision that the model or the machine does not have, and
    MissingExtraError for a package that is not installed.
    """
    engine = _load(find_model(model), options or LoadOptions())
    if engine.name == "torch":
        from qalign_fast.engines.torch_weights import one_thread_in_forks

        one_thread_in_forks()
    return engine


def _load(directory: Path, options: LoadOptions) -> Engine:
    if is_artifact(directory):
        if options.base is not None:
            raise OptionError(f"base {options.base}: {directory} is an artifact, which needs no base")
        return _load_artifact(open_artifact(directory, verify=options.verify, remembered=True), options)
    if not is_adapter(directory) and not (directory / "config.json").is_file():
        raise ArtifactError(f"{directory}: neither an artifact ({MANIFEST}) nor a checkpoint (config.json)")
    return _load_checkpoint(directory, options)


def _load_artifact(artifact: Artifact, options: LoadOptions) -> Engine:
    manifest, directory = artifact.manifest, artifact.directory
    if "base" in manifest.source:  # it was an adapter
        tell(inverted_remark(str(manifest.source.get("name"))))
    if not manifest.engines:
        raise ArtifactError(f"{directory / MANIFEST}: has no engine's weights")
    if options.precision not in (None, "auto", manifest.precision):
        raise DeviceError(f"{directory}: has no precision {options.precision!r}; available: {manifest.precision}")
    runnable = (*engines_of(manifest), *by_name_of(manifest))
    if options.engine not in ("auto", *runnable):
        available = ", ".join(runnable)
        raise DeviceError(f"{directory}: has no weights for engine {options.engine!r}; available: {available}")
    return choose(artifact, options).load(artifact, options.usable_threads)


def _load_checkpoint(directory: Path, options: LoadOptions) -> Engine:
    if options.engine not in ("auto", "torch"):
        raise DeviceError(
            f"{directory}: has no weights for engine {options.engine!r}; available: torch; "
            "`qalign-fast export` makes an artifact for onnx"
        )
    base = find_base(directory, options.base)
    family = family_of_checkpoint(directory, base)
    has = checkpoint_precisions(family)
    if options.precision not in (None, "auto", *has):
        raise DeviceError(
            f"{directory}: has no precision {options.precision!r}; available: {', '.join(has)}; "
            "`qalign-fast export` makes others"
        )
    require_torch()
    from qalign_fast.engines.torch_cpu import load_checkpoint

    precision = "fp32" if options.precision in (None, "auto") else str(options.precision)
    place = _place_checkpoint(options.device, precision)
    if base is not None:
        tell(inverted_remark(name_of(directory)), base_remark(directory, options.base))
    return load_checkpoint(family, directory, options.usable_threads, place, precision, base)


def checkpoint_precisions(family: Family) -> tuple[str, ...]:
    """The precisions that a checkpoint of the family can be loaded in. An artifact has a precision of its own."""
    return ("fp32", "bnb-int8", "bnb-nf4") if "bitsandbytes" in family.engines else ("fp32",)


def _place_checkpoint(device: str, precision: str) -> str:
    """The device that a checkpoint is to run on: "cpu", "mps" or "cuda:N"."""
    from qalign_fast.engines.bitsandbytes_linears import PRECISIONS
    from qalign_fast.engines.devices import choose_device

    if precision in PRECISIONS:
        return choose_device(device, PRECISIONS[precision].needs)
    # float32 at full size is 33 GB, more than most GPUs have. So a GPU is used only if it is named.
    return "cpu" if device == "auto" else choose_device(device)
