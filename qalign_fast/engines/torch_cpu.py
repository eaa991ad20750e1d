"""An upstream checkpoint or an artifact's folded weights in, `encode` and `decode` on torch out.

A checkpoint runs as the reference in float32, or on bitsandbytes' linears. Folded weights run as their precision says:
on a CPU mapped from their file, on the C++ kernels where those were built (`qalign-fast build`), else in plain torch
(fp8's linears always); on other devices in plain torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from qalign_fast.artifact.manifest import MANIFEST, Artifact
from qalign_fast.artifact.prompt_tensors import load_constants
from qalign_fast.engines import bitsandbytes_linears
from qalign_fast.engines.contract import Tokens
from qalign_fast.errors import ArtifactError, DeviceError, one_line
from qalign_fast.families.mplug_owl2.model.checkpoint import load_model
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.folded_schema import check_tensors
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import ALL_PROMPTS
from qalign_fast.families.prompt import Prompt
from qalign_kernels.contract.linear import Weight, expand_weight
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.quantized_rows import E4M3, fake_rows
from qalign_kernels.cpu.ops import exact_for, load_native

_ROWS = 2048  # of the vision tower at a time: more gain nothing, and their activations leave the cache
Constants: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # a prompt's prefix [L, 2, P, H, Dh] and suffix [S, D]


class TorchEngine:
    name = "torch"
    in_flight = 1

    def __init__(
        self,
        model: Model | FoldedModel,
        precision: str,
        constants: dict[str, Constants] | None = None,
        prompts: tuple[Prompt, ...] = ALL_PROMPTS,
        device: str = "cpu",
        kernels: str = PLAIN.name,
    ) -> None:
        """The model's tensors and the constants are on the device; `kernels` names what the reference runs on."""
        self.config, self.precision, self.prompts, self.device = model.config, precision, prompts, device
        self.kernels = kernels if isinstance(model, Model) else model.ops.name
        self._model = model
        self._decode = model.decoder if isinstance(model, Model) else model.decode
        self._constants = {} if constants is None else constants

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        chunks = torch.from_numpy(np.ascontiguousarray(pixels)).split(max(1, _ROWS // self.config.vision.tokens))
        return torch.cat([self._model.encode(chunk.to(self.device)) for chunk in chunks])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        if prompt.name not in self._constants:
            assert isinstance(self._model, Model)  # an artifact has all its prompts' constants
            decoder = self._model.decoder
            self._constants[prompt.name] = decoder.prefix(prompt.prefix), decoder.suffix(prompt.suffix)
        logits: npt.NDArray[np.float32] = self._decode(tokens, *self._constants[prompt.name]).cpu().numpy()
        return logits


class FloatProducts(Ops):
    """Plain torch where there is no product of whole numbers, as on MPS: the contract's, as far as float32 is exact."""

    def product(self, x: torch.Tensor, w: Weight) -> torch.Tensor:
        if w.scale is None or w.weight.dtype == E4M3:
            return super().product(x, w)
        return F.linear(fake_rows(x), expand_weight(w.weight, w.scale, w.groups, x.shape[-1]), w.bias)


def load_checkpoint(
    directory: Path, threads: int | None = None, device: str = "cpu", precision: str = "fp32"
) -> TorchEngine:
    """`precision` is "fp32" or one of bitsandbytes'. Raises CheckpointError, DeviceError where the device has no room,
    and as `bitsandbytes_linears.load_model` does. `threads` is torch's own setting and so holds for the whole process.
    """
    set_threads(threads)
    if precision in bitsandbytes_linears.PRECISIONS:
        rounded = bitsandbytes_linears.load_model(directory, precision, device)
        return TorchEngine(rounded, precision, device=device, kernels=bitsandbytes_linears.KERNELS)
    model = load_model(directory)
    try:
        return TorchEngine(model.to(device), "fp32", device=device)
    except RuntimeError as error:
        raise DeviceError(f"device {device!r}: has no room for float32 weights ({one_line(error)})") from error


def load_folded(
    artifact: Artifact, threads: int | None = None, ops: Ops | None = None, device: str = "cpu"
) -> TorchEngine:
    """`ops` is what it runs on, by default the fastest there is. Raises ArtifactError as `read_folded` does,
    DeviceError where the device has no room.
    """
    set_threads(threads)
    tensors, constants = read_folded(artifact)
    if device != "cpu":
        ops = ops or FloatProducts()
        try:
            tensors = {name: tensors.pop(name).to(device) for name in list(tensors)}
        except RuntimeError as error:
            raise DeviceError(f"device {device!r}: has no room for the weights ({one_line(error)})") from error
        constants = {name: (prefix.to(device), suffix.to(device)) for name, (prefix, suffix) in constants.items()}
    manifest = artifact.manifest
    ops = ops or load_native(threads=threads, exact=exact_for(manifest.precision)) or PLAIN
    model = FoldedModel(manifest.config, tensors, ops)
    prompts = tuple(entry.prompt for entry in manifest.prompts)
    return TorchEngine(model, manifest.precision, constants, prompts, device)


def read_folded(artifact: Artifact) -> tuple[dict[str, torch.Tensor], dict[str, Constants]]:
    """The folded tensors, mapped from their file, and every prompt's constants, on the CPU.

    Raises ArtifactError for weights that are missing or not what the manifest's sizes ask.
    """
    manifest = artifact.manifest
    parts = manifest.engines.get("torch", {})
    if parts.keys() != {"weights"}:
        has = ", ".join(parts) or "none"
        raise ArtifactError(f"{artifact.path(MANIFEST)}: engine torch has the parts {has}; expected weights")
    path = artifact.path(parts["weights"])
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({one_line(error)})") from error
    constants = {
        name: (torch.from_numpy(prefix), torch.from_numpy(suffix))
        for name, (prefix, suffix) in load_constants(artifact).items()
    }
    try:
        check_tensors(manifest.config, tensors)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return tensors, constants


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
