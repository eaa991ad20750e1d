"""Pictures and prompts in, the rows that every linear reads out, one block of the model at a time.

The pictures' rows go through the unquantized model as its blocks come, so that only one block has to be in memory. The
prompts' constant prefixes go along: the same pass gives their keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from qalign_export.rounding.fold import Block, Tensors
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.layout import Layout, turns_of
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Prompt, with_parts
from qalign_kernels.contract.attention import rotate
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.weight import Weight

_ROWS = 2048  # rows of a linear's input that are kept, spread over all that it reads


class Trace:
    """Runs each block once, in the order of `fold.blocks`. Without pictures only prefixes are computed."""

    def __init__(self, config: ModelConfig, prompts: Sequence[Prompt], embed: Tensor, pixels: Tensor) -> None:
        """pixels: uint8 [B, S, S, 3], split among the image prompts and their parts; B may be 0.

        embed: the vocabulary's [V, D].
        """
        self._recorder = _Recorder()
        self._model = FoldedModel(config, {}, self._recorder)
        self._pixels = pixels
        self._prompts = prompts = with_parts(prompts)
        self.suffixes = {p.suffix: embed[list(p.suffix)] for p in prompts}  # [S, D] each
        self._prefix_rows = {p.prefix: embed[list(p.prefix)] for p in prompts}
        self.prefixes: dict[tuple[int, ...], list[Tensor]] = {
            ids: [] for ids in self._prefix_rows
        }  # [2, P, H, Dh] each
        self._x = torch.empty(0)
        self._features: list[tuple[Tensor, Tensor]] = []
        self._texts: list[tuple[Prompt, Tensor, Layout]] = []
        self._run_by_kind: dict[str, Callable[[int], None]] = {
            "embedding": self._run_embedding,
            "vision_layer": self._run_vision_layer,
            "features": self._run_features,
            "abstractor_layer": self._run_abstractor_layer,
            "tokens": self._run_tokens,
            "decoder_layer": self._run_decoder_layer,
            "head": lambda _: None,  # nothing reads what it gives
        }

    @torch.no_grad()
    def run(self, block: Block, tensors: Mapping[str, Tensor]) -> Tensors:
        """Each linear of the block -> the rows [R, K] that it reads, R 2048 at most. Empty without pictures."""
        self._model.tensors = tensors
        self._recorder.inputs, self._recorder.largest = {}, {}
        if block.kind == "decoder_layer":
            self._advance_prefixes(block.index)
        self._recorder.recording = True
        if len(self._pixels):
            self._run_by_kind[block.kind](block.index)
        self._recorder.recording = False
        return {name: _sample(parts) for name, parts in self._recorder.inputs.items()}

    @property
    def largest(self) -> dict[str, float]:
        """The largest magnitude that went into or came out of each linear of the block, over all rows."""
        return self._recorder.largest

    def divide_values(self, i: int, s: Tensor) -> None:
        """Divides the prefixes' values of decoder layer i by s [D]."""
        for layers in self.prefixes.values():
            layers[i][1] /= s.view(layers[i].shape[2:])

    def _run_embedding(self, _: int) -> None:
        self._x = self._model.embed_patches(self._pixels)

    def _run_vision_layer(self, i: int) -> None:
        self._x = self._model.vision_layer(i, self._x, len(self._pixels))

    def _run_features(self, _: int) -> None:
        self._features = list(self._model.project_features(self._x, len(self._pixels)))

    def _run_abstractor_layer(self, i: int) -> None:
        self._x = self._model.abstractor_layer(i, self._x, *self._features[i])

    def _run_tokens(self, _: int) -> None:
        tokens = self._model.visual_tokens(self._x)
        self._features = []
        chosen = [p for p in self._prompts if p.medium == "image"][: len(tokens)]
        for j, prompt in enumerate(chosen):
            part, suffix = tokens[j :: len(chosen)], self.suffixes[prompt.suffix]
            turns = turns_of(self._model.config.decoder, len(prompt.prefix), part.shape[1] + len(suffix))
            layout = Layout(len(part), part.shape[1], PLAIN.place(turns, part))
            self._texts.append((prompt, layout.rows(part, suffix, PLAIN), layout))

    def _run_decoder_layer(self, i: int) -> None:
        self._texts = [
            (prompt, self._model.decoder_layer(i, rows, layout, self.prefixes[prompt.prefix][i]), layout)
            for prompt, rows, layout in self._texts
        ]

    def _advance_prefixes(self, i: int) -> None:
        config = self._model.config.decoder
        for ids, rows in self._prefix_rows.items():
            layout = Layout(1, 0, PLAIN.place(turns_of(config, 0, len(ids)), rows))
            self.prefixes[ids].append(self._prefix_keys_values(i, rows, layout))
            if i < config.layers - 1:
                nothing = rows.new_empty(2, 0, config.heads, config.width // config.heads)
                self._prefix_rows[ids] = self._model.decoder_layer(i, rows, layout, nothing)

    def _prefix_keys_values(self, i: int, rows: Tensor, layout: Layout) -> Tensor:
        """The text rows [P, D] of one prefix before layer i -> its keys (rotated) and values [2, P, H, Dh]."""
        name = f"decoder.layers.{i}."
        kv = self._model.linear(f"{name}kv_text", self._model.modal_norm(f"{name}attention_norm", rows, 0))
        k, v = kv.unflatten(-1, (2, self._model.config.decoder.heads, -1)).unbind(1)
        return torch.stack((rotate(k.unsqueeze(0), layout.turns)[0], v))


class _Recorder(Ops):
    """Plain operations that keep the inputs of every linear while `recording`."""

    def __init__(self) -> None:
        self.inputs: dict[str, list[Tensor]] = {}
        self.largest: dict[str, float] = {}
        self.recording = False

    def product(self, x: Tensor, w: Weight) -> Tensor:
        y = super().product(x, w)
        if self.recording:
            self.inputs.setdefault(w.name, []).append(x.flatten(0, -2))
            reach = max(float(t.abs().max()) for t in (x, y) if t.numel())
            self.largest[w.name] = max(reach, self.largest.get(w.name, 0.0))
        return y


def _sample(parts: list[Tensor]) -> Tensor:
    rows = torch.cat(parts)
    return rows[:: -(-len(rows) // _ROWS)].clone()
