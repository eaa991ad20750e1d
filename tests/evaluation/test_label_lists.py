"""Lists of labels in JSON and in lines, with the oddities of published ones: read right, or refused in one line."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qalign_fast.errors import ListError, MissingExtraError
from qalign_fast.evaluation.lists import LabelList, read_list


def json_of(path: Path, *entries: Any, **dump: Any) -> Path:
    path.write_text(json.dumps(list(entries), **dump), "utf-8")
    return path


def text_of(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def labels(found: LabelList) -> dict[str, float]:
    return {entry.name: entry.label for entry in found.entries}


def refusal(path: Path, **options: Any) -> str:
    """The one line that says why; it begins with the path."""
    with pytest.raises(ListError) as caught:
        read_list(path, **options)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 600
    return said.removeprefix(f"{path}: ")


def conversation(word: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "How is it?"}, {"from": "gpt", "value": f"The quality of the image is {word}."}]


def test_a_list_has_its_entries_in_order_and_the_hash_of_its_bytes(tmp_path: Path) -> None:
    path = json_of(tmp_path / "mine.json", {"image": "b.jpg", "gt_score": 2}, {"image": "a/c.jpg", "gt_score": 3.5})
    found = read_list(path)
    assert [(e.name, e.label, e.unit) for e in found.entries] == [("b.jpg", 2, "b.jpg"), ("a/c.jpg", 3.5, "a/c.jpg")]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.name, found.form, found.medium, found.task) == ("mine", "qalign", "image", None)
    assert (found.lower_better, found.known, found.looks_like, found.notes) == (False, None, None, ())


def test_names_stand_under_image_or_img_path(tmp_path: Path) -> None:
    both = {"image": "c.jpg", "img_path": "c.jpg", "gt_score": 3}
    path = json_of(tmp_path / "a.json", {"image": "a.jpg", "gt_score": 1}, {"img_path": "b.jpg", "gt_score": "2"}, both)
    assert labels(read_list(path)) == {"a.jpg": 1, "b.jpg": 2, "c.jpg": 3}
    other = json_of(tmp_path / "b.json", both | {"img_path": "d.jpg"})
    assert "entry 1: image is 'c.jpg' and img_path 'd.jpg'" in refusal(other)


def test_labels_that_are_strings_are_numbers_and_counted(tmp_path: Path) -> None:
    entries = [{"img_path": "a.jpg", "gt_score": "2.65 "}, {"img_path": "b.jpg", "gt_score": "1e-1"}]
    found = read_list(json_of(tmp_path / "a.json", *entries, {"img_path": "c.jpg", "gt_score": -1.5}))
    assert labels(found) == {"a.jpg": 2.65, "b.jpg": 0.1, "c.jpg": -1.5}
    assert found.notes == ("1 labels are strings", "1 labels are strings with blanks around")


def test_a_label_without_gt_score_stands_after_the_last_arrow_of_the_id(tmp_path: Path) -> None:
    entries = [
        {"id": "a->b.png->4.63", "image": "k/a->b.png"},
        {"id": "c.png->-2.5 ", "image": "c.png"},
        {"id": "d.png->1", "image": "d.png", "gt_score": 3},
    ]
    found = read_list(json_of(tmp_path / "a.json", *entries))
    assert labels(found) == {"k/a->b.png": 4.63, "c.png": -2.5, "d.png": 3}
    assert found.notes == ("2 labels are read from the id, after ->",)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_line_ends_change_the_hash_and_nothing_else(newline: str, mark: str, tmp_path: Path) -> None:
    text = json.dumps([{"image": "ü.jpg", "gt_score": 1}], indent=1, ensure_ascii=False)
    path = text_of(tmp_path / "a.json", mark + text.replace("\n", newline))
    assert labels(read_list(path)) == {"ü.jpg": 1}
    assert read_list(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_that_are_no_utf8_come_out_as_the_file_system_has_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"caf\xe9.mp4, -1, -1, 3.5\n")
    assert read_list(path).entries[0].name.encode("utf-8", "surrogateescape") == b"caf\xe9.mp4"


def test_backslashes_and_blanks_around_names_are_put_right(tmp_path: Path) -> None:
    path = json_of(tmp_path / "a.json", {"image": " live\\wn\\img 1.png ", "gt_score": 1})
    assert list(labels(read_list(path))) == ["live/wn/img 1.png"]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:\\x.jpg", "c:x.jpg", "\\\\host\\x.jpg", "a\0.jpg"]
)
def test_names_that_leave_the_root_are_refused(name: str, tmp_path: Path) -> None:
    path = json_of(tmp_path / "a.json", {"image": "fine..jpg", "gt_score": 1}, {"image": name, "gt_score": 1})
    assert "entry 2: its name" in (said := refusal(path))
    assert "below it" in said


@pytest.mark.parametrize("name", ["", "  ", None, 7, ["a.jpg", "b.jpg"]])
def test_names_that_are_none_are_refused(name: Any, tmp_path: Path) -> None:
    assert "entry 1: its name is" in refusal(json_of(tmp_path / "a.json", {"image": name, "gt_score": 1}))


BAD_LABELS = [
    math.nan,
    math.inf,
    "",
    " ",
    "nan",
    "inf",
    "good",
    "1,5",
    "1_0",
    "0x1",
    "٣",
    True,
    None,
    [1],
    {},
    10**400,
    1e101,
]


@pytest.mark.parametrize("label", BAD_LABELS, ids=lambda label: repr(label)[:20])
def test_labels_that_are_no_finite_number_are_refused_with_their_entry(label: Any, tmp_path: Path) -> None:
    path = json_of(tmp_path / "a.json", {"image": "a.jpg", "gt_score": 1}, {"image": "b/c.jpg", "gt_score": label})
    assert "entry 2 (b/c.jpg): its label is" in (said := refusal(path))
    assert "expected a finite number" in said


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"image": "a.jpg"}, "entry 1 has no gt_score, and no -> in its id"),
        ({"image": "a.jpg", "id": "a.jpg"}, "entry 1 has no gt_score, and no -> in its id"),
        ({"image": "a.jpg", "id": "a.jpg->"}, "entry 1 (a.jpg): its label is ''"),
        ({"gt_score": 1, "file": "a.jpg"}, "entry 1 has no image or img_path; it has: gt_score, file"),
        ("a.jpg", "entry 1 is 'a.jpg'; expected an object"),
    ],
)
def test_an_entry_that_lacks_something_is_named(entry: Any, said: str, tmp_path: Path) -> None:
    assert said in refusal(json_of(tmp_path / "a.json", entry))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has: nothing"),
        ("[]", "no entries"),
        ('{"image": "a.jpg", "gt_score": 1}', "no array but dict"),
        ('{"image": "a.jpg"}\n{"image": "b.jpg"}', "no JSON"),
        ('[{"image": "a.jpg", "gt_sc', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("\ufeff", "has: nothing"),
    ],
)
def test_text_that_is_no_list_is_refused(text: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(text_of(tmp_path / "a.json", text))


def test_files_that_are_no_text_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    assert "no text" in refusal(tmp_path / "a.png")
    (tmp_path / "a.csv").write_bytes("image,mos\na.jpg,1\n".encode("utf-16"))
    assert "UTF-16" in refusal(tmp_path / "a.csv")
    assert "No such file" in refusal(tmp_path / "none.json")
    assert "directory" in refusal(tmp_path)


def test_names_that_come_twice_stay_and_are_counted(tmp_path: Path) -> None:
    twice = [{"image": name, "gt_score": label} for name, label in [("a", 1), ("a", 1), ("b", 1), ("b", 2), ("c", 1)]]
    found = read_list(json_of(tmp_path / "a.json", *twice))
    assert len(found.entries) == 5
    assert found.notes == ("2 names come more than once, 1 of them with different labels",)


def test_labels_that_are_all_the_same_are_told(tmp_path: Path) -> None:
    """Lists of contests have -1 in place of labels that are kept back."""
    found = read_list(text_of(tmp_path / "labels.txt", "a.bmp, -1, -1, -1\nb.bmp, -1, -1, -1\n"))
    assert found.notes == ("all 2 labels are -1: nothing agrees or disagrees with them",)


def test_metas_of_deqa_are_told_by_their_keys(tmp_path: Path) -> None:
    meta = {"id": "a.jpg->61.5", "image": "KONIQ/images/a.jpg", "gt_score": 3.4, "std": 0.5}
    found = read_list(json_of(tmp_path / "a.json", meta | {"level_probs": [0, 0.4, 0.6, 0, 0]}))
    assert (found.form, labels(found)) == ("deqa", {"KONIQ/images/a.jpg": 3.4})
    assert read_list(json_of(tmp_path / "b.json", meta)).form == "deqa"
    assert read_list(json_of(tmp_path / "c.json", {"image": "a.jpg", "gt_score": 1, "std": 1})).form == "qalign"


def test_another_key_holds_the_label_where_it_is_chosen(tmp_path: Path) -> None:
    path = json_of(tmp_path / "a.json", {"image": "a.jpg", "gt_score": 61.5, "gt_score_norm": 3.4})
    assert labels(read_list(path, column="gt_score_norm")) == {"a.jpg": 3.4}
    assert "no entry has 'mos'; entries have: image, gt_score, gt_score_norm" in refusal(path, column="mos")
    assert "have no splits" in refusal(path, split="test")


def test_fast_vqas_lines_may_have_commas_in_names_and_no_newline_at_the_end(tmp_path: Path) -> None:
    lines = "a, b,c.mp4, 8.008, 29.97002997002997, 3.22\r\nyfcc-batch1/7.mp4, -1, -1, 67.75\n\nia/é.mp4,1,2,3"
    found = read_list(text_of(tmp_path / "labels.txt", lines))
    assert (found.form, found.medium) == ("fastvqa", "video")
    assert labels(found) == {"a, b,c.mp4": 3.22, "yfcc-batch1/7.mp4": 67.75, "ia/é.mp4": 3}


def test_maxwells_lines_have_three_labels(tmp_path: Path) -> None:
    path = text_of(tmp_path / "labels.txt", "0000.mp4, 1.5, 2.5, 3.5\n0001.mp4, 1.25, 2.25, 3.25\n")
    overall, technical, aesthetic = (read_list(path, column=name) for name in (None, "technical", "aesthetic"))
    assert labels(overall) == labels(read_list(path, column="Overall")) == {"0000.mp4": 3.5, "0001.mp4": 3.25}
    assert labels(technical) == {"0000.mp4": 1.5, "0001.mp4": 1.25}
    assert labels(aesthetic) == {"0000.mp4": 2.5, "0001.mp4": 2.25}
    assert (technical.task, aesthetic.task) == ("quality", "aesthetics")
    assert "no column 'fps'" in refusal(path, column="fps")


def test_a_duration_is_not_taken_for_a_technical_label(tmp_path: Path) -> None:
    path = text_of(tmp_path / "labels.txt", "a.mp4, 8.008, 29.97, 3.22\n")
    assert "not on 1..5" in refusal(path, column="technical")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("b.mp4, -1, 3", "line 2 has 3 fields"),
        ("b.mp4, -1, -1, nan", "line 2 (b.mp4): its label is 'nan'"),
        ("../b.mp4, -1, -1, 3", "line 2: its name '../b.mp4' leaves the root"),
        (", -1, -1, 3", "line 2: its name is ''"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(second: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(text_of(tmp_path / "labels.txt", f"a.mp4, -1, -1, 3\n{second}\n"))


def test_the_medium_is_that_of_the_names_and_mixed_ones_ask_for_it(tmp_path: Path) -> None:
    path = text_of(tmp_path / "labels.txt", "a.mp4, -1, -1, 3\nb.jpg, -1, -1, 2\n")
    assert "1 of 2 names are clips'; say which medium" in refusal(path)
    assert read_list(path, medium="video").medium == "video"
    assert "medium 'film'; expected one of: image, video" in refusal(path, medium="film")
    assert read_list(text_of(tmp_path / "b.txt", "a.YUV, -1, -1, 3\n")).medium == "video"


LABEL = st.one_of(
    st.floats(-1e100, 1e100),  # larger ones are refused
    st.integers(-(10**6), 10**6),
    st.decimals(-1000, 1000, allow_nan=False, places=3).map(str),
)


@given(
    st.lists(
        st.tuples(
            st.text("abc/._- é", min_size=1, max_size=9).filter(str.strip),
            LABEL,
            st.sampled_from(["image", "img_path"]),
            st.sampled_from(["plain", "text", "blanks", "id"]),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=200, deadline=None)
def test_however_labels_are_written_they_are_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, Any, str, str]], mark: str, newline: str
) -> None:
    entries = []
    for name, label, key, kind in rows:
        written = {"plain": label, "text": str(label), "blanks": f" {label}\t"}
        entries.append({key: name} | ({"id": f"{name}->{label}"} if kind == "id" else {"gt_score": written[kind]}))
    text = mark + json.dumps(entries, indent=0).replace("\n", newline)
    path = text_of(tmp_path_factory.getbasetemp() / "any.json", text)
    if any(name.strip().startswith("/") or ".." in name.strip().split("/") for name, *_ in rows):
        assert "leaves the root" in refusal(path)
        return
    expected = [(name.strip(), float(label)) for name, label, _, _ in rows]
    assert [(entry.name, entry.label) for entry in read_list(path).entries] == expected


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        st.text('[]{}":,.-01ae\n\t image gt_score mos name dmos', max_size=200).map(str.encode),
        st.binary(max_size=60).map(b"PK\x03\x04".__add__),
    ),
    st.sampled_from([None, "mos", "technical"]),
    st.sampled_from([None, "all", "test", "split=0"]),
)
@example(b'name,mos\n"a\nb.jpg",1\n', None, None)
@example(b"image,mos\na,1\n\xff,x", None, None)
@settings(max_examples=500, deadline=None)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, column: str | None, split: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    try:
        found = read_list(path, column=column, split=split)
    except (ListError, MissingExtraError) as error:
        assert "\n" not in str(error)
    else:
        assert found.entries
        assert all(math.isfinite(entry.label) and entry.name for entry in found.entries)
