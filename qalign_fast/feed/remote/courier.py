"""One item in, a function out that has the server score it and gives its `Scored`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast import errors
from qalign_fast.errors import (
    ArtifactError,
    ImageError,
    InternalError,
    MissingExtraError,
    OptionError,
    QAlignError,
    ServerError,
    VideoError,
    one_line,
)
from qalign_fast.feed.items import Item, Key, Scored, Scores
from qalign_fast.feed.prompts import find_prompts
from qalign_fast.feed.remote.parcels import Label, Pack, Packer, Parcel
from qalign_fast.feed.remote.server import ServedModel, TooLargeError
from qalign_fast.feed.snapshots import snapshot
from qalign_fast.levels import Answer, answer_of, make_score
from qalign_fast.pixels.encoded import media_name

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.families.prompt import Prompt
    from qalign_fast.feed.reading import Keep
    from qalign_fast.pixels.limits import PictureLimits

# What a picture is called on its way. Its own name may be private, and addresses stand in the logs of proxies.
_CALLED = "sent"


class Courier:
    """Takes the items of one run to a model in some tasks. Once it is `stopped`, nothing is asked a second time."""

    def __init__(
        self, engine: Engine, model: ServedModel, limits: PictureLimits, tasks: Sequence[str], workers: int = 1
    ) -> None:
        self._engine, self._model = engine, model
        self._tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        self._packer = Packer(engine, limits, model.most_body, self._tasks, workers)
        self.stopped = False

    def take(self, item: Item[Key], keep: Keep = snapshot) -> tuple[Callable[[], Scored[Key]], int]:
        """A function that has the item scored later, in any thread, and the bytes that are held until it is called."""
        label = item.media if isinstance(item.media, os.PathLike) else media_name(item.media)
        try:
            if isinstance(item.media, QAlignError):
                raise item.media
            prompts = find_prompts(self._engine, self._tasks, item.medium)
            if item.clip.timeline:
                raise OptionError("a clip's timeline is not had of a server in this way; POST /v1/score/video has it")
            pack, held = self._packer.take(item, label, prompts, keep)
        except Exception as error:
            return partial(Scored, item.key, None, _as_ours(error, label)), 0
        return partial(self._send, replace(item, media=""), prompts, label, pack), held  # the media are the caller's

    def _send(self, item: Item[Key], prompts: Sequence[Prompt], label: Label, pack: Pack) -> Scored[Key]:
        """Raises ServerError, and ArtifactError where the model is gone; all else is in the Scored."""
        try:
            with pack() as parcel:
                return Scored(item.key, self._scores(parcel, item, prompts))
        except (ServerError, ArtifactError):
            raise
        except Exception as error:
            return Scored(item.key, None, _as_ours(error, label))

    def _scores(self, parcel: Parcel, item: Item[Key], prompts: Sequence[Prompt]) -> Scores:
        path, options = "/v1/score", [("source", _CALLED), *(("task", prompt.task) for prompt in prompts)]
        if item.medium == "video":
            path = "/v1/score/video"
            options += [("fps", repr(float(item.clip.fps))), ("sampling", item.clip.sampling)]
            options += [] if item.clip.max_frames is None else [("max_frames", str(item.clip.max_frames))]
        try:
            rows = self._model.rows(path, options, parcel.body, parcel.kind, lambda: self.stopped)
        except TooLargeError as error:
            kind = ImageError if item.medium == "image" else VideoError
            raise kind(f"{parcel.name}: over the limit of the server: {error}") from error
        if rows[0].get("error") is not None:
            raise self._error_of(rows[0], parcel.name)
        try:
            return self._read(rows, parcel, prompts)
        except (KeyError, TypeError, ValueError) as error:
            raise self._model.server.error("its answer has not the rows that were asked for") from error

    def _read(self, rows: Sequence[Mapping[str, Any]], parcel: Parcel, prompts: Sequence[Prompt]) -> Scores:
        by_task = {row["task"]: row for row in rows}
        found: Scores = {}
        for task in [prompt.task for prompt in prompts]:
            row = by_task[task]
            found[task] = make_score(
                self._answer(row),
                task,
                scale=self._engine.family.scale,
                frames=row.get("frames"),
                warnings=(*parcel.warnings, *row.get("warnings", ())),
            )
        return found

    def _answer(self, row: Mapping[str, Any]) -> Answer:
        """From logits, which are exact, as where it was computed. Where more than logits decide, it is the server's.

        The server's score has 4 digits after the point, and its probabilities have 6.
        """
        family, logits = self._engine.family, np.array(row["logits"], np.float32)
        if family.answer is None:
            return answer_of(logits, family.scale)
        probabilities = [float(row["probabilities"][word]) for word in family.scale.words]
        return Answer(float(row["score"]), logits, np.array(probabilities, np.float32))

    def _error_of(self, row: Mapping[str, Any], name: str) -> QAlignError:
        """A row's error as the class that it had on the server, with the item's own name."""
        kind: Any = getattr(errors, str(row.get("error_type")), None)
        known = isinstance(kind, type) and issubclass(kind, QAlignError)
        text = self._model.server.without_key(str(row["error"]))
        if text.startswith(f"{_CALLED}: "):
            text = name + text.removeprefix(_CALLED)
        if kind is MissingExtraError:
            text = f"{self._model.server.url}: {text}"  # where it is to be installed
        error: QAlignError = kind(text) if known else InternalError(text)
        return error


def _as_ours(error: Exception, label: Label) -> QAlignError:
    """An error about an item as one of ours, as a `Reader` gives it."""
    if isinstance(error, QAlignError):
        return error
    try:
        name = media_name(label)
    except Exception:  # a caller's own kind of path may be what is wrong
        name = f"<{type(label).__name__}>"
    found = InternalError(f"{name}: internal error ({type(error).__name__}: {one_line(error)})")
    found.__cause__ = error
    return found
