"""The page in a real browser, on a real server: what goes in by every way, and what a person then sees."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import Browser, Route, expect

from qalign_fast import Scorer
from qalign_fast.levels import LEVELS
from support.goldens import ROOT, Golden
from support.page_driver import NamedBytes, PageDriver, launched, launched_beside, of_path
from support.servers import RunningServer, running_server

SAMPLES = ROOT / "samples"
COFFEE, NOISY, BLURRED = (SAMPLES / f"{name}.jpg" for name in ("coffee", "coffee_noisy", "coffee_blurred"))
THREE = (COFFEE, NOISY, BLURRED)
BROKEN = NamedBytes("broken.jpg", b"no picture at all")
Open = Callable[..., PageDriver]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def two_models(narrow: Golden) -> Iterator[RunningServer]:
    with running_server("--name", f"narrow={narrow.artifact}", "--name", "mini=mini") as running:
        yield running


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    """What the API says of the samples."""
    with Scorer.load() as scorer:
        return {path.name: scorer.score(path).value for path in SAMPLES.glob("*.jpg")}


@pytest.fixture
def opened(chromium: Browser, server: RunningServer) -> Iterator[Open]:
    """Opens pages, and holds in the end that no browser console complained and nothing else was asked for anything."""
    pages: list[PageDriver] = []

    def new(running: RunningServer = server, **context: object) -> PageDriver:
        pages.append(PageDriver(chromium, running.url, **context))
        return pages[-1]

    yield new
    for page in pages:
        page.__exit__()
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith((page.url, "blob:"))] == []


@pytest.fixture
def page(opened: Open) -> PageDriver:
    return opened().open()


def shown(score: float) -> str:
    return f"{round(score, 4):.3f}"


def clip(kind: str = "WEBP", frames: int = 4) -> NamedBytes:
    """An animated picture of a frame a second, each more blurred than the one before."""
    with Image.open(COFFEE) as picture:
        small = picture.convert("RGB").resize((240, 160))
    first, *rest = [small.filter(ImageFilter.GaussianBlur(i)) for i in range(frames)]
    first.save(out := io.BytesIO(), kind, save_all=True, append_images=rest, duration=1000)
    return NamedBytes(f"clip.{kind.lower()}", out.getvalue(), f"image/{kind.lower()}")


# what goes in


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_shows_the_score_that_the_api_gives(way: str, page: PageDriver, scores: dict[str, float]) -> None:
    getattr(page, way)(of_path(COFFEE))
    page.wait_for("1 of 1 scored")
    assert page.score("coffee.jpg") == shown(scores["coffee.jpg"])
    card = page.card("coffee.jpg")
    expect(card.locator(".scale")).to_have_text("on 1 to 5")
    expect(card.locator(".level")).to_have_text("excellent")
    assert card.locator(".bars .word").all_text_contents() == list(LEVELS)
    expect(card.locator("img")).to_have_js_property("naturalWidth", 480)


def test_a_clipboard_picture_has_a_name_that_differs(page: PageDriver) -> None:
    page.paste(of_path(COFFEE)._replace(name="image.png"))
    page.paste(of_path(NOISY)._replace(name="image.png"))
    page.wait_for("2 of 2 scored")
    assert page.names() == ["pasted 1.png", "pasted 2.png"]


def test_a_folder_gives_its_pictures_alone(page: PageDriver, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jpg", "deep/a.jpg"):
        shutil.copy(COFFEE, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    page.page.locator("#folder").set_input_files(tmp_path)
    page.wait_for("2 of 2 scored")
    assert sorted(page.names()) == [f"{tmp_path.name}/b.jpg", f"{tmp_path.name}/deep/a.jpg"]


def test_a_folder_that_is_dropped_gives_its_pictures_alone(page: PageDriver, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES, tmp_path / "holiday")
    (tmp_path / "holiday/notes.txt").write_text("no picture")
    devtools = page.page.context.new_cdp_session(page.page)
    data = {"items": [], "files": [str(tmp_path / "holiday")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})
    page.wait_for("7 of 7 scored")
    assert page.names() == sorted(f"holiday/{path.name}" for path in SAMPLES.iterdir())


def test_the_camera_gives_a_picture(server: RunningServer, chromium: Browser) -> None:
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with launched_beside(chromium, *fake) as browser, PageDriver(browser, server.url).open() as page:
        page.button("Use the camera").click()
        page.button("Take the picture").click()
        expect(page.page.get_by_text("camera 1.png is taken.")).to_be_visible()
        page.page.keyboard.press("Escape")
        page.wait_for("1 of 1 scored")
        assert page.names() == ["camera 1.png"]
        assert page.complaints == []


def test_where_there_is_no_camera_the_page_says_so_and_offers_a_file(page: PageDriver) -> None:
    page.button("Use the camera").click()
    expect(page.page.get_by_role("dialog", name="Camera")).to_contain_text("There is no camera here.")
    with page.page.expect_file_chooser():
        page.button("Choose a file").click()


# what is shown


def test_a_broken_file_shows_its_error_and_the_others_are_scored(page: PageDriver, scores: dict[str, float]) -> None:
    page.choose(of_path(COFFEE), BROKEN, of_path(NOISY))
    page.wait_for("2 of 3 scored, 1 error")
    expect(page.card("broken.jpg").locator(".error")).to_contain_text("Not an image of a supported format")
    assert [page.score(path.name) for path in (COFFEE, NOISY)] == [shown(scores[p.name]) for p in (COFFEE, NOISY)]


def test_what_the_browser_cannot_show_has_a_placeholder_and_a_score(page: PageDriver) -> None:
    with Image.open(COFFEE) as picture:
        picture.save(out := io.BytesIO(), "TIFF")
    page.choose(NamedBytes("scan.tif", out.getvalue(), "image/tiff"))
    page.wait_for("1 of 1 scored")
    expect(page.card("scan.tif").locator(".no-picture")).to_contain_text("TIF")
    assert page.score("scan.tif")


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_an_animated_picture_is_a_clip_with_a_timeline(kind: str, page: PageDriver) -> None:
    given = clip(kind)
    page.choose(given)
    page.wait_for("1 of 1 scored")
    card = page.card(given.name)
    with Scorer.load() as scorer, Image.open(io.BytesIO(given.data)) as picture:
        assert page.score(given.name) == shown(scorer.score_video(given.data).value)
        frames = []
        for i in range(4):
            picture.seek(i)
            frames.append(shown(scorer.score(picture.convert("RGB")).value))
    card.get_by_text("Frames as a table").click()
    assert card.locator("tbody th").all_text_contents() == ["0 s", "1 s", "2 s", "3 s"]
    assert card.locator("tbody td").all_text_contents() == frames
    chart = card.get_by_role("img")
    low, high = (f"{score} at {frames.index(score)} s" for score in (min(frames), max(frames)))
    expect(chart).to_have_accessible_name(f"Quality of 4 frames: lowest {low}, highest {high}.")
    assert chart.locator("circle").count() == 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_one_frame_is_a_picture(kind: str, page: PageDriver) -> None:
    page.choose(clip(kind, frames=1))
    page.wait_for("1 of 1 scored")
    assert page.page.locator(".timeline").count() == 0
    assert not [url for url in page.requests if "/v1/score/video" in url]


def test_every_task_is_shown_and_another_model_scores_anew(
    opened: Open, two_models: RunningServer, narrow: Golden
) -> None:
    page = opened(two_models).open()
    page.choose(of_path(COFFEE), clip())
    page.wait_for("2 of 2 scored")
    with Scorer.load(narrow.artifact) as scorer:
        for task, score in scorer.score_tasks(COFFEE).items():
            assert page.score("coffee.jpg", task) == shown(score.value)
    assert page.card("clip.webp").locator("polyline").count() == 2
    expect(page.page.locator("#demo")).to_be_hidden()
    page.page.get_by_label("Sort by").select_option("best")
    page.page.get_by_label("Task").select_option("aesthetics")
    page.page.get_by_label("Model").select_option("mini")
    expect(page.card("coffee.jpg").locator("[data-task=quality] strong")).to_have_text(
        shown(Scorer.load().score(COFFEE).value)
    )
    expect(page.page.locator("#demo")).to_contain_text("it is not OneAlign")
    assert page.card("coffee.jpg").locator("[data-task]").count() == 1


def test_fifty_pictures_do_not_freeze_it(
    chromium: Browser, page: PageDriver, tmp_path: Path, scores: dict[str, float]
) -> None:
    """Another page, which does nothing, tells how much of a gap is the busy machine's."""
    samples = sorted(SAMPLES.glob("*.jpg"))
    files = [Path(shutil.copy(samples[i % len(samples)], tmp_path / f"{i:02}.jpg")) for i in range(50)]
    with PageDriver(chromium, "about:") as idle:
        idle.page.goto("about:blank")
        for each in (page, idle):
            each.watch()
        page.choose(*files)
        page.wait_for("50 of 50 scored")
        expect(page.page.locator("article")).to_have_count(50)
        for i in range(0, 50, 10):  # scrolled through, so that small pictures are made
            page.page.locator("article").nth(i).scroll_into_view_if_needed()
        assert page.longest_gap() < 500 + idle.longest_gap()
    assert [page.score(f"{i:02}.jpg") for i in range(50)] == [
        shown(scores[samples[i % len(samples)].name]) for i in range(50)
    ]
    page.page.evaluate("() => { const end = performance.now() + 700; while (performance.now() < end); }")
    page.page.wait_for_timeout(50)
    assert page.longest_gap() > 600  # a freeze would have been seen


