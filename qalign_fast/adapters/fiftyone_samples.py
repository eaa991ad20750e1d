"""FiftyOne's samples in, a Regression in a field of each out: pictures, and videos, read by this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import OptionError, one_line
from qalign_fast.feed.items import ClipOptions, Item
from qalign_fast.needs import need

if TYPE_CHECKING:
    from qalign_fast.levels import Score
    from qalign_fast.scorer import Scorer

_MEDIA = ("image", "video")
_WHOLE = ClipOptions()
_PARTS = {"PatchesView": "patches", "EvaluationPatchesView": "patches", "ClipsView": "clips"}


def score_samples(
    samples: Any,
    scorer: Scorer,
    field: str = "qalign",
    *,
    task: str = "quality",
    clip: ClipOptions = _WHOLE,
    batch_size: int = 16,
    workers: int = 4,
    progress: bool | Callable[[Any], None] | None = None,
) -> dict[str, str]:
    """Scores a dataset or a view, and saves a label in `field` of each sample, some of them at a time.

    The label is `make_label`'s. A file that cannot be scored stops nothing: its sample keeps what it has in the field.

    clip: which frames of a video are scored.
    batch_size, workers: pictures that the model takes at a time, and threads that read them.
    progress: as FiftyOne's methods take it: whether there is a bar, or a function that is called with it.

    Returns why samples were not scored, by their ids. Raises OptionError for groups and for views of patches or clips,
    TaskError for a task that the model lacks, MissingExtraError without FiftyOne, and what the engine raises.
    """
    bars = need("fiftyone.core.utils", "fiftyone")
    scorer.require((task,), _medium(samples))
    failed = {}
    chosen = samples.select_fields()  # their files alone: other fields may be large
    with bars.ProgressBar(total=len(samples), progress=progress) as bar, chosen.save_context() as saving:
        items = (Item(sample, sample.filepath, sample.media_type, clip) for sample in chosen)
        for scored in scorer.feed.run(items, (task,), batch_size=batch_size, workers=workers):
            sample = scored.key
            if scored.error is None:
                sample[field] = make_label(scored.get()[task])
                saving.save(sample)
            else:
                failed[sample.id] = one_line(scored.error)
            bar.update()
    return failed


def make_label(score: Score) -> Any:
    """A `fiftyone.Regression`: the score as `value`, the largest probability as `confidence`, and the `level`."""
    labels = need("fiftyone.core.labels", "fiftyone")
    return labels.Regression(value=score.value, confidence=max(score.probabilities.values()), level=score.level)


def _medium(samples: Any) -> str:
    """The medium of all samples. A part of a file is refused: the file as a whole would get its score."""
    if part := _PARTS.get(type(samples).__name__):
        raise OptionError(f"a view of {part}; scores are of whole files: give the dataset, or a view of its samples")
    medium: str = samples.media_type
    if medium not in _MEDIA:
        raise OptionError(
            f"samples of medium {medium!r}; expected image or video; of groups, select_group_slices first"
        )
    return medium
