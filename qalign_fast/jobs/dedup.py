"""Content hashes in, answers of equal pictures out. The first of them in order is scored, whichever is read first."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qalign_fast.feed.reading import Read
    from qalign_fast.jobs.entries import Answers, Entry


class Duplicates:
    """What was scored so far, by content and medium. It lies in a file, which is made anew by each run of a job."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._base = sqlite3.connect(path)
        self._base.execute("pragma journal_mode = off")
        self._base.execute("pragma synchronous = off")
        self._base.execute("create table answers (content text primary key, answers text) without rowid")
        self._waiting: dict[str, Entry] = {}  # pictures under way

    def mark(self, batches: Iterable[Sequence[Read[Any]]]) -> Iterator[list[Read[Any]]]:
        """The batches, with the pixels of pictures taken away that are equal to an earlier one."""
        for batch in batches:
            yield [self._marked(read) for read in batch]

    def settle(self, entry: Entry) -> None:
        """Gives a marked picture the earlier one's answers, and keeps the answers of one that was scored."""
        if entry.same_as is not None:
            answers = entry.same_as if isinstance(entry.same_as, dict) else entry.same_as.answers
            assert answers is not None
            entry.answers = answers
        elif entry.answers is not None and (content := _content(entry)) is not None:
            self._waiting.pop(content, None)
            self.add(content, entry.answers)

    def add(self, content: str, answers: Answers) -> None:
        """Keeps a content's answers, unless some are kept."""
        self._base.execute("insert or ignore into answers values (?, ?)", (content, json.dumps(answers)))

    def close(self) -> None:
        """Deletes the file."""
        self._base.close()
        self._path.unlink(missing_ok=True)

    def _marked(self, read: Read[Any]) -> Read[Any]:
        entry: Entry = read.key
        if read.error is not None or (content := _content(entry)) is None:
            return read
        entry.same_as = self._waiting.get(content) or self._find(content)
        if entry.same_as is None:
            self._waiting[content] = entry
            return read
        return replace(read, pixels=None)

    def _find(self, content: str) -> Answers | None:
        found = self._base.execute("select answers from answers where content = ?", (content,)).fetchone()
        return None if found is None else json.loads(found[0])


def content_of(sha256: str, medium: str) -> str:
    """The same bytes are another content as a clip than as a picture."""
    return f"{medium} {sha256}"


def _content(entry: Entry) -> str | None:
    sha256 = None if entry.reading is None else entry.reading.sha256
    return None if sha256 is None else content_of(sha256, entry.medium)
