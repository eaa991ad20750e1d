"""A file of folded tensors in, an engine's two ONNX files out: `encode` and `decode`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from qalign_export.onnx_graphs.decoder import build_decoder
from qalign_export.onnx_graphs.fused import FusedGraph
from qalign_export.onnx_graphs.model import ModelGraph
from qalign_export.onnx_graphs.vision import build_vision
from qalign_export.options import EXTERNAL_FROM
from qalign_fast.families.mplug_owl2.sizes import ModelConfig

GRAPHS = {"onnx": ModelGraph, "onnx-cuda": FusedGraph}  # by the engine that runs them


def write_graphs(
    engine: str,
    weights: Path,
    config: ModelConfig,
    directory: Path,
    suffix: str,
    external_from: int = EXTERNAL_FROM,
) -> dict[str, str]:
    """Writes an engine's graphs into an artifact's directory, from the file of its folded tensors.

    If that file has `external_from` bytes or more, each graph's weights go into an `.onnx_data` file beside it. Returns
    the engine's parts: {"encode": path, "decode": path}.
    """
    suffix += engine.removeprefix("onnx").replace("-", "_")
    parts = {"encode": f"onnx/vision_encoder{suffix}.onnx", "decode": f"onnx/decoder_model{suffix}.onnx"}
    builders = {"encode": build_vision, "decode": build_decoder}
    (directory / "onnx").mkdir(exist_ok=True)
    external = weights.stat().st_size >= external_from
    for part, path in parts.items():
        file = directory / path
        graph = GRAPHS[engine](file.stem, _Mapped(weights), file.with_suffix(".onnx_data") if external else None)
        builders[part](graph, config)
        graph.save(file)
    return parts


class _Mapped(Mapping[str, np.ndarray]):
    """A safetensors file's tensors as arrays, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, "np") as file:
            self._names = frozenset(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, "np") as file:  # opened anew, so that pages once read do not stay mapped
            array: np.ndarray = file.get_tensor(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
