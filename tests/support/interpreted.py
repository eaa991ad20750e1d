"""Tests of Triton's kernels on any machine: on a GPU if there is one, else on a CPU by Triton's interpreter.

The interpreter runs in a process of its own, one for all tests. Triton decides whether to interpret when it is
imported, and another test may have imported it in this process. This file therefore does not import Triton.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, wraps
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import torch

GPU = torch.cuda.is_available()


def interpreted(check: Callable[..., None]) -> Callable[..., None]:
    """Makes a check a test, in a process in which kernels can run. Its module must be importable by its name."""

    @wraps(check)
    def test(**case: Any) -> None:
        if GPU:  # in this process, where Triton compiles
            torch.manual_seed(0)
            check(**case)
        else:
            _interpreter().submit(_run, check.__module__, check.__name__, case).result()

    return test


@cache
def _interpreter() -> Executor:
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_interpret)


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def _run(module: str, name: str, case: dict[str, Any]) -> None:
    torch.manual_seed(0)
    getattr(import_module(module), name).__wrapped__(**case)
