"""The list that training reads: its form, lists that are made already, and which sets a checkpoint has seen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists.known import KNOWN_LISTS
from qalign_fast.evaluation.training_data.conversations import (
    Medium,
    Task,
    Wording,
    count_levels,
    list_text,
    make_entries,
    read_entries,
)
from qalign_fast.evaluation.training_data.conversion import convert
from qalign_fast.evaluation.training_data.labels import Labels
from qalign_fast.evaluation.training_data.mixes import CROSS_TESTS, MIXES, SETS, is_in_domain, training_sets
from support.goldens import ROOT

LABELS = Labels("made.csv", "mos", ("a.jpg", "b/c.jpg"), (1.0, 4.25), (2, 3))


def entry(**more: Any) -> dict[str, Any]:
    talk = [
        {"from": "human", "value": "How would you rate the quality of this image?\n<|image|>"},
        {"from": "gpt", "value": "The quality of the image is good."},
    ]
    return {"id": "a", "image": "a.jpg", "conversations": talk} | more


def test_an_entry_has_the_form_of_upstreams_lists() -> None:
    """Written out, as upstream's lists for fine-tuning have it."""
    made = make_entries(LABELS, convert(LABELS), Wording(prefix="set/"))
    assert list(made[1]) == ["id", "image", "conversations", "gt_score"]
    assert made[1] == {
        "id": "set/b/c.jpg->4.25",
        "image": "set/b/c.jpg",
        "conversations": [
            {"from": "human", "value": "How would you rate the quality of this image?\n<|image|>"},
            {"from": "gpt", "value": "The quality of the image is excellent."},
        ],
        "gt_score": 4.25,
    }


@pytest.mark.parametrize(
    ("task", "medium", "question", "answer"),
    [
        (
            Task.aesthetics,
            Medium.image,
            "How would you rate the aesthetics of this image?\n<|image|>",
            "The aesthetics of the image is bad.",
        ),
        (
            Task.quality,
            Medium.video,
            "How would you rate the quality of this video?\n" + 8 * "<|image|>",
            "The quality of the video is bad.",
        ),
    ],
)
def test_the_wording_follows_task_and_medium(task: Task, medium: Medium, question: str, answer: str) -> None:
    [first, _] = make_entries(LABELS, convert(LABELS), Wording(task, medium))
    assert [turn["value"] for turn in first["conversations"]] == [question, answer]
    assert first["image"] == "a.jpg"


def test_a_list_that_was_written_is_read_again(tmp_path: Path) -> None:
    labels = Labels("made.csv", "mos", ("ü\udce4.jpg", "b.jpg"), (0.1, 0.30000000000000004), (2, 3))
    made = make_entries(labels, convert(labels), Wording())
    (file := tmp_path / "list.json").write_text(list_text(made), "ascii")
    assert read_entries(file) == json.loads(file.read_text()) == made


def test_words_that_are_no_levels_are_counted_too(tmp_path: Path) -> None:
    """Upstream's list of KADID has some."""
    other = entry()
    other["conversations"][1]["value"] = "The quality of the image is below average."
    (file := tmp_path / "list.json").write_text(json.dumps([entry(), other, entry()]))
    counts = count_levels(read_entries(file))
    assert counts == {"excellent": 0, "good": 2, "fair": 0, "poor": 0, "bad": 0, "below average": 1}
    assert list(counts)[-1] == "below average"


def turns(*values: tuple[str, Any]) -> dict[str, Any]:
    return entry(conversations=[{"from": who, "value": value} for who, value in values])


Q, A = ("human", "Rate it. <|image|>"), ("gpt", "The quality of the image is good.")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (7, "no 'image'"),
        (entry(image=["a.jpg", "b.jpg"]), "no 'image'"),
        (entry(conversations=None), "its 'conversations' are not"),
        (turns(Q), "its 'conversations' are not"),
        (turns(A, Q), "its 'conversations' are not"),
        (turns(Q, A, Q, A), "its 'conversations' are not"),
        (entry(conversations=[dict([Q]), 7, dict([A])]), "its 'conversations' are not"),
        (turns(("human", "Rate it."), A), "its question has no <|image|>"),
        (turns(("human", None), A), "its question has no <|image|>"),
        (turns(Q, ("gpt", "It is good.")), "its answer is 'It is good.'; expected one such as"),
    ],
)
def test_an_entry_that_training_would_not_read_is_an_error(tmp_path: Path, wrong: Any, message: str) -> None:
    (file := tmp_path / "list.json").write_text(json.dumps([entry(), wrong]))
    with pytest.raises(ListError) as caught:
        read_entries(file)
    assert f"{file}: entry 2: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no JSON"), ("[]", "no list of conversations"), ('{"a": 1}', "no list"), ("[" * 100_000, "no JSON")],
)
def test_a_file_that_is_no_list_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (file := tmp_path / "list.json").write_text(text)
    with pytest.raises(ListError, match=message):
        read_entries(file)
    with pytest.raises(ListError, match="No such file"):
        read_entries(tmp_path / "none.json")


@pytest.mark.parametrize(
    "name", ["q-future/one-align", "one-align", "models/one-align-int8/", "one-align-fp16", "C:\\models\\One-Align"]
)
def test_a_checkpoint_is_known_by_its_name(name: str) -> None:
    assert training_sets(name) == ("koniq", "spaq", "kadid", "ava", "lsvq")


def test_the_documents_table_of_mixes_is_the_registrys() -> None:
    text = (ROOT / "docs/training_data.md").read_text("utf-8").lower()
    rows = re.findall(r"^\| `?([\w-]+)`? \| ([a-z, ]+) \|$", text.partition("## mixes")[2], re.MULTILINE)
    told = {name: tuple(sets.split(", ")) for name, sets in rows if name != "checkpoint"}
    assert told == {name: sets for name, sets in MIXES.items() if "lora" not in name}


@pytest.mark.parametrize("name", ["mini", "one-align-mine", "mine/one-align/export", "", "q-align-int8"])
def test_another_model_is_not_known(name: str) -> None:
    assert training_sets(name) is None
    assert is_in_domain(name, "koniq-test") is None


def test_a_test_list_is_in_domain_where_table_7_is_grey() -> None:
    grey = {
        "q-align-iqa": {"koniq-test", "spaq-test", "kadid-test"},
        "q-align-vqa": {"lsvq-test", "lsvq-1080p"},
        "q-align-aesthetic": {"ava-test"},
        "q-align-quality": {"koniq-test", "spaq-test", "kadid-test", "lsvq-test", "lsvq-1080p"},
        "q-align-image": {"koniq-test", "spaq-test", "kadid-test", "ava-test"},
        "q-align-iaa-vqa": {"ava-test", "lsvq-test", "lsvq-1080p"},
        "one-align": {"koniq-test", "spaq-test", "kadid-test", "ava-test", "lsvq-test", "lsvq-1080p"},
    }
    tests = [*(test for each in SETS.values() for test in each.tests if "official" not in test), *CROSS_TESTS]
    assert len(tests) == len(set(tests)) == 12
    assert {known.name for known in KNOWN_LISTS} >= set(tests)
    for model, expected in grey.items():
        assert {test for test in tests if is_in_domain(model, test)} == expected
        assert is_in_domain(model, "koniq-official-test") is ("koniq-test" in expected)
        assert is_in_domain(model, "my_list") is None
    assert {name for sets in MIXES.values() for name in sets} == set(SETS)
