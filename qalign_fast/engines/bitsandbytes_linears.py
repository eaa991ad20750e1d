"""An upstream checkpoint in, the reference model on bitsandbytes' linears out, one tensor at a time.

Every linear of the three stations is rounded, by LLM.int8() (Dettmers et al., NeurIPS 2022) or to NF4 (QLoRA, NeurIPS
2023), with the settings that transformers uses for load_in_8bit and load_in_4bit. Linears take and return 16 bits,
because bitsandbytes rounds from 16 bits. Residuals, norms, rotary positions and softmax are float32. So are the patch
embedding, the positions and the head's five rows, which are small; they add no error to that of the linears. The
embeddings of the vocabulary are the one large tensor left. They stay in 16 bits, as checkpoints have them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from qalign_fast.engines.devices import Needs
from qalign_fast.errors import DeviceError, MissingExtraError, one_line
from qalign_fast.families.family import Checkpoint, Family, Reference

_OUTLIERS = 6.0  # LLM.int8()'s threshold: a column of inputs with a larger value anywhere in the batch stays in 16 bits
_BLOCK = 64  # weights that share a scale in NF4
_EMBED = "decoder.embed"


def load_model(family: Family, directory: Path, precision: str, device: str, base: Path | None = None) -> Reference:
    """The model of an upstream checkpoint's directory on a device, in eval mode. `precision` is one of PRECISIONS.

    `base` is the checkpoint that an adapter's directory is for. While loading, the host holds a few copies of the
    largest tensor, beside the tensors that stay there. Raises CheckpointError as the family's checkpoint reader does,
    MissingExtraError without bitsandbytes, and DeviceError for what bitsandbytes or the device cannot do.
    """
    kind, bnb = PRECISIONS[precision], import_bitsandbytes()
    models = family.models()
    checkpoint = models.Checkpoint(directory, base)
    with torch.device("meta"):
        model = models.Model(checkpoint.config, checkpoint.anchors).requires_grad_(False).eval()
    if kind.make is nf4_linear and device == "cpu":
        check_widths(find_linears(model).values())
    try:
        _fill(model, checkpoint, device)
        _fill_linears(model, checkpoint, device, kind.dtype(device), partial(kind.make, bnb))
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"device {device!r}: {kind.needs.who} failed there ({one_line(error)}); `qalign-fast export` makes "
            "artifacts in int8 and int4, which need no bitsandbytes"
        ) from error
    return cast(Reference, model)


def _fill(model: nn.Module, checkpoint: Checkpoint, device: str) -> None:
    """Fills in all parameters but the linears' weights."""
    weights = {f"{name}.weight" for name in find_linears(model)}
    tensors = checkpoint.stream(name for name in checkpoint.origins if name not in weights)
    filled = {name: tensor.to(device, torch.float16 if name == _EMBED else None) for name, tensor in tensors}
    missing, _ = model.load_state_dict(filled, strict=False, assign=True)
    assert set(missing) == weights


def _fill_linears(
    model: nn.Module, checkpoint: Checkpoint, device: str, dtype: torch.dtype, make: Callable[[nn.Linear], nn.Module]
) -> None:
    for key, weight in checkpoint.stream([f"{name}.weight" for name in find_linears(model)]):
        name = key.removesuffix(".weight")
        linear = linear_at(model, name)
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        replace(model, name, finish(make(linear), linear.in_features, device))


def find_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every torch linear in the model, by its name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """The linear of that name."""
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in the place of the one that has that name."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, new)


@torch.no_grad()
def finish(linear: nn.Module, width: int, device: str) -> nn.Module:
    """Rounds a linear of `width` inputs and calls it once.

    bitsandbytes rounds on the way to the device. The first call rearranges weights, which two threads must not do at
    the same time. It also shows early what does not run on the device.
    """
    linear.to(device)(torch.ones(1, width, device=device))
    return linear


def int8_linear(bnb: ModuleType, linear: nn.Linear) -> nn.Module:
    """LLM.int8(): weights have a scale for each output, and rows one for each row. Outlier columns stay in 16 bits."""
    new: nn.Module = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        has_fp16_weights=False,
        threshold=_OUTLIERS,
        device="meta",
    )
    new.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    new.bias = linear.bias
    # in training mode bitsandbytes does not round rows on a CPU
    return Rounded(new, linear.out_features, torch.float16).train(linear.training)


def nf4_linear(bnb: ModuleType, linear: nn.Linear) -> nn.Module:
    """NF4 in blocks of 64 weights, whose scales are rounded too. It computes in the dtype of the linear's weights."""
    settings = {"quant_type": "nf4", "compress_statistics": True}
    new: nn.Module = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        device="meta",
        **settings,
    )
    new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, **settings)
    new.bias = linear.bias
    return Rounded(new, linear.out_features, linear.weight.dtype).train(linear.training)


class Rounded(nn.Module):
    """Wraps a linear of bitsandbytes: takes rows of any dtype, and returns that dtype.

    It also accepts an empty batch, which crashes bitsandbytes' NF4 on a CPU.
    """

    def __init__(self, inner: nn.Module, width: int, dtype: torch.dtype) -> None:
        """`inner`: the linear, of `width` outputs, which takes rows of `dtype`."""
        super().__init__()
        self.inner, self.width, self.dtype = inner, width, dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in x's dtype."""
        if not x.numel():
            return x.new_empty((*x.shape[:-1], self.width))
        y: Tensor = self.inner(x.to(self.dtype))
        return y.to(x.dtype)


def check_widths(linears: Iterable[nn.Linear]) -> None:
    """Raises DeviceError for linears whose number of inputs is no multiple of 64, so that blocks span two rows.

    On a CPU bitsandbytes 0.49 and 0.50 read some of these blocks with another block's scale, and fail on others.
    """
    if wrong := sorted({linear.in_features for linear in linears if linear.in_features % _BLOCK}):
        raise DeviceError(
            f"linears with {wrong} inputs: bitsandbytes' NF4 on a CPU is right for multiples of {_BLOCK} only; "
            "bnb-int8 and fp32 work"
        )


def import_bitsandbytes() -> ModuleType:
    """The package. Raises MissingExtraError if it cannot be imported."""
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtraError(
            f"bnb-int8 and bnb-nf4 need bitsandbytes, which is not installed: pip install 'qalign-fast[bnb]' ({error})"
        ) from error


@dataclass(frozen=True)
class Kind:
    """One way in which bitsandbytes rounds a linear."""

    make: Callable[[ModuleType, nn.Linear], nn.Module]  # the rounded linear, of the package and a torch linear
    needs: Needs
    on_cpu: torch.dtype  # the dtype that it computes in on a CPU

    def dtype(self, device: str) -> torch.dtype:
        """The dtype that it computes in."""
        return self.on_cpu if device == "cpu" else torch.float16


PRECISIONS = {
    "bnb-int8": Kind(int8_linear, Needs("bitsandbytes' kernels for LLM.int8()", (7, 5)), torch.float16),
    # bitsandbytes' kernels for CPUs compute in bfloat16, whatever dtype they are given
    "bnb-nf4": Kind(nf4_linear, Needs("bitsandbytes' kernels for NF4", (6, 0)), torch.bfloat16),
}
