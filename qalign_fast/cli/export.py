"""`qalign-fast export`: makes an artifact of a checkpoint. qalign_export does the work."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qalign_fast.cli.console import Base, progress_bar, remark
from qalign_fast.errors import MissingExtraError
from qalign_kernels.contract.precisions import PRECISIONS, Precision

PrecisionChoice = StrEnum("PrecisionChoice", [(name, name) for name in PRECISIONS])  # type: ignore[misc]
_UNROUNDED = PrecisionChoice("fp32")
EngineChoice = StrEnum("EngineChoice", [("onnx", "onnx"), ("cuda", "onnx-cuda"), ("torch", "torch"), ("all", "all")])


def _names(precisions: Iterable[Precision]) -> str:
    *names, last = (precision.name for precision in precisions)
    return f"{', '.join(names)} and {last}"


_ROUNDED = _names(p for p in PRECISIONS.values() if p.rounded)
_TORCH_ALONE = _names(p for p in PRECISIONS.values() if p.engines == ("torch",))


def export(
    source: Annotated[
        str,
        typer.Argument(help="Checkpoint directory, Hub id, or random:one-align (true sizes).", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="Artifact directory to make; must not exist.", show_default=False)],
    base: Base = None,
    precision: Annotated[PrecisionChoice, typer.Option(help=f"{_ROUNDED} round rows as well.")] = _UNROUNDED,
    engine: Annotated[
        EngineChoice, typer.Option(help=f"onnx-cuda is for an NVIDIA GPU, in fp16; {_TORCH_ALONE} have torch's alone.")
    ] = EngineChoice.onnx,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "--tasks", help="A task to include; may be repeated. Default: all four.", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A task of your own: NAME=TEXT, with <image> in the text; \\n is a new line. May be repeated.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="For --prompt. Default: the checkpoint's tokenizer.model.", show_default=False)
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Folder of pictures to calibrate on. Default: generated ones.", show_default=False),
    ] = None,
    calibration_count: Annotated[int, typer.Option(min=0, help="Pictures to calibrate on; 0 rounds blindly.")] = 8,
    name: Annotated[str | None, typer.Option(help="The model's name in the manifest.", show_default=False)] = None,
    license: Annotated[
        str | None, typer.Option(help="The weights' licence, for the manifest.", show_default=False)
    ] = None,
) -> None:
    """Make an artifact: weights in a precision for an engine, the prompts' constants, a manifest with hashes.

    \b
    qalign-fast export path/to/one-align one-align-int8 --precision int8
    qalign-fast export q-future/one-align one-align-int4 --precision int4 --engine all --calibration photos/
    """
    try:
        from qalign_export import command
        from qalign_export.options import UNKNOWN_LICENSE, ExportOptions
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"export needs torch and onnx: pip install 'qalign-fast[export]' ({error})") from error
    options = ExportOptions(
        precision=precision.value,
        engines=("onnx", "torch") if engine == EngineChoice.all else (engine.value,),
        tasks=task,
        calibration=command.find_calibration(calibration, calibration_count, precision.value),
        prompts=command.read_prompts(prompt or [], tokenizer, source, base),
        name=name,
        license=license or UNKNOWN_LICENSE,
        base=base,
    )
    with progress_bar("rounding and writing") as done:
        command.export(source, out, options, remark=remark, done=done)
