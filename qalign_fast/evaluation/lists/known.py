"""The lists that others published: counts, hashes, direction, and what was reported on them. No label of them is here.

`known_lists.json` is the table. Its hashes are of the files in the public repositories of Q-Align (`playground/data`)
and DOVER (`examplar_data_labels`), byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qalign_fast.evaluation.lists.entries import KnownList, Parsed, Published

_MOST = 0.9  # of the names match where a list looks like a known one


def find_known(sha256: str) -> KnownList | None:
    """The list of which these are a file's bytes."""
    return _BY_HASH.get(sha256)


def find_like(parsed: Parsed) -> KnownList | None:
    """Of the lists of the same form and kind of names the one whose count is nearest."""
    names = [entry.name for entry in parsed.entries]
    alike = [known for known in KNOWN_LISTS if parsed.form in known.forms and _match(known.names, names)]
    return min(alike, key=lambda known: abs(known.count - len(names)), default=None)


def published_models() -> list[str]:
    """The models of which figures are known, each once."""
    return list(dict.fromkeys(its.model for known in KNOWN_LISTS for its in known.published))


def _match(pattern: str, names: list[str]) -> bool:
    fits = re.compile(pattern).fullmatch
    return sum(fits(name) is not None for name in names) >= _MOST * len(names)


def _read_table(table: dict[str, Any]) -> Iterator[KnownList]:
    for row in table["lists"]:
        low, high = row["range"]
        values = {key: row[key] for key in "name title count medium task lower_better note names".split()}
        published = tuple(
            Published(model, srcc=srcc, plcc=plcc, **table["models"][model])
            for model, (srcc, plcc) in row["published"].items()
        )
        hashes, forms = tuple(row["sha256"]), tuple(row["forms"])
        yield KnownList(**values, sha256=hashes, low=low, high=high, published=published, forms=forms)
    for row in table["fine_tune_splits"]:
        yield from _fine_tune_splits(row)


def _fine_tune_splits(row: dict[str, Any]) -> Iterator[KnownList]:
    """The five test splits of one data set: count, low, high and SHA-256 of each."""
    for number, (count, low, high, sha256) in enumerate(row["splits"], 1):
        yield KnownList(
            name=f"{row['data_set']}-ft-{number}",
            title=f"{row['title']}, fine-tune test split {number}",
            count=count,
            sha256=(sha256,),
            medium="image",
            task="quality",
            lower_better=row["lower_better"],
            low=low,
            high=high,
            published=(),
            note=row["note"],
            forms=("qalign",),
            names=row["names"],
        )


KNOWN_LISTS = tuple(_read_table(json.loads(Path(__file__).with_name("known_lists.json").read_text("utf-8"))))
_BY_HASH = {sha256: known for known in KNOWN_LISTS for sha256 in known.sha256}
