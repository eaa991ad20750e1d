"""A checkpoint directory in, an artifact directory out: graphs, the prompts' constants, the manifest with its hashes.

Everything is written into a folder beside the target, the manifest last, and renamed at the end: an interrupted export
leaves nothing that loads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from qalign_export.decoder_graph import build_decoder
from qalign_export.graph import Graph
from qalign_export.vision_graph import Weights, build_vision
from qalign_fast.artifact import MANIFEST, PROMPTS, FileEntry, Manifest, PromptEntry, hash_file
from qalign_fast.config import ModelConfig
from qalign_fast.errors import ArtifactError, TaskError
from qalign_fast.levels import LEVEL_IDS, LEVELS
from qalign_fast.model import Model
from qalign_fast.prompt import MEDIA, TASKS, prompt
from qalign_fast.weights import load_model, weight_files

Builder = Callable[[Graph, Weights, ModelConfig], None]
_EXTERNAL_FROM = 1 << 30  # bytes of weights; a model file itself may hold 2 GiB
UNKNOWN_LICENSE = "unknown; see the source checkpoint"


def export_artifact(
    checkpoint: str | Path,
    out: str | Path,
    *,
    tasks: Iterable[str] = TASKS,
    name: str | None = None,
    license: str = UNKNOWN_LICENSE,
    external_from: int = _EXTERNAL_FROM,
) -> Path:
    """Writes the float32 ONNX artifact of an upstream checkpoint directory; returns its path.

    Weights of external_from bytes or more go to `.onnx_data` files beside the graphs. Raises CheckpointError for a
    checkpoint that is not whole, TaskError for an unknown task, ArtifactError where `out` exists already.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    tasks = _known(tasks)
    if out.exists():
        raise ArtifactError(f"{out}: exists already; choose another name or delete it")
    model = load_model(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        engines = {"onnx": _write_graphs(model, partial, external_from)}
        prompts = _write_prompts(model, partial / PROMPTS, tasks)
        _write_preprocessor(model.config, partial / "preprocessor_config.json")
        manifest = Manifest(
            name=name or checkpoint.resolve().name,
            source={"name": checkpoint.resolve().name, "sha256": hash_source(checkpoint)},
            license=license,
            config=model.config,
            levels=tuple(zip(LEVELS, LEVEL_IDS, strict=True)),
            prompts=prompts,
            precision="fp32",
            engines=engines,
            files=_hash_all(partial),
            fidelity=None,
            made_with={package: version(package) for package in ("qalign-fast", "torch", "onnx", "numpy")},
        )
        (partial / MANIFEST).write_text(manifest.to_json(), "utf-8")
        partial.chmod(0o755)  # mkdtemp made it private
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _known(tasks: Iterable[str]) -> tuple[str, ...]:
    tasks = tuple(dict.fromkeys(tasks))
    for task in tasks:
        if task not in TASKS:
            raise TaskError(f"task {task!r} is not known; the family has: {', '.join(TASKS)}")
    return tasks


def _write_graphs(model: Model, directory: Path, external_from: int) -> dict[str, str]:
    """The engine's parts: {"encode": path, "decode": path}."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    parts: dict[str, tuple[str, Builder]] = {
        "encode": ("onnx/vision_encoder.onnx", build_vision),
        "decode": ("onnx/decoder_model.onnx", build_decoder),
    }
    (directory / "onnx").mkdir()
    for part, (path, build) in parts.items():
        file = directory / path
        size = sum(a.nbytes for n, a in weights.items() if n.startswith("decoder.") == (part == "decode"))
        graph = Graph(file.stem, file.with_suffix(".onnx_data") if size >= external_from else None)
        build(graph, weights, model.config)
        graph.save(file)
    return {part: path for part, (path, _) in parts.items()}


def _write_prompts(model: Model, path: Path, tasks: tuple[str, ...]) -> tuple[PromptEntry, ...]:
    """The constants of every task in every medium; prompts with the same prefix share one tensor."""
    tensors: dict[str, torch.Tensor] = {}
    prefixes: dict[tuple[int, ...], str] = {}
    entries = []
    for task in tasks:
        for medium in MEDIA:
            p = prompt(task, medium)
            prefix = prefixes.setdefault(p.prefix, f"{p.name}.prefix")
            if prefix not in tensors:
                tensors[prefix] = model.decoder.prefix(p.prefix).contiguous()
            tensors[f"{p.name}.suffix"] = model.decoder.suffix(p.suffix).contiguous()
            entries.append(PromptEntry(p, prefix, f"{p.name}.suffix"))
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors made it private
    return tuple(entries)


def _write_preprocessor(config: ModelConfig, path: Path) -> None:
    """The pixel rule as others' tools read it."""
    rule = config.pixels
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": rule.side},
        "crop_size": {"height": rule.side, "width": rule.side},
        "resample": 3,
        "image_mean": rule.mean,
        "image_std": rule.std,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def hash_source(checkpoint: Path) -> str:
    """One SHA-256 over a checkpoint's config and weight files, in name order."""
    whole = hashlib.sha256()
    for file in sorted([checkpoint / "config.json", *weight_files(checkpoint)]):
        whole.update(f"{file.name} {hash_file(file).sha256}\n".encode())
    return whole.hexdigest()


def _hash_all(directory: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in files}