# what can be done with it


def test_sort(page: PageDriver, scores: dict[str, float]) -> None:
    page.choose(BROKEN, *(of_path(path)._replace(name=name) for path, name in zip(THREE, ("9", "10", "Äpfel"))))
    page.wait_for("3 of 4 scored, 1 error")
    assert scores["coffee.jpg"] > scores["coffee_blurred.jpg"] > scores["coffee_noisy.jpg"]
    for order, expected in {
        "best": ["9", "Äpfel", "10", "broken.jpg"],
        "worst": ["10", "Äpfel", "9", "broken.jpg"],
        "name": ["9", "10", "Äpfel", "broken.jpg"],
        "added": ["broken.jpg", "9", "10", "Äpfel"],
    }.items():
        page.page.get_by_label("Sort by").select_option(order)
        expect(page.page.locator("article h3")).to_have_text(expected)


def test_the_threshold_filters_and_says_how_many_are_kept(page: PageDriver, scores: dict[str, float]) -> None:
    page.choose(BROKEN, *map(of_path, THREE))
    page.wait_for("3 of 4 scored, 1 error")
    number, kept, names = (
        page.page.get_by_label("Threshold as a number"),
        page.page.locator("#kept"),
        page.page.locator("article h3"),
    )
    expect(kept).to_have_text("4 of 4 kept")
    number.fill("3")
    number.press("Enter")
    expect(kept).to_have_text("2 of 4 kept")
    expect(names).to_have_text(["coffee.jpg", "coffee_blurred.jpg"])
    page.page.get_by_label("Keep scores of").select_option("most")
    expect(names).to_have_text(["coffee_noisy.jpg"])
    slider = page.page.get_by_label("Threshold", exact=True)
    slider.press("End")
    expect(kept).to_have_text("4 of 4 kept")
    slider.press("Home")
    expect(page.page.get_by_text("No score passes the filter.")).to_be_visible()


