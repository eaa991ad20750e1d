"""16, 8 and 4 bits: what each engine computes is the quantizer's definition, and what that costs on the goldens.

Random models turn one rounding that falls the other way into another score (see the last test), so that engines are
held to the definition linear by linear, on the rows that they themselves compute, and not only by their scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from qalign_export.parameters import open_parameters
from qalign_export.rounding.blockwise import fold_and_round
from qalign_fast.artifact.manifest import read_manifest
from qalign_fast.engines import onnx_session
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.engines.torch_cpu import TorchEngine
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.prompts import ALL_PROMPTS
from qalign_fast.levels import WEIGHTS
from qalign_fast.pixels.paths import PLAIN
from qalign_fast.pixels.rgb import to_rgb
from qalign_fast.pixels.rule import SquareRule
from qalign_kernels.contract.linear import expand_weight, int8_product, linear, spread_int4
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.precisions import GROUP
from qalign_kernels.contract.quantized_rows import E4M3, fake_rows, quantize_rows
from qalign_kernels.contract.weight import Weight
from support.goldens import FOLDERS, GOLDEN, Rounded

Scores = np.ndarray


def scores(engine: Engine, expected: dict[str, np.ndarray]) -> Scores:
    """The scores of the six pictures for every image prompt, and of the two clips for every video prompt."""
    tokens = engine.encode(expected["resized_uint8"])
    clips = tokens[:3].reshape(1, -1, tokens.shape[-1]), tokens[2:3]
    found = []
    for prompt in engine.prompts:
        inputs = (tokens,) if prompt.medium == "image" else clips
        found += [level_scores(engine.decode(x, prompt)) for x in inputs]
    return np.concatenate(found)


def level_scores(logits: np.ndarray) -> Scores:
    return torch.from_numpy(logits).softmax(-1).numpy() @ WEIGHTS


def expected_of(folder: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / folder / "expected.npz"))


@pytest.fixture(scope="module")
def exact() -> dict[str, Scores]:
    return {folder: scores(load_engine(GOLDEN / folder), expected_of(folder)) for folder in FOLDERS}


class Simulation(Ops):
    """Fake quantization: float32 products of rounded rows and expanded weights."""

    per_tensor = False

    def product(self, x: Tensor, w: Weight) -> Tensor:
        if w.weight.dtype == torch.int8:
            rows = fake_rows(x.flatten()).view(x.shape) if self.per_tensor else fake_rows(x)
            return F.linear(rows, expand_weight(w.weight, w.scale), w.bias)
        if w.scale is None:
            return super().product(x, w)
        rows = fake_rows(x, E4M3 if w.weight.dtype == E4M3 else torch.int8)
        return F.linear(rows, expand_weight(w.weight, w.scale, w.groups, x.shape[-1]), w.bias)


class ExactSimulation(Simulation):
    """The same with the sums of int8's, int4's and fp8's products taken exactly, in float64, before the scales."""

    def product(self, x: Tensor, w: Weight) -> Tensor:
        if w.scale is None:
            return super().product(x, w)
        rows = quantize_rows(x, E4M3 if w.weight.dtype == E4M3 else torch.int8)
        weight = w.weight if w.groups is None else spread_int4(w.weight, w.groups, x.shape[-1])
        y = F.linear(rows.values.double(), weight.double()).float() * rows.scale * w.scale
        return y if w.bias is None else y + w.bias


def simulate(ops: Ops, artifact: Path, expected: dict[str, np.ndarray]) -> Scores:
    engine = load_engine(artifact, LoadOptions(engine="torch"))
    tensors = load_file(artifact / read_manifest(artifact / "qalign.json").engines["torch"]["weights"])
    model = FoldedModel(engine.config, tensors, ops)
    engine._model, engine._decode = model, model.decode  # type: ignore[attr-defined]
    return scores(engine, expected)


