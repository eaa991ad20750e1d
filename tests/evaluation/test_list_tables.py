"""Tables of labels: which columns are read, which rows, and what is refused because it could mean two things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openpyxl
import pytest

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists import LabelList, read_list


def csv_of(path: Path, *lines: str) -> Path:
    path.write_bytes("\n".join(lines).encode())
    return path


def labels(found: LabelList) -> dict[str, float]:
    return {entry.name: entry.label for entry in found.entries}


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ListError) as caught:
        read_list(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    return said


@pytest.mark.parametrize(
    "name", ["image", "img", "Name", "img_name", "image_name", "Image name", "filename", "path", "dist_img"]
)
@pytest.mark.parametrize("label", ["mos", "MOS", "gt_score", "label", "Score"])
def test_columns_are_found_by_usual_names(name: str, label: str, tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", f"note,{label},{name},width", "x,3.5, b/a.jpg ,10", "y,-2,c.jpg,11")
    assert labels(read_list(path)) == {"b/a.jpg": 3.5, "c.jpg": -2}
    assert read_list(path).form == ("pyiqa" if name == "" else "table")


def test_two_labels_are_ambiguous_until_one_is_chosen(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", "image,mos,score,sharpness", "a.jpg,1,2,3")
    assert "2 columns could be the label: mos, score; choose one with column; it has: image, mos, score, sharpness" in (
        refusal(path)
    )
    assert labels(read_list(path, column="Score")) == {"a.jpg": 2}
    assert labels(read_list(path, column="sharpness")) == {"a.jpg": 3}
    assert "no column 'blur'; it has: image, mos, score, sharpness" in refusal(path, column="blur")


def test_two_names_are_ambiguous(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", "image,path,mos", "a.jpg,b.jpg,1")
    assert "2 columns could be the name: image, path" in refusal(path)


def test_no_usual_name_says_what_there_is(tmp_path: Path) -> None:
    assert "no column is called as labels usually are (mos, gt_score," in refusal(
        csv_of(tmp_path / "a.csv", "a.jpg,3.5")
    )
    assert "no column is called as names usually are" in refusal(csv_of(tmp_path / "b.csv", "source,mos", "a.jpg,1"))


def test_a_column_that_comes_twice_is_refused_where_it_is_read_and_only_there(tmp_path: Path) -> None:
    """pyiqa's table of SPAQ has Brightness twice."""
    path = csv_of(tmp_path / "a.csv", "image,mos,Brightness,Brightness", "a.jpg,1,2,3")
    assert labels(read_list(path)) == {"a.jpg": 1}
    assert "it has 2 columns 'brightness'" in refusal(path, column="brightness")
    assert "2 columns could be the label: mos, MOS" in refusal(csv_of(tmp_path / "b.csv", "image,mos,MOS", "a.jpg,1,2"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_fields_are_parted_by_commas_semicolons_or_tabs(delimiter: str, tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", *(line.replace(",", delimiter) for line in ["image,mos,std", "a.jpg,1.5,0"]))
    assert labels(read_list(path)) == {"a.jpg": 1.5}


def test_marks_blank_lines_quotes_and_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff"image","mos"\r\n\r\n"a, b.jpg","1"\r\nc.jpg,2'.encode())
    assert labels(read_list(path)) == {"a, b.jpg": 1, "c.jpg": 2}


def test_lines_of_another_length_are_named(tmp_path: Path) -> None:
    assert "line 3 has 1 fields; expected 2" in refusal(csv_of(tmp_path / "a.csv", "image,mos", "a.jpg,1", "b.jpg"))
    assert "line 2 has 3 fields; expected 2" in refusal(csv_of(tmp_path / "b.csv", "image,mos", "a,b.jpg,1"))
    assert labels(read_list(csv_of(tmp_path / "c.csv", "image,mos,,", "a.jpg,1,,"))) == {"a.jpg": 1}


@pytest.mark.parametrize("label", ["", "nan", "n/a", "1,5"])
def test_labels_that_are_no_number_are_named_by_their_line(label: str, tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", "image;mos", "a.jpg;1", f"b.jpg;{label}")
    assert f"line 3 (b.jpg): its label is {label!r}" in refusal(path)


def test_dmos_says_no_direction(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", "image,dmos", "a.jpg,1")
    assert "its labels are called 'dmos'" in refusal(path)
    assert read_list(path, lower_better=True).lower_better is True
    assert read_list(path, lower_better=False).lower_better is False
    assert labels(read_list(path, lower_better=True)) == {"a.jpg": 1}  # as the file has it, never turned around


def test_a_unit_is_the_reference_where_a_column_tells_it(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", "ref_name,dist_name,mos", "r/one.bmp,a.bmp,1", "r/one.bmp,b.bmp,2", ",c.bmp,3")
    assert [entry.unit for entry in read_list(path).entries] == ["r/one.bmp", "r/one.bmp", "c.bmp"]


def test_pyiqas_tables_for_pictures_alone_and_with_references(tmp_path: Path) -> None:
    alone = csv_of(tmp_path / "a.csv", "img_name,mos,std", "t1.bmp,63.9,18.3")
    pairs = csv_of(tmp_path / "b.csv", "hq_name,dist_name,elo_score", "A1.bmp,A1_00_00.bmp,1520.5")
    assert (read_list(alone).form, labels(read_list(alone))) == ("pyiqa", {"t1.bmp": 63.9})
    assert (read_list(pairs).form, labels(read_list(pairs))) == ("pyiqa", {"A1_00_00.bmp": 1520.5})
    assert read_list(pairs).notes == ("labels are of the column 'elo_score'",)


def test_pyiqas_table_of_live_calls_dmos_mos(tmp_path: Path) -> None:
    rows = ["refimgs/bikes.bmp,jp2k/img2.bmp,28.1", "refimgs/bikes.bmp,wn/img3.bmp,34"]
    found = read_list(csv_of(tmp_path / "a.csv", "ref_name,dist_name,mos", *rows))
    assert found.lower_better
    assert {entry.unit for entry in found.entries} == {"refimgs/bikes.bmp"}


OFFICIAL = (
    "img_name,mos,official_split,ratio802_seed123_split_01",
    "a.jpg,1,train,test",
    "b.jpg,2,val,train",
    "c.jpg,3,test,test",
)


def test_an_official_split_gives_its_test_part(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", *OFFICIAL)
    found = read_list(path)
    assert labels(found) == {"c.jpg": 3}
    assert found.notes == ("1 of 3 entries: 'official_split' is test",)
    assert len(read_list(path, split="all").entries) == 3
    assert labels(read_list(path, split="val")) == labels(read_list(path, split="validation")) == {"b.jpg": 2}
    assert labels(read_list(path, split="ratio802_seed123_split_01")) == {"a.jpg": 1, "c.jpg": 3}
    assert labels(read_list(path, split="ratio802_seed123_split_01=train")) == {"b.jpg": 2}
    assert "no row has 'dev' in the column 'official_split'; it has: test, train, val" in refusal(path, split="dev")
    assert "no column 'mos' of splits" in refusal(path, split="mos=1")


def test_splits_may_be_numbers(tmp_path: Path) -> None:
    """pyiqa's older table of KonIQ-10k: 0 trains, 1 validates, 2 tests."""
    path = csv_of(tmp_path / "a.csv", "img_name,mos,split", "a.jpg,1,0", "b.jpg,2,1", "c.jpg,3,2")
    assert labels(read_list(path)) == {"c.jpg": 3}
    assert labels(read_list(path, split="train")) == {"a.jpg": 1}


def test_splits_that_are_not_official_take_no_row_away(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "a.csv", "img_name,mos,split_01,split_02", "a.jpg,1,train,test", "b.jpg,2,test,train")
    assert len(read_list(path).entries) == 2
    assert read_list(path).notes == ("2 columns of splits are not used; split chooses one",)
    assert "expected one column of splits, or COLUMN=VALUE" in refusal(path, split="test")
    assert labels(read_list(path, split="split_02")) == {"a.jpg": 1}
    assert "columns of splits: nothing" in refusal(csv_of(tmp_path / "b.csv", "image,mos", "a.jpg,1"), split="test")


def test_a_spreadsheet_is_a_table_too(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["Image", "MOS", None], ["a.jpg", 48.86], [None, None], ["b.jpg", "3.5 "]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert labels(read_list(tmp_path / "a.xlsx")) == {"a.jpg": 48.86, "b.jpg": 3.5}


def test_a_damaged_spreadsheet_is_refused(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["Image", "MOS"])
    book.save(tmp_path / "a.xlsx")
    whole = (tmp_path / "a.xlsx").read_bytes()
    for end in range(4, len(whole), 97):
        (tmp_path / "a.xlsx").write_bytes(whole[:end])
        assert "no spreadsheet that can be read" in refusal(tmp_path / "a.xlsx")
