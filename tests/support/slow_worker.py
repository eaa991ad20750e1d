"""A contestant for test_report.py alone: our own worker with an engine that sleeps before it encodes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from qalign_bench.contestants import worker
from qalign_bench.contestants.wire import serve
from qalign_fast.engines.contract import Engine, Tokens
from qalign_fast.engines.load import load_engine
from qalign_fast.families.prompt import Prompt

SLEEP_S = 2.0  # far more than a forward takes on a busy machine


class Slow:
    def __init__(self, engine: Engine) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.family, self.config, self.prompts = engine.family, engine.config, engine.prompts
        self.kernels = engine.kernels
        self.in_flight, self.tail = engine.in_flight, engine.tail
        self._engine = engine

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        time.sleep(SLEEP_S)
        return self._engine.encode(pixels)

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        return self._engine.decode(tokens, prompt)


def load_slow(*arguments: Any, **options: Any) -> Engine:
    return Slow(load_engine(*arguments, **options))


if __name__ == "__main__":
    worker.load_engine = load_slow
    serve(worker.load)
