"""One keep-alive connection to a server: a request's bytes are sent and its answer is read, without ever waiting."""

from __future__ import annotations

import socket

from qalign_bench.server.answers import Answer, take_answer
from qalign_bench.server.requests import Prepared

_BUFFER = 1 << 20  # of bytes on their way to the server: a picture's file goes out in one call
_MOST_READ = 1 << 16


class ConnectionEndedError(Exception):
    """The connection ended before its answer was whole."""


class Connection:
    """`sending` and `busy` say what it waits for. An idle one may be used again."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Begins to connect. Raises OSError where no connection can be opened."""
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.socket.connect_ex(address)  # a refusal is told by the first write
        self.busy = False
        self.leaves = False  # its client goes away as soon as all is sent
        self.extra = 0  # answers that nobody asked for
        self._pieces: list[memoryview] = []
        self._received = bytearray()

    @property
    def sending(self) -> bool:
        """Whether bytes of the request are still to be sent."""
        return bool(self._pieces)

    def begin(self, prepared: Prepared, mark: bytes) -> None:
        """Starts a request, and sends what can be sent at once."""
        assert not self.busy
        self.busy, self.leaves = True, prepared.leaves is not None
        self._pieces = prepared.pieces(mark)
        self.write()

    def write(self) -> None:
        """Sends as much as can be sent at once. A server that takes no more may have answered all the same."""
        try:
            while self._pieces:
                self._drop(self.socket.sendmsg(self._pieces))
        except BlockingIOError:
            return
        except OSError:
            self._pieces.clear()  # reading tells the answer, or why there is none

    def read(self) -> Answer | None:
        """The answer, once it is whole. Raises ConnectionEndedError where it cannot become whole any more."""
        ended = self._receive()
        try:
            answer = take_answer(self._received, ended=ended) if self.busy else None
        except ValueError as error:
            raise ConnectionEndedError(str(error)) from None
        if answer is not None:
            self.busy = False
        if self._received and not self.busy:
            self.extra += 1
            self._received.clear()
        if ended and answer is None:
            raise ConnectionEndedError("the server closed the connection before its answer was whole")
        return answer

    def close(self) -> None:
        """Closes it, whatever it is doing."""
        self.socket.close()

    def _receive(self) -> bool:
        """Takes what has arrived; returns whether nothing more will come."""
        try:
            data = self.socket.recv(_MOST_READ)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._received += data
        return not data

    def _drop(self, sent: int) -> None:
        """Drops so many bytes off the front of what is to be sent."""
        while sent:
            first = self._pieces[0]
            if sent < len(first):
                self._pieces[0] = first[sent:]
                return
            sent -= len(first)
            self._pieces.pop(0)
