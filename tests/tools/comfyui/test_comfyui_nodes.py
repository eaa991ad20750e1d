"""The nodes in a running ComfyUI: what they score, keep, save and refuse, by both of its interfaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_server import ComfyUI, comfyui_root
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.levels import Score
from support.documents import ROOT

NODES = ROOT / "integrations/comfyui"
EXAMPLE = json.loads((NODES / "example_workflows/keep_good_pictures.json").read_text())
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
both = pytest.mark.parametrize("old", ["", "Old"], ids=["V3", "V1"])


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)) for seed in range(4)]


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[Score]:
    """Of the first three pictures."""
    return scorer.score(IMAGES[:3])


@pytest.fixture(scope="module")
def clips(scorer: Scorer) -> dict[str, list[float]]:
    """Of four frames, and of every second one."""
    return {"all": rounded([scorer.score_video(IMAGES)]), "some": rounded([scorer.score_video(IMAGES[::2])])}


def as_prompt(workflow: dict[str, Any], nodes: dict[str, Any], old: str = "") -> dict[str, Any]:
    """A workflow of the page as the page sends it: each node's links, and its widgets' values in their order."""
    origins = {link: [str(node), slot] for link, node, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        linked = {each["name"]: origins[each["link"]] for each in node["inputs"]}
        expected = nodes[node["type"]]["input"]["required"]
        free = [name for name, (kind, *_) in expected.items() if isinstance(kind, list) or kind in WIDGETS]
        values = dict(zip(free, node["widgets_values"], strict=node["type"] != "LoadImage"))  # it has a button too
        assert set(linked) | set(values) == set(expected), node["type"]
        name = old + node["type"] if node["type"].startswith("QAlign") else node["type"]
        prompt[str(node["id"])] = {"class_type": name, "inputs": linked | values}
    return prompt


def check_links(workflow: dict[str, Any], nodes: dict[str, Any]) -> None:
    """Each link leaves an output of its type, and goes to the input that names it."""
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for link, source, slot, target, place, kind in workflow["links"]:
        assert nodes[by_id[source]["type"]]["output"][slot] == kind
        assert nodes[by_id[source]["type"]]["output_name"][slot] == by_id[source]["outputs"][slot]["name"]
        taken = by_id[target]["inputs"][place]
        assert taken["link"] == link
        assert nodes[by_id[target]["type"]]["input"]["required"][taken["name"]][0] == taken["type"] in (kind, "*")


def scores_of(run: dict[str, Any], node: str) -> list[float]:
    assert run["status"]["status_str"] == "success", run["status"]
    return run["outputs"][node]["scores"]


def load(comfyui: ComfyUI, number: int, image: Image.Image) -> dict[str, Any]:
    """A node that loads the picture."""
    image.save(comfyui.base / f"input/{number}.png")
    return {"class_type": "LoadImage", "inputs": {"image": f"{number}.png"}}


def rounded(scores: list[Score]) -> list[float]:
    return [round(score.value, 4) for score in scores]


def test_the_example_is_made_of_the_nodes_as_they_are(comfyui: ComfyUI) -> None:
    nodes = comfyui.ask("/object_info")
    check_links(EXAMPLE, nodes)
    assert {node["type"] for node in EXAMPLE["nodes"]} >= {f"QAlignFast{n}" for n in ("Load", "Score", "Gate", "Save")}
    as_prompt(EXAMPLE, nodes)


@both
def test_the_example_runs_and_its_scores_are_those_of_the_scorer(comfyui: ComfyUI, scorer: Scorer, old: str) -> None:
    prompt = as_prompt(EXAMPLE, comfyui.ask("/object_info"), old)
    sharp = scorer.score(comfyui.base / "input/example.png")
    prompt["7"]["inputs"]["filename_prefix"] = f"{old}example/QAlign"
    found = scores_of(run := comfyui.run(prompt, EXAMPLE), "5")
    assert found[0] == round(sharp.value, 4) > 3 > found[1]
    assert run["outputs"]["9"]["text"] == run["outputs"]["5"]["text"]
    assert run["outputs"]["5"]["text"][0].startswith(f"{sharp.value:.4f} {sharp.level}\n")
    [saved] = run["outputs"]["7"]["images"]
    assert saved == {"filename": f"QAlign_00001_{sharp.value:.2f}.png", "subfolder": f"{old}example", "type": "output"}
    picture = Image.open(comfyui.base / "output" / saved["subfolder"] / saved["filename"])
    assert json.loads(picture.info["workflow"]) == EXAMPLE
    assert json.loads(picture.info["prompt"])["7"] == prompt["7"]
    assert json.loads(picture.info["qalign"])["score"] == found[0]
    [shown] = run["outputs"]["8"]["images"]
    blurred = Image.open(comfyui.base / "temp" / shown["filename"])
    assert round(scorer.score(blurred).value, 4) == found[1]


@both
@pytest.mark.parametrize(("threshold", "runs"), [(1.0, "kept"), (5.0, "rejected")])
def test_a_side_without_pictures_blocks_what_hangs_on_it(
    comfyui: ComfyUI, threshold: float, runs: str, old: str
) -> None:
    prompt = as_prompt(EXAMPLE, comfyui.ask("/object_info"), old)
    prompt["6"]["inputs"]["threshold"] = threshold
    run = comfyui.run(prompt)
    assert run["status"]["status_str"] == "success"
    assert set(run["outputs"]) - {"5", "9"} == {"kept": {"7"}, "rejected": {"8"}}[runs]


@both
def test_the_best_come_first_and_a_second_save_goes_on_counting(
    comfyui: ComfyUI, expected: list[Score], old: str
) -> None:
    prompt = {
        **{str(i): load(comfyui, i, image) for i, image in enumerate(IMAGES[:3])},
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["0", 0], "image2": ["1", 0]}},
        "4": {"class_type": "ImageBatch", "inputs": {"image1": ["3", 0], "image2": ["2", 0]}},
        "5": {"class_type": f"{old}QAlignFastLoad", "inputs": {"model": "", "device": "cpu", "precision": "auto"}},
        "6": {
            "class_type": f"{old}QAlignFastScore",
            "inputs": {"scorer": ["5", 0], "images": ["4", 0], "task": "quality"},
        },
        "7": {"class_type": f"{old}QAlignFastBest", "inputs": {"images": ["4", 0], "scores": ["6", 0], "count": 2}},
        "8": {
            "class_type": f"{old}QAlignFastSave",
            "inputs": {"images": ["7", 0], "scores": ["7", 1], "filename_prefix": f"{old}best", "score_in_name": False},
        },
    }
    run = comfyui.run(prompt)
    assert scores_of(run, "6") == rounded(expected)
    order = sorted(range(3), key=lambda i: -expected[i].value)[:2]
    for place, (i, saved) in enumerate(zip(order, run["outputs"]["8"]["images"], strict=True), 1):
        assert saved["filename"] == f"{old}best_0000{place}_.png"
        assert np.array_equal(Image.open(comfyui.base / "output" / saved["filename"]), IMAGES[i])
    prompt["8"]["inputs"]["score_in_name"] = True
    again = comfyui.run(prompt)["outputs"]["8"]["images"]
    assert [saved["filename"] for saved in again] == [
        f"{old}best_0000{place}_{expected[i].value:.2f}.png" for place, i in enumerate(order, 3)
    ]


@both
def test_frames_are_a_clip_and_so_is_a_video_of_them(comfyui: ComfyUI, clips: dict[str, list[float]], old: str) -> None:
    """Four frames at two a second: every frame, or one a second, which a VIDEO always is."""
    model = {"class_type": f"{old}QAlignFastLoad", "inputs": {"model": "", "device": "auto", "precision": "auto"}}
    prompt: dict[str, Any] = {str(i): load(comfyui, i, image) for i, image in enumerate(IMAGES)} | {"m": model}
    for i, (one, two) in enumerate([("0", "1"), ("2", "3"), ("b0", "b1")]):
        prompt[f"b{i}"] = {"class_type": "ImageBatch", "inputs": {"image1": [one, 0], "image2": [two, 0]}}
    for name, rate in (("all", 0.0), ("some", 2.0)):
        inputs = {"scorer": ["m", 0], "frames": ["b2", 0], "task": "quality", "frame_rate": rate}
        prompt[name] = {"class_type": f"{old}QAlignFastScoreFrames", "inputs": inputs}
    prompt["v"] = {"class_type": "CreateVideo", "inputs": {"images": ["b2", 0], "fps": 2.0}}
    video = {"scorer": ["m", 0], "video": ["v", 0], "task": "quality"}
    prompt["video"] = {"class_type": f"{old}QAlignFastScoreVideo", "inputs": video}
    run = comfyui.run(prompt)
    assert scores_of(run, "all") == clips["all"] != clips["some"]
    assert scores_of(run, "some") == scores_of(run, "video") == clips["some"]


@both
def test_a_model_that_is_not_there_is_told_at_its_node(comfyui: ComfyUI, tmp_path: Path, old: str) -> None:
    prompt = as_prompt(EXAMPLE, comfyui.ask("/object_info"), old)
    prompt["4"]["inputs"]["model"] = str(tmp_path / "none")
    status = comfyui.run(prompt)["status"]
    assert status["status_str"] == "error"
    [told] = [message for kind, message in status["messages"] if kind == "execution_error"]
    assert told["node_id"] == "4"
    assert str(tmp_path / "none") in told["exception_message"]


def test_both_interfaces_have_the_same_nodes(comfyui: ComfyUI) -> None:
    nodes = comfyui.ask("/object_info")
    new = {name: node for name, node in nodes.items() if name.startswith("QAlignFast")}
    assert len(new) == 7
    for name, node in new.items():
        other = nodes[f"Old{name}"]
        assert inputs(node) == inputs(other)
        for part in ("display_name", "output", "output_name", "output_node", "category"):
            assert node[part] == other[part], (name, part)


def inputs(node: dict[str, Any]) -> dict[str, Any]:
    """Of each: its kind, its choices, and what else both interfaces say of it."""
    found = {}
    for name, (kind, *more) in node["input"]["required"].items():
        settings = dict(more[0]) if more else {}
        choices = kind if isinstance(kind, list) else settings.get("options")
        limits = {key: settings[key] for key in ("default", "min", "max", "step") if key in settings}
        found[name] = ("COMBO" if isinstance(kind, list) else kind, choices, limits)
    return found


def test_the_registry_reads_our_description(monkeypatch: pytest.MonkeyPatch) -> None:
    """By ComfyUI's own reader of a folder's pyproject.toml."""
    monkeypatch.syspath_prepend(comfyui_root())
    from comfy_config.config_parser import extract_node_configuration

    found = extract_node_configuration(str(NODES))
    assert (found.project.name, found.tool_comfy.display_name) == ("qalign-fast", "Q-Align scores")
    assert found.tool_comfy.publisher_id
    assert found.project.dependencies == (NODES / "requirements.txt").read_text().split()
