"""The same nodes for ComfyUI of before August 2025, which has no V3 interface."""

from __future__ import annotations

from typing import Any

from qalign_fast.adapters import comfyui

from .results import gated, saved, shown

MODEL, SCORES = ("QALIGN_SCORER",), ("QALIGN_SCORES",)
TASK = (comfyui.TASKS, {"default": "quality"})
Inputs = dict[str, dict[str, tuple]]


class Node:
    """What ComfyUI reads of every node."""

    CATEGORY = "image/Q-Align"
    FUNCTION = "execute"


class QAlignFastLoad(Node):
    """A model's reference in, the scorer out."""

    RETURN_TYPES = ("QALIGN_SCORER",)
    RETURN_NAMES = ("scorer",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        device, precision = ((options, {"default": "auto"}) for options in (comfyui.DEVICES, comfyui.PRECISIONS))
        return {"required": {"model": ("STRING", {"default": ""}), "device": device, "precision": precision}}

    def execute(self, model: str, device: str, precision: str) -> tuple:
        return (comfyui.load(model, device, precision),)


class QAlignFastScore(Node):
    """Pictures in, their scores out."""

    RETURN_TYPES = ("QALIGN_SCORES", "FLOAT", "STRING")
    RETURN_NAMES = ("scores", "mean", "text")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"scorer": MODEL, "images": ("IMAGE",), "task": TASK}}

    def execute(self, scorer: Any, images: Any, task: str) -> dict:
        scores, mean, text = comfyui.score(scorer, images, task)
        return {"result": (scores, mean, text), "ui": shown(scores, text)}


class QAlignFastGate(Node):
    """Pictures and a threshold in, the two sides out."""

    RETURN_TYPES = ("IMAGE", "IMAGE", "QALIGN_SCORES", "QALIGN_SCORES")
    RETURN_NAMES = ("kept", "rejected", "kept_scores", "rejected_scores")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        threshold = ("FLOAT", {"default": 3.0, "min": 1.0, "max": 5.0, "step": 0.05})
        return {"required": {"images": ("IMAGE",), "scores": SCORES, "threshold": threshold}}

    def execute(self, images: Any, scores: Any, threshold: float) -> tuple:
        return gated(images, scores, threshold)


class QAlignFastBest(Node):
    """Pictures in, the best of them out."""

    RETURN_TYPES = ("IMAGE", "QALIGN_SCORES")
    RETURN_NAMES = ("images", "scores")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        count = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"images": ("IMAGE",), "scores": SCORES, "count": count}}

    def execute(self, images: Any, scores: Any, count: int) -> tuple:
        return comfyui.best(images, scores, count)


class QAlignFastScoreFrames(Node):
    """The frames of one clip in, its score out."""

    RETURN_TYPES = ("FLOAT", "STRING")
    RETURN_NAMES = ("score", "text")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        rate = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1000.0, "step": 0.01})
        return {"required": {"scorer": MODEL, "frames": ("IMAGE",), "task": TASK, "frame_rate": rate}}

    def execute(self, scorer: Any, frames: Any, task: str, frame_rate: float) -> dict:
        score = comfyui.score_frames(scorer, frames, task, frame_rate)
        text = comfyui.text_of(score)
        return {"result": (score.value, text), "ui": shown([score], text)}


class QAlignFastScoreVideo(Node):
    """A video in, its score out."""

    RETURN_TYPES = ("FLOAT", "STRING")
    RETURN_NAMES = ("score", "text")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {"required": {"scorer": MODEL, "video": ("VIDEO",), "task": TASK}}

    def execute(self, scorer: Any, video: Any, task: str) -> dict:
        parts = video.get_components()
        return QAlignFastScoreFrames().execute(scorer, parts.images, task, float(parts.frame_rate))


class QAlignFastSave(Node):
    """Pictures and their scores in, files out."""

    RETURN_TYPES = ()
    RETURN_NAMES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        names = {"filename_prefix": ("STRING", {"default": "QAlign"}), "score_in_name": ("BOOLEAN", {"default": True})}
        return {
            "required": {"images": ("IMAGE",), "scores": SCORES} | names,
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def execute(
        self, images: Any, scores: Any, filename_prefix: str, score_in_name: bool, prompt: Any, extra_pnginfo: Any
    ) -> dict:
        return {"ui": saved(images, scores, filename_prefix, score_in_name, prompt, extra_pnginfo)}


NODE_CLASS_MAPPINGS = {
    "QAlignFastLoad": QAlignFastLoad,
    "QAlignFastScore": QAlignFastScore,
    "QAlignFastGate": QAlignFastGate,
    "QAlignFastBest": QAlignFastBest,
    "QAlignFastScoreFrames": QAlignFastScoreFrames,
    "QAlignFastScoreVideo": QAlignFastScoreVideo,
    "QAlignFastSave": QAlignFastSave,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "QAlignFastLoad": "Load Q-Align scorer",
    "QAlignFastScore": "Q-Align score",
    "QAlignFastGate": "Q-Align gate",
    "QAlignFastBest": "Q-Align best of batch",
    "QAlignFastScoreFrames": "Q-Align score of a clip (frames)",
    "QAlignFastScoreVideo": "Q-Align score of a video",
    "QAlignFastSave": "Save image with Q-Align score",
}
