"""A form of FiftyOne's App in, labels in a field out, and a tag on the samples below a threshold."""

from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
from fiftyone import ViewField as F
from fiftyone.operators import types
from qalign_fast import Scorer
from qalign_fast.adapters.fiftyone_samples import score_samples

_SECONDS = 5  # between reports of progress


class ScoreWithQAlign(foo.Operator):
    """Scores the current view, or the dataset, at once or as a delegated operation."""

    @property
    def config(self) -> foo.OperatorConfig:
        """What the App shows, and that the operator may be delegated."""
        return foo.OperatorConfig(
            name="score_with_qalign",
            label="Score with Q-Align",
            description="Rates pictures or videos from 1 (bad) to 5 (excellent)",
            allow_delegated_execution=True,
            risk_level="medium",
        )

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form."""
        ctx.target_view()  # the App then asks which samples: all, those of the view or those that are selected
        inputs = types.Object()
        inputs.str("field", label="Field", default="qalign")
        inputs.str("model", label="Model", description="A directory, a Hub id or a server; empty: the embedded model")
        inputs.str("task", label="Task", default="quality")
        inputs.float("threshold", label="Threshold", description="Samples with a lower score get the tag")
        inputs.str("tag", label="Tag", default="low quality")
        return types.Property(inputs, view=types.View(label="Score with Q-Align"))

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Scores the samples, then tags. What it returns is shown."""
        view, asked = ctx.target_view(), ctx.params
        field, task = asked.get("field") or "qalign", asked.get("task") or "quality"
        progress = fo.report_progress(lambda bar: ctx.set_progress(progress=bar.progress), dt=_SECONDS)
        with Scorer.load(asked.get("model") or None) as scorer:
            failed = score_samples(view, scorer, field, task=task, progress=progress)
        tagged = tag_below(view, field, asked.get("threshold"), asked.get("tag") or "low quality")
        ctx.trigger("reload_dataset")
        return {
            "scored": len(view) - len(failed),
            "tagged": tagged,
            "failed": len(failed),
            "errors": [*failed.values()],
        }

    def resolve_output(self, ctx: Any) -> types.Property:
        """What the App shows afterwards."""
        outputs = types.Object()
        outputs.int("scored", label="Scored")
        outputs.int("tagged", label="Tagged")
        outputs.int("failed", label="Failed")
        outputs.list("errors", types.String(), label="Why")
        return types.Property(outputs, view=types.View(label="Score with Q-Align"))


def tag_below(view: Any, field: str, threshold: float | None, tag: str) -> int:
    """Tags the samples whose score is below the threshold, if there is one. Returns how many there are."""
    if threshold is None:
        return 0
    low = view.exists(f"{field}.value").match(F(f"{field}.value") < threshold)  # null is below all, for MongoDB
    count = len(low)
    low.tag_samples(tag)
    return count
