"""Checks on a GPU that graphs of kernels give what the same kernels give one by one, bit for bit.

    python -m qalign_bench.profiling.graph_check random:one-align --precision int8 --batch 1 --batch 64 [--json OUT]

Two engines have the same tensors. `Graphs` launches the kernels of one, `Direct` those of the other. Every batch runs
twice, with other pictures the second time, which shows a graph that reads what it should not. The exit status is 1
where a logit differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qalign_bench.cli.options import DEFAULT_PRECISION
from qalign_bench.contestants.random_model import load, make
from qalign_bench.figures.environment import environment
from qalign_bench.peers.measured_process import random_pictures
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.cuda_graphs import Direct
from qalign_kernels.contract.precisions import PRECISIONS

_TIMES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="random:one-align, random:mini or random:FOLDER")
    parser.add_argument("--precision", choices=PRECISIONS, default=DEFAULT_PRECISION)
    parser.add_argument("--batch", type=int, action="append", required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    place = torch.device(options.device)
    model = make(options.model, options.precision, place)
    again = replace(model, tensors=dict(model.tensors))
    graphs, direct = load(model, options.device), load(again, options.device, Direct(place))
    rows = []
    for batch in options.batch:
        difference = max(largest_difference(graphs, direct, batch, seed) for seed in range(_TIMES))
        rows.append({"precision": options.precision, "batch": batch, "largest_difference": difference})
        print(f"{options.precision}, batch {batch}: largest difference of a logit {difference:g}", flush=True)
        if options.json:
            options.json.write_text(json.dumps({"environment": environment(), "batches": rows}, indent=1) + "\n")
    sys.exit(any(row["largest_difference"] for row in rows))


def largest_difference(a: Engine, b: Engine, batch: int, seed: int) -> float:
    """The largest difference of a logit over the prompts for pictures; infinite where a logit is not a number."""
    pixels = random_pictures(seed, batch, a.config.pixels.side)
    mine, other = a.encode(pixels), b.encode(pixels)
    prompts = [p for p in a.prompts if p.medium == "image"]
    found = [np.abs(a.decode(mine, p) - b.decode(other, p)).max() for p in prompts]
    return float(max(found)) if np.isfinite(found).all() else float("inf")


if __name__ == "__main__":
    main()
