"""Lists that others published: told by their bytes alone, with what was reported on them; and which way is up."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists import KNOWN_LISTS, KnownList, read_list
from qalign_fast.evaluation.lists import known as registry

ROOT = Path(__file__).parents[2]
BY_NAME = {known.name: known for known in KNOWN_LISTS}
REAL = os.environ.get("QALIGN_LISTS")  # playground/data of Q-Align's repository

# Q-Align's file, entries, task and medium, lower is better, OneAlign's SRCC and PLCC
QALIGN = {
    "koniq-test": ("test_koniq", 2010, "quality", "image", False, 0.941, 0.950),
    "spaq-test": ("test_spaq", 2224, "quality", "image", False, 0.932, 0.935),
    "kadid-test": ("test_kadid", 2000, "quality", "image", False, 0.941, 0.942),
    "livec": ("livec", 1169, "quality", "image", False, 0.881, 0.894),
    "agiqa3k": ("agi", 2982, "quality", "image", False, 0.801, 0.838),
    "live": ("live", 982, "quality", "image", True, 0.887, 0.856),
    "csiq": ("csiq", 750, "quality", "image", True, 0.881, 0.906),
    "ava-test": ("test_ava", 19930, "aesthetics", "image", False, 0.823, 0.819),
    "lsvq-test": ("test_lsvq", 7186, "quality", "video", False, 0.886, 0.886),
    "lsvq-1080p": ("test_lsvq_1080p", 3573, "quality", "video", False, 0.803, 0.837),
    "konvid": ("konvid", 1200, "quality", "video", False, 0.876, 0.888),
    "maxwell-test": ("maxwell_test", 909, "quality", "video", False, 0.781, 0.786),
}
DEQA = {  # SRCC and PLCC, and of the LoRA form
    "koniq-test-deqa": (0.943, 0.956, 0.944, 0.956),
    "spaq-test-deqa": (0.934, 0.938, 0.935, 0.939),
    "kadid-test-deqa": (0.953, 0.955, 0.951, 0.953),
    "livec-deqa": (0.887, 0.900, 0.890, 0.903),
    "agiqa3k-deqa": (0.745, 0.808, 0.754, 0.806),
    "csiq-deqa": (0.857, 0.900, 0.860, 0.900),
}
FAST_VQA = {
    "lsvq-test": (0.899, 0.899),
    "lsvq-1080p": (0.818, 0.850),
    "konvid": (0.895, 0.897),
    "maxwell-test": (0.779, 0.784),
}


def list_of(path: Path, labels: Iterable[tuple[str, Any]]) -> Path:
    path.write_text(json.dumps([{"image": name, "gt_score": label} for name, label in labels]))
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ListError) as caught:
        read_list(path, **options)
    return str(caught.value)


def make_known(monkeypatch: pytest.MonkeyPatch, path: Path, known: KnownList) -> KnownList:
    """From now on these bytes are that list."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    known = replace(known, sha256=(sha256,))
    monkeypatch.setitem(registry._BY_HASH, sha256, known)
    return known


@pytest.mark.parametrize("name", QALIGN)
def test_q_aligns_twelve_lists_are_known(name: str) -> None:
    _, count, task, medium, lower, srcc, plcc = QALIGN[name]
    known = BY_NAME[name]
    assert (known.count, known.task, known.medium, known.lower_better) == (count, task, medium, lower)
    assert known.low < known.high
    assert known.sha256
    [ours] = [each for each in known.published if each.model == "OneAlign"]
    assert (ours.protocol, ours.srcc, ours.plcc) == ("qalign", srcc, plcc)


def test_published_values_of_others_stand_on_their_own_lists_and_protocols() -> None:
    found = {
        (known.name, each.model): (each.protocol, each.srcc, each.plcc)
        for known in KNOWN_LISTS
        for each in known.published
        if each.model != "OneAlign"
    }
    expected = {(name, "Q-Align (1 fps) + FAST-VQA"): ("fastvqa", *values) for name, values in FAST_VQA.items()}
    for name, values in DEQA.items():
        expected[name, "DeQA-Score-Mix3"] = ("deqa", *values[:2])
        expected[name, "DeQA-Score-LoRA-Mix3"] = ("deqa", *values[2:])
        assert BY_NAME[name].sha256 == ()  # so nothing can be called reproduced
    assert found == expected


def test_every_value_has_a_source_and_every_hash_one_list() -> None:
    assert all(each.source and each.protocol for known in KNOWN_LISTS for each in known.published)
    hashes = [sha256 for known in KNOWN_LISTS for sha256 in known.sha256]
    assert len(hashes) == len(set(hashes)) == 17 + 30
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes)
    assert len(BY_NAME) == len(KNOWN_LISTS)


def test_the_direction_of_dmos_lists_is_down() -> None:
    down = {known.name for known in KNOWN_LISTS if known.lower_better}
    splits = {f"{name}-ft-{i}" for name in ("csiq", "live") for i in range(1, 6)}
    assert down == {"csiq", "live"} | splits