# The mean and the largest change of scores on 1..5 that were measured in fp8: of random models, whose scores lie closer
# together and move more than a trained one's.
FP8_COSTS = {"narrow-112": (0.065, 0.235), "narrow-448": (0.083, 0.225), "outlier-112": (0.29, 0.60)}


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_float16_scores_stay_within_a_hundredth(folder: str, engine: str, rounded: Rounded, exact: dict) -> None:
    found = scores(load_engine(rounded(folder, "fp16"), LoadOptions(engine=engine)), expected_of(folder))
    assert np.abs(found - exact[folder]).max() < 1e-2


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_torch_scores_are_the_simulations(folder: str, precision: str, rounded: Rounded) -> None:
    artifact, expected = rounded(folder, precision), expected_of(folder)
    found = scores(load_engine(artifact, LoadOptions(engine="torch")), expected)
    np.testing.assert_allclose(found, simulate(ExactSimulation(), artifact, expected), rtol=0, atol=3e-3)


@pytest.mark.parametrize("folder", ["narrow-112", "outlier-112"])
def test_fp8_scores_are_the_simulations(folder: str, rounded: Rounded) -> None:
    """narrow-448's scores move by .07 with the order of float32's sums, so its linears are tested below, one by one."""
    artifact, expected = rounded(folder, "fp8"), expected_of(folder)
    found = scores(load_engine(artifact, LoadOptions(engine="torch")), expected)
    np.testing.assert_allclose(found, simulate(ExactSimulation(), artifact, expected), rtol=0, atol=3e-3)


class HeldToTheDefinition(ExactSimulation):
    """Runs as engines do, and compares each E4M3 linear with exact sums."""

    checked = 0

    def product(self, x: Tensor, w: Weight) -> Tensor:
        y = Ops.product(self, x, w)
        if w.weight.dtype == E4M3:
            off = (y - super().product(x, w)).abs().amax(-1) / y.abs().max()
            assert off.max() <= 2e-6, w.name
            self.checked += 1
        return y


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_fp8_linear_is_the_contracts(folder: str, rounded: Rounded) -> None:
    artifact, ops = rounded(folder, "fp8"), HeldToTheDefinition()
    tensors = load_file(artifact / "torch/model_fp8.safetensors")
    simulate(ops, artifact, expected_of(folder))
    assert ops.checked >= sum(t.dtype == E4M3 for t in tensors.values()) > 10


@pytest.mark.parametrize("folder", FOLDERS)
def test_fp8_costs_what_was_measured(folder: str, rounded: Rounded, exact: dict) -> None:
    off = np.abs(scores(load_engine(rounded(folder, "fp8")), expected_of(folder)) - exact[folder])
    mean, largest = FP8_COSTS[folder]
    assert off.mean() <= 1.5 * mean
    assert off.max() <= 1.5 * largest


