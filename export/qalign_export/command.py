"""What `qalign-fast export` was asked in, an artifact and remarks on it out."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qalign_export.custom_prompt import TOKENIZER, tokenize_prompt
from qalign_export.fidelity import generate_pictures, verify
from qalign_export.parameters import RANDOM
from qalign_export.rounding.pack import Recipe
from qalign_export.writer import UNKNOWN_LICENSE, export_artifact
from qalign_fast.errors import ImageError, TaskError
from qalign_fast.families.mplug_owl2.prompts import TASKS
from qalign_fast.families.prompt import Prompt
from qalign_fast.pixels.clip import spread
from qalign_fast.pixels.picture import Picture
from qalign_fast.references import find_model
from qalign_fast.sources import find_sources, is_video

_SMALL = 400 << 20  # bytes of weights; below, comparing with the source takes seconds


def export(
    source: str,
    out: Path,
    *,
    precision: str,
    engines: Sequence[str],
    tasks: Sequence[str] | None,
    texts: Sequence[str],
    tokenizer: Path | None,
    calibration: str | None,
    calibration_count: int,
    name: str | None,
    license: str | None,
    remark: Callable[[str], None],
    done: Callable[[int, int], None],
) -> None:
    """Raises what `export_artifact` and `verify` raise."""
    started = time.perf_counter()
    pictures = [] if precision in ("fp32", "bf16") else _calibration(calibration, calibration_count)
    made = export_artifact(
        source,
        out,
        recipe=Recipe(precision),
        engines=engines,
        tasks=TASKS if tasks is None else tasks,
        prompts=[prompt for text in texts for prompt in _custom(text, tokenizer, source)],
        calibration=pictures,
        name=name,
        license=license or UNKNOWN_LICENSE,
        done=done,
    )
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    remark(f"made {made}: {size / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s")
    if source.startswith(RANDOM):
        return
    if size > _SMALL:
        remark(f"what it costs in accuracy: qalign-fast verify {made} --against {source}")
        return
    for engine, report in verify(made, find_model(source)).items():
        remark(
            f"{engine} against its source, {report.pictures}: score {report.mean_delta:.2g} off in the mean, "
            f"{report.max_delta:.2g} at most; SRCC {report.srcc:.5f}"
        )


def _calibration(folder: str | None, count: int) -> list[Picture]:
    """That many pictures of a folder, spread evenly over it, or generated ones."""
    if folder is None:
        return list(generate_pictures(count))
    found = [source for source in find_sources([folder], io.StringIO(), recursive=True) if not is_video(source)]
    if not found:
        raise ImageError(f"{folder}: no pictures to calibrate on")
    return [found[i] for i in spread(len(found), count)]


def _custom(text: str, tokenizer: Path | None, source: str) -> tuple[Prompt, ...]:
    name, equals, words = text.partition("=")
    if not equals:
        raise TaskError(f"--prompt {text!r}: expected NAME=TEXT")
    if tokenizer is None and source.startswith(RANDOM):
        raise TaskError(f"--prompt {name}: {source} has no tokenizer; give one with --tokenizer")
    return tokenize_prompt(name, words.replace("\\n", "\n"), tokenizer or find_model(source) / TOKENIZER)
