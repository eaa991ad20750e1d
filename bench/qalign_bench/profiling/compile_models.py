"""Precisions and a GPU in, the kernels of random models in them compiled by all cores out.

    python -m qalign_bench.profiling.compile_models random:one-align --precision int8 --precision fp8

What the first load would do, for several models at once and beside anything else: a GPU is asked for its facts alone.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from qalign_bench.contestants.random_model import PRECISION, launches, make
from qalign_fast.engines.compile_ahead import compile_ahead
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.cuda.ahead import cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="random:one-align, random:mini or random:FOLDER")
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    options = parser.parse_args()
    started, precisions = time.perf_counter(), options.precision or [PRECISION]
    models = [launches(make(options.model, precision, torch.device("meta"))) for precision in precisions]
    whole = compile_ahead(models, torch.device(options.device), options.processes or cores())
    print(
        f"{', '.join(precisions)}: {'compiled' if whole else 'not all compiled'}, {time.perf_counter() - started:.0f} s"
    )
    sys.exit(not whole)


if __name__ == "__main__":
    main()
