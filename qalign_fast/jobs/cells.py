"""Tasks of many threads in, their readings and pixels out, by a few cells: tasks that wait are asked for together.

A message to a process and back costs both sides time that threads alone do not need. So a cell is given several
pictures at a time, if so many wait.
"""

from __future__ import annotations

from collections import deque
from threading import Event, Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qalign_fast.jobs.cell import Cell
    from qalign_fast.jobs.decoding import Reading, Task
    from qalign_fast.pixels.rule import Pixels

TOGETHER = 4  # pictures at most


class _Ticket:
    """A task that waits. Its thread is given its result, or first a cell, to use it for those that wait."""

    def __init__(self, task: Task, data: bytes | None) -> None:
        self.task, self.data = task, data
        self.cell: Cell | None = None
        self.found: tuple[Reading, Pixels | None] | BaseException | None = None
        self.event = Event()


class Cells:
    """Several cells. Each is used by one thread at a time, which is one of those that wait for a result."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells, self._free = cells, list(cells)
        self._waiting: deque[_Ticket] = deque()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._cells)

    def read(self, task: Task, data: bytes | None) -> tuple[Reading, Pixels | None]:
        """As `Cell.read`, of one task."""
        ticket = _Ticket(task, data)
        with self._lock:
            self._waiting.append(ticket)
            if self._free:
                ticket.cell = self._free.pop()
        while True:
            found = ticket.found  # before the cell: a ticket that has a result is given no cell any more
            if (cell := ticket.cell) is not None:
                ticket.cell = None
                self._use(cell)
            elif found is not None:
                if isinstance(found, BaseException):
                    raise found
                return found
            else:
                ticket.event.wait()
                ticket.event.clear()

    def close(self) -> None:
        """Ends the processes."""
        for cell in self._cells:
            cell.close()

    def _use(self, cell: Cell) -> None:
        """Reads the next tasks with a cell, maybe this thread's among them, and hands it to one that waits then."""
        with self._lock:
            tickets = self._next()
        if tickets:
            try:
                found = cell.read([t.task for t in tickets], [t.data for t in tickets])
            except BaseException as error:
                found = [error] * len(tickets)  # type: ignore[list-item]
            for ticket, its in zip(tickets, found, strict=True):
                ticket.found = its
                ticket.event.set()
        with self._lock:
            if (heir := next((ticket for ticket in self._waiting if ticket.cell is None), None)) is None:
                self._free.append(cell)
            else:
                heir.cell = cell
                heir.event.set()

    def _next(self) -> list[_Ticket]:
        """A share of the pictures that wait, or one clip."""
        if self._waiting and self._waiting[0].task.medium == "video":
            return [self._waiting.popleft()]
        most = min(TOGETHER, -(-len(self._waiting) // len(self._cells)))
        found: list[_Ticket] = []
        while len(found) < most and self._waiting and self._waiting[0].task.medium == "image":
            found.append(self._waiting.popleft())
        return found
