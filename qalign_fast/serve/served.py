"""A model's name and reference in, the model out: loaded, warm, with its batcher and what /v1/models says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qalign_fast.families.adapters import is_adapter
from qalign_fast.identity import hash_model
from qalign_fast.references import find_model
from qalign_fast.scorer import Scorer
from qalign_fast.serve.problems import Unprocessable

if TYPE_CHECKING:
    from qalign_fast.serve.batcher import Batcher
    from qalign_fast.serve.settings import Settings

_LONGEST_TASKS = 4096


@dataclass(frozen=True)
class Served:
    """A model that answers requests."""

    name: str
    scorer: Scorer
    batcher: Batcher
    facts: dict[str, Any]

    def tasks(self, asked: str | Sequence[str], medium: str) -> tuple[str, ...]:
        """The tasks that were asked for: one, several, several with commas between, or "all".

        Raises Unprocessable for none, and TaskError for one that the model does not have.
        """
        parts = [asked] if isinstance(asked, str) else asked
        if not all(isinstance(part, str) for part in parts):
            raise Unprocessable("task: expected a text or a list of texts")
        if sum(map(len, parts)) > _LONGEST_TASKS or len(parts) > _LONGEST_TASKS:
            raise Unprocessable(f"task: over {_LONGEST_TASKS} characters")
        names = tuple(dict.fromkeys(name for part in parts for each in part.split(",") if (name := each.strip())))
        if not names:
            raise Unprocessable("task: none is given")
        if names == ("all",):
            return self.scorer.usual_tasks(medium)
        self.scorer.require(names, medium)
        return names


def load_scorer(reference: str | None, settings: Settings) -> Scorer:
    """The model, warm. Raises as `Scorer.load`."""
    return Scorer.load(
        reference,
        device=settings.device,
        precision=settings.precision,
        engine=settings.engine,
        threads=settings.threads,
        verify=settings.verify,
        limits=settings.limits,
        base=base_of(reference, settings),
    ).warm()


def base_of(reference: str | None, settings: Settings) -> str | None:
    """The base that is set, where several models are served for adapters alone."""
    return settings.base if len(settings.models) == 1 or is_adapter(find_model(reference)) else None


def facts_of(name: str, reference: str | None, scorer: Scorer, settings: Settings) -> dict[str, Any]:
    """What /v1/models says of a model."""
    engine, scale, config = scorer.engine, scorer.engine.family.scale, scorer.config
    return {
        "id": name,
        "object": "model",
        "owned_by": "qalign-fast",
        "tasks": list(scorer.tasks()),
        "video_tasks": list(scorer.tasks("video")),
        "family": engine.family.name,
        "precision": engine.precision,
        "engine": engine.name,
        "device": engine.device,
        "kernels": engine.kernels,
        "hash": hash_model(find_model(reference), base_of(reference, settings)),
        "scale": [scale.low, scale.high],
        "levels": list(scale.words),
        **engine.family.sizes_to_json(config),  # by which a client makes pixels as the server would
        "clip_frames": engine.family.clip_frames,
        "max_batch": settings.max_batch,
        "limits": {
            "max_body": settings.max_body,
            "max_pixels": settings.limits.max_pixels,
            "max_pictures": settings.queue,
        },
    }
