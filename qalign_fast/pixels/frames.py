"""A clip's frames, given one by one, in; those that are scored out. Memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from PIL import Image

from qalign_fast.errors import VideoError
from qalign_fast.pixels.arrays import is_array
from qalign_fast.pixels.encoded import is_encoded
from qalign_fast.pixels.footage import check_extent, spread
from qalign_fast.pixels.limits import PictureLimits
from qalign_fast.pixels.picture import stack_frames
from qalign_fast.pixels.rule import Pixels

_SLACK = 4  # times as many frames are kept of a stream as are scored, because its end is not known


class Frames(NamedTuple):
    """A picture or a clip that was read.

    moments: of each frame its number in the clip, and the second where it is shown if it came from a file. Empty for a
        picture.
    """

    pixels: Pixels  # [F, S, S, 3]
    warnings: tuple[str, ...] = ()
    moments: tuple[tuple[int, float | None], ...] = ()


def is_frames(media: Any) -> bool:
    """Whether a clip is given frame by frame: a list, an array [F, ...] or an iterable. A file is not."""
    return not (is_encoded(media) or isinstance(media, Image.Image | Mapping)) and hasattr(media, "__iter__")


def is_listed(frames: Any) -> bool:
    """Whether any of the frames can be had by its number."""
    return hasattr(frames, "__len__") and hasattr(frames, "__getitem__")


def spread_listed(frames: Any, most: int, limits: PictureLimits) -> tuple[list[int], list[str]]:
    """The numbers of at most `most` frames, spread evenly, and the warning that says so. Raises VideoError for none."""
    if is_array(frames) and len(frames.shape) != 4:
        raise VideoError(f"an array {list(frames.shape)} is no clip; expected [F, H, W, C], or a list of frames")
    if len(frames) == 0:
        raise VideoError("a clip needs at least one frame; the list is empty")
    check_extent(len(frames), 0, "a clip", limits)
    chosen = spread(len(frames), most)
    return chosen, _left_out(len(chosen), len(frames), most)


def read_frames(frames: Iterable[Any], most: int, limits: PictureLimits, load: Callable[[Any], Frames]) -> Frames:
    """Reads frames as they come and scores at most `most` of them, spread evenly. Raises VideoError for none.

    While more come than are kept, every second one of those kept is dropped. So of a stream of more than _SLACK times
    `most` frames, one that is scored may lie up to 1 / (_SLACK * most) of the clip away from where a list's would lie.
    """
    kept: list[Pixels] = []
    said: dict[str, None] = {}
    count, stride = 0, 1
    for frame in frames:
        if count % stride == 0:
            pixels, warnings, _ = load(frame)
            kept.append(pixels)
            said.update(dict.fromkeys(warnings))
            if len(kept) > _SLACK * most:
                kept, stride = kept[::2], 2 * stride
        count += 1
        check_extent(count, 0, "a clip", limits)
    if not kept:
        raise VideoError("a clip needs at least one frame; there was none")
    chosen = spread(count, most)
    found = [kept[min(round(i / stride), len(kept) - 1)] for i in chosen]
    pixels = stack_frames([frame[0] for frame in found], "a clip")
    return Frames(pixels, (*_left_out(len(chosen), count, most), *said), tuple((i, None) for i in chosen))


def _left_out(chosen: int, total: int, most: int) -> list[str]:
    return [f"{chosen} of {total} frames, spread evenly; max_frames is {most}"] if chosen < total else []
