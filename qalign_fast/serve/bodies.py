"""A request's body in, its bytes out: within limits of size, of speed, and of what all requests hold together."""

from __future__ import annotations

import asyncio
import io
import time
import zlib
from typing import TYPE_CHECKING

from qalign_fast.serve.heap import give_back
from qalign_fast.serve.problems import BadRequest, QueueFull, TooMany, TooSlow, WrongType
from qalign_fast.serve.visit import ClientGone, Visit, visit_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from qalign_fast.serve.settings import Settings

PATIENCE = 30.0  # seconds, and for every SLOWEST bytes that came one more
SLOWEST = 16 << 10
_MOST_HELD = 1 << 30  # bytes of all bodies together, or eight of the largest
_BURST = 128 << 20  # bytes; once bodies held as many, and then fall to a quarter, free memory goes back to the system
_AFTER = 0.5  # seconds from then; what still refers to the last bodies is gone


class Bodies:
    """Reads bodies and counts what they hold, until `release`."""

    def __init__(self, settings: Settings) -> None:
        self.held = 0
        self._peak = 0  # of what was held, since free memory was last given back
        self._most = settings.max_body
        self._most_held = max(_MOST_HELD, 8 * settings.max_body)

    async def read(self, request: Request) -> bytes:
        """The whole body, unpacked where it is gzip or deflate.

        Raises TooMany for one over the limit, QueueFull where all bodies together are, TooSlow for one that drips,
        WrongType for another encoding, BadRequest for a damaged one, ClientGone.
        """
        visit = visit_of(request)
        length = request.headers.get("content-length", "0")
        self._check(int(length) if length.isdecimal() else 0)
        body = await self._receive(request, visit)
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding == "identity":
            return body
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise WrongType(f"content-encoding {encoding[:40]!r}; the server takes gzip, deflate and none")
        unpacked = await asyncio.to_thread(_unpack, body, self._most)
        self.hold(visit, len(unpacked))
        return unpacked

    def hold(self, visit: Visit, size: int) -> None:
        """Counts bytes that a visit holds. Raises QueueFull where all bodies together are over the limit."""
        visit.held += size
        self.held += size
        self._peak = max(self._peak, self.held)
        if self.held > self._most_held:
            raise QueueFull("the bodies of all requests together are over the limit", 1)

    def release(self, visit: Visit) -> None:
        """Counts a visit's bytes no longer."""
        self.held -= visit.held
        visit.held = 0
        if self._peak >= _BURST and self.held <= self._peak // 4:
            self._peak = self.held
            loop = asyncio.get_running_loop()
            loop.call_later(_AFTER, loop.run_in_executor, None, give_back)

    async def _receive(self, request: Request, visit: Visit) -> bytes:
        size, more, began = 0, True, time.monotonic()
        whole = io.BytesIO()  # parts in a list would be joined in twice their memory, and leave holes in it
        try:
            async with asyncio.timeout(PATIENCE) as limit:
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part: bytes = message.get("body", b"")
                    size += len(part)
                    self._check(size)
                    self.hold(visit, len(part))
                    more = message.get("more_body", False)
                    if size == len(part) and not more:
                        return part
                    whole.write(part)
                    if not more:
                        return whole.getvalue()
                    late = began + PATIENCE + size / SLOWEST - time.monotonic()
                    limit.reschedule(asyncio.get_running_loop().time() + late)
        except TimeoutError:
            raise TooSlow(f"the body comes too slowly: {size} bytes in {time.monotonic() - began:.0f} s") from None
        finally:
            if more:  # it is given up: its room is for the others at once, not only when its answer is sent
                whole.close()
                self.release(visit)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise TooMany(f"the body is over the limit of {self._most} bytes (max_body)")


def _unpack(body: bytes, most: int) -> bytes:
    """Unpacks gzip, or deflate with zlib's header or without."""
    bare = not (body[:2] == b"\x1f\x8b" or (len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0))
    stream = zlib.decompressobj(-15 if bare else 47)
    try:
        unpacked = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not what its content-encoding says ({error})") from error
    if len(unpacked) > most:
        raise TooMany(f"the body is over the limit of {most} bytes (max_body) when unpacked")
    if not stream.eof:
        raise BadRequest("the body's content-encoding breaks off")
    return unpacked
