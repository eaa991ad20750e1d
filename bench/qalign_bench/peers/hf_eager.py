"""The peer hf-eager: the model computed in upstream's way, for machines without a checkout of Q-Align.

    python hf_eager.py '{"model": "random:one-align"}'

It is not upstream's code; `eager_model.py` says what it re-makes. It loads a checkpoint or random weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qalign_bench.contestants.random_model import DeviceParameters
from qalign_bench.peers.eager_model import EagerModel
from qalign_bench.peers.loop import Peer, PeerError, Pictures, Spec, serve
from qalign_export.parameters import ParameterSource, open_parameters
from qalign_fast.errors import QAlignError
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import LEVEL_IDS, TASKS, prompt
from qalign_fast.levels import WEIGHTS

_NAME = "upstream's way (this project's re-make of it, not upstream's code)"


def load(spec: Spec) -> EagerPeer:
    """Raises PeerError for a model that cannot be read."""
    return EagerPeer(load_model(spec, spec.dtype(), spec.device), spec, _NAME)


def load_model(spec: Spec, dtype: torch.dtype, device: torch.device) -> EagerModel:
    """Raises PeerError for a model that cannot be read."""
    if spec.model is None:
        raise PeerError("the spec has no model; this peer needs one, for it has no pixel path of its own")
    try:
        counted = spec.own.get("numbers") == "counted"
        source = DeviceParameters(spec.model, device) if counted else open_parameters(spec.model)
        stations = load_stations(source, dtype, device)
    except QAlignError as error:
        raise PeerError(str(error)) from error
    return EagerModel(stations, whole_head(stations)).eval().requires_grad_(False)


def load_stations(source: ParameterSource, dtype: torch.dtype, device: torch.device) -> Model:
    """Loads one parameter at a time. The peak of memory is the model and one parameter in float32."""
    with torch.device("meta"):
        stations = Model(source.config)
    tensors = {name: source.read([name])[name].to(device, dtype) for name in stations.state_dict()}
    stations.load_state_dict(tensors, assign=True)
    return stations


def whole_head(stations: Model) -> nn.Linear:
    """A head with as many rows as upstream's. The levels' rows are in their places; nobody reads the others, which
    are embeddings.
    """
    rows = stations.decoder.embed.detach().clone()  # [vocabulary, D]
    rows[list(LEVEL_IDS)] = stations.decoder.head.detach()
    with torch.device("meta"):
        head = nn.Linear(rows.shape[1], len(rows), bias=False)
    head.weight = nn.Parameter(rows)
    return head


class EagerPeer(Peer):
    """An `EagerModel` on a device, in the dtype of its head."""

    pixel_path = None

    def __init__(self, model: EagerModel, spec: Spec, name: str, packages: tuple[str, ...] = ()) -> None:
        self.name, self.packages = name, packages
        self.precision, self.device = spec.precision, spec.device
        self.side = model.config.pixels.side
        self.weights_bytes = sum(t.nbytes for t in model.state_dict().values())
        self.stations = dict(model.named_children())
        self.model, self._dtype = model, model.head.weight.dtype
        self._weights = torch.from_numpy(WEIGHTS).to(self.device, self._dtype)

    def prepare(self, pictures: Pictures) -> Tensor:
        rule = self.model.config.pixels
        values = (torch.from_numpy(pictures) / 255 - torch.tensor(rule.mean)) / torch.tensor(rule.std)
        return values.permute(0, 3, 1, 2).to(self.device, self._dtype).contiguous()  # [B, 3, S, S]

    @torch.inference_mode()
    def score(self, prepared: Tensor, task: str) -> list[float]:
        if task not in TASKS:
            raise PeerError(f"task {task!r} is not one this peer has: {', '.join(TASKS)}")
        logits = self.model(prepared, prompt(task))[:, -1, list(LEVEL_IDS)]  # [B, 5]
        scores: list[float] = (logits.softmax(-1) @ self._weights).tolist()  # in the model's dtype, as upstream does
        return scores


if __name__ == "__main__":
    serve(load)