def test_compare_shows_both_and_how_sure_it_is(page: PageDriver, server: RunningServer) -> None:
    page.choose(*map(of_path, THREE))
    page.wait_for("3 of 3 scored")
    page.button("Compare: coffee.jpg").click()
    page.button("Compare with A: coffee_noisy.jpg").click()
    dialog = page.page.get_by_role("dialog", name="A and B side by side")
    pair = [base64.b64encode(path.read_bytes()).decode() for path in (COFFEE, NOISY)]
    told = server.post_json("/v1/compare", {"images": pair}).json()["comparisons"][0]
    expect(dialog.locator(".sure")).to_have_text(
        f"A is better with a probability of {100 * told['probability_a_better']:.1f}\u00a0%"
    )
    expect(dialog).to_contain_text(f"A \u2212 B: +{told['difference']:.3f}")
    expect(dialog.get_by_role("img", name="B: coffee_noisy.jpg")).to_have_js_property("complete", True)
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.button("Compare with A: coffee_blurred.jpg").click()  # A stays
    expect(dialog.get_by_role("img", name="A: coffee.jpg")).to_be_visible()


def test_exports_hold_what_is_shown(page: PageDriver, server: RunningServer) -> None:
    page.choose(*map(of_path, THREE), BROKEN, clip())
    page.wait_for("4 of 5 scored, 1 error")
    page.page.get_by_label("Sort by").select_option("worst")
    expect(page.page.locator("article h3").last).to_have_text("broken.jpg")
    found = list(csv.DictReader(io.StringIO(page.save("Export CSV"))))
    assert list(found[0]) == ["source", "task", "score", "level", *LEVELS, "frames", "error", "warnings"]
    assert [row["source"] for row in found] == page.names()
    by_name = {row["source"]: row for row in found}
    assert by_name["broken.jpg"]["error"].startswith("broken.jpg: not an image")
    assert by_name["clip.webp"]["frames"] == "4"
    content = json.loads(page.save("Export JSON"))
    saved = {row["source"]: row for row in content["rows"]}
    assert content["model"] == "mini"
    assert list(saved) == page.names()
    told = server.ask("POST", "/v1/score?source=coffee.jpg", COFFEE.read_bytes(), {"content-type": "image/jpeg"})
    assert saved["coffee.jpg"] == told.json()["rows"][0]
    assert float(by_name["coffee.jpg"]["score"]) == saved["coffee.jpg"]["score"]
    assert float(by_name["coffee.jpg"]["good"]) == saved["coffee.jpg"]["probabilities"]["good"]
    assert [point["index"] for point in saved["clip.webp"]["timeline"]] == [0, 1, 2, 3]
    number = page.page.get_by_label("Threshold as a number")
    number.fill("4.5")
    number.press("Enter")
    expect(page.page.locator("article h3")).to_have_text(["coffee.jpg"])
    assert [row["source"] for row in csv.DictReader(io.StringIO(page.save("Export CSV")))] == ["coffee.jpg"]


