"""Pictures and prompts in, the rows that every linear reads out, one block of the model at a time.

The pictures' rows go through the unquantized model as its blocks come, so that only one block has to be in memory. The
prompts' constant prefixes go along, and so do the pictures that they show: the same pass gives their keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qalign_export.rounding.fold import Block, Tensors
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.layout import Layout, turns_of
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Before, Prompt, with_parts
from qalign_kernels.contract.attention import rotate
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.weight import Weight

# Its words are those of `aesthetics` in another order, and only data sets are evaluated by it: pictures are better
# spent on the other prompts.
_SAME_WORDS = ("aesthetics-paper",)
_ROWS = 2048  # rows of a linear's input that are kept, spread over all that it reads


class Trace:
    """Runs each block once, in the order of `fold.blocks`. Without pictures only prefixes are computed."""

    def __init__(
        self, config: ModelConfig, prompts: Sequence[Prompt], embed: Tensor, pixels: Tensor, anchors: Tensor
    ) -> None:
        """pixels: uint8 [B, S, S, 3], split among the image prompts and their parts; B may be 0.

        embed: the vocabulary's [V, D]. anchors: pixels [A, S, S, 3] of the pictures that prompts show; A may be 0.
        """
        self._recorder = _Recorder()
        self._model = FoldedModel(config, {}, self._recorder)
        self._pictures, self._anchors = _Pictures(self._model, pixels), _Pictures(self._model, anchors)
        self._prompts = prompts = with_parts(prompts)
        self._embed = {ids: embed[list(ids)] for ids in _texts(prompts)}  # [S, D] each
        self.suffixes = {p.suffix: self._embed[p.suffix] for p in prompts}
        self.prefixes: dict[Before, list[Tensor]] = {}  # each layer's [2, P, H, Dh]
        self._prefix_rows: dict[Before, tuple[Tensor, Layout]] = {}
        self._texts: list[tuple[Prompt, Tensor, Layout]] = []

    @torch.no_grad()
    def run(self, block: Block, tensors: Mapping[str, Tensor]) -> Tensors:
        """Each linear of the block -> the rows [R, K] that it reads, R 2048 at most. Empty without pictures."""
        self._model.tensors = tensors
        self._recorder.inputs, self._recorder.largest = {}, {}
        if block.kind == "decoder_layer":
            self._advance_prefixes(block.index)
        else:
            self._anchors.run(block.kind, block.index)
        self._recorder.recording = True
        if len(self._pictures.pixels):
            if block.kind == "decoder_layer":
                self._run_decoder_layer(block.index)
            else:
                self._pictures.run(block.kind, block.index)
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

    def _run_decoder_layer(self, i: int) -> None:
        if i == 0:
            self._texts = list(self._begin_texts())
        self._texts = [
            (prompt, self._model.decoder_layer(i, rows, layout, self.prefixes[prompt.before][i]), layout)
            for prompt, rows, layout in self._texts
        ]

    def _begin_texts(self) -> Iterator[tuple[Prompt, Tensor, Layout]]:
        """Each prompt with its share of the pictures, as rows before layer 0."""
        tokens = self._pictures.tokens
        images = [p for p in self._prompts if p.medium == "image"]
        chosen = ([p for p in images if p.task not in _SAME_WORDS] or images)[: len(tokens)]
        for j, prompt in enumerate(chosen):
            start = self.prefixes[prompt.before][0].shape[1]
            yield (prompt, *self._rows(tokens[j :: len(chosen)], self.suffixes[prompt.suffix], start))

    def _rows(self, tokens: Tensor, text: Tensor, start: int) -> tuple[Tensor, Layout]:
        """Visual tokens [B, V, D] and text rows [S, D] from position `start` on -> rows [N, D] and their layout."""
        turns = turns_of(self._model.config.decoder, start, tokens.shape[1] + len(text))
        layout = Layout(len(tokens), tokens.shape[1], PLAIN.place(turns, text))
        return layout.rows(tokens, text, PLAIN), layout

    def _begin_prefixes(self) -> None:
        """What stands before the pictures, as rows before layer 0. Text comes before the anchors that follow it."""
        for p in self._prompts:
            text = self._embed[p.prefix]
            self._prefix_rows[p.prefix] = self._rows(text.new_empty(1, 0, text.shape[1]), text, 0)
        for p in (p for p in self._prompts if p.anchor):
            assert p.anchor
            shown = self._anchors.tokens[p.anchor.number : p.anchor.number + 1]
            self._prefix_rows[p.before] = self._rows(shown, self._embed[p.anchor.after], len(p.prefix))
        self.prefixes = {before: [] for before in self._prefix_rows}

    def _advance_prefixes(self, i: int) -> None:
        if i == 0:
            self._begin_prefixes()
        config = self._model.config.decoder
        texts = {p.before: p.prefix for p in self._prompts if p.anchor}
        for before, (rows, layout) in self._prefix_rows.items():
            earlier = rows.new_empty(2, 0, config.heads, config.width // config.heads)
            if before in texts:
                earlier = self.prefixes[texts[before]][i]
            new = self._keys_values(i, rows, layout)
            self.prefixes[before].append(torch.cat((earlier, new), dim=1))
            if i < config.layers - 1:
                self._prefix_rows[before] = self._model.decoder_layer(i, rows, layout, earlier), layout

    def _keys_values(self, i: int, rows: Tensor, layout: Layout) -> Tensor:
        """Rows [N, D] of one sequence before layer i -> its keys (rotated) and values [2, N, H, Dh]."""
        name, split = f"decoder.layers.{i}.", layout.split
        normed = self._model.modal_norm(f"{name}attention_norm", rows, split)
        kv = self._model.linear(f"{name}kv_text", normed[split:])
        if split:
            kv = torch.cat((self._model.linear(f"{name}kv_visual", normed[:split]), kv))
        k, v = kv.unflatten(-1, (2, self._model.config.decoder.heads, -1)).unbind(1)
        return torch.stack((rotate(k.unsqueeze(0), layout.turns)[0], v))


class _Pictures:
    """Pictures on their way to visual tokens, block by block."""

    def __init__(self, model: FoldedModel, pixels: Tensor) -> None:
        """pixels: uint8 [B, S, S, 3]. Nothing is computed if B = 0."""
        self.pixels = pixels
        self.tokens = torch.empty(0, 0, model.config.decoder.width)  # [B, V, D] after the block "tokens"
        self._model, self._x = model, torch.empty(0)
        self._features: list[tuple[Tensor, Tensor]] = []

    def run(self, kind: str, i: int) -> None:
        """Runs a block that is not of the decoder."""
        model, count = self._model, len(self.pixels)
        if not count:
            return
        if kind == "embedding":
            self._x = model.embed_patches(self.pixels)
        elif kind == "vision_layer":
            self._x = model.vision_layer(i, self._x, count)
        elif kind == "features":
            self._features = list(model.project_features(self._x, count))
        elif kind == "abstractor_layer":
            self._x = model.abstractor_layer(i, self._x, *self._features[i])
        elif kind == "tokens":
            self.tokens, self._features = model.visual_tokens(self._x), []
        else:
            assert kind == "head", kind  # nothing reads what it gives


def _texts(prompts: Sequence[Prompt]) -> Iterator[tuple[int, ...]]:
    """All texts of prompts, as ids."""
    for p in prompts:
        yield from (p.prefix, p.suffix, *([p.anchor.after] if p.anchor else []))


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