@pytest.mark.parametrize(("precision", "saturates"), [("int8", False), ("int8", True), ("int4", None)])
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_onnx_linear_is_the_contracts(
    folder: str, precision: str, saturates: bool | None, rounded: Rounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 8 bits as on a CPU whose u8 x s8 products saturate, and, where they do not here, as on one like this.

    In 4 bits the weights are the contract's and the rows onnxruntime's.
    """
    if saturates is False and onnx_session.saturates():
        pytest.skip("this CPU's u8 x s8 products saturate: no engine takes them")
    if saturates is not None:
        monkeypatch.setattr(onnx_session, "saturates", lambda: saturates)
    artifact, expected = rounded(folder, precision), expected_of(folder)
    manifest = read_manifest(artifact / "qalign.json")
    tensors = load_file(artifact / manifest.engines["torch"]["weights"])
    parts = manifest.engines["onnx"]
    encoded = run_with_inside(artifact / parts["encode"], {"pixels": expected["resized_uint8"]})
    constants = load_file(artifact / "prompts.safetensors")
    prompt = manifest.prompts[0]
    feed = {
        "visual_tokens": encoded["visual_tokens"],
        "prefix_key_values": constants[prompt.prefix].numpy(),
        "suffix_embeds": constants[prompt.suffix].numpy(),
    }
    decoded = run_with_inside(artifact / parts["decode"], feed)
    checked = 0
    for part, values in ((parts["encode"], encoded), (parts["decode"], decoded)):
        for name, x, y in rounded_linears(artifact / part):
            rows = torch.from_numpy(values[x]).flatten(0, -2)
            weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.scale"]
            if weight.dtype == torch.int8:
                contract = linear(rows, Weight(name, weight, scale))
            else:
                expanded = expand_weight(weight, scale, tensors[f"{name}.groups"], rows.shape[1])
                contract = F.linear(rows_as_onnxruntime_reads_them(rows), expanded)
            found = torch.from_numpy(values[y]).flatten(0, -2)
            off = (found - contract).abs().amax(-1) / contract.abs().max()
            if weight.dtype == torch.int8:
                assert off.max() <= 2e-6, name
            else:  # MatMulNBits multiplies by 127 / max, the contract divides by max / 127: ties differ
                assert (off > 2e-6).sum() <= max(1, 0.01 * len(off)), name
                assert off.max() <= 0.01, name
            checked += 1
    assert checked == sum(t.dtype in (torch.int8, torch.uint8) and n.endswith(".weight") for n, t in tensors.items())


def rows_as_onnxruntime_reads_them(x: Tensor) -> Tensor:
    """MatMulNBits: 8 bits with a scale for each row and 32 inputs."""
    width = x.shape[-1]
    return fake_rows(F.pad(x, (0, -width % GROUP)).unflatten(-1, (-1, GROUP))).flatten(-2)[..., :width]


@pytest.mark.parametrize("folder", FOLDERS)
def test_4_bit_weights_of_the_graphs_are_the_contracts(folder: str, rounded: Rounded) -> None:
    """By MatMulNBits' definition, s (w - z): s is s_n k rounded once, and so is the contract's s_n k (w - z)."""
    artifact = rounded(folder, "int4")
    manifest, checked = read_manifest(artifact / "qalign.json"), 0
    tensors = load_file(artifact / manifest.engines["torch"]["weights"])
    for path in manifest.engines["onnx"].values():
        graph = onnx.load(artifact / path).graph
        arrays = {x.name: torch.from_numpy(onnx.numpy_helper.to_array(x).copy()) for x in graph.initializer}
        for node in (node for node in graph.node if node.op_type == "MatMulNBits"):
            says = {a.name: a.i for a in node.attribute}
            assert (says["bits"], says["block_size"], says["accuracy_level"]) == (4, GROUP, 4)
            codes, scale, zero = (arrays[name] for name in node.input[1:4])
            codes, zero = (torch.stack((x & 15, x >> 4), -1).flatten(-2).float() for x in (codes, zero))
            steps = codes - zero[:, : scale.shape[1], None]  # [N, G, 32]
            name = node.input[1].removesuffix(".weight")
            of_contract = tensors[f"{name}.weight"], tensors[f"{name}.scale"], tensors[f"{name}.groups"]
            expected = expand_weight(*of_contract, width=says["K"])
            found = (steps * scale.unsqueeze(-1)).flatten(1)
            assert (found[:, says["K"] :] == 0).all()
            torch.testing.assert_close(found[:, : says["K"]], expected, rtol=2**-23, atol=0)
            checked += 1
    assert checked == sum(t.dtype == torch.uint8 and n.endswith(".weight") for n, t in tensors.items()) > 5


@pytest.mark.parametrize("vnni", [True, False])
def test_sums_of_8_bit_products_are_exact_on_any_cpu(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    torch.manual_seed(0)
    rows, weight = (torch.randint(-127, 128, (n, 3000), dtype=torch.int8) for n in (17, 24))  # more than float32 sums
    rows[0], weight[0], weight[1] = 127, 127, -127
    product = int8_product(rows, weight)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), rows.long() @ weight.long().T)


def rounded_linears(path: Path) -> list[tuple[str, str, str]]:
    """The 8- and 4-bit linears of a graph: the name of each, and the values that hold its rows and its product."""
    nodes = onnx.load(path).graph.node
    by_output, by_input = {n.output[0]: n for n in nodes}, {i: n for n in nodes for i in n.input}
    found = []
    for node in nodes:
        if node.op_type == "MatMulNBits":
            found.append((node.input[1].removesuffix(".weight"), node.input[0], node.output[0]))
        elif node.op_type == "MatMulIntegerToFloat":
            flat = by_output[by_output[node.input[0]].input[0]].input[0]  # before the rounding
            rows = by_output[flat].input[0]
            found.append((node.input[1].removesuffix(".weight"), rows, by_input[node.output[0]].output[0]))
    return found


def run_with_inside(path: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output of the graph, and the inputs and outputs of its rounded linears."""
    model = onnx.load(path)
    inside = {value for _, x, y in rounded_linears(path) for value in (x, y)}
    for value in sorted(inside - {o.name for o in model.graph.output}):
        model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    options, cpu = onnx_session.session_options(onnx_session.CPU), [onnx_session.CPU.name]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=cpu)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("folder", FOLDERS)
