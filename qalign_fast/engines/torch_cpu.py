"""An upstream checkpoint or an artifact's folded weights in, `encode` and `decode` on torch out.

A checkpoint runs as the family's reference, in float32 or on bitsandbytes' linears. Folded weights run in their own
precision. On a CPU they are mapped from their file. They run on the C++ kernels if those were built (`qalign-fast
build`), else in plain torch; products of 8-bit floats are always in plain torch there. On other devices everything is
plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from qalign_fast.artifact.manifest import Artifact, Manifest
from qalign_fast.artifact.prompt_tensors import load_tail
from qalign_fast.engines import bitsandbytes_linears
from qalign_fast.engines.contract import Tokens
from qalign_fast.engines.native_cpu import ROWS
from qalign_fast.engines.torch_weights import read_folded, set_threads
from qalign_fast.errors import DeviceError, one_line
from qalign_fast.families.family import Constants, Family, Folded, Reference, Tail
from qalign_fast.families.prompt import Prompt
from qalign_kernels.contract.linear import expand_weight
from qalign_kernels.contract.operations import Operations
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.quantized_rows import E4M3, fake_rows
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu.ops import exact_for, load_native


class TorchEngine:
    """A reference model or a folded model, on a CPU or an Apple GPU, or a reference on any device.

    Tokens are torch tensors [B, V, D] on the device.
    """

    name = "torch"
    in_flight = 1

    def __init__(
        self,
        family: Family,
        model: Reference | Folded,
        precision: str,
        prompts: tuple[Prompt, ...],
        constants: Callable[[Prompt], Constants],
        *,
        device: str = "cpu",
        kernels: str = PLAIN.name,
        tail: Tail | None = None,
    ) -> None:
        """The model and the `constants` of every prompt are on the device already. `kernels` names what computes."""
        self.family, self.config, self.precision, self.prompts = family, model.config, precision, prompts
        self.device, self.kernels = device, kernels
        self._model, self._constants, self.tail = model, constants, tail or {}

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """As `Engine.encode`, a few pictures at a time."""
        size = max(1, ROWS // self.config.vision_rows(*pixels.shape[1:3]))
        chunks = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).split(size)
        return torch.cat([self._model.encode(chunk.to(self.device)) for chunk in chunks])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """As `Engine.decode`."""
        given = cast(torch.Tensor, tokens)
        logits: npt.NDArray[np.float32] = self._model.decode(given, *self._constants(prompt)).cpu().numpy()
        return logits


class FloatProducts(Ops):
    """Plain torch for devices without products of whole numbers, such as MPS.

    Products are the contract's as far as float32 is exact.
    """

    def product(self, x: torch.Tensor, w: Weight) -> torch.Tensor:
        """x [..., K] -> [..., N]: rounded rows times expanded weights, in float32."""
        if w.scale is None or w.weight.dtype == E4M3:
            return super().product(x, w)
        return F.linear(fake_rows(x), expand_weight(w.weight, w.scale, w.groups, x.shape[-1]), w.bias)


def load_checkpoint(
    family: Family,
    directory: Path,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    base: Path | None = None,
) -> TorchEngine:
    """The engine of an upstream checkpoint's directory. `precision` is "fp32" or one of bitsandbytes'.

    `base` is the directory of the checkpoint that an adapter's is for; the adapter is merged into it.
    `threads` is torch's own setting, so it holds for the whole process. Raises CheckpointError for a checkpoint that
    cannot be read, DeviceError if the device has no room, and what `bitsandbytes_linears.load_model` raises.
    """
    set_threads(threads)
    if precision in bitsandbytes_linears.PRECISIONS:
        model, kernels = bitsandbytes_linears.load_model(family, directory, precision, device, base), "bitsandbytes"
    else:
        try:
            model, kernels = family.models().load_model(directory, base).to(device), PLAIN.name
        except RuntimeError as error:
            raise DeviceError(f"device {device!r}: has no room for float32 weights ({one_line(error)})") from error
    constants = cache(model.constants)  # each prompt's are computed when it is first asked for
    tail = model.tail if family.answer else {}
    return TorchEngine(family, model, precision, family.prompts, constants, device=device, kernels=kernels, tail=tail)


def load_folded(
    artifact: Artifact, threads: int | None = None, ops: Operations | None = None, device: str = "cpu"
) -> TorchEngine:
    """The engine of an artifact's folded weights. `ops` are the operations to run on, by default the fastest there are.

    `threads` is torch's own setting, so it holds for the whole process. Raises ArtifactError as `read_folded` does, and
    DeviceError if the device has no room.
    """
    set_threads(threads)
    tensors, constants = read_folded(artifact)
    if device != "cpu":
        ops = ops or FloatProducts()
        try:
            tensors = {name: tensors.pop(name).to(device) for name in list(tensors)}
        except RuntimeError as error:
            raise DeviceError(f"device {device!r}: has no room for the weights ({one_line(error)})") from error
        constants = {name: tuple(x.to(device) for x in found) for name, found in constants.items()}
    precision = artifact.manifest.precision
    ops = ops or load_native(threads=threads, exact=exact_for(precision)) or PLAIN
    return build_engine(artifact.manifest, tensors, constants, ops, device, load_tail(artifact))


def build_engine(
    manifest: Manifest,
    tensors: Mapping[str, torch.Tensor],
    constants: Mapping[str, Constants],
    ops: Operations = PLAIN,
    device: str = "cpu",
    tail: Tail | None = None,
) -> TorchEngine:
    """The engine of tensors and constants as `read_folded` returns them, but on the device; `tail` as `load_tail`."""
    family = manifest.family
    model = family.models().FoldedModel(manifest.config, tensors, ops)
    given = family, model, manifest.precision, manifest.task_prompts
    return TorchEngine(*given, lambda prompt: constants[prompt.name], device=device, kernels=ops.name, tail=tail)
