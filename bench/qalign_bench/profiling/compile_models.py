"""Compiles the kernels of random models for a GPU, on all cores.

    python -m qalign_bench.profiling.compile_models random:one-align --precision int8 --precision fp16

The first load of a model would do the same. This does it for several models at once, and other work can run beside it:
the GPU is only asked for its facts.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from qalign_bench.cli.options import DEFAULT_PRECISION
from qalign_bench.contestants.random_model import launches, make
from qalign_fast.engines.compile_ahead import compile_ahead
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.cores import cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="random:one-align, random:mini or random:FOLDER")
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, help="default: one for each core")
    options = parser.parse_args()
    started, precisions = time.perf_counter(), options.precision or [DEFAULT_PRECISION]
    models = [launches(make(options.model, precision, torch.device("meta"))) for precision in precisions]
    whole = compile_ahead(models, torch.device(options.device), options.processes or cores())
    print(
        f"{', '.join(precisions)}: {'compiled' if whole else 'not all compiled'}, {time.perf_counter() - started:.0f} s"
    )
    sys.exit(not whole)


if __name__ == "__main__":
    main()
