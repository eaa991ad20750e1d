"""The peers bnb-int8 and bnb-nf4: `eager_model.py` on bitsandbytes' linears.

    python bnb.py '{"model": "random:one-align", "precision": "int8"}'      or "nf4"

Every linear but the head is replaced, as transformers does for load_in_8bit and load_in_4bit, with upstream's
settings. The rest is as in hf_eager.py: this project's re-make of upstream's way.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from qalign_bench.peers.hf_eager import EagerPeer, load_model
from qalign_bench.peers.loop import PeerError, Spec, serve
from qalign_fast.engines.bitsandbytes_linears import (
    check_widths,
    find_linears,
    import_bitsandbytes,
    int8_linear,
    linear_at,
    nf4_linear,
    replace,
)
from qalign_fast.errors import DeviceError, MissingExtraError


def load(spec: Spec) -> EagerPeer:
    """Raises PeerError where bitsandbytes is not installed, and for a model or precision that this peer cannot take."""
    make = {"int8": int8_linear, "nf4": nf4_linear}.get(spec.precision)
    if make is None:
        raise PeerError(f"precision {spec.precision!r} is not one this peer has: int8, nf4")
    try:
        bnb = import_bitsandbytes()
    except MissingExtraError as error:
        raise PeerError(f"{sys.executable}: {error}") from error
    dtype = torch.bfloat16 if spec.device.type == "cpu" else torch.float16
    model = load_model(spec, dtype, torch.device("cpu"))
    stations = nn.ModuleList((model.vision, model.abstractor, model.decoder))
    if spec.precision == "nf4" and spec.device.type == "cpu":
        refuse_widths(stations)
    for name in [*find_linears(stations)]:  # one after another: each is rounded when it comes to its device
        replace(stations, name, make(bnb, linear_at(stations, name)).to(spec.device))
    name = f"bitsandbytes {spec.precision} in upstream's way (this project's re-make of it, not upstream's code)"
    return EagerPeer(model.to(spec.device), spec, name, ("bitsandbytes",))


def refuse_widths(stations: nn.Module) -> None:
    """Raises PeerError for a model that bitsandbytes' NF4 gets wrong on a CPU."""
    try:
        check_widths(find_linears(stations).values())
    except DeviceError as error:
        raise PeerError(str(error)) from error


if __name__ == "__main__":
    serve(load)
