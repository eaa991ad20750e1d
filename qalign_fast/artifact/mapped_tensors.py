"""An artifact's folded tensors in, numpy arrays out that are mapped from their file: no bytes are copied.

safetensors itself checks the file, but it only maps for torch.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from qalign_fast.artifact.manifest import MANIFEST, Artifact
from qalign_fast.errors import ArtifactError, one_line
from qalign_fast.families.schema import Found

# By safetensors' names: torch's name, and the numpy dtype that holds it. numpy has neither bfloat16 nor 8-bit floats.
_DTYPES: dict[str, tuple[str, np.dtype[Any] | None]] = {
    "F32": ("float32", np.dtype("<f4")),
    "F16": ("float16", np.dtype("<f2")),
    "BF16": ("bfloat16", np.dtype("<u2")),
    "F8_E4M3": ("float8_e4m3fn", np.dtype("u1")),
    "I8": ("int8", np.dtype("i1")),
    "U8": ("uint8", np.dtype("u1")),
}


def weights_file(artifact: Artifact) -> Path:
    """The file of an artifact's folded tensors. Raises ArtifactError if its manifest names none."""
    parts = artifact.manifest.engines.get("torch", {})
    if parts.keys() != {"weights"}:
        has = ", ".join(parts) or "none"
        raise ArtifactError(f"{artifact.path(MANIFEST)}: engine torch has the parts {has}; expected weights")
    return artifact.path(parts["weights"])


def map_tensors(path: Path) -> tuple[dict[str, npt.NDArray], dict[str, Found]]:
    """The tensors of a safetensors file, mapped read-only, and what all of its tensors are.

    The first leaves out a tensor whose dtype no weight has. Raises ArtifactError for a file that cannot be read.
    """
    try:
        with safe_open(path, "numpy"):  # checks the header, and that the tensors fill the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({one_line(error)})") from error
    header.pop("__metadata__", None)
    found, tensors = {}, {}
    for name, entry in header.items():
        dtype, held = _DTYPES.get(entry["dtype"], (entry["dtype"], None))
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        found[name] = Found(shape, dtype)
        if held is not None:
            count = (end - begin) // held.itemsize
            tensors[name] = np.frombuffer(mapped, held, count, 8 + length + begin).reshape(shape)
    return tensors, found