def test_names_are_text_and_never_a_formula(page: PageDriver) -> None:
    names = ["<img src=x onerror=alert(1)>.jpg", '=HYPERLINK("http:evil","a,b").jpg', "@SUM(1).jpg", "ö — 日本.jpg"]
    page.choose(*(of_path(COFFEE)._replace(name=name) for name in names))
    page.wait_for("4 of 4 scored")
    assert page.names() == names
    assert page.page.locator("img[src=x]").count() == 0
    found = [row["source"] for row in csv.DictReader(io.StringIO(page.save("Export CSV")))]
    assert found == [names[0], "'" + names[1], "'" + names[2], names[3]]
    assert [row["source"] for row in json.loads(page.save("Export JSON"))["rows"]] == names


def test_clear_removes_all_and_undo_brings_it_back(page: PageDriver) -> None:
    page.choose(*map(of_path, THREE))
    page.wait_for("3 of 3 scored")
    page.button("Remove: coffee.jpg").click()
    page.wait_for("2 of 2 scored")
    page.button("Clear").click()
    page.wait_for("Nothing to score yet.")
    expect(page.page.locator("article")).to_have_count(0)
    page.button("Undo").click()
    page.wait_for("2 of 2 scored")
    expect(page.page.locator("article h3")).to_have_text(["coffee_noisy.jpg", "coffee_blurred.jpg"])


# who uses it


def test_all_of_it_works_by_keyboard(page: PageDriver) -> None:
    keys = page.page.keyboard
    page.tab_to(page.page.get_by_role("link", name="Skip to the results"))
    page.tab_to(page.page.get_by_role("button", name="Choose pictures or clips"))
    with page.page.expect_file_chooser() as chooser:
        keys.press("Enter")
    chooser.value.set_files([COFFEE, NOISY])
    page.wait_for("2 of 2 scored")
    page.tab_to(page.button("Compare: coffee.jpg"))
    keys.press("Space")
    second = page.button("Compare with A: coffee_noisy.jpg")
    page.tab_to(second)
    keys.press("Enter")
    dialog = page.page.get_by_role("dialog", name="A and B side by side")
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    keys.press("Escape")
    expect(dialog).to_be_hidden()
    expect(second).to_be_focused()
    assert second.evaluate("(node) => getComputedStyle(node).outlineStyle") == "solid"
    page.tab_to(page.button("Remove: coffee_noisy.jpg"))
    keys.press("Enter")
    expect(page.card("coffee.jpg")).to_be_focused()


