"""A Scorer by a server's address gives what a Scorer of the same model gives, to the bit, and the same errors."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qalign_fast import ArtifactError, PictureLimits, QAlignError, Score, Scorer
from qalign_fast.feed.items import ClipOptions, Item
from support.clips import FILM, constant, write_clip, write_frames
from support.command_line import run
from support.goldens import PICTURES, Golden
from support.odd_pictures import encode
from support.pictures import random_picture
from support.servers import RunningServer, running_server

KEY = "correct-horse-battery"
PATHS = sorted(PICTURES.iterdir())
PHOTO = PICTURES / "rocket_landscape.jpg"


@pytest.fixture(scope="module")
def server(kernels: Path, narrow: Golden) -> Iterator[RunningServer]:
    """The embedded model, and one that has both tasks."""
    models = ("--name", "mini=mini", "--name", f"narrow={narrow.artifact}")
    with running_server(*models, environment={"QALIGN_API_KEY": KEY}) as found:
        yield found


@pytest.fixture(scope="module")
def remote(server: RunningServer) -> Iterator[Scorer]:
    with Scorer.load(server.url, api_key=KEY) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def both(server: RunningServer) -> Iterator[Scorer]:
    with Scorer.load(f"{server.url}#narrow", api_key=KEY) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def local(kernels: Path) -> Scorer:
    return Scorer.load()


def outcome(ask: Any, *given: Any, **options: Any) -> Any:
    """What a call gives, or the class and the text of its error."""
    try:
        return ask(*given, **options)
    except QAlignError as error:
        return type(error), str(error)


def pixels(width: int = 60, height: int = 41) -> np.ndarray:
    return np.asarray(random_picture(np.random.default_rng(3), width, height))


def animated() -> bytes:
    frames = [Image.fromarray(frame) for frame in FILM[:12]]
    return encode(frames[0], "GIF", *frames[1:], duration=300)


def pil(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.arange(41 * 60, dtype=np.uint16).reshape(41, 60) * 20)
    return Image.fromarray(pixels()).convert(mode)


FLOATS = pixels().astype(np.float32) / 255
JPEG = PHOTO.read_bytes()
MEDIA = {
    "str": str(PHOTO),
    "path": PHOTO,
    "png": PICTURES / "chelsea_small.png",
    "bytes": JPEG,
    "bytearray": bytearray(JPEG),
    "memoryview": memoryview(JPEG),
    "data URI": "data:image/jpeg;base64," + base64.b64encode(JPEG).decode(),
    "dict of bytes": {"bytes": JPEG, "path": "a.jpg"},
    "dict of a path": {"bytes": None, "path": str(PHOTO)},
    **{f"PIL {mode}": pil(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")},
    "lazy PIL": Image.open(PHOTO),
    "grey": pixels()[..., 0],
    "array": pixels(),
    "large array": pixels(1500, 700),
    "square": pixels(448, 448),
    "narrow": pixels(1, 900),
    "one pixel": pixels(1, 1),
    "alpha": np.concatenate([pixels(), pixels()[..., :1]], -1),
    "batch of one": pixels()[None],
    "float32": FLOATS,
    "float64": FLOATS.astype(np.float64),
    "tensor": torch.from_numpy(pixels().copy()),
    "channels first": torch.from_numpy(FLOATS).movedim(-1, 0),
    "bfloat16": torch.from_numpy(FLOATS).movedim(-1, 0).bfloat16(),
    "animation": animated(),
    "16 bits": encode(pil("I;16"), "PNG"),
    "CMYK file": encode(pil("CMYK"), "JPEG"),
    "truncated": JPEG[:3000],
    "cut header": JPEG[:20],
    "no picture": b"no picture",
    "empty": b"",
    "missing": "missing.jpg",
    "missing path": Path("nowhere", "a  b\n.jpg"),
    "folder": str(PICTURES),
    "null byte": "a\0b.jpg",
    "empty name": "",
    "not UTF-8": os.fsdecode(b"\xff.jpg"),
    "damaged URI": "data:image/png;base64,?",
    "empty dict": {},
    "number": 3,
    "floats beyond 1": FLOATS * 255,
    "integers": np.zeros((4, 4), np.int32),
    "five channels": np.zeros((4, 4, 5), np.uint8),
}


@pytest.mark.parametrize("name", MEDIA)
def test_every_kind_of_picture(remote: Scorer, local: Scorer, name: str) -> None:
    media = MEDIA[name]
    expected = outcome(local.score, media)
    assert outcome(remote.score, media) == expected
    [item] = remote.feed.run([Item("key", media)], ("quality",))
    assert item.key == "key"
    assert ({"quality": expected} == item.scores) if isinstance(expected, Score) else (str(item.error) == expected[1])


def test_files_with_odd_names(remote: Scorer, local: Scorer, tmp_path: Path) -> None:
    for name in ("two  blanks.jpg", "sent: a.jpg", "a\nb.jpg", "ü#?%&+.jpg", os.fsdecode(b"\xfe.jpg")):
        (tmp_path / name).write_bytes(b"no picture")
        assert outcome(remote.score, tmp_path / name) == outcome(local.score, tmp_path / name)


def test_open_files(remote: Scorer, local: Scorer) -> None:
    with PHOTO.open("rb") as file:
        assert remote.score(file) == local.score(PHOTO)
        assert outcome(remote.score, file) == outcome(local.score, file)  # at its end
        file.seek(0)
        [score] = remote.score_iter([file])
        assert score == local.score(PHOTO)
    with PHOTO.open("rb", buffering=0) as file:
        file.read(3)
        assert outcome(remote.score, file)[1].startswith(f"{PHOTO}: not an image")
    with PHOTO.open(encoding="latin-1") as file:
        assert outcome(remote.score, file) == outcome(local.score, file)


def test_lists_and_arrays_of_several(remote: Scorer, local: Scorer) -> None:
    assert remote.score(PATHS) == local.score(PATHS)
    several = np.stack([pixels(), pixels()[::-1]])
    assert remote.score(several) == local.score(several)
    assert remote.score(iter(PATHS)) == local.score(PATHS)
    assert remote.score([]) == []


def test_another_model_of_the_server_in_several_tasks(both: Scorer, server: RunningServer, narrow: Golden) -> None:
    local = Scorer.load(narrow.artifact)
    assert both.tasks() == local.tasks()
    assert both.tasks("video") == local.tasks("video")
    assert both.config == local.config
    for media in (PHOTO, pixels(), pixels(112, 112)):
        assert both.score_tasks(media, both.tasks()) == local.score_tasks(media, local.tasks())
    assert list(both.score_tasks(PHOTO, ("aesthetics", "quality", "aesthetics"))) == ["aesthetics", "quality"]
    assert both.score_video_tasks(FILM[:5]) == local.score_video_tasks(FILM[:5])
    for scorer in (both, local):
        assert outcome(scorer.require, ("quality", "beauty")) == outcome(local.require, ("beauty",))
        assert outcome(scorer.score, PHOTO, "beauty") == outcome(local.score, PHOTO, "beauty")
    with pytest.raises(ArtifactError, match="has no model 'other'; there are: mini, narrow"):
        Scorer.load(f"{server.url}#other", api_key=KEY)


LIMITS = [
    PictureLimits(exif_rotate=True),
    PictureLimits(allow_truncated=True),
    PictureLimits(background=(255, 0, 255)),
    PictureLimits(max_pixels=60 * 41),
    PictureLimits(max_bytes=2000),
    PictureLimits(max_frames=5, max_seconds=1),
]


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(pixels()), "JPEG", exif=exif)


@pytest.mark.parametrize("limits", LIMITS)
def test_limits_of_ones_own(server: RunningServer, local: Scorer, limits: PictureLimits) -> None:
    media = [turned(), PHOTO, JPEG[:3000], pil("RGBA"), encode(pil("RGBA"), "PNG"), pixels(), pixels(61), b"junk"]
    own = Scorer(local.engine, limits)
    with Scorer.load(server.url, api_key=KEY, limits=limits) as scorer:
        assert [outcome(scorer.score, one) for one in media] == [outcome(own.score, one) for one in media]
        for clip in (animated(), FILM[:8], [PHOTO, *FILM[:2]]):
            assert outcome(scorer.score_video, clip) == outcome(own.score_video, clip)


# --- clips

CLIPS: dict[str, Any] = {
    "GIF": animated(),
    "still": JPEG,
    "list": FILM[:7],
    "many": FILM + FILM,
    "array": np.stack(FILM[:4]),
    "tensor": torch.from_numpy(np.stack(FILM[:4])).movedim(-1, 1),
    "one frame": FILM[:1],
    "paths": PATHS,
    "mixed sizes": [pixels(), PHOTO, pil("P"), FLOATS],
    "animated PIL": Image.open(io.BytesIO(animated())),
    "empty list": [],
    "a bad frame": [PHOTO, b"junk"],
    "no clip": b"junk",
    "empty": b"",
    "missing": "missing.mp4",
    "number": 3,
    "flat array": pixels(),
}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("options", [{}, {"max_frames": 3}, {"fps": 2.5, "sampling": "time"}])
def test_every_kind_of_clip(remote: Scorer, local: Scorer, name: str, options: dict[str, Any]) -> None:
    clip = CLIPS[name]
    expected = outcome(local.score_video, clip, **options)
    assert outcome(remote.score_video, clip, **options) == expected
    [item] = remote.feed.run([Item(1, clip, "video", ClipOptions(**options))], ("quality",))
    assert (item.scores or {}).get("quality", (type(item.error), str(item.error))) == expected


def test_clips_that_are_streams_and_files(remote: Scorer, local: Scorer, tmp_path: Path) -> None:
    for count in (1, 40, 200):
        frames = (FILM * 7)[:count]
        assert remote.score_video(iter(frames)) == local.score_video(iter(frames))
    path = write_clip(tmp_path / "clip.mkv", constant(60, 30))
    for options in ({}, {"fps": 10.0}, {"fps": 30.0, "max_frames": 4}):
        assert remote.score_video(path, **options) == local.score_video(path, **options)
    with path.open("rb") as file:
        assert remote.score_video(file) == local.score_video(path)
        file.seek(0)
        [item] = remote.feed.run([Item(1, file, "video")], ("quality",))
        assert item.scores == {"quality": local.score_video(path)}
    broken = path.read_bytes()[:2000]
    assert outcome(remote.score_video, broken) == outcome(local.score_video, broken)
    for options in ({"max_frames": 0}, {"max_frames": 10_000}, {"fps": 0.0}, {"sampling": "both"}):
        assert outcome(remote.score_video, path, **options) == outcome(local.score_video, path, **options)


# --- runs, threads, processes


def test_a_run_keeps_the_order_and_bad_ones_do_not_end_it(remote: Scorer, local: Scorer) -> None:
    media = [PHOTO, b"junk", pixels(), "missing.jpg", *PATHS, JPEG[:3000], 3] * 5
    found = list(remote.score_iter(media, errors="yield", batch_size=16))
    expected = list(local.score_iter(media, errors="yield"))
    assert [one if isinstance(one, Score) else (type(one), str(one)) for one in found] == [
        one if isinstance(one, Score) else (type(one), str(one)) for one in expected
    ]
    items = [Item(i, FILM[i : i + 3] if i % 3 == 0 else FILM[i], "video" if i % 3 == 0 else "image") for i in range(12)]
    run = [scored.scores for scored in remote.feed.run(items, ("quality",))]
    assert run == [scored.scores for scored in local.feed.run(items, ("quality",))]
    scores = remote.score_iter([PHOTO, b"junk", PHOTO])
    assert next(scores) == local.score(PHOTO)
    assert outcome(next, scores) == outcome(local.score, b"junk")


def test_many_threads(remote: Scorer, local: Scorer) -> None:
    expected = local.score(PATHS)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(remote.score, PATHS * 20)) == expected * 20


def test_pickled_copied_closed(remote: Scorer, server: RunningServer, local: Scorer) -> None:
    found = pickle.loads(pickle.dumps(remote))
    assert found.score(PHOTO) == local.score(PHOTO)
    assert copy.copy(found) is copy.deepcopy(found) is found
    assert found.warm() is found
    found.close()
    with pytest.raises(QAlignError, match="this scorer is closed"):
        found.score(PHOTO)
    assert remote.score(PHOTO) == local.score(PHOTO)


def test_without_the_key(server: RunningServer) -> None:
    with pytest.raises(ArtifactError, match=f"^{server.url}: asks for an API key; give it as api_key, --api-key or "):
        Scorer.load(server.url)
    with pytest.raises(ArtifactError, match=f"^{server.url}: does not take this API key; "):
        Scorer.load(server.url, api_key="wrong")


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_the_client_needs_no_runtime_and_loads_no_engine(server: RunningServer, name: str) -> None:
    code = f"""