def test_these_bytes_are_that_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = list_of(tmp_path / "copy.json", [("live/wn/img1.bmp", 30.5), ("live/wn/img2.bmp", 0)])
    known = make_known(monkeypatch, path, BY_NAME["live"])
    found = read_list(path)
    assert (found.known, found.looks_like, found.name, found.path) == (known, None, "live", path)
    assert (found.lower_better, found.task, found.medium) == (True, "quality", "image")
    assert read_list(path, lower_better=True, medium="image").known == known


def test_a_caller_cannot_turn_a_known_list_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = list_of(tmp_path / "copy.json", [("live/wn/img1.bmp", 30.5)])
    make_known(monkeypatch, path, BY_NAME["live"])
    assert "it is LIVE release 2, where lower is better; lower_better=False contradicts it" in (
        refusal(path, lower_better=False)
    )
    assert "a list of images; medium=video contradicts it" in refusal(path, medium="video")


def test_other_labels_of_the_same_bytes_are_not_that_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "val_labels.txt"
    path.write_text("0000.mp4, 1.1, 1.2, 1.3\n0001.mp4, 4.4, 4.5, 4.6\n")
    known = make_known(monkeypatch, path, BY_NAME["maxwell-val"])
    assert read_list(path).known == known
    technical = read_list(path, column="technical")
    assert (technical.known, technical.looks_like, technical.name) == (None, known, "val_labels")


KONIQ = [(f"koniq/{i}.jpg", i % 90) for i in range(2010)]


@pytest.mark.parametrize("count", [1, 2009, 2010])
def test_another_hash_or_count_looks_like_a_list_and_is_none(count: int, tmp_path: Path) -> None:
    found = read_list(list_of(tmp_path / "test_koniq.json", KONIQ[:count]))
    assert (found.known, found.looks_like) == (None, BY_NAME["koniq-test"])
    assert (found.name, found.task, len(found.entries)) == ("test_koniq", "quality", count)


def test_one_byte_more_is_another_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = list_of(tmp_path / "a.json", KONIQ)
    known = make_known(monkeypatch, path, BY_NAME["koniq-test"])
    assert read_list(path).known == known
    path.write_bytes(path.read_bytes() + b"\n")
    assert (read_list(path).known, read_list(path).looks_like) == (None, BY_NAME["koniq-test"])


def test_of_lists_with_the_same_names_the_nearest_count_is_meant(tmp_path: Path) -> None:
    rows = [(f"lsvq/yfcc-batch1/{i}.mp4", i) for i in range(7000)]
    assert read_list(list_of(tmp_path / "a.json", rows)).looks_like == BY_NAME["lsvq-test"]
    assert read_list(list_of(tmp_path / "b.json", rows[:4000])).looks_like == BY_NAME["lsvq-1080p"]


def test_the_form_and_the_names_must_both_be_those_of_the_list(tmp_path: Path) -> None:
    assert read_list(list_of(tmp_path / "a.json", [("holiday/1.jpg", 1), ("holiday/2.jpg", 2)])).looks_like is None
    table = tmp_path / "a.csv"
    table.write_text("image,mos\nkoniq/1.jpg,1\n")
    assert read_list(table).looks_like is None


def csiq(sign: int) -> list[tuple[str, float]]:
    kinds = ("AWGN", "JPEG")
    levels = [(f"{picture}.{kind}.{level}.png", level) for picture in "ab" for kind in kinds for level in range(1, 6)]
    return [(name, 0.5 + sign * level / 20) for name, level in levels]


@pytest.mark.parametrize(("sign", "lower"), [(1, True), (-1, False)])
def test_csiqs_direction_is_told_by_the_levels_and_not_by_its_name(sign: int, lower: bool, tmp_path: Path) -> None:
    """Compare2Score's lists turn CSIQ and LIVE around, under the same names."""
    found = read_list(list_of(tmp_path / "csiq_test.json", csiq(sign)))
    assert found.lower_better is lower
    assert found.looks_like
    assert found.looks_like.lower_better
    assert any("distortion's level in 100% of 16 steps" in note for note in found.notes)


def test_csiqs_labels_that_tell_nothing_are_refused_until_the_caller_says(tmp_path: Path) -> None:
    path = list_of(tmp_path / "a.json", [("a.AWGN.1.png", 0.1), ("b.AWGN.1.png", 0.2)])
    assert "lower is better in some such lists and higher in others; say which: lower_better" in refusal(path)
    assert read_list(path, lower_better=False).lower_better is False


def test_kadids_labels_fall_with_the_level_so_higher_is_better(tmp_path: Path) -> None:
    rows = [(f"x/I01_{kind:02}_{level:02}.png", 5 - level) for kind in (1, 2) for level in range(1, 6)]
    assert read_list(list_of(tmp_path / "a.json", rows)).lower_better is False


