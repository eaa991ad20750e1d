"""How many pictures a GPU computes at a time: batches are rounded up to a few sizes, each made ready once."""

from __future__ import annotations

BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def bucket_of(count: int) -> int:
    """The smallest that holds so many pictures."""
    return next(size for size in BUCKETS if size >= count)
