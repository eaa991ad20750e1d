"""A server's address in, its model's stand-in out: what the model is, as the server says, and the feed that asks it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from qalign_fast.errors import ArtifactError, DeviceError, ServerError
from qalign_fast.families.prompt import MEDIA, Prompt
from qalign_fast.families.registry import find_family
from qalign_fast.feed.remote.address import parse_address
from qalign_fast.feed.remote.feed import RemoteFeed
from qalign_fast.feed.remote.server import ServedModel, Server

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qalign_fast.engines.contract import Tokens
    from qalign_fast.families.family import Family, Tail
    from qalign_fast.pixels.limits import PictureLimits

_TASKS = {"image": "tasks", "video": "video_tasks"}  # as /v1/models calls them


class RemoteEngine:
    """A model on a server, where an engine stands. Its feed sends pictures; `encode` and `decode` are the server's own.

    facts: what the server says of the model.
    """

    name = "http"
    in_flight = 1
    tail: Tail = MappingProxyType({})

    def __init__(self, model: ServedModel, facts: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for facts that are not as they should be."""
        self.model, self.facts = model, facts
        self.device = model.server.url
        self.precision, self.kernels = str(facts["precision"]), str(facts["kernels"])
        self.family: Family = find_family(facts["family"])
        self.config: Any = self.family.sizes_from_json(facts)
        self.prompts = tuple(_prompt(self.family, task, m) for m in MEDIA for task in facts[_TASKS[m]])

    def make_feed(self, limits: PictureLimits) -> RemoteFeed:
        """What `Scorer` takes in place of a `Feed`."""
        return RemoteFeed(self, self.model, limits)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """Raises DeviceError."""
        self._refuse()

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Raises DeviceError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DeviceError(f"{self.device}: the model is there, and not in this process; a Scorer has its scores")


def connect(address: str, api_key: str | None) -> RemoteEngine:
    """The model that an address names, or the server's first.

    Raises ArtifactError for a server that cannot be reached, that refuses, or that has no such model, and OptionError
    for what is no address.
    """
    parts = parse_address(address)
    server = Server(parts, api_key)
    try:
        models = server.models()
    except ServerError as error:
        raise ArtifactError(str(error)) from error.__cause__
    names = [str(facts.get("id")) for facts in models]
    if parts.model not in (None, *names) or not models:
        raise ArtifactError(f"{server.url}: has no model {parts.model!r}; there are: {', '.join(names)}")
    facts = models[names.index(parts.model) if parts.model else 0]
    try:
        return RemoteEngine(ServedModel(server, facts["id"], int(facts["limits"]["max_body"])), facts)
    except (KeyError, TypeError, ValueError) as error:
        what = f"what it says of its model cannot be read ({type(error).__name__}: {error})"
        raise ArtifactError(f"{server.url}: {what}; is it of another version?") from error


def _prompt(family: Family, task: str, medium: str) -> Prompt:
    """The family's prompt; of a task that only the model has, one whose ids are the server's business."""
    known = (prompt for prompt in family.prompts if (prompt.task, prompt.medium) == (task, medium))
    return next(known, Prompt(task, medium, (), ()))
