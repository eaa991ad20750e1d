"""The golden folders of the families that share OneAlign's trunk, and every engine that runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.cuda_graphs import Direct
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.native_cpu import load_native_engine
from qalign_fast.engines.options import LoadOptions
from qalign_kernels.cpu.numpy_ops import load_numpy
from qalign_kernels.cpu.plain_numpy import PLAIN
from support.cuda_engines import engine_of
from support.goldens import GOLDEN, PICTURES, Rounded

ENGINES = ("checkpoint", "torch", "cuda", "onnx", "native", "plain numpy")


def expected_of(folder: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / folder / "expected.npz"))


def pictures_of(expected: dict[str, np.ndarray]) -> list[Path]:
    return [PICTURES / name for name in expected["picture_names"]]


def engine_named(name: str, folder: str, rounded: Rounded, library: Path, precision: str = "fp32") -> Engine:
    """An engine of a golden folder; "cuda" runs its steps in plain torch on a CPU."""
    if name == "checkpoint":
        return load_engine(GOLDEN / folder)
    artifact = rounded(folder, precision)
    if name in ("torch", "onnx"):
        return load_engine(artifact, LoadOptions(engine=name, device="cpu"))
    if name == "cuda":
        return engine_of(artifact, Direct(torch.device("cpu")))
    ops = PLAIN if name == "plain numpy" else load_numpy(library_path=library)
    return load_native_engine(open_artifact(artifact), ops=ops)


def changed(
    folder: str, to: Path, config: dict[str, Any] | None = None, drop: Callable[[str], bool] | None = None
) -> Path:
    """A copy of a golden checkpoint with other values in its config.json, and without some of its tensors."""
    copy = Path(shutil.copytree(GOLDEN / folder, to / "changed"))
    raw = json.loads((copy / "config.json").read_text()) | (config or {})
    (copy / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    if drop:
        tensors = load_file(copy / "model.safetensors")
        save_file({name: x for name, x in tensors.items() if not drop(name)}, copy / "model.safetensors")
    return copy
