"""A folder in, the requests that the studies of the server send out: good pictures, bad ones, and odd clients.

The files are made once, in the folder. Every request says what is right for it, by the engine without a server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from qalign_bench.contestants.generated_pictures import generated_pictures
from qalign_bench.contestants.process import Process
from qalign_bench.scenarios.server import expect
from qalign_bench.server.requests import Request

Size: TypeAlias = tuple[int, int]  # width and height
LARGE: Size = (1224, 918)  # files of about 350 KB
_GOOD = 16


def good_and_bad(engine: Process, work: Path, size: Size = LARGE) -> list[Request]:
    """Sixteen good pictures and four bad ones."""
    good, bad = good_files(work, size), bad_files(work, size)
    return expect(engine, [{"file": file} for file in [*good, *bad]])


def all_kinds(engine: Process, work: Path, size: Size = LARGE) -> list[Request]:
    """What clients of all kinds send: also several pictures at once, all tasks, and clients that go away."""
    good, bad = good_files(work, size), bad_files(work, size)
    tasks: list[str] = engine.ready["tasks"]
    requests: list[dict[str, Any]] = [{"file": file} for file in [*good, *bad]]
    requests += [{"file": file, "query": "task=all", "tasks": tasks} for file in good[:4]]
    requests += [{"file": [good[i], bad[i], good[-1 - i]], "form": "multipart"} for i in range(3)]
    requests += [{"file": file, "leaves": leaves} for file in good[4:6] for leaves in ("half", "sent")]
    requests += [{"file": good[:3], "form": "multipart", "leaves": "half"}]
    return expect(engine, requests)


def good_files(work: Path, size: Size) -> list[str]:
    """Generated pictures."""
    return generated_pictures(work, _GOOD, *size)


def bad_files(work: Path, size: Size) -> list[str]:
    """No picture at all, half of one, one whose head is damaged, and one without a pixel."""
    whole = Path(good_files(work, size)[0]).read_bytes()
    bad = {
        "words.txt": b"this is no picture\n" * 100,
        "half.jpg": whole[: len(whole) // 2],
        "damaged.jpg": b"\xff\xd8" + bytes(200) + whole[202:],
        "empty.png": b"\x89PNG\r\n\x1a\n",
    }
    folder = work / "bad-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in bad]