def test_eight_bits_are_nowhere_worse_than_rounding_blindly(folder: str, rounded: Rounded) -> None:
    """On 60 crops, because six pictures cannot tell two roundings of a random model without outliers apart."""
    crops = crop_pictures(load_engine(GOLDEN / folder).config.pixels, count=10)
    exact = level_scores_by_picture(load_engine(GOLDEN / folder), crops)
    ours, blind = (
        np.abs(level_scores_by_picture(engine, crops) - exact)
        for engine in (load_engine(rounded(folder, "int8"), LoadOptions(engine="torch")), blind_engine(folder, "int8"))
    )
    if folder == "outlier-112":
        assert ours.mean() <= 0.9 * blind.mean()
    worse = (ours - blind).mean(1)  # of each crop
    assert worse.mean() <= 2 * worse.std() / np.sqrt(len(worse))


def crop_pictures(rule: SquareRule, count: int) -> np.ndarray:
    """uint8 [6 * count, S, S, 3]: squares of at least half a side, out of every golden picture."""
    random, crops = np.random.default_rng(0), []
    for path in sorted((GOLDEN / "pictures").iterdir()):
        picture = to_rgb(Image.open(path))
        for _ in range(count):
            side = int(random.integers(min(picture.size) // 2, min(picture.size)))
            x, y = (int(random.integers(0, size - side + 1)) for size in picture.size)
            crops.append(rule.apply(picture.crop((x, y, x + side, y + side)), PLAIN))
    return np.stack(crops)


def level_scores_by_picture(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    """Level scores [B, prompts] for the image prompts."""
    tokens = engine.encode(pixels)
    return np.stack([level_scores(engine.decode(tokens, p)) for p in engine.prompts if p.medium == "image"], axis=1)


def blind_engine(folder: str, precision: str) -> Engine:
    """The torch engine's model without calibration: plain rounding to the nearest."""
    source, tensors = open_parameters(GOLDEN / folder), {}
    rounded = fold_and_round(source, precision, ALL_PROMPTS, torch.empty(0), tensors.__setitem__)
    return TorchEngine(
        FAMILY,
        FoldedModel(source.config, tensors),
        precision,
        ALL_PROMPTS,
        lambda prompt: (rounded.prefixes[prompt.prefix], rounded.suffixes[prompt.suffix]),
    )


def test_one_scale_for_all_rows_can_be_told_from_one_a_row(rounded: Rounded, exact: dict) -> None:
    folder = "outlier-112"
    expected = expected_of(folder)
    costs = {}
    for per_tensor in (False, True):
        ops = Simulation()
        ops.per_tensor = per_tensor
        costs[per_tensor] = np.abs(simulate(ops, rounded(folder, "int8"), expected) - exact[folder]).mean()
    assert costs[True] > 1.5 * costs[False]


def test_random_models_turn_the_order_of_sums_into_other_scores(rounded: Rounded) -> None:
    """Engines are not compared by scores here, because another order of float32's sums moves scores as far."""
    artifact, expected = rounded("narrow-448", "int8"), expected_of("narrow-448")
    exact_sums, float_sums = (simulate(ops, artifact, expected) for ops in (ExactSimulation(), Simulation()))
    assert np.abs(exact_sums - float_sums).max() > 3e-3


def test_products_are_taken_otherwise_exactly_where_they_would_saturate(
    rounded: Rounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VNNI both products give the same whole numbers. Without it one of them is wrong, and is not used."""
    artifact, expected = rounded("outlier-112", "int8"), expected_of("outlier-112")
    here, tokens = onnx_session.saturates(), []
    for saturates in (False, True):
        monkeypatch.setattr(onnx_session, "saturates", lambda saturates=saturates: saturates)
        tokens.append(load_engine(artifact, LoadOptions(engine="onnx")).encode(expected["resized_uint8"]))
    assert np.array_equal(*tokens) != here
