"""What `qalign-fast export` does: it turns the command's words into options, exports, and remarks on the artifact."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qalign_export.custom_prompt import TOKENIZER, tokenize_prompt
from qalign_export.fidelity import verify
from qalign_export.options import ExportOptions
from qalign_export.parameters import RANDOM
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from qalign_fast.errors import ImageError, TaskError
from qalign_fast.families.adapters import find_base
from qalign_fast.families.prompt import Prompt
from qalign_fast.pixels.footage import spread
from qalign_fast.pixels.picture import Picture
from qalign_fast.references import find_model
from qalign_fast.sources import find_paths, is_video
from qalign_kernels.contract.precisions import PRECISIONS

_SMALL = 400 << 20  # bytes of an artifact; below, a comparison with the source takes seconds


def export(
    source: str,
    out: Path,
    options: ExportOptions,
    *,
    remark: Callable[[str], None],
    done: Callable[[int, int], None],
) -> None:
    """Makes the artifact and, if it is small, compares it with its source.

    `remark` hears lines for the user. Raises what `export_artifact` and `verify` raise.
    """
    started = time.perf_counter()
    made = export_artifact(source, out, options, done=done)
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    remark(f"made {made}: {size / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s")
    if source.startswith(RANDOM):
        return
    if size > _SMALL:
        remark(f"what it costs in accuracy: qalign-fast verify {made} --against {source}")
        return
    for engine, report in verify(made, find_model(source), base=options.base).items():
        remark(
            f"{engine} against its source, {report.pictures}: score {report.mean_delta:.2g} off in the mean, "
            f"{report.max_delta:.2g} at most; SRCC {report.srcc:.5f}"
        )


def find_calibration(folder: str | None, count: int, precision: str) -> list[Picture]:
    """`count` pictures, spread evenly over a folder, or generated ones; none if the precision needs no calibration.

    Raises ImageError for a folder without pictures.
    """
    if not PRECISIONS[precision].calibrated:
        return []
    if folder is None:
        return list(generate_pictures(count))
    found = [path for path in find_paths([folder], io.BytesIO(), recursive=True) if not is_video(path)]
    if not found:
        raise ImageError(f"{folder}: no pictures to calibrate on")
    return [found[i] for i in spread(len(found), count)]


def read_prompts(texts: Sequence[str], tokenizer: Path | None, source: str, base: str | None = None) -> list[Prompt]:
    """The prompts of each NAME=TEXT, by a tokenizer file, or the one in the source checkpoint or in an adapter's base.

    Raises TaskError for another form, or if there is no tokenizer; and what `tokenize_prompt` raises.
    """
    return [prompt for text in texts for prompt in _read_prompt(text, tokenizer, source, base)]


def _read_prompt(text: str, tokenizer: Path | None, source: str, base: str | None) -> tuple[Prompt, ...]:
    name, equals, words = text.partition("=")
    if not equals:
        raise TaskError(f"--prompt {text!r}: expected NAME=TEXT")
    if tokenizer is None and source.startswith(RANDOM):
        raise TaskError(f"--prompt {name}: {source} has no tokenizer; give one with --tokenizer")
    return tokenize_prompt(name, words.replace("\\n", "\n"), tokenizer or _tokenizer(source, base))


def _tokenizer(source: str, base: str | None) -> Path:
    directory = find_model(source)
    on = None if (directory / TOKENIZER).is_file() else find_base(directory, base)
    return (on or directory) / TOKENIZER
