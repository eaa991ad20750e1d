"""What the adapter's functions give in, what ComfyUI takes out: a side that is blocked, files that were saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qalign_fast.adapters import comfyui
from qalign_fast.levels import Score


def gated(images: Any, scores: list[Score], threshold: float) -> tuple[Any, ...]:
    """`comfyui.gate`; a side without a picture is blocked: the nodes behind it do not run, the others do."""
    from comfy_execution.graph import ExecutionBlocker

    kept, rejected, kept_scores, rejected_scores = comfyui.gate(images, scores, threshold)
    nothing = ExecutionBlocker(None)  # without a message it is no error
    kept, kept_scores = (nothing, nothing) if kept is None else (kept, kept_scores)
    rejected, rejected_scores = (nothing, nothing) if rejected is None else (rejected, rejected_scores)
    return kept, rejected, kept_scores, rejected_scores


def saved(
    images: Any, scores: list[Score], prefix: str, score_in_name: bool, prompt: Any, extra: Any
) -> dict[str, list[dict[str, str]]]:
    """Saves into ComfyUI's output folder, with the workflow as ComfyUI writes it. Returns what its page shows."""
    import folder_paths
    from comfy.cli_args import args

    height, width = images.shape[1:3]
    output = folder_paths.get_output_directory()
    folder, stem, first, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    texts = {} if args.disable_metadata else {"prompt": prompt, **(extra or {})}
    texts = {key: json.dumps(value) for key, value in texts.items() if value is not None}
    names = comfyui.save(images, scores, Path(folder), stem, first, score_in_name=score_in_name, texts=texts)
    return {"images": [{"filename": name, "subfolder": subfolder, "type": "output"} for name in names]}


def shown(scores: list[Score], text: str) -> dict[str, list[Any]]:
    """For ComfyUI's page, and for programs that read /history."""
    return {"text": [text], "scores": [round(score.value, 4) for score in scores]}
