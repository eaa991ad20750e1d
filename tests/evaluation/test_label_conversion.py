"""Labels to levels and back: the paper's rule, the direction of DMOS, and what is lost, against scipy."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from qalign_fast.errors import ListError
from qalign_fast.evaluation.training_data.conversion import convert
from qalign_fast.evaluation.training_data.labels import Labels, read_labels
from qalign_fast.levels import LEVELS

RISING = LEVELS[::-1]


def labels_of(values: list[float], column: str = "mos") -> Labels:
    names = tuple(f"{i}.jpg" for i in range(len(values)))
    return Labels("made.csv", column, names, tuple(values), tuple(range(2, len(values) + 2)))


def by_hand(value: str, low: str, high: str) -> str:
    """Equation 1 in whole fractions: the number of the interval that the label ends or lies in."""
    share = (Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low))
    return RISING[max(ceil(share * 5), 1) - 1]


decimals = st.integers(-2000, 2000).map(lambda number: f"{number / 100}")


@given(st.lists(decimals, min_size=2, max_size=30, unique=True))
def test_levels_are_equation_1_in_whole_fractions(texts: list[str]) -> None:
    """Ends of intervals fall on labels often, as all have two digits."""
    found = convert(labels_of([float(text) for text in texts]))
    low, high = (pick(texts, key=float) for pick in (min, max))
    assert list(found.words) == [by_hand(text, low, high) for text in texts]
    assert (found.low, found.high) == (float(low), float(high))


@pytest.mark.parametrize(
    ("low", "high", "edges"),
    [
        (1, 5, (1.8, 2.6, 3.4, 4.2)),
        (1, 10, (2.8, 4.6, 6.4, 8.2)),
        (0, 1, (0.2, 0.4, 0.6, 0.8)),
        (0, 0.3, (0.06, 0.12, 0.18, 0.24)),
    ],
)
def test_a_label_on_an_edge_has_the_lower_level_and_the_scales_ends_have_theirs(
    low: float, high: float, edges: tuple[float, ...]
) -> None:
    found = convert(labels_of([low, *edges, high]), low, high)
    assert found.words == ("bad", *RISING)
    above = convert(labels_of([float(np.nextafter(edge, high)) for edge in edges]), low, high)
    assert above.words == RISING[1:]


def test_words_follow_quality_where_lower_is_better() -> None:
    """DMOS: equation 1 of the negated labels, so the edges too fall to the worse level."""
    found = convert(labels_of([0.0, 19.9, 20.0, 40.0, 60.0, 80.0, 80.1, 100.0]), lower_better=True)
    assert found.words == ("excellent", "excellent", "good", "fair", "poor", "bad", "bad", "bad")
    assert found.srcc is not None and found.srcc > 0


def test_reversed_labels_have_the_same_words_and_the_same_cost() -> None:
    mos = np.round(np.random.default_rng(0).uniform(1, 5, 300), 3)
    rising, falling = convert(labels_of(mos.tolist())), convert(labels_of((-mos).tolist()), lower_better=True)
    assert rising.words == falling.words
    assert (rising.plcc, rising.srcc) == pytest.approx((falling.plcc, falling.srcc), abs=1e-12)


@pytest.mark.parametrize("lower_better", [False, True])
def test_the_cost_is_scipys(lower_better: bool) -> None:
    values = np.random.default_rng(1).normal(50, 12, 500)
    found = convert(labels_of(values.tolist()), lower_better=lower_better)
    worth = [5 - LEVELS.index(word) for word in found.words]
    quality = -values if lower_better else values
    assert found.plcc == pytest.approx(pearsonr(worth, quality)[0], abs=1e-12)
    assert found.srcc == pytest.approx(spearmanr(worth, quality)[0], abs=1e-12)


def test_a_cost_that_no_correlation_has_is_none() -> None:
    found = convert(labels_of([41, 45, 59]), 0, 100)
    assert found.counts == {"excellent": 0, "good": 0, "fair": 3, "poor": 0, "bad": 0}
    assert (found.plcc, found.srcc) == (None, None)


def test_a_label_off_the_scale_is_an_error_that_names_its_line() -> None:
    with pytest.raises(ListError, match=r"made.csv: line 3: the label 101 is not on the scale 0 to 100; --clip gives"):
        convert(labels_of([50, 101]), 0, 100)


@pytest.mark.parametrize("lower_better", [False, True])
def test_a_label_beyond_a_scale_that_clips_has_the_level_of_its_end(lower_better: bool) -> None:
    values = [-7.0, 10.0, 30.0, 50.0, 90.0, 110.0]
    found = convert(labels_of(values), 0, 100, lower_better=lower_better, clip=True)
    rising = ("bad", "bad", "poor", "fair", "excellent", "excellent")
    falling = ("excellent", "excellent", "good", "fair", "bad", "bad")
    assert found.words == (falling if lower_better else rising)
    worth = [5 - LEVELS.index(word) for word in found.words]
    quality = -np.array(values) if lower_better else np.array(values)
    assert found.plcc == pytest.approx(pearsonr(worth, quality)[0], abs=1e-12)  # of the labels as they are


def test_labels_that_are_all_the_same_need_a_scale() -> None:
    with pytest.raises(ListError, match="its scale goes from 3 to 3; --low and --high say another one"):
        convert(labels_of([3.0, 3.0]))


def read(folder: Path, text: str | bytes, **columns: str) -> Labels:
    (file := folder / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(file, **columns)


def test_the_first_column_has_names_and_mos_has_labels(tmp_path: Path) -> None:
    found = read(tmp_path, '\ufeffimage_name,c1,MOS\r\n\r\na.jpg,2,61.5\r\n"b,c.jpg",3, 7e1 \r\n')
    assert (found.names, found.values, found.lines) == (("a.jpg", "b,c.jpg"), (61.5, 70.0), (3, 4))


def test_columns_may_be_named(tmp_path: Path) -> None:
    found = read(tmp_path, "ref,name,dmos\nr,a.png,1\nr,b.png,2\n", name="name", label="dmos")
    assert (found.names, found.values, found.may_fall) == (("a.png", "b.png"), (1.0, 2.0), True)


def test_a_name_that_is_no_utf_8_comes_back(tmp_path: Path) -> None:
    assert read(tmp_path, b"name,mos\nb\xe4r.jpg,1\n").names[0].encode("utf-8", "surrogateescape") == b"b\xe4r.jpg"


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabs_part_fields_as_commas_do(tmp_path: Path, mark: str) -> None:
    """As spreadsheets write them in other countries, and as `evaluate` reads them."""
    path = tmp_path / "labels.csv"
    path.write_text('name,mos\n"x, y.jpg",1\nb.jpg,2.5\n'.replace(",", mark).replace(f"x{mark}", "x,"))
    found = read_labels(path)
    assert (found.names, found.values, found.lines) == (("x, y.jpg", "b.jpg"), (1.0, 2.5), (2, 3))


def test_utf16_is_told(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("name,mos\na.jpg,1\n", "utf-16")
    with pytest.raises(ListError, match="its text is UTF-16; save it as UTF-8"):
        read_labels(path)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", {}, "it is empty; expected a line that names the columns"),
        ("name,mos\n", {}, "it has no labels below its first line"),
        ("a.jpg,3\nb.jpg,4\n", {}, "no column 'mos' alone; it has: a.jpg, 3; --label says which"),
        ("name,MOS,mos\na,1,2\n", {}, "no column 'mos' alone"),
        ("name,score\na,1\n", {"label": "mos"}, "no column 'mos'; it has: name, score"),
        ("name,mos\na,1\n", {"name": "file"}, "no column 'file'; it has: name, mos"),
        ("a,a,mos\nx,y,1\n", {"name": "a"}, "two columns 'a'"),
        ("name,mos\na,1\nb,good\n", {}, "line 3: the label 'good' is no number"),
        ("name,mos\na,\n", {}, "line 2: the label '' is no number"),
        ("name,mos\na,nan\n", {}, "line 2: the label 'nan' is no number"),
        ("name,mos\na,-inf\n", {}, "line 2: the label '-inf' is no number"),
        ("name,mos\na,1e308\nb,-1e308\n", {}, "line 2: the label '1e308' is no number that can be used"),
        ("name,mos\na,1_0\n", {}, "line 2: the label '1_0' is no number"),
        ('name,mos\na,"3,5"\n', {}, "line 2: the label '3,5' is no number"),
        ("name,mos\na,1,2\n", {}, "line 2: 3 fields; expected 2"),
        ("name,mos\n ,1\n", {}, "line 2: no name"),
        ("name,mos\na,1\nb,2\na,3\n", {}, "line 4: 'a' has a label in line 2 already"),
    ],
)
def test_what_is_wrong_with_labels_is_said(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ListError) as caught:
        read(tmp_path, text, **columns)
    assert f"{tmp_path / 'labels.csv'}: {message}" in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ListError, match=r"none.csv: No such file"):
        read_labels(tmp_path / "none.csv")
