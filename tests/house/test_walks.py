"""The walks of docs/architecture.md are the calls that happen, and come back to files as seldom as they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from support.goldens import ROOT

TRACE = """
import json, sys, threading
calls = []
def note(frame, event, _):
    file = frame.f_code.co_filename
    if event == "call" and file.startswith(ROOT):
        calls.append([file.removeprefix(ROOT), frame.f_code.co_name])
def walk():
{body}
threading.setprofile(note)
sys.setprofile(note)
try:
    walk()
except SystemExit:
    pass
sys.setprofile(None)
print(json.dumps(calls))
"""


def listed(name: str) -> list[tuple[str, str, bool]]:
    """(file, function, whether it says that it comes back) of a walk."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    [part] = re.findall(rf"<!-- walk: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    steps = re.findall(r"^\d+\. `(.+?)`: (.+)$", part, re.MULTILINE)
    return [(file, function, "(back)" in rest) for file, rest in steps for function in re.findall(r"`(.+?)`", rest)]


def called(body: str) -> list[tuple[str, str]]:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"ROOT = {str(ROOT) + '/'!r}" + TRACE.replace("{body}", lines)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return [(file, function) for file, function in json.loads(run.stdout.splitlines()[-1])]


def missing(walk: list[tuple[str, str, bool]], calls: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The steps that do not happen, or not in this order."""
    left = iter(calls)
    return [(file, function) for file, function, _ in walk if (file, function) not in left]


def files_of(walk: list[tuple[str, str, bool]]) -> list[str]:
    """Each stay in a file, in order."""
    files = [file for file, _, _ in walk]
    return [file for i, file in enumerate(files) if i == 0 or files[i - 1] != file]


def test_a_picture_comes_back_to_no_file() -> None:
    walk = listed("picture")
    stays = files_of(walk)
    assert len(stays) == len(set(stays)) > 8
    arguments = ["score", "samples/coffee.jpg", "--engine", "native", "-o", "/dev/null"]
    body = f"from qalign_fast.cli.app import main\nsys.argv[1:] = {arguments!r}\nmain()"
    assert missing(walk, called(body)) == []


def test_a_model_reference_comes_back_where_it_says_so(rounded: Callable[[str, str], Path]) -> None:
    walk = listed("model")
    stays = files_of(walk)
    assert [file in stays[:i] for i, file in enumerate(stays)].count(True) == 4 <= 25 / 2
    for before, (file, function, back) in pairwise(walk):
        left = walk[: walk.index((file, function, back))]
        assert back == (file != before[0] and any(file == step[0] for step in left)), function
    artifact = str(rounded("narrow-112", "int8"))
    body = f"from qalign_fast import Scorer\nScorer.load({artifact!r}, engine='native')"
    assert missing(walk, called(body)) == []


REQUEST = """
import asyncio
from qalign_fast.serve.app import make_app
from qalign_fast.serve.settings import Settings
app, data = make_app(Settings()), open("samples/coffee.jpg", "rb").read()
headers = [(b"content-type", b"image/jpeg"), (b"content-length", str(len(data)).encode())]
scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "headers": headers}
scope |= {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1)}
async def send(message):
    assert message.get("status", 200) == 200
async def post():
    await app.state.service.load()
    messages = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": data})
    await app(scope, messages.get, send)
asyncio.run(post())
"""


def test_a_request_comes_back_where_it_says_so() -> None:
    walk = listed("request")
    stays = files_of(walk)
    assert [file in stays[:i] for i, file in enumerate(stays)].count(True) == 4
    assert missing(walk, called(REQUEST.strip())) == []
