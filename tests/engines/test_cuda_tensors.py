"""The tensors that the CUDA engine's model reads and computes: where they lie, and their dtypes. On any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_export.rounding.quantizer import quantize_int4
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.cuda_graphs import Direct
from qalign_fast.engines.torch_cpu import FloatProducts, load_folded
from qalign_fast.engines.torch_cuda import CudaEngine
from qalign_fast.engines.torch_weights import read_folded, to_device
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.folded_schema import schema
from qalign_fast.families.mplug_owl2.model import folded as folded_model
from qalign_fast.families.mplug_owl2.model import layout
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.schema import Linear
from qalign_kernels.contract.operations import Activation
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight
from support.cuda_engines import QUALITY, engine_of
from support.goldens import Rounded


def test_positions_of_pictures_are_made_at_load(
    folded: Path, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every graph would make them again. Those of a clip are made for its length."""
    made: list[int] = []

    def turns_of(config: Any, start: int, count: int) -> np.ndarray:
        made.append(count)
        return layout.turns_of(config, start, count)

    engine = engine_of(folded, Direct(torch.device("cpu")))
    tokens = engine.encode(expected["resized_uint8"][:2])
    monkeypatch.setattr(folded_model, "turns_of", turns_of)
    engine.decode(tokens, QUALITY)
    assert made == []
    clip = prompt("quality", "video")
    engine.decode(tokens.reshape(1, -1, tokens.shape[-1]), clip)
    assert made == [2 * tokens.shape[1] + len(clip.suffix)]


def wide(*halves: Tensor) -> list[Tensor]:
    assert {x.dtype for x in halves} == {torch.float16}
    return [x.float() for x in halves]


class Halves(Ops):
    """Plain torch that takes and returns only float16, as a GPU's kernels should."""

    def linear(
        self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        assert isinstance(x, Tensor)
        if w.name == "vision.patch":  # of pixels, and aligned
            x = F.pad(x, (0, w.weight.shape[1] - x.shape[-1]))
        else:
            (x,) = wide(x)
        (added,) = [None] if residual is None else wide(residual)
        return super().linear(x, w, activation=activation, residual=added).half()

    def modal_linear(self, x: Tensor | QuantizedRows, w: Weight, modal: Modal) -> Tensor:
        assert isinstance(x, Tensor)
        return PLAIN.modal_linear(*wide(x), w, modal).half()

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        return PLAIN.layer_norm(*wide(x), gain, bias, eps).half()

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
        return PLAIN.rms_norm(*wide(x), visual_gain, text_gain, split, eps).half()

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return PLAIN.swiglu(*wide(gate_up)).half()

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return PLAIN.attention(*wide(q, k, v), heads).half()

    def attention_by_modality(
        self, q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
    ) -> Tensor:
        return PLAIN.attention_by_modality(*wide(q, kv_visual, kv_text, prefix), turns, batch).half()


class Exact(Ops):
    """The last norm and linear, from float16 to float32."""

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
        return PLAIN.rms_norm(*wide(x), visual_gain, text_gain, split, eps)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_between_products_all_is_float16_and_logits_are_not(
    precision: str, rounded: Rounded, expected: dict[str, np.ndarray]
) -> None:
    artifact = open_artifact(rounded("narrow-112", precision))
    tensors, constants = read_folded(artifact)
    there = to_device(schema(artifact.manifest.config), tensors, torch.device("cpu"), torch.float16)
    halves = {name: (prefix.half(), suffix.half()) for name, (prefix, suffix) in constants.items()}
    model = CudaModel(artifact.manifest.config, there, Halves(), Exact())
    prompts = tuple(entry.prompt for entry in artifact.manifest.prompts)
    engine = CudaEngine(FAMILY, model, precision, halves, prompts, "cpu", Direct(torch.device("cpu")))
    logits = engine.decode(engine.encode(expected["resized_uint8"]), QUALITY)
    assert logits.dtype == np.float32
    assert not np.array_equal(logits, logits.astype(np.float16))
    atol = 2e-2 if precision == "fp16" else 0.5
    np.testing.assert_allclose(logits, expected["logits_quality_image"], rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.int8, E4M3])
