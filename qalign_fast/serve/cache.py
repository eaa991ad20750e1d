"""Digests in, scores that were computed before out: the least recently used ones are forgotten first.

It holds no pictures, but whoever can ask can learn whether a picture was sent before. So it is off by default.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from qalign_fast.feed.items import Scored, Scores


def digest_of(data: bytes, *how: Any) -> bytes:
    """SHA-256 of a picture's bytes and of how it is read."""
    digest = hashlib.sha256(data)
    digest.update(repr(how).encode())
    return digest.digest()


class ScoreCache:
    """Of one model. Only scores of at most `most` pictures are kept, and no errors."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._scores: OrderedDict[bytes, Scores] = OrderedDict()

    def get(self, digest: bytes, tasks: Sequence[str]) -> Scores | None:
        """The scores in all of the tasks; None unless all are there."""
        found = self._scores.get(digest)
        if found is None or not set(tasks) <= set(found):
            return None
        self._scores.move_to_end(digest)
        return found

    def put(self, digest: bytes, scored: Scored[Any]) -> None:
        """Keeps an item's scores, unless it has a timeline: that is too large."""
        if not self._most or not scored.scores or scored.timeline:
            return
        self._scores[digest] = {**self._scores.get(digest, {}), **scored.scores}
        self._scores.move_to_end(digest)
        while len(self._scores) > self._most:
            self._scores.popitem(last=False)
