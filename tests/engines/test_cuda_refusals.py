"""What the CUDA engine says when a device, its memory or its software refuses. On any machine."""

from __future__ import annotations

import subprocess
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import DeviceError
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.cli.info import describe
from qalign_fast.engines import devices
from qalign_fast.engines.cuda_graphs import Direct, Step
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.engines.torch_cuda import load_cuda
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from support.cuda_engines import QUALITY, engine_of
from support.goldens import GOLDEN, Golden, Rounded


class Refusing(Direct):
    """A device that runs no more than two at a time."""

    def __init__(self, error: Exception) -> None:
        super().__init__(torch.device("cpu"))
        self.error = error

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise self.error
        return step(x)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


def test_a_batch_without_room_is_a_device_error(folded: Path, expected: dict[str, np.ndarray]) -> None:
    engine = engine_of(folded, Refusing(OUT_OF_MEMORY))
    with pytest.raises(
        DeviceError, match=r"no room for 3 pictures beside .*2.00 GiB.\); a smaller batch needs less, i"
    ):
        engine.encode(expected["resized_uint8"][:3])
    assert len(engine.decode(engine.encode(expected["resized_uint8"][:2]), QUALITY)) == 2  # and the engine still works


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
    folded: Path, expected: dict[str, np.ndarray], error: Exception | str, says: str
) -> None:
    """It can happen after loading too, because a bucket's kernels are compiled when it is first used."""
    if isinstance(error, str):
        errors = pytest.importorskip("triton.runtime.errors", reason="Triton is for Linux")
        error = errors.OutOfResources(240000, 232448, "shared memory")
    engine = engine_of(folded, Refusing(error))
    tokens = torch.cat([engine.encode(expected["resized_uint8"][:2])] * 2)
    for call in (lambda: engine.encode(expected["resized_uint8"][:3]), lambda: engine.decode(tokens, QUALITY)):
        with pytest.raises(
            DeviceError, match=rf"device 'cpu': .* failed \(.*{says}.*\); a smaller batch may do"
        ) as one:
            call()
        assert "\n" not in str(one.value)
    assert len(engine.decode(tokens[:2], QUALITY)) == 2


def test_a_clip_without_room_is_a_device_error(
    folded: Path, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(folded, Direct(torch.device("cpu")))
    tokens = engine.encode(expected["resized_uint8"][:4]).reshape(1, -1, engine.config.decoder.width)

    def full(*_: object) -> Tensor:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(FoldedModel, "decode", full)
    with pytest.raises(DeviceError, match=rf"no room for 1 times {tokens.shape[1]} visual tokens"):
        engine.decode(tokens, QUALITY)


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
    folded: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")

    def fail(_: torch.device) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)  # the first call to the device
    with pytest.raises(DeviceError, match=says):
        load_cuda(open_artifact(folded), "cuda:0")


def refused(path: Path, **choice: str) -> str:
    with pytest.raises(DeviceError) as caught:
        load_engine(path, LoadOptions(**choice))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_devices_that_are_none_are_named(folded: Path) -> None:
    for name in ("tpu", "cuda:", "cuda:one", "CUDA", "cpu:0", ""):
        assert f"device {name!r} is not one; there are: auto, cpu, cuda" in refused(folded, device=name)


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
    folded: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], says: str
) -> None:
    """On a torch that reports two good GPUs, except for one thing."""
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
    text = refused(folded, device="cuda:1")
    assert says in text
    assert "available: auto, cpu" in text
    if "cuda.device_count" in change:
        assert text.endswith("auto, cpu, cuda:0")
        assert devices.choose_device("cuda") == devices.choose_device("auto") == "cuda:0"
    else:
        assert devices.choose_device("auto") == "cpu"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_a_named_device_is_never_replaced(folded: Path, narrow: Golden) -> None:
    assert load_engine(folded, LoadOptions(device="cpu")).device == "cpu"
    for path in (folded, narrow.checkpoint):
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
        ("fp32", (9, 0), "efficient"),  # the others take 16 bits only
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
