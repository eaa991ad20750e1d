"""Makes clips whose frames show their own number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, times: list[Fraction], rate: int = 30, size: int = 64) -> Path:
    """Writes a clip. Frame i is a grey of brightness 4 + 2 i, shown from times[i]."""
    codec = {".mp4": "mpeg4", ".mkv": "ffv1", ".avi": "mpeg4", ".webm": "libvpx"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        tick = Fraction(1, rate) if path.suffix == ".avi" else Fraction(1, 1000)  # AVI has one tick a frame
        stream.codec_context.time_base = tick
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 4 + 2 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def constant(frames: int, rate: int) -> list[Fraction]:
    return [Fraction(i, rate) for i in range(frames)]