def test_products_in_floats_are_the_contracts(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, codes = torch.randn(3, 7, 96), torch.randint(-127, 128, (40, 96)).float().to(dtype)
    w = Weight("8 bits", codes, torch.rand(40) / 100, None, torch.randn(40))
    torch.testing.assert_close(FloatProducts().linear(x, w), PLAIN.linear(x, w), rtol=1e-5, atol=1e-5)


def test_without_products_of_whole_numbers_4_bits_are_the_contracts() -> None:
    torch.manual_seed(0)
    w = Weight("4 bits", **quantize_int4(torch.randn(40, 96)), bias=torch.randn(40))
    x = torch.randn(3, 7, 96)
    torch.testing.assert_close(FloatProducts().linear(x, w), PLAIN.linear(x, w), rtol=1e-5, atol=1e-5)


def test_an_engine_on_another_device_runs_there(folded: Path) -> None:
    """meta stands in for MPS: a tensor left on the CPU would be an error."""
    engine = load_folded(open_artifact(folded), device="meta")
    assert engine.device == "meta"
    assert engine.encode(np.zeros((1, 112, 112, 3), np.uint8)).device.type == "meta"


class Layouts(Ops):
    """Keeps the strides of all queries."""

    def __init__(self) -> None:
        self.queries: list[tuple[int, ...]] = []

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        self.queries.append(q.stride())
        return PLAIN.attention(q, k, v, heads)


def test_no_two_pictures_queries_lie_in_one_place(folded: Path, expected: dict[str, np.ndarray]) -> None:
    """cuDNN's attention refuses a batch stride of 0. A single picture, as at load, does not show it."""
    ops = Layouts()
    engine = engine_of(folded, Direct(torch.device("cpu")), ops)
    engine.encode(expected["resized_uint8"][:2])
    layers = engine.config.vision.layers + engine.config.abstractor.layers
    assert len(ops.queries) == layers
    assert all(0 not in strides for strides in ops.queries)


def test_biases_that_cublas_adds_are_of_their_weights_type() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    names = {"half": torch.float16, "full": torch.float32, "eight": torch.int8}
    tensors = {f"{name}.bias": torch.ones(4) for name in names}  # before its weight and after it
    tensors |= {f"{name}.weight": torch.ones(4, 8).to(dtype) for name, dtype in names.items()}
    tensors |= {"late.bias": torch.ones(4), "half.scale": torch.ones(4)}
    linears = [Linear(name, 4, 8) for name in names]
    there = to_device(linears, tensors, torch.device("cpu"), torch.float16)
    found = {name: t.dtype for name, t in there.items() if not name.endswith("weight")}
    assert found.pop("half.bias") == torch.float16
    assert set(found.values()) == {torch.float32}


def test_biases_that_fp8s_product_adds_are_those_that_nothing_comes_after(rounded: Rounded) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    seen: dict[str, tuple[Weight, bool]] = {}

    class Seen(Halves):
        def linear(
            self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
        ) -> Tensor:
            seen[w.name] = w, activation is None and residual is None
            return super().linear(x, w, activation=activation, residual=residual)

    artifact = open_artifact(rounded("narrow-112", "fp8"))
    tensors, constants = read_folded(artifact)
    there = to_device(schema(artifact.manifest.config), tensors, torch.device("cpu"), torch.float16)
    model = CudaModel(artifact.manifest.config, there, Seen(), Exact())
    prefix, suffix = (x.half() for x in constants[QUALITY.name])
    side = artifact.manifest.config.pixels.side
    model.decode(model.encode(torch.zeros(1, side, side, 3, dtype=torch.uint8)), prefix, suffix)
    eight = {name: one for name, one in seen.items() if one[0].weight.dtype == E4M3}
    assert {"vision.layers.0.qkv", "abstractor.features.kv", "decoder.layers.0.kv_text"} <= eight.keys()
    for name, (w, alone) in eight.items():
        assert w.bias is not None, name
        assert w.bias.dtype == (torch.float16 if alone else torch.float32), name