def test_sorting_leaves_the_keyboard_where_it_was(page: PageDriver) -> None:
    page.choose(*map(of_path, THREE))
    page.wait_for("3 of 3 scored")
    button = page.button("Compare: coffee_noisy.jpg")
    button.focus()
    page.page.locator("#sort").evaluate("(node) => { node.value = 'worst'; node.dispatchEvent(new Event('change')); }")
    expect(page.page.locator("article h3").first).to_have_text("coffee_noisy.jpg")
    expect(button).to_be_focused()


def test_a_screen_reader_finds_names_for_everything(page: PageDriver) -> None:
    page.choose(of_path(COFFEE), clip())
    page.wait_for("2 of 2 scored")
    expect(page.page.locator("#progress")).to_have_attribute("aria-live", "polite")
    expect(page.page.locator("body")).to_match_aria_snapshot("""
      - link "Skip to the results"
      - banner:
        - heading "qalign-fast" [level=1]
      - main:
        - region "Add pictures and clips":
          - heading "Add pictures and clips" [level=2]
          - button "Choose pictures or clips or drop them anywhere here, or paste"
          - button "Choose a folder"
          - button "Use the camera"
        - region "Results":
          - heading "Results" [level=2]
          - status: 2 of 2 scored
          - button "Export CSV"
          - button "Export JSON"
          - button "Clear"
          - form "Sort and filter":
            - combobox "Sort by"
            - group "Filter by score":
              - combobox "Keep scores of"
              - slider "Threshold"
              - spinbutton "Threshold as a number"
              - status: 2 of 2 kept
          - list "Pictures and clips":
            - listitem:
              - article "coffee.jpg":
                - heading "coffee.jpg" [level=3]
                - group "Quality":
                  - paragraph: Quality excellent
                  - paragraph:
                    - strong: /\\d\\.\\d{3}/
                    - text: on 1 to 5
                  - 'list "Quality: probability of each level"':
                    - listitem: /excellent \\d+\\.\\d.%/
                - 'button "Compare: coffee.jpg"'
                - 'button "Remove: coffee.jpg"'
            - listitem:
              - article "clip.webp":
                - figure:
                  - img /Quality of 4 frames/
      - contentinfo
    """)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(scheme: str, opened: Open) -> None:
    page = opened(color_scheme=scheme).open()
    page.choose(of_path(COFFEE), BROKEN, clip())
    page.wait_for("2 of 3 scored, 1 error")
    dark = page.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
    assert dark == (scheme == "dark")
    assert page.faint_texts() == []


def test_a_phone_does_not_scroll_sideways(opened: Open) -> None:
    page = opened(viewport={"width": 360, "height": 740}).open()
    assert not page.scrolls_sideways()
    page.choose(of_path(COFFEE), of_path(NOISY)._replace(name="long" * 50 + ".jpg"), BROKEN, clip())
    page.wait_for("3 of 4 scored, 1 error")
    assert not page.scrolls_sideways()
    page.button("Compare: coffee.jpg").click()
    page.page.get_by_role("button", name="Compare with A: long").click()
    expect(page.page.locator(".sure")).to_be_visible()
    assert page.page.locator("#compare").evaluate("(node) => node.scrollWidth <= node.clientWidth")


# what the server may do


def test_a_busy_server_is_asked_again_when_it_said(page: PageDriver, scores: dict[str, float]) -> None:
    asked: list[float] = []

    def busy_once(route: Route) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            body = {"error": "the queue is full", "error_type": "Overloaded"}
            route.fulfill(status=429, headers={"Retry-After": "2"}, json=body)
        else:
            route.continue_()

    page.page.route("**/v1/score?*", busy_once)
    page.choose(of_path(COFFEE))
    expect(page.page.locator(".notice")).to_contain_text("The queue is full. Nothing is lost")
    page.wait_for("1 of 1 scored")
    assert page.score("coffee.jpg") == shown(scores["coffee.jpg"])
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1.9
    expect(page.page.locator(".notice")).to_have_count(0)


def test_a_server_that_loads_is_waited_for(opened: Open) -> None:
    page, answers = opened(), iter([503])
    body = {"error": "loading", "error_type": "Unhealthy"}

    def load(route: Route) -> None:
        status = next(answers, None)
        route.fulfill(status=status, headers={"Retry-After": "1"}, json=body) if status else route.continue_()

    page.page.route("**/v1/models", load)
    page.page.goto(page.url)
    page.choose(of_path(COFFEE))  # before the model is known
    page.wait_for("1 of 1 scored")


