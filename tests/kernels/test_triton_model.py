"""The operations on Triton's kernels as an engine uses them, and the whole model on them against upstream's goldens."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_export.parameters import open_parameters
from qalign_export.rounding.blockwise import fold_and_round
from qalign_export.rounding.quantizer import expand
from qalign_fast.engines.torch_weights import to_device
from qalign_fast.families.mplug_owl2.folded_schema import schema
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.q_scorer.prompts import PROMPTS as Q_SCORERS
from qalign_fast.families.q_scorer.prompts import SCORE_IDS
from qalign_fast.levels import score_of
from qalign_kernels.contract.linear import linear
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cuda import norm as norm_triton
from qalign_kernels.cuda import tiles
from qalign_kernels.cuda.ops import TritonOps
from qalign_kernels.cuda.tiles import table_key
from support.goldens import GOLDEN
from support.interpreted import GPU, interpreted
from support.triton_cases import (
    BY_ROWS,
    DEVICE,
    EPS,
    FACTS,
    FORMS,
    close,
    expected_linear,
    fp8_weight,
    int4_weight,
    int8_weight,
    on,
    rand,
)


@interpreted
def test_last_rows_are_taken_without_a_copy() -> None:
    ops, w = TritonOps(FACTS, torch.float32), int8_weight(96, 48)
    x, gain = rand(10, 96), torch.rand(96)
    rows = ops.rms_norm_for([w], on(x), on(gain), on(gain), 4, EPS)
    assert isinstance(rows, QuantizedRows)
    last = rows[6::3]  # two sequences of two visual and three text rows
    assert last.values.data_ptr() == rows.values[6].data_ptr()
    y = ops.linear(last, on(w))
    assert torch.equal(y, ops.linear(rows, on(w))[6::3])
    exact = norm_triton.rms_norm(on(x), on(gain), on(gain), 4, EPS).cpu()
    close(y, linear(exact[6::3], w), 1e-6)


@interpreted
def test_rows_are_in_8_bits_only_where_every_reader_takes_them() -> None:
    ops, x = TritonOps(FACTS, torch.float16), on(rand(3, 96))
    int8, int4, half = int8_weight(96, 16), int4_weight(96, 16), Weight("half", torch.zeros(16, 96).half())
    gain, fp8 = on(torch.ones(96)), fp8_weight(96, 16)
    cases = [([int8, int8], QuantizedRows), ([int8, half], Tensor), ([int4, int8], QuantizedRows), ([half], Tensor),
             ([int8, fp8], Tensor), ([int4, fp8], Tensor)]  # fmt: skip
    for readers, kind in cases + ([([fp8, fp8], QuantizedRows)] if E4M3 in BY_ROWS else []):
        found = [
            ops.rms_norm_for(readers, x, gain, gain, 2, EPS),
            ops.layer_norm_for(readers, x, gain, gain, EPS),
            ops.swiglu_for(readers, x),
        ]
        assert all(isinstance(one, kind) for one in found)
        assert all(one.values.dtype == readers[-1].weight.dtype for one in found if isinstance(one, QuantizedRows))
        assert all(one.dtype == torch.float16 for one in found[:2] if isinstance(one, Tensor))


@interpreted
def test_the_model_on_these_kernels_gives_upstreams_logits() -> None:
    source, tensors = open_parameters(GOLDEN / "narrow-112"), {}
    quality = prompt("quality")
    result = fold_and_round(source, "fp32", [quality], torch.empty(0), lambda name, x: tensors.update({name: on(x)}))
    expected = np.load(GOLDEN / "narrow-112/expected.npz")
    model = FoldedModel(source.config, tensors, TritonOps(FACTS, torch.float32))
    tokens = model.encode(on(torch.from_numpy(expected["resized_uint8"][:1])))
    logits = model.decode(tokens, on(result.prefixes[quality.prefix]), on(result.suffixes[quality.suffix]))
    np.testing.assert_allclose(logits.cpu().numpy(), expected["logits_quality_image"][:1], atol=2e-4)


@interpreted
def test_the_model_in_float16_by_torchs_own_products_gives_upstreams_scores() -> None:
    source, tensors = open_parameters(GOLDEN / "narrow-112"), {}
    quality = prompt("quality")
    result = fold_and_round(source, "fp16", [quality], torch.empty(0), tensors.__setitem__)
    expected = np.load(GOLDEN / "narrow-112/expected.npz")
    half, exact = TritonOps(FACTS, torch.float16), TritonOps(FACTS, torch.float32)
    model = CudaModel(source.config, to_device(schema(source.config), tensors, DEVICE, torch.float16), half, exact)
    tokens = model.encode(on(torch.from_numpy(expected["resized_uint8"][:1])))
    prefix, suffix = result.prefixes[quality.prefix].half(), result.suffixes[quality.suffix].half()
    logits = model.decode(tokens, on(prefix), on(suffix)).cpu()
    assert logits.dtype == torch.float32
    assert abs(score_of(logits.numpy()[0], "quality").value - expected["score_quality_image"][0]) < 1e-2


@interpreted
def test_the_head_of_q_scorer_gives_its_authors_first_layer() -> None:
    """A head with a bias, whose outputs are no multiple of anything."""
    source, tensors = open_parameters(GOLDEN / "q-scorer-112"), {}
    result = fold_and_round(source, "fp16", Q_SCORERS, torch.empty(0), tensors.__setitem__)
    expected = np.load(GOLDEN / "q-scorer-112/expected.npz")
    half, exact = TritonOps(FACTS, torch.float16), TritonOps(FACTS, torch.float32)
    model = CudaModel(source.config, to_device(schema(source.config), tensors, DEVICE, torch.float16), half, exact)
    tokens = model.encode(on(torch.from_numpy(expected["resized_uint8"][:1])))
    part = Q_SCORERS[0].parts[SCORE_IDS.index(expected["step_1_token"][0])]
    prefix, suffix = result.prefixes[part.before].half(), result.suffixes[part.suffix].half()
    outputs = model.decode(tokens, on(prefix), on(suffix)).cpu()
    assert outputs.dtype == torch.float32
    np.testing.assert_allclose(outputs.numpy()[0, 5:], expected["step_2_first_layer"][0], rtol=0, atol=3e-2)


class Apart(TritonOps):
    """Norms and SwiGLU return floats, which linears then round to 8 bits themselves."""

    layer_norm_for = Ops.layer_norm_for
    rms_norm_for = Ops.rms_norm_for
    swiglu_for = Ops.swiglu_for


@pytest.mark.parametrize("precision", ["int8", "int4"])
@interpreted
def test_the_engines_model_is_the_folded_one_to_the_bit(precision: str) -> None:
    """q, k and v in one product, with biases as a calibrated export has. Not so a layer whose k and v are floats."""
    source, tensors = open_parameters(GOLDEN / "narrow-112"), dict[str, Tensor]()
    quality = prompt("quality")
    result = fold_and_round(source, precision, [quality], torch.empty(0), tensors.__setitem__)
    for name in [name for name in tensors if re.fullmatch(r"decoder\..*\.(q|kv_visual|kv_text)\.weight", name)]:
        tensors[name.replace("weight", "bias")] = torch.randn(len(tensors[name]))
    floats = "decoder.layers.1.kv_visual."
    quantized = {part: tensors.pop(floats + part) for part in ("weight", "scale", "groups") if floats + part in tensors}
    tensors[f"{floats}weight"] = expand(quantized, source.config.decoder.width)
    pixels = on(torch.from_numpy(np.load(GOLDEN / "narrow-112/expected.npz")["resized_uint8"][:2]))
    constants = on(result.prefixes[quality.prefix]), on(result.suffixes[quality.suffix])
    ops = TritonOps(FACTS, torch.float32)
    model = CudaModel(source.config, to_device(schema(source.config), tensors, DEVICE, torch.float32), ops, ops)
    assert "decoder.layers.0.qkv.bias" in model.tensors
    assert "decoder.layers.1.qkv.weight" not in model.tensors
    expected = FoldedModel(source.config, model.tensors, ops)  # which does not look at it
    tokens = model.encode(pixels)
    assert torch.equal(tokens, expected.encode(pixels))
    assert torch.equal(model.decode(tokens, *constants), expected.decode(tokens, *constants))


@pytest.mark.parametrize("precision", FORMS)
@interpreted
def test_rows_handed_on_in_8_bits_change_nothing(precision: str) -> None:
    source, tensors = open_parameters(GOLDEN / "narrow-112"), {}
    quality = prompt("quality")
    result = fold_and_round(source, precision, [quality], torch.empty(0), lambda name, x: tensors.update({name: on(x)}))
    constants = on(result.prefixes[quality.prefix]), on(result.suffixes[quality.suffix])
    pixels = on(torch.from_numpy(np.load(GOLDEN / "narrow-112/expected.npz")["resized_uint8"][:1]))
    handed, apart = (FoldedModel(source.config, tensors, kind(FACTS, torch.float32)) for kind in (TritonOps, Apart))
    tokens = handed.encode(pixels)
    assert torch.equal(tokens, apart.encode(pixels))
    assert torch.equal(handed.decode(tokens, *constants), apart.decode(tokens, *constants))


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_tile_that_does_not_fit_this_gpu_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = [256, 256, 256, 8, 8]  # a megabyte of shared memory
    monkeypatch.setattr(tiles, "measured", lambda: {table_key(FACTS): {"int8": [[77, 512, 512, *huge]]}})
    x, w = rand(77, 512), int8_weight(512, 512)
    with pytest.warns(UserWarning, match="refused here"):
        y = TritonOps(FACTS, torch.float32).linear(on(x), on(w))
    close(y, expected_linear(x, w, False, None), 1e-6)
