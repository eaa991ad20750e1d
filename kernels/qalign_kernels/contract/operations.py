"""The operations that an engine runs a model with, as one value: what each takes and gives. Imports no runtime.

Each set of operations is for one kind of array: torch tensors or numpy arrays.

    qalign_kernels.contract.ops     the contracts themselves, in plain torch
    qalign_kernels.cpu.ops          the C++ kernels, on torch tensors
    qalign_kernels.cpu.numpy_ops    the C++ kernels, on numpy arrays
    qalign_kernels.cpu.plain_numpy  plain numpy
    qalign_kernels.cuda.ops         Triton's kernels, on a GPU's torch tensors
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from qalign_kernels.contract.weight import Array, Modal, Weight

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Activation: TypeAlias = Literal["quick_gelu"] | None


class Operations(ABC):
    """What a folded model asks for.

    The operations called `..._for` make rows that only the linears `readers` read. A set may return them in 8 bits
    already, as `QuantizedRows`; its own `linear` and `modal_linear` then take these. By default they do not.

    An operation on a CPU raises MemoryError where there is none for it.
    """

    name: str  # what computes, for people

    @abstractmethod
    def linear(self, x: Array, w: Weight, *, activation: Activation = None, residual: Array | None = None) -> Array:
        """residual + activation(x Wᵀ + b): x [..., K], residual and result [..., N]."""

    def modal_linear(self, x: Array, w: Weight, modal: Modal) -> Array:
        """x [M, K] -> [M, N], by a weight of three linears. Only a set that says so has it."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def layer_norm(self, x: Array, gain: Array, bias: Array, eps: float) -> Array:
        """[..., D] -> the same shape; gain and bias [D]."""

    @abstractmethod
    def rms_norm(self, x: Array, visual_gain: Array, text_gain: Array, split: int, eps: float) -> Array:
        """[N, D], of which the first `split` rows are visual and the rest text -> [N, D]; gains [D]."""

    @abstractmethod
    def swiglu(self, gate_up: Array) -> Array:
        """[..., 2I] -> silu(gate) · up [..., I]; the gate is the first half."""

    @abstractmethod
    def attention(self, q: Array, k: Array, v: Array, heads: int) -> Array:
        """q [B, Tq, D], k and v [B, Tk, D] -> context [B, Tq, D]; every query sees every key."""

    @abstractmethod
    def attention_by_modality(
        self, q: Array, kv_visual: Array, kv_text: Array, prefix: Array, turns: Array, batch: int
    ) -> Array:
        """Causal attention over a prefix and rows by modality: `qalign_kernels.contract.attention` has the shapes."""

    @abstractmethod
    def patches_for(self, w: Weight, pixels: Array, patch: int) -> Array:
        """uint8 [B, S, S, 3] -> rows [B, n, p*p*3] that the linear w reads."""

    def layer_norm_for(self, readers: Sequence[Weight], x: Array, gain: Array, bias: Array, eps: float) -> Array:
        return self.layer_norm(x, gain, bias, eps)

    def rms_norm_for(
        self, readers: Sequence[Weight], x: Array, visual_gain: Array, text_gain: Array, split: int, eps: float
    ) -> Array:
        return self.rms_norm(x, visual_gain, text_gain, split, eps)

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Array) -> Array:
        return self.swiglu(gate_up)

    def end_turn(self) -> None:  # noqa: B027 (most sets keep nothing)
        """The calling thread computes no more for now: what the set keeps for it may be another thread's."""

    @abstractmethod
    def cat(self, parts: Sequence[Array], dim: int = 0) -> Array:
        """Arrays end to end."""

    @abstractmethod
    def repeat(self, x: Array, batch: int) -> Array:
        """[...] -> [B, ...], a view that repeats x."""

    @abstractmethod
    def place(self, values: npt.NDArray[np.float32], beside: Array) -> Array:
        """A numpy array as the set takes it, on the device of `beside`."""
