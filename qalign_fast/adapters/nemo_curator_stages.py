"""NeMo Curator's batches of pictures in, the same batches out: scores in the metadata, bad pictures left out.

pipeline.add_stage(ImageQAlignFilterStage("one-align-int8", score_threshold=0.5))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qalign_fast.errors import ImageError, OptionError, one_line
from qalign_fast.feed.items import Item, Medium, Scored
from qalign_fast.feed.remote.address import is_address
from qalign_fast.needs import need
from qalign_fast.references import find_model, from_anywhere
from qalign_fast.scorer import Scorer

need("nemo_curator.stages.base", "nemo-curator")
from loguru import logger
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import ImageBatch, ImageObject


@dataclass
class QAlignStage(ProcessingStage):
    """What the stages have in common: a model, which each worker loads once, and a threshold.

    A worker has a GPU, or so much of one as num_gpus_per_worker says, where torch sees one when the stage is made.
    Otherwise it has one core. `with_(resources=...)` gives it other resources, and it uses as many threads as cores.

    model, precision, engine: as `Scorer.load` takes them. A path becomes absolute, and has to exist on every node.
    task: "quality", "aesthetics" or another that the model has.
    score_threshold: the lowest score that passes, on 0..1; 0.5 is OneAlign's 3 of 5. None lets everything pass.
    """

    model: str | None = None
    task: str = "quality"
    score_threshold: float | None = 0.5
    precision: str | None = None
    engine: str = "auto"
    num_gpus_per_worker: float = 1.0
    name: str = "qalign"
    medium: Medium = field(default="image", init=False)

    def __post_init__(self) -> None:
        import torch

        self.model = None if self.model is None else str(from_anywhere(self.model))
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise OptionError(f"score_threshold is {self.score_threshold}; expected 0 to 1, where 0.5 is 3 of 5")
        use_gpu = torch.cuda.is_available() and not is_address(self.model)
        self.resources = Resources(gpus=self.num_gpus_per_worker) if use_gpu else Resources()

    def setup_on_node(self, node_info: Any = None, worker_metadata: Any = None) -> None:
        """Fetches a model of the Hub, once for all workers of a node."""
        if not is_address(self.model):
            find_model(self.model)

    def setup(self, worker_metadata: Any = None) -> None:
        """Loads the model. Raises what `Scorer.load` raises, and TaskError for a task that the model lacks."""
        if is_address(self.model):
            self.scorer = Scorer.load(self.model, precision=self.precision, engine=self.engine)
        else:
            place: dict[str, Any] = {"device": "cpu", "threads": max(1, int(self.resources.cpus))}
            if self.resources.requires_gpu:
                place = {"device": "cuda"}  # the worker sees those that it was given
            self.scorer = Scorer.load(self.model, precision=self.precision, engine=self.engine, **place)
        self.scorer.require((self.task,), self.medium)

    def teardown(self) -> None:
        """Ends the scorer's threads."""
        self.scorer.close()

    def scored(self, items: Iterable[Item[None]]) -> list[Scored[None]]:
        """In order. Bad media are told in the log. Raises what the engine raises."""
        found = list(self.scorer.feed.run(items, (self.task,)))
        for one in found:
            if one.error is not None:
                logger.warning(f"{self.name}: {one.error}")
        return found

    def passes(self, scored: Scored[None]) -> bool:
        """A bad medium passes only where everything does."""
        if self.score_threshold is None:
            return True
        return scored.error is None and scored.get()[self.task].unit >= self.score_threshold


@dataclass
class ImageQAlignFilterStage(QAlignStage):
    """Scores the pictures of an ImageBatch, and leaves out those below the threshold.

    A picture is its `image_data`, uint8 [H, W, 3] in RGB, or the file at its `image_path` where it has none. Its
    `metadata` get, with the task's name, qalign_quality_score (1..5), qalign_quality_score01 (0..1) and
    qalign_quality_level; or qalign_quality_error, a line of text, in place of all three.
    """

    name: str = "image_qalign_filter"

    def inputs(self) -> tuple[list[str], list[str]]:
        """A batch's pictures."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Those that passed."""
        return ["data"], []

    def process(self, task: ImageBatch) -> ImageBatch:
        """A batch in which nothing passes is empty, and not None."""
        kept = []
        found = self.scored(Item(None, _picture(image)) for image in task.data)
        for image, scored in zip(task.data, found, strict=True):
            image.metadata |= self._told(scored)
            if self.passes(scored):
                kept.append(image)
        return ImageBatch(
            data=kept, dataset_name=task.dataset_name, _metadata=task._metadata, _stage_perf=task._stage_perf
        )

    def _told(self, scored: Scored[None]) -> dict[str, Any]:
        before = f"qalign_{self.task}"
        if scored.error is not None:
            return {f"{before}_error": one_line(scored.error)}
        score = scored.get()[self.task]
        return {f"{before}_score": score.value, f"{before}_score01": score.unit, f"{before}_level": score.level}


def _picture(image: ImageObject) -> Any:
    if image.image_data is not None:
        return image.image_data
    return image.image_path or ImageError("a picture without image_data and image_path")
