"""transformers' pipeline "image-quality-assessment": pictures in, the five levels' probabilities and the rating out.

register()
pipe = pipeline("image-quality-assessment", model=AutoModel.from_pretrained("one-align-int8"))
pipe("photo.jpg")  # [{"label": "good", "score": ..., "rating": ...}, ...], the most probable level first

Repositories on the Hub name these classes (see `hub_repository`), so the names stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from qalign_fast.adapters.auto_model import QAlignModel
from qalign_fast.errors import ImageError
from qalign_fast.levels import Score
from qalign_fast.needs import need
from qalign_fast.serve.urls import UrlGuard, url_name

need("transformers", "'transformers>=5'")
from transformers import AutoModel, Pipeline, PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

TASK = "image-quality-assessment"

__all__ = ["TASK", "ImageQualityPipeline", "QAlignConfig", "QAlignModel", "register"]


def register() -> None:
    """Tells transformers of the pipeline, once. Then `pipeline("image-quality-assessment", model=...)` makes one."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=ImageQualityPipeline, pt_model=AutoModel, type="image")


class QAlignConfig(PreTrainedConfig):
    """What transformers reads of a repository before it asks for the model: nothing that the model needs."""

    model_type = "qalign_fast"


class ImageQualityPipeline(Pipeline):
    """Its model is a `QAlignModel`. Lists, generators and torch's data sets are read ahead on threads and batched.

    Called with a picture, a list, a generator or a torch data set, as "image-classification" is. A list gives a list;
    a generator and a data set give a stream. A picture is all that `Scorer.score` takes. `batch_size` is 1 unless it is
    given; `num_workers` is how many threads read.

    task_: the prompt, "quality" by default.
    top_k: how many levels are returned.
    url_hosts: the hosts that a picture's URL may name; without them no URL is fetched. `timeout`: seconds for each.

    Raises TaskError, ImageError for a picture that cannot be read, also in the middle of a stream.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: QAlignModel, *args: Any, device: Any = None, **kwargs: Any) -> None:
        # without a device, transformers would take the first GPU, also where the model's engine has no use for one
        super().__init__(model, *args, device=model.device if device is None else device, **kwargs)

    def _sanitize_parameters(
        self,
        task_: str | None = None,
        top_k: int | None = None,
        url_hosts: Iterable[str] | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"task_": task_, "top_k": top_k, "url_hosts": url_hosts, "timeout": timeout}
        there = {name: value for name, value in given.items() if value is not None}
        steps = (("url_hosts", "timeout"), ("task_",), ("top_k",))
        before, model, after = ({name: there[name] for name in names if name in there} for names in steps)
        return before, model, after

    def preprocess(self, picture: Any, url_hosts: Iterable[str] = (), timeout: float = 10.0) -> dict[str, Any]:
        """The picture as the scorer takes it: a URL's bytes, anything else untouched."""
        if not isinstance(picture, str) or not picture.lower().startswith(("http://", "https://")):
            return {"picture": picture}
        hosts = (url_hosts,) if isinstance(url_hosts, str) else tuple(url_hosts)
        if not hosts:
            raise ImageError(f"{url_name(picture)}: URLs are fetched from hosts that url_hosts=['example.org'] names")
        return {"picture": UrlGuard(hosts, seconds=timeout).fetch(picture)}

    def _forward(self, model_inputs: dict[str, Any], task_: str = "quality") -> dict[str, Score]:
        return {"score": self.model.scorer.score(model_inputs["picture"], task_)}

    def postprocess(self, model_outputs: dict[str, Score], top_k: int = 5) -> list[dict[str, Any]]:
        """The levels with their probabilities, the most probable first. Each row has the rating, 1 to 5 of OneAlign."""
        score = model_outputs["score"]
        rows = sorted(score.probabilities.items(), key=lambda row: -row[1])[:top_k]
        return [{"label": level, "score": probability, "rating": score.value} for level, probability in rows]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[list[dict[str, Any]]]:
        """In place of torch's loader, which reads one picture at a time: threads read while others are scored."""
        pictures = (self.preprocess(one, **preprocess_params)["picture"] for one in _in_order(inputs))
        task = forward_params.get("task_", "quality")
        scores = self.model.scorer.score_iter(pictures, task, batch_size=batch_size, workers=num_workers or 4)
        return (self.postprocess({"score": score}, **postprocess_params) for score in scores)


def _in_order(inputs: Any) -> Iterator[Any]:
    """A torch data set has a length and an index, and may not end when it is iterated."""
    return (inputs[i] for i in range(len(inputs))) if hasattr(inputs, "__len__") else iter(inputs)
