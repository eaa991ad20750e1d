"""A report's numbers against numpy, and a page that holds whatever names hold."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qalign_fast.analysis.page import PageOptions, make_page
from qalign_fast.analysis.rows import Rows, read_rows
from qalign_fast.analysis.summary import BINS, PERCENTS, WANTED, find_errors, find_times, summarize
from qalign_fast.analysis.thumbnails import SIDE, make_thumbnail
from qalign_fast.errors import RowsError
from qalign_fast.levels import LEVELS
from support.command_line import run
from support.goldens import PICTURES
from support.score_rows import JOB, KINDS, Row, made_rows, scored_row, scores_of, write_rows

HOSTILE = (
    "<script>alert(1)</script>.jpg",
    "\"quoted' &amp; <b>.jpg",
    os.fsdecode(b"latin\xe9.jpg"),
    "two\nlines\x1b[31m.jpg",
    "\u202egpj.exe",
    "עברית.jpg",
    "</style></title><img src=http://example.com/x.png>.jpg",
)


class Reader(HTMLParser):
    """The page's elements, the text in them, and whether each is closed."""

    VOID = ("meta", "br", "wbr", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.texts, self.addresses, self.open = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def rows_in(path: Path, rows: list[Row], *more: str) -> Rows:
    return read_rows(write_rows(path, rows), [*WANTED, *more])


def bars_of(scores: np.ndarray) -> tuple[int, ...]:
    """The histogram of scores of four digits, in whole numbers: each bar holds its upper edge."""
    ten_thousandths = np.rint(1e4 * (scores - 1)).astype(int)
    return tuple(np.bincount(np.maximum(-(-ten_thousandths // 1000) - 1, 0), minlength=BINS).tolist())


def page_of(rows: Rows, **options: object) -> str:
    return "".join(make_page(rows, PageOptions(**options)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_is_numpys(kind: str, tmp_path: Path) -> None:
    given = made_rows(500)
    rows = rows_in(tmp_path / f"rows.{kind}", given, "camera")
    found = summarize(rows, "quality", rows.group("camera"), top=7, most_groups=10)
    scores = scores_of(given)
    assert (found.rows, found.scored) == (500, len(scores))
    assert (found.mean, found.std) == (pytest.approx(scores.mean()), pytest.approx(scores.std()))
    np.testing.assert_allclose(found.quantiles, np.percentile(scores, PERCENTS))
    assert found.histogram == bars_of(scores)
    words = [row["level"] for row in given]
    assert found.levels == tuple(words.count(word) for word in LEVELS)
    by_score = sorted((row for row in given if row["error"] is None), key=lambda row: row["score"])
    assert [name for name, _ in found.worst] == [row["source"] for row in by_score[:7]]
    assert [score for _, score in found.best] == [row["score"] for row in by_score[:-8:-1]]


def test_groups_are_each_ones_numbers(tmp_path: Path) -> None:
    given = [*made_rows(300), scored_row("set9/x.jpg", 2.0) | {"score": None, "error": "x"}]
    rows = rows_in(tmp_path / "rows.parquet", given)
    found = summarize(rows, "quality", rows.group("folder"), top=3, most_groups=10)
    assert [(group.name, group.rows) for group in found.groups] == [
        (f"set{i}", n) for i, n in [(0, 100), (1, 100), (2, 100), (9, 1)]
    ]
    for group in found.groups[:3]:
        own = [row for row in given if row["source"].startswith(f"{group.name}/")]
        scores = scores_of(own)
        assert group.errors == len(own) - len(scores)
        assert group.mean == pytest.approx(scores.mean())
        assert (group.low, group.median, group.high) == pytest.approx(tuple(np.quantile(scores, (0.1, 0.5, 0.9))))
        assert group.histogram == bars_of(scores)
    assert (found.groups[3].mean, found.groups[3].median, found.groups[3].errors) == (None, None, 1)
    few = summarize(rows, "quality", rows.group("folder"), top=3, most_groups=1)
    assert (len(few.groups), few.more_groups) == (1, 3)


def test_levels_are_computed_where_rows_have_none(tmp_path: Path) -> None:
    given = made_rows(200)
    rows = read_rows(write_rows(tmp_path / "rows.parquet", given))
    words = [row["level"] for row in given]
    found = summarize(rows, "quality", rows.group("folder"), top=1, most_groups=1)
    assert found.levels == tuple(words.count(word) for word in LEVELS)


def test_the_same_fault_is_one_group_whatever_the_picture(tmp_path: Path) -> None:
    given = made_rows(100)
    groups = find_errors(rows_in(tmp_path / "rows.parquet", given))
    expected = {"failed": "not an image", "unavailable": "timed out"}
    assert {group.status: group.message for group in groups} == {k: f"<source>: {v}" for k, v in expected.items()}
    for group in groups:
        own = [row["source"] for row in given if row["status"] == group.status]
        assert (group.count, list(group.examples)) == (len(own), own[:3])
    assert groups[0].count >= groups[1].count


def test_times_count_each_picture_once(tmp_path: Path) -> None:
    given = made_rows(50)
    both = [row | {"task": task} for row in given for task in ("quality", "aesthetics")]
    times = find_times(rows_in(tmp_path / "rows.parquet", both), top=5)
    assert times is not None
    taken = [row["milliseconds"] for row in given]
    assert (times.count, times.median, times.high) == (50, *map(pytest.approx, np.percentile(taken, (50, 99))))
    assert [ms for _, ms in times.slowest] == sorted(taken, reverse=True)[:5]
    plain = [row | {"milliseconds": None} for row in given]
    assert find_times(rows_in(tmp_path / "plain.parquet", plain), top=5) is None


def test_the_page_says_the_numbers_and_is_the_same_twice(tmp_path: Path) -> None:
    given = made_rows(400)
    rows = rows_in(tmp_path / "rows.parquet", given)
    page = page_of(rows)
    assert page == page_of(rows_in(tmp_path / "rows.parquet", given))
    reader, scores = Reader(page), scores_of(given)
    text = " ".join(" ".join(reader.texts).split())
    assert reader.open == []
    assert f"{len(scores)} scores, mean {scores.mean():.3f}, standard deviation {scores.std():.3f}" in text
    assert f"50 % (median) {np.median(scores):.3f}" in text
    assert "Model: tiny int8, sha256 abababababab" in text
    assert [reader.texts[i + 1] for i, part in enumerate(reader.texts) if part == "background"] == ["none"]
    bars = re.findall(r"<title>([\d.]+) to [\d.]+: (\d+)</title>", page)
    assert bars == [(f"{1 + i / 10:.1f}", str(count)) for i, count in enumerate(bars_of(scores)) if count]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_hostile_names_stay_text(kind: str, tmp_path: Path) -> None:
    given = [scored_row(f"{name[:4]}/{name}", 1 + i / 2, camera=name) for i, name in enumerate(HOSTILE)]
    failed = {"score": None, "level": None, "status": "<i>", "milliseconds": 3.0}
    given += [scored_row(name, 3.0) | failed | {"error": f"{name}: <b>bad</b>"} for name in HOSTILE]
    rows = rows_in(tmp_path / f"rows.{kind}", given, "camera")
    for by in ("camera", "folder"):
        page = page_of(rows, by=by, title=HOSTILE[-1])
        page.encode("utf-8")  # no broken UTF-8
        assert not set("\u202e\x1b") & set(page)
        reader = Reader(page)
        assert reader.open == []
        assert not {"script", "b", "img", "iframe", "link"} & set(reader.tags) - {"b"}
        assert reader.tags.count("b") == page.count("<b>") == 2 * (len(HOSTILE) // 2 + 1)  # the scores of the lists
        assert reader.addresses == []
        text = "".join(reader.texts)
        for shown in (
            "<script>alert(1)</script>.jpg",
            "latin\\udce9.jpg",
            "two\\nlines\\x1b[31m",
            "\\u202egpj",
            "עברית",
        ):
            assert shown in text
        assert "<source>: <b>bad</b>" in text


def test_long_names_and_messages_do_not_make_a_page_long(tmp_path: Path) -> None:
    long = "data:image/png;base64," + "A" * 1_000_000 + "==end"
    failed = {"score": None, "level": None, "status": "failed", "error": "x" * 1_000_000}
    rows = rows_in(tmp_path / "rows.jsonl", [scored_row(long, 3.0), scored_row("a.jpg", 3.0) | failed])
    page = page_of(rows)
    assert len(page) < 50_000
    assert "data:image/<wbr>png" in page and "==end</bdi>" in page and "xxx ... 999600 more ... xxx" in page


def test_the_page_asks_nothing_of_any_other_place(tmp_path: Path) -> None:
    page = page_of(rows_in(tmp_path / "rows.parquet", made_rows(50)))
    assert not re.search(r"(?i)https?:|//|url\(|@import|<script|<link", page.replace("<!doctype", ""))
    assert "default-src 'none'" in page


def test_thumbnails_are_small_pictures_of_what_is_there(tmp_path: Path) -> None:
    whole = PICTURES / "rocket_landscape.jpg"
    uri = make_thumbnail(str(whole))
    assert uri is not None and uri.startswith("data:image/jpeg;base64,")
    small = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    with Image.open(whole) as picture:
        expected = picture.convert("RGB").resize(small.size, Image.Resampling.BOX)
        assert abs(small.width / small.height - picture.width / picture.height) < 0.02
    assert max(small.size) == SIDE
    assert np.abs(np.asarray(small, float) - np.asarray(expected, float)).mean() < 6
    (tmp_path / "text.jpg").write_text("no picture")
    assert make_thumbnail(str(tmp_path / "text.jpg")) is None
    assert [make_thumbnail(name) for name in ("missing.jpg", "", "a\0b", "http://x/y.jpg", str(tmp_path))] == [None] * 5


def test_thumbnails_of_relative_sources_are_sought_where_the_job_ran(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "part-00000.jsonl", [scored_row("rocket_landscape.jpg", 3.0)], job=None)
    (tmp_path / "_job").mkdir()
    (tmp_path / "_job/job.json").write_text(json.dumps(JOB | {"folder": str(PICTURES)}))
    for given in (rows, tmp_path):
        assert run("report", given, "-o", tmp_path / "page.html", "--thumbnails", "--overwrite").returncode == 0
        assert "img" in Reader((tmp_path / "page.html").read_text("utf-8")).tags


def test_a_page_with_thumbnails_holds_them(tmp_path: Path) -> None:
    sources = [str(PICTURES / "rocket_landscape.jpg"), "missing.jpg"]
    rows = rows_in(tmp_path / "rows.parquet", [scored_row(s, 3.0 + i) for i, s in enumerate(sources)])
    reader = Reader(page_of(rows, thumbnail=make_thumbnail))
    assert reader.tags.count("img") == 1
    assert [address[:23] for address in reader.addresses] == ["data:image/jpeg;base64,"]
    assert "img" not in Reader(page_of(rows)).tags


def test_rows_without_any_score_have_a_page(tmp_path: Path) -> None:
    page = page_of(rows_in(tmp_path / "rows.parquet", made_rows(5, faults=1)))
    assert "No row has a score." in page
    (tmp_path / "empty.jsonl").write_text("")
    assert "Every row has a score." in page_of(read_rows(tmp_path / "empty.jsonl"))
    with pytest.raises(RowsError, match="no column 'lens'"):
        page_of(read_rows(tmp_path / "empty.jsonl"), by="lens")
