"""A picture of any kind in, uint8 pixels [S, S, 3] out: padded to a square and resized, to the bit as upstream does it.

Upstream pads with the mean colour and resizes with Pillow's antialiased bicubic on uint8. Limits are checked on the
header, before a pixel is decoded. The paths to pixels (paths.py, device_square.py) give the same bits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from qalign_fast.errors import ImageError, VideoError
from qalign_fast.pixels.arrays import (
    array_bytes,
    as_array,
    check_array,
    device_bytes,
    has_alpha,
    is_array,
    is_tensor,
    rgb_bytes,
)
from qalign_fast.pixels.damage import decoding, enough_memory, in_pillow
from qalign_fast.pixels.encoded import is_encoded, plain, read_bytes
from qalign_fast.pixels.formats import loading, open_picture
from qalign_fast.pixels.frame_counts import count_frames
from qalign_fast.pixels.limits import LIMITS, PictureLimits, Warn, check_size, unheard
from qalign_fast.pixels.paths import PLAIN, pixel_path
from qalign_fast.pixels.rgb import to_rgb, warn_of_dark
from qalign_fast.pixels.rule import PixelPath

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from PIL import ImageFile

    from qalign_fast.pixels.rule import PixelRule, Pixels

Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | IO[bytes] | Mapping[str, Any] | Image.Image | npt.NDArray[Any] | torch.Tensor"
)

_WIDE = re.compile(r"(RGB|LA)\w*;16")  # how Pillow calls colours of 16 bits in a file; BGR;16 has 16 for all three
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_pixels(
    picture: Picture,
    rule: PixelRule,
    *,
    limits: PictureLimits = LIMITS,
    path: PixelPath | None = None,
    name: str | None = None,
    warn: Warn = unheard,
) -> Pixels:
    """uint8 [S, S, 3] of a picture in any of these forms.

    - a file: its path, its bytes, an open binary file (from where it stands), a data: URI, or a data set's dict
      {"bytes": ..., "path": ...}. Of several frames the first counts.
    - a PIL picture, at the frame where it stands.
    - an array, [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA), uint8 or floats on 0..1; a torch tensor, also
      with channels first. One more axis of length 1 may stand before them. A tensor on a GPU is resized there.

    `path` is by default `pixel_path()`. `name` is what errors call the picture, by default its path or its kind. `warn`
    hears what the reader of its score should know. Raises ImageError with the name and the cause, and MissingExtraError
    for a format whose parser is not installed.
    """
    picture, name = plain(picture, name)
    path = path or pixel_path()
    if is_array(picture):
        return _of_array(picture, rule, limits, path, name, warn)
    if isinstance(picture, Image.Image):
        decoded: Image.Image | Pixels = decode_callers(picture, limits, name, warn)
        size = picture.size
    elif is_encoded(picture):
        decoded, size = _of_file(read_bytes(picture, name, limits.picture_bytes), limits, path, name, warn)
    else:
        raise ImageError(
            f"{name}: not a picture; expected a path, bytes, a binary file, a PIL image, an array or a tensor"
        )
    with enough_memory(size, name):
        return rule.apply(_rgb(decoded, limits, name, warn), path)


def decode_callers(picture: Image.Image, limits: PictureLimits, name: str, warn: Warn) -> Image.Image:
    """A caller's PIL picture, loaded, and turned where the limits ask for it. Raises ImageError."""
    check_size(picture.size, name, limits.max_pixels)
    with loading(picture), decoding(picture, name):
        picture.load()
        return _upright(picture, limits, warn)


def stack_frames(frames: Sequence[Any], name: str) -> Any:
    """Each [H, W, 3] -> [F, H, W, 3]: an array, or a tensor where all of them lie on one device.

    Raises VideoError for frames of several sizes, where a rule leaves them so.
    """
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{name}: its frames have several sizes; this model takes clips of one size")
    if len(frames) == 1:
        return frames[0][None]
    if len({str(frame.device) if is_tensor(frame) else "" for frame in frames}) > 1:  # some lie on a device, some not
        frames = [frame.cpu().numpy() if is_tensor(frame) else frame for frame in frames]
    if is_tensor(frames[0]):
        import torch

        return torch.stack(list(frames))
    return np.stack(frames)


