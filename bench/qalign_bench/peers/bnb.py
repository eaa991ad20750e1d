"""A checkpoint or random weights in; scores and times of `eager_model.py` on bitsandbytes' linears out.

    python bnb.py '{"model": "random:one-align", "precision": "int8"}'      or "nf4"

Every linear but the head is replaced, as transformers does for load_in_8bit and load_in_4bit, with upstream's
settings. The rest is what hf_eager.py is: this project's re-make of upstream's way.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import nn

from qalign_bench.peers.hf_eager import EagerPeer, load_model
from qalign_bench.peers.loop import PeerError, Spec, serve

_OUTLIERS = 6.0  # LLM.int8()'s threshold: columns with larger values stay in 16 bits
_BLOCK = 64  # weights that share a scale in NF4


def load(spec: Spec) -> EagerPeer:
    """Raises PeerError where bitsandbytes is not installed, and for a model or precision that will not do."""
    bnb = import_bitsandbytes()
    make = {"int8": int8_linear, "nf4": nf4_linear}.get(spec.precision)
    if make is None:
        raise PeerError(f"precision {spec.precision!r} is not one this peer has: int8, nf4")
    dtype = torch.bfloat16 if spec.device.type == "cpu" else torch.float16
    model = load_model(spec, dtype, torch.device("cpu"))
    stations = nn.ModuleList((model.vision, model.abstractor, model.decoder))
    if spec.precision == "nf4" and spec.device.type == "cpu":
        check_widths(stations)
    replace_linears(stations, partial(make, bnb), spec.device)
    name = f"bitsandbytes {spec.precision} in upstream's way (this project's re-make of it, not upstream's code)"
    return EagerPeer(model.to(spec.device), spec, name, ("bitsandbytes",))


def import_bitsandbytes() -> ModuleType:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise PeerError(f"{sys.executable} has no bitsandbytes ({error}): pip install bitsandbytes") from error


def check_widths(stations: nn.Module) -> None:
    """Raises PeerError for rows of which bitsandbytes 0.50.2 on a CPU reads some back with other blocks' scales."""
    widths = {module.in_features for module in stations.modules() if isinstance(module, nn.Linear)}
    if wrong := sorted(width for width in widths if width % _BLOCK):
        raise PeerError(
            f"linears with {wrong} inputs: bitsandbytes' NF4 on a CPU is right for multiples of {_BLOCK} only"
        )


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module], device: torch.device) -> None:
    """In place, one after another: weights are rounded when they come to their device."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child).to(device))
        else:
            replace_linears(child, make, device)


def int8_linear(bnb: ModuleType, linear: nn.Linear) -> nn.Module:
    new: nn.Module = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, threshold=_OUTLIERS
    )
    new.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    new.bias = linear.bias
    return new.requires_grad_(False)


def nf4_linear(bnb: ModuleType, linear: nn.Linear) -> nn.Module:
    settings = {"quant_type": "nf4", "compress_statistics": True}  # scales are rounded too, as upstream asks
    new: nn.Module = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=linear.weight.dtype, **settings
    )
    new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, **settings)
    new.bias = linear.bias
    return new


if __name__ == "__main__":
    serve(load)
