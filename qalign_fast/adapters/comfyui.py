"""What goes into a ComfyUI node in, what comes out of it out. ComfyUI itself is not imported.

The nodes are in integrations/comfyui. ComfyUI's IMAGE is a tensor of floats on 0..1, [B, H, W, C], and QALIGN_SCORES,
a type of our own, is a list of a Score for each picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import OptionError
from qalign_fast.records import make_row
from qalign_fast.scorer import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from qalign_fast.levels import Score
    from qalign_fast.pixels.rule import Pixels

TASKS = ["quality", "aesthetics"]
DEVICES = ["auto", "cpu", "cuda", "cuda:1", "cuda:2", "cuda:3", "mps"]
PRECISIONS = ["auto", "fp32", "bnb-int8", "bnb-nf4"]  # "auto": the artifact's own; the others are for checkpoints
PNG_TEXT = "qalign"  # the key of a score in a PNG's metadata

_LOADED: dict[tuple[str, str, str], Scorer] = {}  # the last one: ComfyUI itself keeps those that a workflow has


def load(model: str, device: str = "auto", precision: str = "auto") -> Scorer:
    """The scorer for a model's path, Hub id or server's address; "" is the embedded mini model.

    The last one stays loaded, so another workflow has it at once. Raises what `Scorer.load` raises.
    """
    options = (model.strip().strip("\"'"), device, precision)  # Windows copies a path with quotes around it
    if options not in _LOADED:
        _LOADED.clear()  # its memory is free before the next one takes some
        chosen = None if precision == "auto" else precision
        _LOADED[options] = Scorer.load(options[0] or None, device=device, precision=chosen)
    return _LOADED[options]


def pictures(images: Tensor) -> list[Pixels]:
    """B pictures, uint8 [H, W, C] each, with the same pixels as the files that ComfyUI saves.

    ComfyUI cuts values to 0..1 and drops the fraction of the level. What is not a number becomes black.
    """
    levels = (images.detach().float().cpu().nan_to_num(0).clamp(0, 1) * 255).byte()
    return list(levels.numpy())


def score(scorer: Scorer, images: Tensor, task: str = "quality") -> tuple[list[Score], float, str]:
    """The scores of B pictures, their mean, and a line of text for each. Raises what `Scorer.score` raises."""
    scores = scorer.score(iter(pictures(images)), task)
    return scores, fmean(score.value for score in scores), "\n".join(map(text_of, scores))


def score_frames(scorer: Scorer, frames: Tensor, task: str = "quality", frame_rate: float = 0) -> Score:
    """The score of one clip, of which `frames` are all the frames, in order.

    frame_rate: frames a second. One frame a second is scored, as of a video file; 0 scores every frame. More than the
    model takes are spread evenly, which is a warning in the Score. Raises what `Scorer.score_video` raises.
    """
    if frame_rate > 0:
        seconds = max(1, int(len(frames) / frame_rate))
        frames = frames[[int(frame_rate * second) for second in range(seconds)]]
    return scorer.score_video(pictures(frames), task)


def text_of(score: Score) -> str:
    """A line such as "3.4210 fair", with the warnings, if there are some."""
    return "; ".join([f"{score.value:.4f} {score.level}", *score.warnings])


def gate(
    images: Tensor, scores: list[Score], threshold: float
) -> tuple[Tensor | None, Tensor | None, list[Score], list[Score]]:
    """Pictures with a score of `threshold` or above, the others, and the scores of both. None where there is none.

    Raises OptionError if the scores are not of these pictures.
    """
    _check_same_length(images, scores)
    kept = [i for i, score in enumerate(scores) if score.value >= threshold]
    rejected = [i for i, score in enumerate(scores) if score.value < threshold]
    return _pick(images, kept), _pick(images, rejected), [scores[i] for i in kept], [scores[i] for i in rejected]


def best(images: Tensor, scores: list[Score], count: int) -> tuple[Tensor, list[Score]]:
    """At most `count` pictures, the best first, and their scores. Raises OptionError as `gate`, and below 1."""
    _check_same_length(images, scores)
    if count < 1:
        raise OptionError(f"count is {count}; it must be 1 or more")
    order = sorted(range(len(scores)), key=lambda i: -scores[i].value)[:count]
    return images[order], [scores[i] for i in order]


def save(
    images: Tensor,
    scores: list[Score],
    folder: Path,
    stem: str,
    first: int,
    *,
    score_in_name: bool = True,
    texts: Mapping[str, str] | None = None,
) -> list[str]:
    """Writes PNG files STEM_00001_3.42.png or STEM_00001_.png, and returns their names. ComfyUI counts by such names.

    first: the first file's number. texts: metadata by key; beside them is PNG_TEXT, a JSON of task, score, level and
    probabilities. Raises OptionError as `gate`.
    """
    from PIL import Image

    _check_same_length(images, scores)
    names = []
    for number, (pixels, score) in enumerate(zip(pictures(images), scores), first):
        names.append(f"{stem}_{number:05}_{score.value:.2f}.png" if score_in_name else f"{stem}_{number:05}_.png")
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.save(folder / names[-1], pnginfo=_png_texts(score, texts or {}), compress_level=4)
    return names


def _pick(images: Tensor, places: list[int]) -> Tensor | None:
    return images[places] if places else None


def _check_same_length(images: Tensor, scores: list[Score]) -> None:
    if len(images) != len(scores):
        raise OptionError(f"{len(images)} pictures and {len(scores)} scores; expected the scores of these pictures")


def _png_texts(score: Score, texts: Mapping[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    row = make_row("", score.task, score)
    info = PngInfo()
    said = {name: row[name] for name in ("task", "score", "level", "probabilities")}
    for key, text in {**texts, PNG_TEXT: json.dumps(said)}.items():
        info.add_text(key, text)
    return info
