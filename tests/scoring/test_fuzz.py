"""Damaged files of many formats: each has a score, or an error that is meant for users.

`bench/studies/fuzz_inputs.py` tries many more of them. What it finds comes here, into `ONCE_FAILED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from damaged_files import damaged, make_seeds, read_seeds, seed_name
from fuzz_inputs import is_fault, limit_sets, make_item
from qalign_fast import Scorer
from qalign_fast.feed.items import Item, Medium, Scored

COUNTS: dict[Medium, int] = {"image": 400, "video": 60}


def _box(kind: bytes, content: bytes) -> bytes:
    """A box of an MP4."""
    return (8 + len(content)).to_bytes(4, "big") + kind + content


ONCE_FAILED: tuple[tuple[str, Medium, bytes | tuple[str, int]], ...] = (  # why; a file, or a seed's name and a number
    ("Pillow tells a BMP by four bytes, and there are three", "image", b"\x89PN"),
    (
        "a stream without a codec has no width",
        "video",
        _box(b"moov", _box(b"trak", _box(b"mdia", _box(b"hdlr", bytes(8) + b"vide" + bytes(12))))),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has valid files of all formats in it."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_seeds(folder)
    return folder


@pytest.mark.parametrize("medium", COUNTS)
def test_valid_files_of_all_formats_are_scored(medium: Medium, folder: Path, tmp_path: Path) -> None:
    seeds = read_seeds(folder, medium)
    found = scored([make_item(seeds, medium, number, tmp_path) for number in range(len(seeds))])
    assert {seed_name(seeds, one.key): str(one.error) for one in found if one.error} == {}
    assert len(found) == len(seeds)


@pytest.mark.parametrize("medium", COUNTS)
def test_damaged_files_have_scores_or_errors_that_are_meant_for_users(
    medium: Medium, folder: Path, tmp_path: Path
) -> None:
    seeds = read_seeds(folder, medium)
    numbers = range(len(seeds), len(seeds) + COUNTS[medium])
    found = scored([make_item(seeds, medium, number, tmp_path) for number in numbers])
    assert {(seed_name(seeds, one.key), one.key): repr(one.error) for one in found if faulty(one)} == {}
    assert sorted(one.key for one in found) == list(numbers)
    assert {one.error is None for one in found} == {True, False}  # the damage is neither nothing nor everything


@pytest.mark.parametrize(("medium", "file"), [one[1:] for one in ONCE_FAILED], ids=[one[0] for one in ONCE_FAILED])
def test_what_once_failed_has_a_score_or_an_error_that_is_meant_for_users(
    medium: Medium, file: bytes | tuple[str, int], folder: Path
) -> None:
    data = file if isinstance(file, bytes) else damaged(read_seeds(folder, medium), *file)
    with Scorer.load() as scorer:
        (found,) = scorer.feed.run([Item(0, data, medium)], ("quality",))
    assert not faulty(found), repr(found.error)


def scored(items: Sequence[Item[int]]) -> list[Scored[int]]:
    """The items' results, a part of them with each set of options."""
    found: list[Scored[int]] = []
    engine, options = Scorer.load().engine, limit_sets()
    for i, limits in enumerate(options):
        with Scorer(engine, limits) as scorer:
            found += scorer.feed.run(items[i :: len(options)], ("quality",))
    return found


def faulty(found: Scored[int]) -> bool:
    return found.error is not None and is_fault(found.error)
