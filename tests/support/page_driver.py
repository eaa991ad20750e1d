"""Drives the server's page in Debian's chromium as a person does, and keeps what the browser said and asked for."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
_ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()
_PATIENCE = 60_000  # ms, for scores on a machine that is busy with other tests
# what chromium itself writes to the console for an answer that is no success, and for a request that was cut
_ANSWERS = "Failed to load resource"

_SEND = """
({kind, files}) => {
  const transfer = new DataTransfer();
  for (const [name, type, text] of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type}));
  }
  const common = {bubbles: true, cancelable: true};
  if (kind === "paste") {
    document.body.dispatchEvent(new ClipboardEvent("paste", {...common, clipboardData: transfer}));
  } else {
    for (const name of ["dragenter", "dragover", "drop"]) {
      document.querySelector("main").dispatchEvent(new DragEvent(name, {...common, dataTransfer: transfer}));
    }
  }
}
"""
# The longest time in which the page answered nothing: the gaps between the ticks of a timer.
_WATCH = """
() => {
  let last = performance.now();
  window.longestGap = 0;
  setInterval(() => {
    const now = performance.now();
    window.longestGap = Math.max(window.longestGap, now - last);
    last = now;
  }, 10);
}
"""
# The contrast of each text with what lies behind it, where it is below WCAG's AA (1.4.3).
_FAINT = """
() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = channels(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !node.checkVisibility({checkVisibilityCSS: true})) continue;
    const style = getComputedStyle(node);
    const [x, y] = [luminance(channels(style.color)), luminance(behind(node))].sort((a, b) => b - a);
    const isLarge = parseFloat(style.fontSize) >= (style.fontWeight >= 700 ? 18.66 : 24);
    const contrast = (x + 0.05) / (y + 0.05);
    if (contrast < (isLarge ? 3 : 4.5)) found.push(`${node.className} ${texts.currentNode.data}: ${contrast}`);
  }
  return found;
}
"""


class NamedBytes(NamedTuple):
    """A file as a browser gets it."""

    name: str
    data: bytes
    type: str = "image/jpeg"


def of_path(path: Path) -> NamedBytes:
    return NamedBytes(path.name, path.read_bytes())


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium. Skips where it is not installed; in CI it has to be."""
    if CHROMIUM is None:
        assert os.environ.get("CI") != "true", "chromium is not installed: apt-get install chromium"
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def launched_beside(browser: Browser, *arguments: str) -> Iterator[Browser]:
    """A second chromium, with more arguments."""
    second = browser.browser_type.launch(executable_path=CHROMIUM, args=[*_ARGUMENTS, *arguments])
    yield second
    second.close()


class PageDriver:
    """The page in a tab of its own. `complaints` is what the console said; `requests` the addresses asked for."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self._context = browser.new_context(accept_downloads=True, **context)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(_PATIENCE)
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        # from now on: one that is only listened for at the key press may be missed
        self.page.on("filechooser", lambda _: None)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(`policy: ${e.violatedDirective}`))"
        )

    def __enter__(self) -> PageDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def open(self, path: str = "/") -> PageDriver:
        """Loads the page and waits until it knows the model."""
        self.page.goto(self.url + path)
        expect(self.page.locator("#model")).to_contain_text("Model", timeout=_PATIENCE)
        return self

    def choose(self, *files: NamedBytes | Path) -> None:
        """By the file input."""
        given = [f if isinstance(f, Path) else {"name": f.name, "mimeType": f.type, "buffer": f.data} for f in files]
        self.page.locator("#files").set_input_files(given)  # type: ignore[arg-type]

    def drop(self, *files: NamedBytes) -> None:
        self._send("drop", files)

    def paste(self, *files: NamedBytes) -> None:
        self._send("paste", files)

    def wait_for(self, progress: str) -> None:
        """Until the page says how far it is: "3 of 5 scored", and its cards say so too."""
        expect(self.page.locator("#progress")).to_have_text(progress, timeout=_PATIENCE)
        expect(self.page.locator("#cards")).to_have_attribute("aria-busy", "false", timeout=_PATIENCE)

    def card(self, name: str) -> Locator:
        return self.page.locator("article").filter(has=self.page.locator("h3").get_by_text(name, exact=True))

    def score(self, name: str, task: str = "quality") -> str:
        """The score that a card shows."""
        return self.card(name).locator(f"[data-task={task}] strong").text_content() or ""

    def names(self) -> list[str]:
        """The cards, in the order in which they are shown."""
        return self.page.locator("article h3").all_text_contents()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def save(self, button: str) -> str:
        """What a button has the browser save."""
        with self.page.expect_download() as download:
            self.button(button).click()
        return download.value.path().read_text("utf-8")

    def tab_to(self, target: Locator) -> None:
        """Presses Tab until it has the keyboard."""
        for _ in range(100):
            self.page.keyboard.press("Tab")
            if target.evaluate("(node) => node === document.activeElement"):
                return
        raise AssertionError(f"Tab does not reach {target}")

    def watch(self) -> None:
        """Begins to measure `longest_gap`."""
        self.page.evaluate(_WATCH)

    def longest_gap(self) -> float:
        """The longest time in ms for which the page answered nothing."""
        return float(self.page.evaluate("() => window.longestGap"))

    def faint_texts(self) -> list[str]:
        """Texts whose contrast is below WCAG's AA."""
        return list(self.page.evaluate(_FAINT))

    def scrolls_sideways(self) -> bool:
        return bool(self.page.evaluate("() => document.documentElement.scrollWidth > innerWidth"))

    def _send(self, kind: str, files: Sequence[NamedBytes]) -> None:
        encoded = [(f.name, f.type, base64.b64encode(f.data).decode()) for f in files]
        self.page.evaluate(_SEND, {"kind": kind, "files": encoded})

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and _ANSWERS not in text:
            self.complaints.append(text)
