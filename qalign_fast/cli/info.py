"""`qalign-fast info`: a model reference in, facts for people out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from qalign_fast.artifact.manifest import Artifact, Manifest, is_artifact, open_artifact
from qalign_fast.cli.console import Base, NoVerify, print_facts
from qalign_fast.engines.candidates import ENGINES, by_name_of, candidates, engines_of
from qalign_fast.engines.load import checkpoint_precisions
from qalign_fast.engines.options import LoadOptions
from qalign_fast.families.adapters import base_remark, find_base
from qalign_fast.families.published import inverted_remark, trained_for
from qalign_fast.families.registry import family_of_checkpoint
from qalign_fast.references import find_model, name_of
from qalign_kernels.cpu import native


def info(
    model: Annotated[str | None, typer.Argument(help="As score's --model.", show_default=False)] = None,
    base: Base = None,
    device: Annotated[str, typer.Option(help="As score's: which engine would run there is said.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Say what a model is: sizes, tasks, precision, files, licence, and which engine would run it here."""
    print_facts(describe(model, base=base, device=device, verify=not no_verify), as_json=json)


def describe(
    model: str | Path | None, *, base: str | Path | None = None, device: str = "auto", verify: bool = True
) -> dict[str, Any]:
    """What an artifact or checkpoint is, as flat facts, and which of an artifact's engines would run on a device here.

    `base` is as `find_base` takes it, which raises for one that is not there. Raises ArtifactError or CheckpointError,
    DeviceError for what is no device's name. No weights are read.
    """
    options, directory = LoadOptions(device, verify=verify), find_model(model)
    if is_artifact(directory):
        artifact = open_artifact(directory, verify=options.verify, remembered=True)
        manifest, facts = artifact.manifest, {"kind": "artifact", "path": str(directory)}
        if manifest.engines:
            facts |= _engines(artifact, options)
        facts |= _manifest(manifest, verify=verify) | manifest.family.describe(manifest.config)
        facts |= _training(str(manifest.source.get("name")), is_adapter="base" in manifest.source)
        return facts | ({"kernels": native.describe()} if "torch" in manifest.engines else {})
    on = find_base(directory, base)
    family = family_of_checkpoint(directory, on)
    facts = {"kind": "checkpoint" if on is None else "LoRA adapter", "path": str(directory)}
    facts |= {"engines": "torch"} if on is None else {"base": str(on), "engines": "torch, merged into its base"}
    facts |= {"family": family.name}
    facts |= {"precision": ", ".join(checkpoint_precisions(family)), "tasks": ", ".join(family.tasks)}
    facts |= _training(name_of(directory), is_adapter=on is not None)
    if (remark := base_remark(directory, base)) is not None:
        facts["warning"] = "; ".join([*([facts["warning"]] if "warning" in facts else []), remark])
    return facts | family.describe(family.read_config(directory, on))


def _training(name: str, *, is_adapter: bool) -> dict[str, str]:
    """What is known of a checkpoint by its name."""
    training, inverted = trained_for(name), inverted_remark(name) if is_adapter else None
    facts = {} if training is None else {"trained for": str(training)}
    return facts if inverted is None else facts | {"warning": inverted}


def _engines(artifact: Artifact, options: LoadOptions) -> dict[str, str]:
    """The engine that would run, the others that could, and why the rest could not."""
    found = list(candidates(artifact, options))
    could = [one for one in found if one.objection is None]
    facts = {"engine": str(could[0]) if could else f"none here: {'; or '.join(str(one.objection) for one in found)}"}
    if could and could[0].engine == "torch" and could[0].place.startswith("cuda"):
        from qalign_fast.engines.cuda_model import attention_of

        attention = attention_of(artifact.manifest.precision, could[0].place)
        facts["attention"] = f"torch's, {attention}"
    if could[1:]:
        facts["could also run"] = "; ".join(map(str, could[1:]))
    if "openvino" in by_name_of(artifact.manifest):
        [one] = candidates(artifact, replace(options, engine="openvino"))
        facts["runs if it is named"] = str(one.objection or one)
    refused = [f"{one.engine}: {one.objection}" for one in found if one.objection and could]
    has, named = engines_of(artifact.manifest), [one.engine for one in found]
    refused += [f"{name}: not on device {options.device!r}" for name in has if name not in named]
    refused += [f"{name}: the artifact has no weights for it" for name in ENGINES if name not in has]
    return facts | ({"cannot run": "; ".join(refused)} if refused else {})


def _manifest(manifest: Manifest, *, verify: bool) -> dict[str, Any]:
    total = sum(file.bytes for file in manifest.files.values())
    images, clips = ([e.prompt.task for e in manifest.prompts if e.prompt.medium == m] for m in ("image", "video"))
    return {
        "name": manifest.name,
        "source": manifest.source.get("name", "?"),
        "license": manifest.license,
        "engines": ", ".join(manifest.engines),
        "family": manifest.family.name,
        "precision": manifest.precision,
        "tasks": ", ".join(images),
        "video tasks": ", ".join(clips) or "none",
        "files": f"{len(manifest.files)}, {total / 1e6:.1f} MB, hashes {'verified' if verify else 'not checked'}",
        **_rounding(manifest),
        "fidelity": {engine: _summary(report) for engine, report in manifest.fidelity.items()}
        if manifest.fidelity
        else "not measured; qalign-fast verify --against its source does",
        "made with": dict(manifest.made_with),
    }


def _rounding(manifest: Manifest) -> dict[str, Any]:
    if manifest.quantization is None:
        return {}
    higher = manifest.quantization.get("higher") or {}
    calibrated = f"{manifest.quantization.get('calibration_pictures')} calibration pictures"
    return {"rounding": ", ".join([calibrated, *(f"{name} in {precision}" for name, precision in higher.items())])}


def _summary(report: Mapping[str, Any]) -> str:
    return (
        f"against {report.get('against')} on {report.get('pictures')}: "
        f"score {report.get('mean_delta'):.2g} off in the mean, {report.get('max_delta'):.2g} at most, "
        f"SRCC {report.get('srcc'):.5f}{_interval(report.get('srcc_interval'))}"
    )


def _interval(ends: Sequence[float] | None) -> str:
    """None of few scenes, and in reports of older versions."""
    return f" ({ends[0]:.5f} to {ends[1]:.5f})" if ends else ""
