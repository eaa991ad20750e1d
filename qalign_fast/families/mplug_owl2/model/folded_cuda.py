"""The folded model for one GPU: q, keys and values come from one product, and logits are float32."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Modal


class CudaModel(FoldedModel):
    """The folded model with float32 logits, because float16 logits would make scores visibly stepped."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], ops: Ops, exact: Ops) -> None:
        """`exact`: operations whose results are float32."""
        super().__init__(config, tensors, ops)
        self._exact = exact

    def queries_keys_values(
        self, name: str, normed: Tensor | QuantizedRows, split: int, asking: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As FoldedModel's; by one product if the three weights were stacked."""
        if f"{name}qkv.weight" not in self.tensors:
            return super().queries_keys_values(name, normed, split, asking)
        stacked, width = self.weight(f"{name}qkv"), self.config.decoder.width
        if asking == slice(None):
            y = self.ops.modal_linear(normed, stacked, Modal(split, width))
            return y[:, :width], y[:split, width:], y[split:, width:]
        y = self.ops.modal_linear(normed, stacked.part(width, len(stacked.weight)), Modal(split, 0))
        return self.linear(f"{name}q", normed[asking]), y[:split], y[split:]

    def logits(self, rows: Tensor) -> Tensor:
        """Last rows [B, D] -> float32 [B, N], by the `exact` operations."""
        gain = self.tensors["decoder.norm"]
        n = self._exact.rms_norm(rows, gain, gain, 0, self.config.decoder.eps)
        return self._exact.linear(n, self.weight("decoder.head"))