def test_a_server_that_cannot_be_reached_is_tried_again(page: PageDriver) -> None:
    page.page.route("**/v1/score?*", lambda route: route.abort())
    page.choose(of_path(COFFEE))
    expect(page.page.locator(".notice")).to_contain_text("The server cannot be reached.")
    page.page.unroute("**/v1/score?*")
    page.button("Try now").click()
    page.wait_for("1 of 1 scored")
    expect(page.page.locator(".notice")).to_have_count(0)


def test_a_fault_of_the_server_is_in_the_card_and_can_be_tried_again(page: PageDriver) -> None:
    body = {"error": "internal error", "error_type": "Backend"}
    page.page.route("**/v1/score?*", lambda route: route.fulfill(status=500, json=body))
    page.choose(of_path(COFFEE))
    page.wait_for("0 of 1 scored, 1 error")
    expect(page.card("coffee.jpg").locator(".error")).to_have_text("Internal error")
    assert json.loads(page.save("Export JSON"))["rows"][0]["error"] == "Internal error"
    page.page.unroute("**/v1/score?*")
    page.button("Try again: coffee.jpg").click()
    page.wait_for("1 of 1 scored")


def test_a_server_with_a_key_is_given_it_and_the_tab_alone_keeps_it(opened: Open) -> None:
    with running_server("--api-key", "secret") as guarded:
        page = opened(guarded)
        page.page.goto(page.url)
        key = page.page.get_by_label("Key", exact=True)
        key.fill("wrong")
        key.press("Enter")
        expect(page.page.locator(".notice")).to_contain_text("The key was not taken.")
        key.fill("secret")
        key.press("Enter")
        page.choose(of_path(COFFEE))
        page.wait_for("1 of 1 scored")
        stores = "() => [Object.values(localStorage), Object.values(sessionStorage), document.cookie]"
        assert page.page.evaluate(stores) == [[], ["secret"], ""]
        page.open()  # anew, in the same tab
        assert "secret" not in "".join(page.requests)


def test_a_file_over_the_limit_is_told_without_sending_it(opened: Open) -> None:
    with running_server("--max-body", "100000") as small:
        page = opened(small).open()
        page.choose(of_path(COFFEE))
        page.wait_for("0 of 1 scored, 1 error")
        expect(page.card("coffee.jpg").locator(".error")).to_contain_text(
            "This file has 0.1 MiB. The server takes 0.1 MiB"
        )
        assert not [url for url in page.requests if "/v1/score" in url]


def test_clear_stops_what_is_under_way(page: PageDriver) -> None:
    held: list[Route] = []
    page.page.route("**/v1/score?*", lambda route: held.append(route))  # noqa: PLW0108 (playwright marks what it calls)
    page.choose(*map(of_path, THREE), *(of_path(path)._replace(name=f"2 {path.name}") for path in THREE))
    expect(page.page.locator("article[data-status=scoring]")).to_have_count(4)  # at a time
    with page.page.expect_event("requestfailed"):
        page.button("Clear").click()
    page.page.unroute("**/v1/score?*")
    page.choose(of_path(COFFEE))
    page.wait_for("1 of 1 scored")


def test_it_works_below_a_prefix(chromium: Browser, server: RunningServer) -> None:
    """A proxy that serves it at /tools/score/: here the browser's own routing."""
    prefix = "http://proxy.test/tools/score/"

    def forward(route: Route) -> None:
        assert route.request.url.startswith(prefix)
        route.fulfill(response=route.fetch(url=f"{server.url}/{route.request.url.removeprefix(prefix)}"))

    with PageDriver(chromium, "http://proxy.test") as page:
        page.page.route("http://proxy.test/**", forward)
        page.open("/tools/score/")
        page.choose(of_path(COFFEE))
        page.wait_for("1 of 1 scored")
        assert page.complaints == []


def test_names_reach_the_server_as_they_are(page: PageDriver) -> None:
    page.choose(of_path(COFFEE)._replace(name="a b&task=x#ü.jpg"))
    page.wait_for("1 of 1 scored")
    assert [url for url in page.requests if quote("a b&task=x#ü.jpg").replace("%20", "+") in url]
