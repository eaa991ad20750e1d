"""The predictor counts the launches of the engine: fewer than there once were, and as many as a driver gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support.goldens import GOLDEN

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_bench.contestants.random_model import make
from qalign_bench.profiling.predict import H100, Counted, foresee
from qalign_fast.engines.cuda_model import build_model
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_kernels.cuda.ahead import Idle
from qalign_kernels.cuda.ops import TritonOps
from qalign_kernels.cuda.runtime import set_driver
from support.triton_ahead import DEVICES

NARROW = f"random:{GOLDEN / 'narrow-112'}"


class Counting(Idle):
    """A driver that launches nothing and counts."""

    launches = 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(*_: Any) -> None:
            self.launches += 1

        return launch


@pytest.fixture
def driver() -> Counting:
    found = Counting(DEVICES[90])
    set_driver(found)
    return found


def test_a_picture_takes_fewer_launches_than_it_did() -> None:
    """int8 at full size: it had 315 and 365 before q, k and v were one product and patches came from uint8."""
    launches = foresee(H100, "int8", 1)["launches"]
    assert launches["encode"] <= 314
    assert launches["decode"] <= 292


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_what_is_counted_is_what_is_launched(precision: str, driver: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(self: TritonOps, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        driver.launches += 1  # one kernel of torch's, which on the meta device is many
        return torch.empty(q.shape, dtype=self.dtype, device=q.device)

    monkeypatch.setattr(TritonOps, "attention", attention)
    model, meta = make(NARROW, precision, torch.device("meta")), torch.device("meta")
    config, name = model.manifest.config, model.manifest.prompts[0].prompt.name
    run, constants = build_model(FAMILY, config, precision, model.tensors, model.constants, meta, DEVICES[90])
    side, tokens = config.pixels.side, config.abstractor.tokens
    turns = run.turns(tokens, *constants[name])
    steps: dict[str, Callable[[], Tensor]] = {
        "encode": lambda: run.encode(torch.empty(2, side, side, 3, dtype=torch.uint8, device="meta")),
        "decode": lambda: run.decode(
            torch.empty(2, tokens, config.decoder.width, dtype=torch.float16, device="meta"), *constants[name], turns
        ),
    }
    expected = foresee(H100, precision, 2, NARROW)["launches"]
    for step, launch in steps.items():
        with torch.inference_mode():
            launch()  # what is made once
            driver.launches = 0
            with Counted() as torchs:
                launch()
        assert driver.launches + torchs.launches == expected[step], step
