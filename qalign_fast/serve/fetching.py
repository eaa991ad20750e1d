"""Uploads that are URLs in, the same with their files out: on threads of their own, before they are in any queue.

So a host that is slow keeps nobody else's pictures waiting, and the queue knows each picture's bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from qalign_fast.errors import InternalError, QAlignError, one_line
from qalign_fast.serve.problems import Late, Problem, QueueFull

if TYPE_CHECKING:
    from qalign_fast.serve.uploads import Upload

_THREADS = 16
_RETRY = 5  # seconds


class Fetching:
    """Fetches for all requests, at most `most` at a time; some of them wait for a thread."""

    def __init__(self, most: int) -> None:
        self._most, self._pending = most, 0
        self._threads = ThreadPoolExecutor(_THREADS, "qalign-serve-fetch")  # it starts none before there is work

    async def fetch(self, uploads: Sequence[Upload], hold: Callable[[int], None], timeout: float) -> list[Upload]:
        """Each upload with its file, or the error why it has none. `hold` is told each file's bytes.

        Raises QueueFull, Late after `timeout` seconds, and what `hold` raises.
        """
        count = sum(upload.fetch is not None for upload in uploads)
        if not count:
            return list(uploads)
        if self._pending + count > self._most:
            raise QueueFull(f"{self._pending} URLs are being fetched; the limit is {self._most}", _RETRY)
        self._pending += count
        tasks = [asyncio.ensure_future(self._fetched(upload, hold)) for upload in uploads]
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.gather(*tasks)
        except TimeoutError:
            raise Late("the deadline passed while a URL was fetched", _RETRY) from None
        finally:
            self._pending -= count
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """Begins no more of them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _fetched(self, upload: Upload, hold: Callable[[int], None]) -> Upload:
        if not upload.fetch:
            return upload
        found: bytes | QAlignError
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, upload.fetch)
            hold(len(found))
        except Problem:
            raise
        except QAlignError as error:
            found = error
        except Exception as error:
            found = InternalError(f"{upload.source}: cannot be fetched ({type(error).__name__}: {one_line(error)})")
            found.__cause__ = error
        return replace(upload, data=found, fetch=None)
