"""The arithmetic of a picture, ours and upstream's, against the table of targets and against what torch counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qalign_bench.figures.flop import Work, our_work, upstream_work
from qalign_export.options import ExportOptions
from qalign_export.parameters import ONE_ALIGN
from qalign_export.writer import export_artifact
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.torch_cpu import TorchEngine, load_folded
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_kernels.contract.ops import PLAIN
from support.goldens import GOLDEN, Golden

BOTH = (prompt("quality"), prompt("aesthetics"))


def rounded(work: Work) -> list[int]:
    return [round(1e-9 * n) for n in (work.vision, work.abstractor, work.decoder, work.head, work.total)]


def test_counts_of_one_align_are_those_of_the_op_by_op_table() -> None:
    """In GFLOP, the table of exact counts from which the project's targets were set."""
    assert rounded(our_work(ONE_ALIGN, BOTH[:1])) == [724, 38, 974, 0, 1735]
    assert rounded(upstream_work(ONE_ALIGN, BOTH[:1])) == [724, 38, 1196, 24, 1982]
    assert round(1e-9 * our_work(ONE_ALIGN, BOTH).total) == 2747
    assert round(1e-9 * upstream_work(ONE_ALIGN, BOTH).total) == 4043


def counted(call: Callable[[], Any]) -> tuple[int, Any]:
    """The FLOP that torch counts in a call, and what the call returned."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        found = call()
    return counter.get_total_flops(), found


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    out = tmp_path_factory.mktemp("folded") / "narrow"
    made = export_artifact(GOLDEN / "narrow-112", out, ExportOptions(engines=("torch",), tasks=["quality"]))
    return load_folded(open_artifact(made), ops=PLAIN)


@pytest.mark.parametrize("frames", [1, 3])
def test_our_count_is_what_torch_counts_in_the_folded_form(folded: TorchEngine, frames: int) -> None:
    config, asked = folded.config, prompt("quality", "video")
    pixels = np.zeros((frames, config.pixels.side, config.pixels.side, 3), np.uint8)
    encoding, tokens = counted(lambda: folded.encode(pixels))
    decoding, _ = counted(lambda: folded.decode(tokens.reshape(1, -1, config.decoder.width), asked))
    work = our_work(config, [asked], frames)
    assert work.vision + work.abstractor == encoding
    rows = frames * config.abstractor.tokens + len(asked.suffix)
    masked = rows * (rows - 1) // 2 * (config.decoder.layers - 1)  # pairs that plain torch computes and masks
    assert work.decoder + work.head + 4 * masked * config.decoder.width == decoding


def test_upstreams_count_is_what_torch_counts_in_the_reference(narrow: Golden) -> None:
    engine = load_engine(narrow.checkpoint)
    assert isinstance(engine, TorchEngine)
    config = engine.config
    pixels = np.zeros((1, config.pixels.side, config.pixels.side, 3), np.uint8)
    encoding, _ = counted(lambda: engine.encode(pixels))
    ids = [*BOTH[0].prefix, *[1] * config.abstractor.tokens, *BOTH[0].suffix]  # of text alone, but as long
    decoding, _ = counted(lambda: engine._model.decoder.prefix(ids))
    work = upstream_work(config, BOTH[:1])
    assert work.vision + work.abstractor == encoding
    assert work.decoder == decoding
    assert work.head == 2 * len(ids) * config.decoder.width * config.decoder.vocab
