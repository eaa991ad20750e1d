"""The CUDA engine: its batches, buckets and refusals on any machine, its graphs and kernels where there is a GPU.

Here the engine runs in plain torch on a CPU, launched by `Direct`; what needs CUDA is below `on_gpu`.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qalign_export.options import ExportOptions
from qalign_export.rounding.quantizer import quantize_int4
from qalign_export.writer import export_artifact
from qalign_fast import DeviceError, Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.cli.info import describe
from qalign_fast.engines import devices
from qalign_fast.engines.common import BUCKETS, bucket_of, fill_up
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.cuda_graphs import Direct, Graphs, Runner, Step
from qalign_fast.engines.cuda_model import attention_of
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.engines.torch_cpu import FloatProducts, load_folded
from qalign_fast.engines.torch_cuda import CudaEngine, load_cuda
from qalign_fast.engines.torch_weights import read_folded, to_device
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.folded_schema import schema
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.schema import Linear
from qalign_fast.levels import score_of
from qalign_kernels.contract.linear import Modal, Weight
from qalign_kernels.contract.ops import PLAIN, Activation, Ops
from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows
from support.fake_streams import FakeCuda, FakeStream
from support.goldens import FOLDERS, GOLDEN, PICTURES, Golden

QUALITY = prompt("quality")
Rounded = Callable[[str, str], Path]


class Watched(Direct):
    """Keeps what it was asked to run."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.runs: list[tuple[Hashable, Tensor]] = []

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        self.runs.append((key, x))
        return super().run(key, step, x)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """narrow-112 in float32, as torch weights."""
    out = tmp_path_factory.mktemp("packed") / "narrow"
    return export_artifact(GOLDEN / "narrow-112", out, ExportOptions("fp32", ("torch",)))


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "narrow-112/expected.npz"))


def engine_of(path: Path, runner: Runner, ops: Ops = PLAIN, exact: Ops = PLAIN, device: str = "cpu") -> CudaEngine:
    artifact = open_artifact(path)
    tensors, constants = read_folded(artifact)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    constants = {name: (prefix.to(device), suffix.to(device)) for name, (prefix, suffix) in constants.items()}
    manifest = artifact.manifest
    prompts = tuple(entry.prompt for entry in manifest.prompts)
    model = CudaModel(manifest.config, tensors, ops, exact)
    return CudaEngine(FAMILY, model, manifest.precision, constants, prompts, device, runner)


def some(expected: dict[str, np.ndarray], count: int, first: int = 0) -> np.ndarray:
    """So many of the golden pictures, in their order, again from the start after the last."""
    return np.arange(first, first + count) % len(expected["resized_uint8"])


def test_buckets_hold_what_is_put_into_them() -> None:
    assert [bucket_of(n) for n in range(1, 10)] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert [bucket_of(n) for n in (17, 33, 63, 64)] == [32, 64, 64, 64]


