"""A model's name in, what users of one-align's remote code have out: `from_pretrained`, and `score` on their pictures.

from qalign_fast.adapters.auto_model import AutoModelForCausalLM  # in place of transformers'
model = AutoModelForCausalLM.from_pretrained("one-align-int8", torch_dtype=torch.float16, device_map="auto")
model.score([picture], task_="quality", input_="image")  # tensor([...]), 1 to 5
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qalign_fast.adapters.pretrained_options import device_name, fetched, read_options
from qalign_fast.errors import OptionError
from qalign_fast.needs import need
from qalign_fast.references import from_anywhere
from qalign_fast.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qalign_fast.levels import Score
else:
    torch = need("torch", "'qalign-fast[torch]'")
    nn = torch.nn


class QAlignModel(nn.Module):
    """Scores pictures and clips as the model of one-align's remote code does. It has no parameters of torch's.

    scorer: the loaded model, with all that it can.
    config: transformers' configuration, where transformers loaded this; else None.
    """

    input_modalities = ("image",)  # what transformers prints of a pipeline

    def __init__(self, load: Callable[..., Scorer], config: Any = None) -> None:
        """`load` gives a scorer, and takes the keyword `device` once the model is moved."""
        super().__init__()
        self.config = config
        self._load = load
        self.scorer = load()
        self.eval()

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, *_: Any, config: Any = None, **options: Any) -> Self:
        """The model in a directory, on the Hub, or on a server: whatever `Scorer.load` takes. None is the mini model.

        Every keyword of transformers is taken that does not change a score (`trust_remote_code`, `torch_dtype`,
        `attn_implementation`, ...): an artifact has a precision of its own, and a checkpoint computes in float32.
        `device_map` is "auto", or the one device to run on. `load_in_8bit` and `quantization_config` are bitsandbytes'
        for a checkpoint. `revision`, `cache_dir`, `token` and `local_files_only` are the Hub's. `engine`, `threads`,
        `precision`, `limits` and the other options of `Scorer.load` may be given too.

        Raises OptionError for a keyword that is not implemented, and what `Scorer.load` raises.
        """
        asked = read_options(options)
        place = None if model is None else from_anywhere(fetched(model, asked.hub))
        return cls(partial(Scorer.load, place, **asked.load), config)

    @classmethod
    def register_for_auto_class(cls, auto_class: object = None) -> None:
        """Called by transformers. It needs no answer."""

    @property
    def device(self) -> torch.device:
        """Where the model runs; a server's counts as the CPU, because its scores come to the host."""
        place = self.scorer.engine.device
        return torch.device("cpu" if "://" in place else place)

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores. What the model computes in is its precision, `model.scorer.engine.precision`."""
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Loads the model on another device, if one is given and it is not there yet. A dtype changes nothing.

        Raises DeviceError for a device that is not there.
        """
        for given in (*args, *kwargs.values()):
            place = given.device if isinstance(given, torch.Tensor) else given
            if isinstance(place, str | int | torch.device) and not isinstance(place, bool):
                self._move(torch.device(device_name(place)))
        return self

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """As `to("cuda")`."""
        return self.to("cuda" if device is None else device)

    def cpu(self) -> Self:
        """As `to("cpu")`."""
        return self.to("cpu")

    def can_generate(self) -> bool:
        """False: it gives scores, and no text."""
        return False

    def score(
        self, images: Any, task_: str = "quality", input_: str = "image", return_dict: bool = False
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[float]:
        """The scores of a list of pictures or, with input_="video", of a list of clips, each a list of frames.

        Returns a float32 tensor [B] on the model's device, on the model's scale, 1 to 5 for OneAlign; a list of floats
        on 0 to 5 of a Q-Scorer, as its authors' code does. One picture or clip that is no list gives a tensor []. With
        `return_dict`, {"logits": [B, 5], "scores": [B]}, excellent first. A picture is all that `Scorer.score` takes,
        a clip what `Scorer.score_video` takes.

        Raises TaskError for a task that the model does not have, ImageError and VideoError for what cannot be read,
        and OptionError for another `input_`.
        """
        found = self._scores(images, task_, input_)
        scores = found if isinstance(found, list) else [found]
        for text in sorted({text for score in scores for text in score.warnings}):
            warnings.warn(text, stacklevel=2)
        values = [score.value for score in scores]
        if return_dict:
            logits = torch.tensor([score.logits for score in scores], device=self.device)
            levels = len(self.scorer.engine.family.scale.words)
            return {"logits": logits.reshape(-1, levels), "scores": torch.tensor(values, device=self.device)}
        if found is scores and self.scorer.engine.family.name == "q_scorer":
            return values
        return torch.tensor(values if found is scores else values[0], device=self.device)

    def _scores(self, media: Any, task: str, medium: str) -> list[Score] | Score:
        if medium == "image":
            found: list[Score] | Score = self.scorer.score(media, task)
            return found
        if medium != "video":
            raise OptionError(f"input_ is {medium!r}; expected 'image' or 'video'")
        if isinstance(media, list | tuple):
            return [self.scorer.score_video(clip, task) for clip in media]
        return self.scorer.score_video(media, task)

    def _move(self, device: torch.device) -> None:
        here = self.device
        if device.type == here.type and device.index in (None, here.index or 0):
            return
        moved = self._load(device=str(device))
        self.scorer.close()
        self.scorer = moved


AutoModel = AutoModelForCausalLM = QAlignModel
