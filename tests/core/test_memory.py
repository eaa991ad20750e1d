"""Memory that must not grow: a refused bomb needs none for pixels, a checkpoint that of model and one tensor."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qalign_fast.families.mplug_owl2.config_json import read_config
from qalign_fast.families.mplug_owl2.model.checkpoint import origins
from support.adapters import linears, named, random_parts, write_adapter
from support.goldens import GOLDEN
from support.pictures import png_chunk

# RssAnon leaves out the pages of mapped files, which the kernel takes back whenever it likes.
ANONYMOUS = """
import re, sys
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
"""


def measure(code: str, *arguments: object) -> int:
    command = [sys.executable, "-c", ANONYMOUS + code, *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


SIDE = 12_000  # 432 MB as RGB


def png_bomb() -> bytes:
    """140 KB."""
    row = b"\0" + bytes(3 * SIDE)
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(row) for _ in range(SIDE)) + deflate.flush()
    size = SIDE.to_bytes(4, "big")
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size + size + b"\x08\x02\0\0\0") + png_chunk(b"IDAT", data)
    return png + png_chunk(b"IEND", b"")


def other_bomb(kind: str) -> bytes:
    file = io.BytesIO()
    options = {"lossless": True, "effort": 1} if kind == "JXL" else {}
    Image.new("L", (SIDE, SIDE)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JXL"])
def test_a_bomb_is_refused_without_pixel_memory(kind: str, tmp_path: Path) -> None:
    if kind == "JXL":
        pytest.importorskip("pillow_jxl")
    path = tmp_path / "bomb"
    path.write_bytes(png_bomb() if kind == "PNG" else other_bomb(kind))
    code = """
import warnings
warnings.simplefilter("error")
import resource
from importlib.util import find_spec
from qalign_fast import PictureLimits
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.formats import formats
from qalign_fast.pixels.picture import ImageError, load_pixels
if find_spec("pillow_jxl"):
    import pillow_jxl
formats()
load_pixels(bytes.fromhex("50360a31203120323535 0a000000".replace(" ", "")), pixel_rule(448))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_pixels(sys.argv[1], pixel_rule(448), limits=PictureLimits(formats=("jxl",)))
except ImageError as error:
    assert "over the limit" in str(error), error
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    assert measure(code, path) < 5e6


@pytest.mark.parametrize("kind", ["safetensors", "bin", "adapter"])
def test_a_checkpoint_loads_in_the_model_plus_one_tensor(tmp_path: Path, kind: str) -> None:
    """Also one that an adapter is merged into, on every linear."""
    raw = json.loads((GOLDEN / "narrow-112" / "config.json").read_text())
    raw |= {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = {s.name: torch.full(s.shape, 0.5, dtype=torch.float16) for s in origins(read_config(tmp_path)).values()}
    model = sum(4 * t.numel() for name, t in tensors.items() if name != "lm_head.weight")
    largest = max(4 * t.numel() for t in tensors.values())
    if kind == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    model_of = tmp_path
    if kind == "adapter":
        parts = random_parts(read_config(tmp_path), linears(read_config(tmp_path)), rank=4)
        settings = {"r": 4, "base_model_name_or_path": str(tmp_path), "target_modules": list(parts)}
        model_of = write_adapter(tmp_path / "adapter", named(parts), settings)
    code = """
import torch
from qalign_fast.families.lora import LowRank
from qalign_fast.families.mplug_owl2.model.checkpoint import TensorOrigin, load_model
peak, before = 0, anonymous()
def watched(work):
    def work_and_look(*arguments):
        global peak
        done = work(*arguments)
        peak = max(peak, anonymous())
        return done
    return work_and_look
TensorOrigin.take, LowRank.add_to = watched(TensorOrigin.take), watched(LowRank.add_to)
load_model(sys.argv[1])
print(max(peak, anonymous()) - before)
"""
    assert model > 150e6
    assert measure(code, model_of) < model + largest + 30e6


@pytest.mark.parametrize(("precision", "weight"), [("bnb-int8", 1), ("bnb-nf4", 0.6)])  # bytes, scales among them
def test_a_checkpoint_is_rounded_tensor_by_tensor(
    precision: str, weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak is what is kept, or in this model the conversion of the vocabulary's embeddings from 32 to 16 bits."""
    pytest.importorskip("bitsandbytes")
    raw = json.loads((GOLDEN / "narrow-112" / "config.json").read_text())
    raw |= {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 14}
    raw["visual_config"]["visual_model"] |= {"hidden_size": 64, "intermediate_size": 128}
    raw["visual_config"]["visual_abstractor"] |= {
        "hidden_size": 64,
        "intermediate_size": 128,
        "encoder_hidden_size": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = {s.name: torch.full(s.shape, 0.5, dtype=torch.float16) for s in origins(read_config(tmp_path)).values()}
    save_file(tensors, tmp_path / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"].numel()
    weights = sum(t.numel() for name, t in tensors.items() if ".layers." in name)
    kept = 2 * embeddings + weight * weights
    most = max(kept, (4 + 2) * embeddings) + 30e6
    assert most < kept + 2 * weights  # or all of them in 16 bits would not show
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # freed memory goes back: only need is counted
    code = """
import torch, bitsandbytes
from pathlib import Path
from qalign_fast.engines import bitsandbytes_linears
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.model.checkpoint import TensorOrigin
peak, before, take, finish = 0, anonymous(), TensorOrigin.take, bitsandbytes_linears.finish
def watched(work):
    def work_and_look(*arguments):
        global peak
        done = work(*arguments)
        peak = max(peak, anonymous())
        return done
    return work_and_look
TensorOrigin.take, bitsandbytes_linears.finish = watched(take), watched(finish)
model = bitsandbytes_linears.load_model(FAMILY, Path(sys.argv[1]), sys.argv[2], "cpu")
print(max(peak, anonymous()) - before)
"""
    assert kept < measure(code, tmp_path, precision) < most


def test_a_long_clip_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    code = """
import resource
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.rule import SquareRule
from qalign_fast.pixels.clip import load_clip
assert len(load_clip(sys.argv[1], pixel_rule(112), max_frames=8, fps=30).pixels) == 8
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    peaks = []
    for frames in (30, 900):  # 900 frames of 640x480 are 830 MB decoded
        path = tmp_path / f"{frames}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 90, np.uint8), format="rgb24")
            for i in range(frames):
                frame.pts = i
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        peaks.append(measure(code, path))
    assert peaks[1] - peaks[0] < 30e6
