"""An upstream checkpoint in, the reference model on bitsandbytes' linears out, one tensor at a time.

Every linear of the three stations is rounded, by LLM.int8() or to NF4, with the settings that transformers gives
load_in_8bit and load_in_4bit. Linears take and give 16 bits, for that is what bitsandbytes rounds from. All between
them, residuals, norms, rotary positions and softmax, is float32, and so are the patch embedding, positions and the
head's five rows: they are small, and add no error to the linears' own. The vocabulary's embeddings are the one large
tensor left; they are kept in 16 bits, which is what checkpoints have.
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

_OUTLIERS = 6.0  # LLM.int8()'s threshold: columns of inputs that are larger anywhere in a batch stay in 16 bits
_BLOCK = 64  # weights that share a scale in NF4
_EMBED = "decoder.embed"


def load_model(family: Family, directory: Path, precision: str, device: str) -> Reference:
    """The model of an upstream checkpoint directory on a device, in eval mode; `precision` is one of PRECISIONS.

    The host holds the largest tensor a few times over beside what stays there. Raises CheckpointError as
    the family's checkpoint reader does, MissingExtraError, DeviceError for what bitsandbytes or the device cannot do.
    """
    kind, bnb = PRECISIONS[precision], import_bitsandbytes()
    models = family.models()
    checkpoint = models.Checkpoint(directory)
    with torch.device("meta"):
        model = models.Model(checkpoint.config).requires_grad_(False).eval()
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
    """All but the linears' weights."""
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
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, new)


@torch.no_grad()
def finish(linear: nn.Module, width: int, device: str) -> nn.Module:
    """Rounds it, which bitsandbytes does on the way to the device, and calls it once: the first call rearranges
    weights, which two threads must not do at a time, and shows what does not run there.
    """
    linear.to(device)(torch.ones(1, width, device=device))
    return linear


def int8_linear(bnb: ModuleType, linear: nn.Linear) -> nn.Module:
    """LLM.int8(): weights by output, rows by row, to 8 bits, but for the columns of inputs that have outliers."""
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
    # in training mode it does not round rows on a CPU
    return Rounded(new, linear.out_features, torch.float16).train(linear.training)


def nf4_linear(bnb: ModuleType, linear: nn.Linear) -> nn.Module:
    """NF4 in blocks of 64 weights, their scales rounded too; it computes in the type of the linear's weights."""
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
    """A linear of bitsandbytes among rows of any type, and of any number: in NF4 on a CPU none end the process."""

    def __init__(self, inner: nn.Module, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.width, self.dtype = inner, width, dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], of x's type."""
        if not x.numel():
            return x.new_empty((*x.shape[:-1], self.width))
        y: Tensor = self.inner(x.to(self.dtype))
        return y.to(x.dtype)


def check_widths(linears: Iterable[nn.Linear]) -> None:
    """Raises DeviceError for rows whose blocks straddle: on a CPU bitsandbytes 0.49 and 0.50 read some of them back
    with other blocks' scales, and fail on others.
    """
    if wrong := sorted({linear.in_features for linear in linears if linear.in_features % _BLOCK}):
        raise DeviceError(
            f"linears with {wrong} inputs: bitsandbytes' NF4 on a CPU is right for multiples of {_BLOCK} only; "
            "bnb-int8 and fp32 work"
        )


def import_bitsandbytes() -> ModuleType:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingExtraError(
            f"bnb-int8 and bnb-nf4 need bitsandbytes, which is not installed: pip install 'qalign-fast[bnb]' ({error})"
        ) from error


@dataclass(frozen=True)
class Kind:
    make: Callable[[ModuleType, nn.Linear], nn.Module]
    needs: Needs
    on_cpu: torch.dtype

    def dtype(self, device: str) -> torch.dtype:
        """What it computes in."""
        return self.on_cpu if device == "cpu" else torch.float16


PRECISIONS = {
    "bnb-int8": Kind(int8_linear, Needs("bitsandbytes' kernels for LLM.int8()", (7, 5)), torch.float16),
    # its kernels for CPUs compute in bfloat16, whatever they are given
    "bnb-nf4": Kind(nf4_linear, Needs("bitsandbytes' kernels for NF4", (6, 0)), torch.bfloat16),
}
