"""The nodes by ComfyUI's V3 interface, comfy_api.latest. Their work is done in qalign_fast/adapters/comfyui.py."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from qalign_fast.adapters import comfyui

from .results import gated, saved, shown

CATEGORY = "image/Q-Align"
Model = io.Custom("QALIGN_SCORER")
Scores = io.Custom("QALIGN_SCORES")


def task_input() -> io.Combo.Input:
    """The choice among the tasks."""
    return io.Combo.Input("task", options=comfyui.TASKS, default="quality")


class QAlignFastLoad(io.ComfyNode):
    """A model's reference in, the scorer out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        model = "A folder, a Hub id such as q-future/one-align, or a server's address. Empty: the embedded mini model."
        precision = "auto: the model's own. The others are for checkpoints."
        return io.Schema(
            node_id="QAlignFastLoad",
            display_name="Load Q-Align scorer",
            category=CATEGORY,
            inputs=[
                io.String.Input("model", default="", tooltip=model),
                io.Combo.Input("device", options=comfyui.DEVICES, default="auto"),
                io.Combo.Input("precision", options=comfyui.PRECISIONS, default="auto", tooltip=precision),
            ],
            outputs=[Model.Output(display_name="scorer")],
        )

    @classmethod
    def execute(cls, model: str, device: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(comfyui.load(model, device, precision))


class QAlignFastScore(io.ComfyNode):
    """Pictures in, their scores out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QAlignFastScore",
            display_name="Q-Align score",
            category=CATEGORY,
            description="Rates each picture of a batch on 1 (bad) to 5 (excellent).",
            inputs=[Model.Input("scorer"), io.Image.Input("images"), task_input()],
            outputs=[
                Scores.Output(display_name="scores"),
                io.Float.Output(display_name="mean"),
                io.String.Output(display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, scorer: Any, images: Any, task: str) -> io.NodeOutput:
        scores, mean, text = comfyui.score(scorer, images, task)
        return io.NodeOutput(scores, mean, text, ui=shown(scores, text))


class QAlignFastGate(io.ComfyNode):
    """Pictures and a threshold in, the two sides out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QAlignFastGate",
            display_name="Q-Align gate",
            category=CATEGORY,
            description="Keeps pictures with the score or above. What hangs on a side without pictures does not run.",
            inputs=[
                io.Image.Input("images"),
                Scores.Input("scores"),
                io.Float.Input("threshold", default=3.0, min=1.0, max=5.0, step=0.05),
            ],
            outputs=[
                io.Image.Output(display_name="kept"),
                io.Image.Output(display_name="rejected"),
                Scores.Output(display_name="kept_scores"),
                Scores.Output(display_name="rejected_scores"),
            ],
        )

    @classmethod
    def execute(cls, images: Any, scores: Any, threshold: float) -> io.NodeOutput:
        return io.NodeOutput(*gated(images, scores, threshold))


class QAlignFastBest(io.ComfyNode):
    """Pictures in, the best of them out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QAlignFastBest",
            display_name="Q-Align best of batch",
            category=CATEGORY,
            description="Keeps the pictures with the highest scores, the best first.",
            inputs=[
                io.Image.Input("images"),
                Scores.Input("scores"),
                io.Int.Input("count", default=1, min=1, max=4096),
            ],
            outputs=[io.Image.Output(display_name="images"), Scores.Output(display_name="scores")],
        )

    @classmethod
    def execute(cls, images: Any, scores: Any, count: int) -> io.NodeOutput:
        return io.NodeOutput(*comfyui.best(images, scores, count))


class QAlignFastScoreFrames(io.ComfyNode):
    """The frames of one clip in, its score out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        rate = "Frames a second in this batch. One frame a second is scored. 0: every frame is."
        return io.Schema(
            node_id="QAlignFastScoreFrames",
            display_name="Q-Align score of a clip (frames)",
            category=CATEGORY,
            description="Rates a batch as the frames of one clip.",
            inputs=[
                Model.Input("scorer"),
                io.Image.Input("frames"),
                task_input(),
                io.Float.Input("frame_rate", default=0.0, min=0.0, max=1000.0, step=0.01, tooltip=rate),
            ],
            outputs=[io.Float.Output(display_name="score"), io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, scorer: Any, frames: Any, task: str, frame_rate: float) -> io.NodeOutput:
        score = comfyui.score_frames(scorer, frames, task, frame_rate)
        text = comfyui.text_of(score)
        return io.NodeOutput(score.value, text, ui=shown([score], text))


class QAlignFastScoreVideo(io.ComfyNode):
    """A video in, its score out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QAlignFastScoreVideo",
            display_name="Q-Align score of a video",
            category=CATEGORY,
            description="Rates a video by one frame a second.",
            inputs=[Model.Input("scorer"), io.Video.Input("video"), task_input()],
            outputs=[io.Float.Output(display_name="score"), io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, scorer: Any, video: Any, task: str) -> io.NodeOutput:
        parts = video.get_components()  # with what nodes before cut off and cropped
        return QAlignFastScoreFrames.execute(scorer, parts.images, task, float(parts.frame_rate))


class QAlignFastSave(io.ComfyNode):
    """Pictures and their scores in, files out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QAlignFastSave",
            display_name="Save image with Q-Align score",
            category=CATEGORY,
            description="Saves PNG files with the score in their metadata, and in their names if asked for.",
            inputs=[
                io.Image.Input("images"),
                Scores.Input("scores"),
                io.String.Input("filename_prefix", default="QAlign"),
                io.Boolean.Input("score_in_name", default=True),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Any, scores: Any, filename_prefix: str, score_in_name: bool) -> io.NodeOutput:
        hidden = cls.hidden
        return io.NodeOutput(
            ui=saved(images, scores, filename_prefix, score_in_name, hidden.prompt, hidden.extra_pnginfo)
        )


class QAlignFastExtension(ComfyExtension):
    """All nodes, for ComfyUI's page and server."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [QAlignFastLoad, QAlignFastScore, QAlignFastGate, QAlignFastBest]
        return [*nodes, QAlignFastScoreFrames, QAlignFastScoreVideo, QAlignFastSave]


async def comfy_entrypoint() -> QAlignFastExtension:
    """ComfyUI calls it when it loads the folder."""
    return QAlignFastExtension()