def _of_file(
    data: bytes, limits: PictureLimits, path: PixelPath, name: str, warn: Warn
) -> tuple[Image.Image | Pixels, tuple[int, int]]:
    opened = open_picture(data, name, limits)
    is_wide = warn is not unheard and _is_wide(opened)
    if warn is not unheard and (frames := count_frames(data, opened)) > 1:
        warn(f"the first of its {frames} frames was scored")
    decoded = _decoded(opened, data, limits, path, name, warn)
    if is_wide and isinstance(decoded, Image.Image):
        warn_of_dark(decoded, warn)
    return decoded, opened.size


def _decoded(
    opened: ImageFile.ImageFile, data: bytes, limits: PictureLimits, path: PixelPath, name: str, warn: Warn
) -> Image.Image | Pixels:
    try:
        with decoding(opened, name):
            if not limits.exif_rotate:
                return path.decode(opened)
            return _upright(PLAIN.decode(opened), limits, warn)
    except ImageError as error:
        if not limits.allow_truncated or isinstance(error.__cause__, MemoryError):
            raise
    rest = _what_there_is(opened, data, limits, name)
    warn("it is cut off or damaged, and was scored as far as it can be decoded")
    return _upright(rest, limits, warn)


def _what_there_is(opened: ImageFile.ImageFile, data: bytes, limits: PictureLimits, name: str) -> Image.Image:
    """A picture as far as it can be decoded. Raises ImageError where nothing can be."""
    if opened.format == "JPEG":  # its decoder waits for the end marker
        opened = open_picture(data + b"\xff\xd9", name, limits)
    try:
        with decoding(opened, name):
            opened.load()
    except ImageError:
        opened.tile = []  # nothing more to decode: what is there counts
        with decoding(opened, name):
            opened.load()
            if opened.format == "TIFF":
                opened.load_end()  # turns it
    return opened


def _is_wide(opened: ImageFile.ImageFile) -> bool:
    """Whether its colours have 16 bits in the file, of which Pillow gives the high byte."""
    return any(_WIDE.search(str(tile[3])) for tile in opened.tile[:1])


def _upright(picture: Any, limits: PictureLimits, warn: Warn) -> Image.Image:
    """The picture, turned as its EXIF orientation says where the limits ask for it."""
    if not limits.exif_rotate:
        return picture  # type: ignore[no-any-return]
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception as error:
        if not in_pillow(error):
            raise
        warn("its EXIF data cannot be read; it was not turned")
        turn = None
    return picture if turn is None else picture.transpose(turn)  # type: ignore[no-any-return]


def _rgb(decoded: Image.Image | Pixels, limits: PictureLimits, name: str, warn: Warn) -> Image.Image | Pixels:
    if isinstance(decoded, np.ndarray):
        return decoded
    with decoding(decoded, name):
        return to_rgb(decoded, limits, name=name, warn=warn)


def _of_array(array: Any, rule: PixelRule, limits: PictureLimits, path: PixelPath, name: str, warn: Warn) -> Pixels:
    array = as_array(array, name)
    check_array(array, name, limits.max_pixels)
    if is_tensor(array) and array.device.type != "cpu" and not has_alpha(array, name):
        from qalign_fast.pixels.device_square import ON_DEVICE

        values: Any = device_bytes(array, name)
        return rule.apply(values, ON_DEVICE)
    with enough_memory(array.shape[1::-1], name):
        values = array_bytes(array, name)
        if values.ndim == 3 and values.shape[-1] == 4:
            return rule.apply(to_rgb(Image.fromarray(values), limits, name=name, warn=warn), path)
        return rule.apply(rgb_bytes(values), path)
