"""FiftyOne's samples in, one label for each out: the model that `dataset.apply_model` takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

from qalign_fast.adapters.fiftyone_samples import make_label
from qalign_fast.errors import OptionError, one_line
from qalign_fast.feed.items import ClipOptions, Item, Medium, Scored
from qalign_fast.needs import need

if TYPE_CHECKING:
    from qalign_fast.scorer import Scorer

_MODELS = need("fiftyone.core.models", "fiftyone")
_LOG = logging.getLogger(__name__)


class QAlignModel(_MODELS.SamplesMixin, _MODELS.Model):  # type: ignore[name-defined]
    """A scorer as a FiftyOne model. A sample's label is a Regression, as `fiftyone_samples.make_label` makes it.

    A sample's file is read again by this package, because FiftyOne's own reading gives other pixels: it turns pictures
    by their EXIF tag, and reads other formats. Frames of a video are scored as FiftyOne reads them.

    scorer: a loaded model.
    task: one of its tasks for the medium.
    media_type: "image", also for the frames of videos, or "video".
    clip: which frames of a video are scored, where media_type is "video".

    Raises TaskError for a task that the model lacks, and OptionError for another medium.
    """

    config = None  # FiftyOne looks there for thresholds that a model applies itself
    ragged_batches = False  # FiftyOne gives batches only to such models; sizes may differ all the same
    transforms = None
    preprocess = False

    def __init__(
        self, scorer: Scorer, task: str = "quality", media_type: Medium = "image", clip: ClipOptions | None = None
    ) -> None:
        super().__init__()
        if media_type not in ("image", "video"):
            raise OptionError(f"media_type is {media_type!r}; expected 'image' or 'video'")
        scorer.require((task,), media_type)
        self._scorer, self._task, self._medium = scorer, task, media_type
        self._clip = clip or ClipOptions()

    @property
    def media_type(self) -> str:
        """The medium as FiftyOne calls it, "image" or "video"."""
        return self._medium

    def predict(self, arg: Any, sample: Any = None) -> Any:
        """The label of a picture uint8 [H, W, 3], of a video's frames, or of the sample's file.

        Raises ImageError or VideoError, which FiftyOne logs or raises, and OptionError for a sample of clips.
        """
        return make_label(self._scorer.feed.score(self._item(arg, sample), (self._task,)).get()[self._task])

    def predict_all(self, args: Sequence[Any], samples: Iterable[Any] | None = None) -> list[Any]:
        """The labels of several. A file that cannot be read is logged, and None: the others keep their labels."""
        items = [self._item(arg, sample) for arg, sample in zip(args, samples or repeat(None))]
        found = self._scorer.feed.run(items, (self._task,), batch_size=max(1, len(items)))
        return [self._label(scored) for scored in found]

    def _item(self, arg: Any, sample: Any) -> Item[str]:
        """The sample's own file where it has one; a frame of a video has none."""
        path = None if sample is None else getattr(sample, "filepath", None)
        if self._medium == "video" and getattr(sample, "support", None) is not None:
            raise OptionError(f"{path}: a clip of a video; scores are of whole videos")
        return Item(path or "a picture", arg if path is None else path, self._medium, self._clip)

    def _label(self, scored: Scored[str]) -> Any:
        if scored.error is None:
            return make_label(scored.get()[self._task])
        _LOG.warning("%s: not scored: %s", scored.key, one_line(scored.error))
        return None
