"""Options and models in, contestants out: the command lines of our engines, of the named peers and of the peak."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalign_bench.cli.options import Options, WrongOptionError
from qalign_bench.contestants.models import Model, upstream_bytes
from qalign_bench.contestants.onednn import held_to
from qalign_bench.contestants.process import Contestant
from qalign_export import random_numbers
from qalign_fast.families.mplug_owl2.sizes import ModelConfig

SEED = 0
_PEERS = Path(__file__).parents[1] / "peers"


@dataclass(frozen=True)
class _Peer:
    script: str
    precision: str | None  # None: the peer chooses a 16-bit float
    where: str | None = None  # the spec's key for the value after "="; None: there is no such value
    ours: bool = False  # it needs this project's packages alone, so it runs in this interpreter


_KNOWN = {
    "upstream": _Peer("upstream.py", None, "checkout"),
    "hf-eager": _Peer("hf_eager.py", None, ours=True),
    "bnb-int8": _Peer("bnb.py", "int8"),
    "bnb-nf4": _Peer("bnb.py", "nf4"),
}


def our_contestant(model: Model, options: Options) -> Contestant:
    """Our engine with a model."""
    spec = {
        "model": model.loaded,
        "engine": model.engine,
        "precision": model.manifest.precision,
        "device": options.device,
        "threads": options.threads,
        "seed": SEED,
        "instruction_set": options.instruction_set,
    }
    argv = (sys.executable, "-P", "-m", "qalign_bench.contestants.worker")
    name = f"{model.manifest.precision} {model.engine}".removesuffix(" auto")
    return Contestant(name, argv, spec, model.weights_bytes, held_to(options.instruction_set))


def peer_contestants(
    options: Options, parameters: str | None, config: ModelConfig | None, numbers: str | None = None
) -> list[Contestant]:
    """The peers that were named with --peer. Raises WrongOptionError for a name that is not known.

    `parameters`: the checkpoint or `random:` geometry that all load, with the sizes of `config`; both are None for
    pixels alone. `numbers`: the kind of `random_numbers`, as in `Model.numbers`.
    """
    found = []
    for text in options.peers:
        name, peer, own = _parse(text)
        spec = {
            "model": parameters,
            "engine": None,
            "precision": peer.precision,
            "device": options.device,
            "threads": options.threads,
            "seed": SEED,
            "random_numbers": random_numbers.__file__,
            "numbers": numbers or "parameter",
        }
        python = sys.executable if peer.ours else options.peer_python
        argv = (python, str(_PEERS / peer.script))  # a script, so that any interpreter can run it
        size = upstream_bytes(config, peer.precision or "bf16") if config else 0
        found.append(Contestant(name, argv, spec | own, size, held_to(options.instruction_set)))
    return found


def peak_contestant(device: str, options: Options) -> Contestant:
    """What measures the peak between the others' rounds."""
    argv = (sys.executable, "-P", "-m", "qalign_bench.contestants.peak")
    spec = {"device": device, "threads": options.threads, "instruction_set": options.instruction_set}
    return Contestant("peak", argv, spec, settings=held_to(options.instruction_set))


def check_peers(options: Options) -> None:
    """Raises WrongOptionError for a --peer that is not known or lacks its path."""
    for text in options.peers:
        _parse(text)


def _parse(text: str) -> tuple[str, _Peer, dict[str, Any]]:
    name, equals, value = text.partition("=")
    forms = ", ".join(f"{known}=PATH" if peer.where else known for known, peer in _KNOWN.items())
    peer = _KNOWN.get(name)
    if peer is None or bool(peer.where) != bool(value) or bool(peer.where) != bool(equals):
        raise WrongOptionError("--peer", f"{text!r} is not a peer; there are: {forms}")
    return name, peer, {peer.where: value} if peer.where else {}
