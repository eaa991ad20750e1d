"""`Ops` as kernels of one GPU. Between them lie 16-bit floats, or rows in 8 bits where every reader takes those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from warnings import warn

import torch
from torch import Tensor

from qalign_kernels.contract.attention import BACKENDS, attention_backends, attention_by
from qalign_kernels.contract.linear import row_dtype
from qalign_kernels.contract.operations import Activation
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.quantized_rows import LARGEST, QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight
from qalign_kernels.cuda import norm, patches
from qalign_kernels.cuda.activation import swiglu, swiglu_rows
from qalign_kernels.cuda.attention import attention_by_modality
from qalign_kernels.cuda.launch import Device, Epilogue
from qalign_kernels.cuda.linear import inputs_of, linear, weight_type
from qalign_kernels.cuda.runtime import TritonError
from qalign_kernels.cuda.tiles import Shares, Tile, tiles_for


class TritonOps(Ops):
    """Every result is of `dtype`, or in 8 bits where a method says so. Inputs may be of any float dtype.

    One instance serves one stream at a time.
    """

    def __init__(self, device: Device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._shared: Shares | None = None
        self._refused: set[tuple[str, int, int, int, Tile | None]] = set()  # weight type, M, K, N and the tile
        self._backends = attention_backends(device.capability, dtype)
        self.name = f"Triton, {BACKENDS[self._backends[0]]} attention"

    def linear(
        self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        """residual + activation(x Wᵀ + b): x [..., K], residual and result [..., N]."""
        return self._product(x, w, Epilogue(self.dtype, activation, residual))

    def modal_linear(self, x: Tensor | QuantizedRows, w: Weight, modal: Modal) -> Tensor:
        """x [M, K] -> [M, N] by a weight of three linears, in one kernel. For int8 and int4 alone."""
        return self._product(x, w, Epilogue(self.dtype), modal)

    def patches_for(self, w: Weight, pixels: Tensor, patch: int) -> Tensor | QuantizedRows:
        """uint8 [B, S, S, 3] -> rows as the linear w reads them, filled up to its inputs."""
        return patches.split_patches(pixels, patch, inputs_of(w), row_dtype(w.weight))

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        return norm.layer_norm(x, gain, bias, eps, self.dtype)

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
        return norm.rms_norm(x, visual_gain, text_gain, split, eps, self.dtype)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return swiglu(gate_up)

    def layer_norm_for(
        self, readers: Sequence[Weight], x: Tensor, gain: Tensor, bias: Tensor, eps: float
    ) -> Tensor | QuantizedRows:
        """`layer_norm`, in 8 bits where every reader takes rows of the same 8-bit dtype."""
        if eight := row_type(readers):
            return norm.layer_norm_rows(x, gain, bias, eps, eight)
        return self.layer_norm(x, gain, bias, eps)

    def rms_norm_for(
        self, readers: Sequence[Weight], x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float
    ) -> Tensor | QuantizedRows:
        """`rms_norm`, in 8 bits under the same condition."""
        if eight := row_type(readers):
            return norm.rms_norm_rows(x, visual_gain, text_gain, split, eps, eight)
        return self.rms_norm(x, visual_gain, text_gain, split, eps)

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Tensor | QuantizedRows:
        """`swiglu`, in 8 bits under the same condition."""
        eight = row_type(readers)
        return swiglu_rows(gate_up, eight) if eight else self.swiglu(gate_up)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """By torch's kernels, and without a mask, so that it can take the fast ones."""
        return attention_by(self._backends, q.to(self.dtype), k.to(self.dtype), v.to(self.dtype), heads)

    def attention_by_modality(
        self, q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
    ) -> Tensor:
        return attention_by_modality(q, kv_visual, kv_text, prefix, turns, batch)

    def _product(self, x: Tensor | QuantizedRows, w: Weight, epilogue: Epilogue, modal: Modal | None = None) -> Tensor:
        """By the tile that should be the fastest, or by the next one where the device refuses it."""
        n = len(w.weight) if modal is None else (len(w.weight) + modal.common) // 2
        shape = weight_type(w), math.prod(x.shape[:-1]), x.shape[-1], n
        *others, last = (tile for tile in tiles_for(self.device, *shape) if modal is None or tile is not None)
        shares = self._shares(w.weight.device)
        for tile in (tile for tile in others if (*shape, tile) not in self._refused):
            try:
                return linear(x, w, tile, epilogue, shares, modal)
            except torch.OutOfMemoryError:
                raise
            except (
                RuntimeError,
                TritonError,
            ) as error:  # most often, it takes more of the device than there is
                self._refused.add((*shape, tile))
                warn(
                    f"{shape}: {tile} is refused here ({str(error).partition(chr(10))[0]}); another one is taken",
                    stacklevel=3,
                )
        return linear(x, w, last, epilogue, shares, modal)

    def _shares(self, device: torch.device) -> Shares:
        """The same memory for all products: they run one after another."""
        if self._shared is None:
            self._shared = Shares.of(self.device, device)
        return self._shared


def row_type(readers: Sequence[Weight]) -> torch.dtype | None:
    """The 8-bit dtype of rows that all readers take, or None where they do not take the same one."""
    types = {row_dtype(reader.weight) for reader in readers}
    return types.pop() if len(types) == 1 and types <= LARGEST.keys() else None