@pytest.mark.parametrize(("zeros", "lower"), [(21, True), (1, None), (0, None)])
def test_live_is_down_where_its_references_are_zeros_and_else_a_question(
    zeros: int, lower: bool | None, tmp_path: Path
) -> None:
    """A list that was turned around may have one 0: its worst picture."""
    rows = [(f"live/wn/img{i}.bmp", 0 if i < zeros else 20 + i / 2) for i in range(100)]
    path = list_of(tmp_path / "a.json", rows)
    if lower is None:
        assert "say which: lower_better" in refusal(path)
        assert read_list(path, lower_better=True).lower_better
    else:
        found = read_list(path)
        assert found.lower_better
        assert f"{zeros} labels are 0: in LIVE these are the references" in found.notes
        assert "100 names do not tell the reference picture" in found.notes[0]


@pytest.mark.parametrize("words", [["excellent", "bad"], ["bad", "excellent"]])
def test_words_that_follow_the_labels_the_wrong_way_are_told(words: list[str], tmp_path: Path) -> None:
    """A LoRA trained on Q-Align's splits of CSIQ and LIVE is inverted: there "excellent" is the worst."""
    rows = [
        {"image": f"{i}.jpg", "gt_score": label, "conversations": [{"value": f"The quality is {word}."}]}
        for i, (label, word) in enumerate(zip([80, 20], words))
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    wrong = {
        lower for lower in (True, False) if any("inverted" in n for n in read_list(path, lower_better=lower).notes)
    }
    assert wrong == {words[0] == "excellent"}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("kadid10k/I81_25_05.png", "I81"),
        ("TID2013/distorted_images/i13_24_5.bmp", "I13"),
        ("csiq/dst_imgs/jpeg2000/native_american.jpeg2000.3.png", "native_american"),
        ("1600.AWGN.1.png", "1600"),
        ("agi-cgi/DALLE2_normal_007.jpg", "007"),
        ("sd1.5_lowcorr_286.jpg", "286"),
        ("agi-cgi/game_2156.jpg", "agi-cgi/game_2156.jpg"),
        ("live/jp2k/img2.bmp", "live/jp2k/img2.bmp"),
        ("koniq/10007357496.jpg", "koniq/10007357496.jpg"),
    ],
)
def test_units_are_what_names_tell(name: str, unit: str, tmp_path: Path) -> None:
    [entry] = read_list(list_of(tmp_path / "a.json", [(name, 1)]), lower_better=False).entries
    assert entry.unit == unit


def known_table() -> str:
    rows = [
        f"| {known.name} | {known.title} | {known.count or 'not known'} | {known.medium}, {known.task} |"
        f" {known.low:g} .. {known.high:g} | {'lower' if known.lower_better else 'higher'} |"
        f" {', '.join(sha256[:12] for sha256 in known.sha256) or 'none'} | {known.note} |"
        for known in KNOWN_LISTS
        if not known.name[-1].isdecimal()
    ]
    header = "| name | list | entries | of | labels | better | SHA-256 | what bites |"
    return "\n".join([header, "|" + "---|" * 8, *rows])


def test_the_documents_table_of_known_lists_is_the_registry() -> None:
    text = (ROOT / "docs/evaluation_lists.md").read_text("utf-8")
    assert known_table() in text, f"put this table there:\n{known_table()}"


EXAMPLE = re.compile(r"^\| `?([\w-]+)`? \| .*? \| ((?:`[^`]+`(?:<br>)?)+) \|", re.MULTILINE)


def test_the_documents_examples_are_of_the_forms_they_show(tmp_path: Path) -> None:
    found = EXAMPLE.findall((ROOT / "docs/evaluation_lists.md").read_text("utf-8"))
    for form, spans in found:
        path = tmp_path / "example"
        path.write_text("\n".join(re.findall("`([^`]+)`", spans)).replace("⇥", "\t"))
        assert read_list(path, lower_better=False, split="all" if form == "koniq10k" else None).form == form, spans
    assert {form for form, _ in found} >= {"qalign", "deqa", "pyiqa", "fastvqa", "table", "koniq10k", "ava", "csiq"}


@pytest.mark.skipif(not REAL, reason="Q-Align's lists are not here: QALIGN_LISTS names its folder playground/data")
@pytest.mark.parametrize("known", [known for known in KNOWN_LISTS if known.sha256], ids=lambda known: known.name)
def test_the_real_files_are_the_known_lists(known: KnownList) -> None:
    folder = Path(str(REAL))
    if match := re.fullmatch(r"(\w+)-ft-(\d)", known.name):
        path = folder / f"ft/{match[1]}/test_split_{match[2]}.json"
    elif known.name in QALIGN:
        path = folder / f"test_jsons/{QALIGN[known.name][0]}.json"
    else:
        pytest.skip("a list of DOVER's")
    found = read_list(path)
    assert found.known == known
    labels = [entry.label for entry in found.entries]
    assert (len(labels), min(labels), max(labels)) == (known.count, known.low, known.high)
    assert all(re.fullmatch(known.names, entry.name) for entry in found.entries)
