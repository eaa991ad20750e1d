"""A contestant for test_bench.py: our own worker, but its engine sleeps before it encodes."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from qalign_bench.contestants.wire import Handler, Message, serve
from qalign_bench.contestants.worker import load
from qalign_fast.engines.contract import Engine, Tokens
from qalign_fast.families.prompt import Prompt

SLEEP_S = 0.5


class Slow:
    def __init__(self, engine: Engine) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.family, self.config, self.prompts = engine.family, engine.config, engine.prompts
        self.kernels = engine.kernels
        self.in_flight = engine.in_flight
        self._engine = engine

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        time.sleep(SLEEP_S)
        return self._engine.encode(pixels)

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        return self._engine.decode(tokens, prompt)


def load_slow(spec: Message) -> tuple[Message, dict[str, Handler]]:
    return load(spec, wrap=Slow)


if __name__ == "__main__":
    serve(load_slow)