import json, sys
for name in ("torch", "onnxruntime", "onnx", "av", "typer", "requests", "httpx"): sys.modules[name] = None
import numpy as np
from qalign_fast import Scorer
with Scorer.load({server.url!r}, api_key={KEY!r}) as scorer:
    score = scorer.score({str(PHOTO)!r})
    list(scorer.score_iter([np.zeros((9, 9, 3), np.uint8)] * 3))
    scorer.score_video([{str(PHOTO)!r}] * 2)
print(json.dumps([score.logits, [m for m in sys.modules if m.startswith("qalign_fast.engines.")]]))
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    logits, modules = json.loads(run.stdout)
    assert tuple(logits) == Scorer.load().score(PHOTO).logits
    assert set(modules) <= {"qalign_fast.engines.options", "qalign_fast.engines.contract"}


def test_the_command_line_gives_the_same_rows(server: RunningServer, tmp_path: Path) -> None:
    given = [*PATHS, "missing.jpg", write_frames(tmp_path / "clip.mkv", "ffv1", FILM, 10)]
    expected = run("score", *given)
    for model in (server.url, f"{server.url}#mini"):
        found = run("score", *given, "--model", model, "--api-key", KEY)
        assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout) == (3, expected.stdout)
        assert len(found.stdout.splitlines()) == len(given)
    assert "plain" not in found.stderr
    refused = run("score", PHOTO, "--model", server.url)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {server.url}: asks for an API key")
    refused = run("score", PHOTO, "--model", server.url, "--api-key", KEY, "--device", "cpu")
    assert refused.stderr == "error: device: with a server's address these are the server's own\n"
    csv = run("score", PHOTO, "--model", f"{server.url}#narrow", "--api-key", KEY, "--task", "all", "--format", "csv")
    assert [line.split(",")[1] for line in csv.stdout.splitlines()[1:]] == ["quality", "aesthetics"]


def test_a_full_queue_is_waited_for(local: Scorer) -> None:
    """Of a server that takes two pictures at a time, from a client that sends six."""
    with running_server("--queue", "2") as server, Scorer.load(server.url) as scorer:
        assert list(scorer.score_iter(PATHS)) == local.score(PATHS)
        assert server.metric("qalign_rejected_total") > 0


def test_a_server_that_starts_is_waited_for(local: Scorer) -> None:
    """Its port is open before its models are loaded."""
    with running_server(ready=False) as server:
        while True:
            try:
                scorer = Scorer.load(server.url)
                break
            except ArtifactError as error:
                assert "Connection refused" in str(error)
                assert server.process.poll() is None
        with scorer:
            assert scorer.score(PHOTO) == local.score(PHOTO)