def test_what_fills_a_bucket_up_is_a_real_picture() -> None:
    x = torch.arange(6).view(3, 2)
    assert torch.equal(fill_up(x, 5), x[[0, 1, 2, 2, 2]])
    assert fill_up(x, 3) is x


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 12])
def test_any_batch_gives_upstreams_logits(packed: Path, expected: dict[str, np.ndarray], count: int) -> None:
    engine = engine_of(packed, Direct(torch.device("cpu")))
    which = some(expected, count, first=count)
    logits = engine.decode(engine.encode(expected["resized_uint8"][which]), QUALITY)
    np.testing.assert_allclose(logits, expected["logits_quality_image"][which], rtol=0, atol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_golden_in_every_mix(folder: str, tmp_path: Path) -> None:
    """Pictures in other company and another order, of every image prompt, in float32."""
    path = export_artifact(GOLDEN / folder, tmp_path / "a", ExportOptions("fp32", ("torch",)))
    engine, golden = engine_of(path, Direct(torch.device("cpu"))), np.load(GOLDEN / folder / "expected.npz")
    for which in ([2], [5, 0, 3], [1, 1, 4, 2, 0], [*range(6)][::-1]):
        tokens = engine.encode(golden["resized_uint8"][which])
        for p in engine.prompts:
            if p.medium == "image":
                found, upstreams = engine.decode(tokens, p), golden[f"logits_{p.task}_image"][which]
                np.testing.assert_allclose(found, upstreams, rtol=0, atol=1e-4)


def test_more_than_the_largest_bucket_is_split_in_order(packed: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    engine = engine_of(packed, runner)
    which = some(expected, 70)
    tokens = engine.encode(expected["resized_uint8"][which])
    logits = engine.decode(tokens, QUALITY)
    assert [key for key, _ in runner.runs] == [("encode", 64), ("encode", 8), (QUALITY.name, 64), (QUALITY.name, 8)]
    np.testing.assert_allclose(logits, expected["logits_quality_image"][which], rtol=0, atol=1e-4)
    last = engine.decode(tokens[66:67], QUALITY)  # tokens are cut as arrays are
    np.testing.assert_allclose(last, logits[66:67], rtol=0, atol=1e-5)


def test_filling_up_changes_no_score(packed: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    engine = engine_of(packed, runner)
    pixels = expected["resized_uint8"][:4]
    three = engine.decode(engine.encode(pixels[:3]), QUALITY)
    (_, pictures), (_, tokens) = runner.runs
    assert len(pictures) == len(tokens) == 4
    assert torch.equal(pictures[3], pictures[2])
    assert torch.equal(tokens[3], tokens[2])
    four = engine.decode(engine.encode(pixels), QUALITY)
    np.testing.assert_allclose(three, four[:3], rtol=0, atol=1e-5)


def test_a_key_is_always_of_one_shape(packed: Path, expected: dict[str, np.ndarray]) -> None:
    """What a graph is: one step on one shape and type."""
    runner = Watched()
    scorer = Scorer(engine_of(packed, runner))
    for count in (1, 3, 5, 70):
        scorer.score_tasks([*expected["resized_uint8"][some(expected, count)]])
    scorer.score_video([PICTURES / expected["picture_names"][0]])
    shapes: dict[Hashable, set[tuple[object, ...]]] = {}
    for key, x in runner.runs:
        shapes.setdefault(key, set()).add((x.dtype, *x.shape))
    assert all(len(found) == 1 for found in shapes.values())
    assert {key[1] for key in shapes} <= set(BUCKETS)  # type: ignore[index]


def test_every_task_reads_one_encoding(packed: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    scores = Scorer(engine_of(packed, runner)).score_tasks([*expected["resized_uint8"]])
    assert sum(key[0] == "encode" for key, _ in runner.runs) == 1  # type: ignore[index]
    for task in ("quality", "aesthetics"):
        found = [score[task].value for score in scores]
        np.testing.assert_allclose(found, expected[f"score_{task}_image"], rtol=0, atol=1e-4)


def test_clips_of_any_length_are_decoded_without_a_bucket(packed: Path, expected: dict[str, np.ndarray]) -> None:
    runner = Watched()
    frames = [PICTURES / name for name in expected["picture_names"][:3]]
    found = Scorer(engine_of(packed, runner)).score_video(frames)
    assert [key for key, _ in runner.runs] == [("encode", 4)]
    np.testing.assert_allclose(found.logits, expected["logits_quality_video"][0], rtol=0, atol=1e-4)


def test_two_callers_on_streams_of_their_own_get_their_own_scores(
    packed: Path, expected: dict[str, np.ndarray], fake_cuda: FakeCuda
) -> None:
    """By the engine's graphs, as far as a CPU can replay them."""
    engine, callers = engine_of(packed, Graphs(torch.device("cpu"))), [FakeStream("a"), FakeStream("b")]
    engine.decode(engine.encode(expected["resized_uint8"][:1]), QUALITY)  # as at load: weights are there after it
    waiting = []
    for caller, count in zip(callers, (1, 2), strict=True):
        with torch.cuda.stream(caller):
            which = some(expected, count, first=count)
            waiting.append((caller, which, engine.encode(expected["resized_uint8"][which])))
    for task in ("quality", "aesthetics"):
        for caller, which, tokens in waiting:
            with torch.cuda.stream(caller):
                logits = engine.decode(tokens, prompt(task))
            np.testing.assert_allclose(logits, expected[f"logits_{task}_image"][which], rtol=0, atol=1e-4)
    assert not fake_cuda.races


class Scratch(Ops):
    """One scratch tensor for all steps, as kernels have that share tiles."""

    def __init__(self) -> None:
        self.scratch = torch.zeros(3)

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Tensor | QuantizedRows:
        self.scratch.fill_(1)
        return super().swiglu_for(readers, gate_up)


class Unwaited(Graphs):
    """The host waits for no result, as when another thread launches meanwhile."""

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        return lambda: x


def test_a_clip_and_a_picture_on_streams_of_their_own_do_not_meet(
    packed: Path, expected: dict[str, np.ndarray], fake_cuda: FakeCuda
) -> None:
    engine, pixels = engine_of(packed, Unwaited(torch.device("cpu")), Scratch()), expected["resized_uint8"]
    tokens = engine.encode(pixels[:3])
    engine.decode(tokens, QUALITY)
    with torch.cuda.stream(FakeStream("clip")):
        clip = engine.encode(pixels[:3]).flatten(0, 1).unsqueeze(0)
        logits = engine.decode(clip, prompt("quality", "video"))
    with torch.cuda.stream(FakeStream("picture")):
        engine.decode(engine.encode(pixels[:3]), QUALITY)
    assert not fake_cuda.races
    np.testing.assert_allclose(logits, expected["logits_quality_video"][:1], rtol=0, atol=1e-4)


class Refusing(Direct):
    """A device that does no more than two at a time."""

    def __init__(self, error: Exception) -> None:
        super().__init__(torch.device("cpu"))
        self.error = error

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise self.error
        return step(x)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


def test_a_batch_without_room_is_a_device_error(packed: Path, expected: dict[str, np.ndarray]) -> None:
    engine = engine_of(packed, Refusing(OUT_OF_MEMORY))
    with pytest.raises(
        DeviceError, match=r"no room for 3 pictures beside .*2.00 GiB.\); a smaller batch needs less, i"
    ):
        engine.encode(expected["resized_uint8"][:3])
    assert len(engine.decode(engine.encode(expected["resized_uint8"][:2]), QUALITY)) == 2  # and it goes on


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`\nmore"),
            "`cublasLtMatmul`",
        ),
        (subprocess.CalledProcessError(1, ["gcc"]), "CalledProcessError: Command '.'gcc'.' returned"),
        ("OutOfResources", "OutOfResources: out of resource: shared memory, Required: 240000, Hardware limit: 232448"),
    ],
)
def test_what_a_larger_batch_is_refused_by_is_a_device_error(
    packed: Path, expected: dict[str, np.ndarray], error: Exception | str, says: str
) -> None:
    """Not at load alone: a bucket's kernels are compiled when it first comes."""
    if isinstance(error, str):
        errors = pytest.importorskip("triton.runtime.errors", reason="Triton is for Linux")
        error = errors.OutOfResources(240000, 232448, "shared memory")
    engine = engine_of(packed, Refusing(error))
    tokens = torch.cat([engine.encode(expected["resized_uint8"][:2])] * 2)
    for call in (lambda: engine.encode(expected["resized_uint8"][:3]), lambda: engine.decode(tokens, QUALITY)):
        with pytest.raises(
            DeviceError, match=rf"device 'cpu': .* failed \(.*{says}.*\); a smaller batch may do"
        ) as one:
            call()
        assert "\n" not in str(one.value)
    assert len(engine.decode(tokens[:2], QUALITY)) == 2


def test_a_clip_without_room_is_a_device_error(
    packed: Path, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(packed, Direct(torch.device("cpu")))
    tokens = engine.encode(expected["resized_uint8"][:4]).reshape(1, -1, engine.config.decoder.width)

    def full(*_: object) -> Tensor:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(FoldedModel, "decode", full)
    with pytest.raises(DeviceError, match=rf"no room for 1 times {tokens.shape[1]} visual tokens"):
        engine.decode(tokens, QUALITY)


class Called(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


def test_positions_of_pictures_are_made_at_load(packed: Path, expected: dict[str, np.ndarray]) -> None:
    """They would be made again in every graph; a clip's are made for its length."""
    engine = engine_of(packed, Direct(torch.device("cpu")))
    tokens = engine.encode(expected["resized_uint8"][:2])
    with Called() as pictures:
        engine.decode(tokens, QUALITY)
    with Called() as clip:
        engine.decode(tokens.reshape(1, -1, tokens.shape[-1]), prompt("quality", "video"))
    assert (pictures.names["cos"], clip.names["cos"]) == (0, 1)


def wide(*halves: Tensor) -> list[Tensor]:
    assert {x.dtype for x in halves} == {torch.float16}
    return [x.float() for x in halves]


class Halves(Ops):
    """Plain torch that takes and gives float16 alone, as a GPU's kernels do where all is as it should be."""

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


def test_an_engine_on_another_device_runs_there(packed: Path) -> None:
    """meta stands in for MPS: a tensor left on the CPU would be an error."""
    engine = load_folded(open_artifact(packed), device="meta")
    assert engine.device == "meta"
    assert engine.encode(np.zeros((1, 112, 112, 3), np.uint8)).device.type == "meta"


class Layouts(Ops):
    """Keeps how queries lay."""

    def __init__(self) -> None:
        self.queries: list[tuple[int, ...]] = []

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        self.queries.append(q.stride())
        return PLAIN.attention(q, k, v, heads)


def test_no_two_pictures_queries_lie_in_one_place(packed: Path, expected: dict[str, np.ndarray]) -> None:
    """cuDNN's attention refuses a batch's stride of 0, which one picture, as at load, does not show."""
    ops = Layouts()
    engine = engine_of(packed, Direct(torch.device("cpu")), ops)
    engine.encode(expected["resized_uint8"][:2])
    layers = engine.config.vision.layers + engine.config.abstractor.layers
    assert len(ops.queries) == layers
    assert all(0 not in strides for strides in ops.queries)


def refused(path: Path, **choice: str) -> str:
    with pytest.raises(DeviceError) as caught:
        load_engine(path, LoadOptions(**choice))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_devices_that_are_none_are_named(packed: Path) -> None:
    for name in ("tpu", "cuda:", "cuda:one", "CUDA", "cpu:0", ""):
        assert f"device {name!r} is not one; there are: auto, cpu, cuda" in refused(packed, device=name)


def no_driver() -> None:
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version.cuda": None}, "is built without CUDA"),
        ({"cuda.init": no_driver}, "driver on your system is too old (found version 11040)."),
        ({"cuda.device_count": lambda: 1}, "torch sees 1 CUDA device, counted from 0"),
        ({"cuda.get_device_capability": lambda _: (7, 5)}, "Tesla T4 is sm_75; the kernels need sm_80"),
        ({"find_spec": lambda _: None}, "pip install triton"),
    ],
)
def test_why_a_gpu_cannot_be_had(
    packed: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], says: str
) -> None:
    """On a torch that would say of itself that it has two, but for one thing."""
    good: dict[str, object] = {
        "version.cuda": "12.8",
        "cuda.init": lambda: None,
        "cuda.device_count": lambda: 2,
        "cuda.get_device_capability": lambda _: (9, 0),
        "cuda.get_device_name": lambda _: "Tesla T4",
    }
    for name, value in (good | change).items():
        target = devices if name == "find_spec" else torch
        place, _, attribute = name.rpartition(".")
        monkeypatch.setattr(getattr(target, place) if place else target, attribute, value)
    text = refused(packed, device="cuda:1")
    assert says in text
    assert "available: auto, cpu" in text
    if "cuda.device_count" in change:
        assert text.endswith("auto, cpu, cuda:0")
        assert devices.choose_device("cuda") == devices.choose_device("auto") == "cuda:0"
    else:
        assert devices.choose_device("auto") == "cpu"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_a_named_device_is_never_replaced(packed: Path, narrow: Golden) -> None:
    assert load_engine(packed, LoadOptions(device="cpu")).device == "cpu"
    for path in (packed, narrow.checkpoint):
        assert "device 'mps': torch sees no Apple GPU; available: auto, cpu" in refused(path, device="mps")


@pytest.fixture(scope="module")
def in_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp8") / "narrow"
    return export_artifact(GOLDEN / "narrow-112", out, ExportOptions("fp8", ("torch",), ["quality"]))


def has_gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)


@pytest.mark.parametrize(("name", "capability"), [("A100", (8, 0)), ("RTX 3090", (8, 6))])
def test_fp8_is_refused_by_gpus_that_have_none(
    in_fp8: Path, monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    has_gpu(monkeypatch, name, capability)
    text = refused(in_fp8, device="cuda:0")
    assert f"device 'cuda:0': {name} is sm_{capability[0]}{capability[1]}; the fp8 kernels need sm_89 or newer" in text
    assert "int8 and fp16 artifacts run there; available: auto, cpu" in text
    assert devices.choose_device("auto", devices.needs_of("fp8")) == "cpu"
    assert devices.choose_device("auto", devices.needs_of("int8")) == "cuda:0"


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_fp8_is_for_gpus_that_have_it(
    in_fp8: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    has_gpu(monkeypatch, "a GPU", capability)
    for asked in ("auto", "cuda", "cuda:0"):
        assert devices.choose_device(asked, devices.needs_of("fp8")) == "cuda:0"


@pytest.mark.parametrize(
    ("precision", "capability", "first"),
    [
        ("int8", (9, 0), "cuDNN"),
        ("fp16", (9, 0), "cuDNN"),
        ("int8", (8, 6), "flash"),
        ("fp32", (9, 0), "efficient"),  # the others take 16 bits alone
    ],
)
def test_info_says_which_attention_is_asked_for_on_a_gpu(
    precision: str, capability: tuple[int, int], first: str, rounded: Rounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    path = rounded("narrow-112", precision)
    has_gpu(monkeypatch, "a GPU", capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    facts = describe(path, device="cuda")
    assert facts["engine"] == "torch on cuda:0"
    assert facts["attention"] == f"torch's, {first}"
    assert "attention" not in describe(path, device="cpu")


def test_fp8_is_refused_on_an_apple_gpu(in_fp8: Path) -> None:
    assert "the fp8 kernels are for CUDA devices and CPUs; int8 and fp16 artifacts run" in refused(in_fp8, device="mps")


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


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("Failed to find C compiler.\nPlease"),
            r"first picture failed \(RuntimeError: Failed to find C comp",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), r"fp32 weights and a picture do not fit .*; int8 and int4"),
    ],
)
def test_what_fails_on_the_device_is_a_device_error(
    packed: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")

    def fail(_: torch.device) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)  # the first thing that is asked of it
    with pytest.raises(DeviceError, match=says):
        load_cuda(open_artifact(packed), "cuda:0")


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda:0")


def scores(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    return np.array([score_of(row, "quality").value for row in engine.decode(engine.encode(pixels), QUALITY)])


@on_gpu
@pytest.mark.parametrize("folder", ["narrow-112", "narrow-448"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-2), ("bf16", 1e-1)])
def test_floats_on_a_gpu_give_upstreams_scores(folder: str, precision: str, tolerance: float, tmp_path: Path) -> None:
    path = export_artifact(GOLDEN / folder, tmp_path / "a", ExportOptions(precision, ("torch",)))
    golden = np.load(GOLDEN / folder / "expected.npz")
    engine = load_engine(path, LoadOptions(device="cuda"))
    attention = attention_of(precision, "cuda:0")
    assert (engine.device, engine.kernels, engine.precision) == ("cuda:0", f"Triton, {attention} attention", precision)
    found = scores(engine, golden["resized_uint8"])
    np.testing.assert_allclose(found, golden["score_quality_image"], rtol=0, atol=tolerance)


@on_gpu
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_8_and_4_bits_on_a_gpu_are_the_cpus(precision: str, rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    """To rounding: float16 between the products moves values over steps of 8 bits, which are large in a small model."""
    path, pixels = rounded("narrow-112", precision), expected["resized_uint8"]
    found = scores(load_engine(path, LoadOptions(device="cuda", engine="torch")), pixels)
    np.testing.assert_allclose(found, scores(load_folded(open_artifact(path), ops=PLAIN), pixels), rtol=0, atol=0.1)


def on_triton(path: Path, runner: Runner) -> CudaEngine:
    from qalign_kernels.cuda.ops import TritonOps
    from qalign_kernels.cuda.runtime import device_of

    facts = device_of(CUDA)
    return engine_of(path, runner, TritonOps(facts, torch.float16), TritonOps(facts, torch.float32), "cuda:0")


@on_gpu
def test_graphs_compute_what_their_steps_do(rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    """Again and again, of other pictures, with other graphs between: the pool is shared."""
    path = rounded("narrow-112", "int8")
    graphs, direct = on_triton(path, Graphs(CUDA)), on_triton(path, Direct(CUDA))
    for count in (1, 4, 64, 1, 64, 3, 4, 130):
        pixels = expected["resized_uint8"][some(expected, count, first=count)]
        for task in ("quality", "aesthetics"):
            found, wanted = (e.decode(e.encode(pixels), prompt(task)) for e in (graphs, direct))
            np.testing.assert_array_equal(found, wanted)


@on_gpu
def test_threads_on_streams_of_their_own_get_their_own_scores(
    rounded: Rounded, expected: dict[str, np.ndarray]
) -> None:
    path, found = rounded("narrow-112", "int8"), dict[int, np.ndarray]()
    engine, direct = on_triton(path, Graphs(CUDA)), on_triton(path, Direct(CUDA))
    engine.decode(engine.encode(expected["resized_uint8"][:1]), QUALITY)

    def call(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(CUDA)):
            many = [some(expected, count, first) for count in (1, 8, 3, 64, 2) * 4]
            found[first] = np.concatenate([engine.decode(engine.encode(pixels[i]), QUALITY) for i in many])

    pixels = expected["resized_uint8"]
    threads = [Thread(target=call, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    for first, logits in found.items():
        alone = [direct.decode(direct.encode(pixels[some(expected, n, first)]), QUALITY) for n in (1, 8, 3, 64, 2) * 4]
        np.testing.assert_array_equal(logits, np.concatenate(alone))


@on_gpu
def test_scores_on_a_gpu_do_not_depend_on_neighbours(rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    engine = load_engine(rounded("narrow-112", "fp16"), LoadOptions(device="cuda", engine="torch"))
    alone = np.concatenate([scores(engine, expected["resized_uint8"][i : i + 1]) for i in range(6)])
    for count in (2, 3, 5, 66):
        which = some(expected, count, first=1)
        np.testing.assert_allclose(scores(engine, expected["resized_uint8"][which]), alone[which], rtol=0, atol=5e-3)


@on_gpu
def test_uploads_arrive_in_order_and_whole() -> None:
    batches = [
        np.random.default_rng(i).integers(0, 256, (n, 112, 112, 3)).astype(np.uint8)
        for i, n in enumerate((64, 64, 5, 64, 1))
    ]
    graphs = Graphs(CUDA)
    for _ in range(3):
        with graphs.scope():
            arrived = [x.clone() for x in graphs.upload(batches)]
        for found, sent in zip(arrived, batches, strict=True):
            np.testing.assert_array_equal(found.cpu().numpy(), sent)


@on_gpu
def test_clips_on_a_gpu_give_upstreams_scores(rounded: Rounded, expected: dict[str, np.ndarray]) -> None:
    engine = load_engine(rounded("narrow-112", "fp16"), LoadOptions(device="cuda", engine="torch"))
    found = Scorer(engine).score_video([PICTURES / name for name in expected["picture_names"][:3]])
    assert abs(found.value - expected["score_quality_video"][0]) < 1e-2


@on_gpu
def test_a_checkpoint_runs_on_a_named_gpu(narrow: Golden, expected: dict[str, np.ndarray]) -> None:
    engine = load_engine(narrow.checkpoint, LoadOptions(device="cuda"))
    assert engine.device == "cuda:0"
    np.testing.assert_allclose(
        scores(engine, expected["resized_uint8"]), expected["score_quality_image"], rtol=0, atol=1e-4
    )
