"""An artifact's folded weights in, `encode` and `decode` on an NVIDIA GPU out.

A batch is rounded up to one of a few sizes, each of which is launched as one graph of kernels; rows that fill it up are
copies of a real picture, cut off the result. Tokens stay on the device, where every task's decoding reads them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qalign_fast.artifact.manifest import Artifact, Manifest
from qalign_fast.engines.buckets import BUCKETS, bucket_of
from qalign_fast.engines.compile_ahead import Launches, compile_ahead
from qalign_fast.engines.contract import Tokens
from qalign_fast.engines.cuda_graphs import Graphs, Runner, Step
from qalign_fast.engines.torch_cpu import Constants, read_folded, set_threads
from qalign_fast.errors import DeviceError, one_line
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Prompt
from qalign_kernels.contract.attention import BACKENDS, attention_backends
from qalign_kernels.contract.linear import FP8, Modal
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.quantized_rows import Rows

if TYPE_CHECKING:
    from qalign_kernels.cuda.runtime import Device  # Triton is for Linux

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # between the products


def between_of(precision: str) -> torch.dtype:
    """The type of what lies between products."""
    return _DTYPES.get(precision, torch.float16)


def attention_of(precision: str, device: str) -> str:
    """By which of torch's kernels a picture's rows are attended to on a CUDA device: the first asked for."""
    major, minor = torch.cuda.get_device_capability(device)
    return BACKENDS[attention_backends(10 * major + minor, between_of(precision))[0]]


class CudaModel(FoldedModel):
    """The folded model with its logits in float32: of 16 bits a score would show the steps."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], ops: Ops, exact: Ops) -> None:
        """`exact`: operations whose results are float32."""
        super().__init__(config, tensors, ops)
        self._exact = exact

    def queries_keys_values(
        self, name: str, normed: Tensor | Rows, split: int, asking: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """In one product where the three weights lie in one."""
        if f"{name}qkv.weight" not in self.tensors:
            return super().queries_keys_values(name, normed, split, asking)
        stacked, width = self.weight(f"{name}qkv"), self.config.decoder.width
        if asking == slice(None):
            y = self.ops.modal_linear(normed, stacked, Modal(split, width))
            return y[:, :width], y[:split, width:], y[split:, width:]
        y = self.ops.modal_linear(normed, stacked.part(width, len(stacked.weight)), Modal(split, 0))
        return self.linear(f"{name}q", normed[asking]), y[:split], y[split:]

    def logits(self, rows: Tensor) -> Tensor:
        gain = self.tensors["decoder.norm"]
        n = self._exact.rms_norm(rows, gain, gain, 0, self.config.decoder.eps)
        return self._exact.linear(n, self.weight("decoder.head"))


class CudaEngine:
    name = "torch"
    in_flight = 2  # while one is awaited, the next one's pixels go up and its kernels are queued

    def __init__(
        self,
        model: FoldedModel,
        precision: str,
        constants: Mapping[str, Constants],
        prompts: tuple[Prompt, ...],
        device: str,
        runner: Runner,
    ) -> None:
        """The model's tensors and the constants are on the device."""
        self.config, self.precision, self.prompts, self.device = model.config, precision, prompts, device
        self.kernels = model.ops.name
        self.model, self._constants, self._runner = model, constants, runner
        visual = self.config.abstractor.tokens
        self._turns = {name: model.turns(visual, *between) for name, between in constants.items()}  # of pictures
        self._lock = Lock()  # buffers and graphs are one call's at a time

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """Returns before the GPU is done, as tokens are read there. Raises DeviceError for what it does not do."""
        most = BUCKETS[-1]
        batches = [pixels[start : start + most] for start in range(0, len(pixels), most)]
        with self._lock, self._runner.scope(), self._refusals(f"{len(pixels)} picture{'s' * (len(pixels) > 1)}"):
            return torch.cat([self._run("encode", self.model.encode, x) for x in self._runner.upload(batches)])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Raises as `encode` does."""
        prefix, suffix = self._constants[prompt.name]

        def step(tokens: Tensor) -> Tensor:
            return self.model.decode(tokens, prefix, suffix, self._turns[prompt.name])

        with self._refusals(f"{len(tokens)} times {tokens.shape[1]} visual tokens"):
            with self._lock, self._runner.scope():
                if tokens.shape[1] == self.config.abstractor.tokens:
                    parts = [self._run(prompt.name, step, part) for part in tokens.split(BUCKETS[-1])]
                else:  # clips are of many lengths, and their kernels are large
                    parts = [self._runner.call(lambda clips: self.model.decode(clips, prefix, suffix), tokens)]
                arrive = self._runner.download(torch.cat(parts))
            logits: npt.NDArray[np.float32] = arrive().numpy()
            return logits

    def _run(self, name: str, step: Step, x: Tensor) -> Tensor:
        size = bucket_of(len(x))
        return self._runner.run((name, size), step, fill_up(x, size))[: len(x)]

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """As DeviceErrors."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"device {self.device!r}: no room for {what} beside the weights ({one_line(error)}); "
                "a smaller batch needs less, int8 and int4 artifacts do too"
            ) from error
        except refusals() as error:
            raise DeviceError(
                f"device {self.device!r}: {what} failed ({type(error).__name__}: {one_line(error)}); "
                "a smaller batch may do, device='cpu' works without CUDA and Triton"
            ) from error


def fill_up(x: Tensor, size: int) -> Tensor:
    """[B, ...] -> [size, ...]: the last one again and again. What is computed of it is as finite as a picture's is."""
    return x if len(x) == size else torch.cat((x, x[-1:].expand(size - len(x), *x.shape[1:])))


def refusals() -> tuple[type[Exception], ...]:
    """What torch, its libraries and Triton, which runs compilers, raise for what a device does not do."""
    found = (RuntimeError, OSError, subprocess.CalledProcessError)
    if find_spec("triton") is None:
        return found
    from qalign_kernels.cuda.runtime import TritonError

    return (*found, TritonError)


def load_cuda(artifact: Artifact, device: str, threads: int | None = None) -> CudaEngine:
    """`device`: "cuda:N", one that `choose_device` gave.

    The first picture is scored here, so that what this machine's driver, torch or Triton cannot do shows now. Raises
    DeviceError for that and for weights that do not fit; ArtifactError as `read_folded` does.
    """
    set_threads(threads)
    mapped, constants = read_folded(artifact)
    try:
        manifest = artifact.manifest
        compile_ahead([Launches(manifest.config, manifest.precision, mapped, constants)], torch.device(device))
        engine = build_engine(manifest, device, mapped, constants)
        side = engine.config.pixels.side
        engine.decode(engine.encode(np.full((1, side, side, 3), 127, np.uint8)), engine.prompts[0])
        return engine
    except torch.OutOfMemoryError as error:
        what = f"the {artifact.manifest.precision} weights and a picture do not fit ({one_line(error)})"
        raise DeviceError(f"device {device!r}: {what}; int8 and int4 artifacts need less memory") from error
    except refusals() as error:
        raise DeviceError(
            f"device {device!r}: its first picture failed ({type(error).__name__}: {one_line(error)}); "
            "device='cpu' works without CUDA and Triton"
        ) from error


def build_engine(
    manifest: Manifest,
    device: str,
    mapped: dict[str, Tensor],
    constants: Mapping[str, Constants],
    runner: Runner | None = None,
) -> CudaEngine:
    """`mapped` and `constants` are `read_folded`'s, or already on the device. `runner`: None is `Graphs`."""
    from qalign_kernels.cuda.runtime import Device

    place = torch.device(device)
    facts, precision = Device.of(place), manifest.precision
    model, there = build_model(manifest.config, precision, mapped, constants, place, facts)
    prompts = tuple(entry.prompt for entry in manifest.prompts)
    return CudaEngine(model, precision, there, prompts, device, runner or Graphs(place))


def build_model(
    config: ModelConfig,
    precision: str,
    mapped: dict[str, Tensor],
    constants: Mapping[str, Constants],
    place: torch.device,
    facts: Device,
) -> tuple[CudaModel, dict[str, Constants]]:
    """The model, and the constants where it is."""
    from qalign_kernels.cuda.ops import TritonOps

    between = between_of(precision)
    ops, exact = TritonOps(facts, between), TritonOps(facts, torch.float32)
    model = CudaModel(config, to_device(mapped, place, between), ops, exact)
    there = {name: (k.to(place, between), rows.to(place, between)) for name, (k, rows) in constants.items()}
    return model, there


# what rows are made of or added to: a float32 there would make float32 of all that follows
_ROWS = re.compile(r".*(_table|class_token|end_token|layers\.0\.[xqkv])")
# linears after whose bias nothing comes, so that a product in fp8 adds it, in the type of its result
_BIAS_LAST = re.compile(r".*\.(patch|qkv|kv|gate_up|project|q|kv_visual|kv_text)")


def to_device(mapped: dict[str, Tensor], device: torch.device, between: torch.dtype) -> dict[str, Tensor]:
    """Tensors of a mapped file, one at a time: the host never holds a copy of its own of more than one.

    `between`: the type of what lies between products.
    """
    from qalign_kernels.contract.linear import Weight
    from qalign_kernels.cuda.linear import align

    weights = {name.removesuffix(".weight"): x.dtype for name, x in mapped.items() if name.endswith(".weight")}
    biases = {f"{name}.bias": _bias_type(name, dtype, between) for name, dtype in weights.items()}
    tensors = _stacked(mapped, device)
    for name in list(mapped):
        dtype = between if _ROWS.fullmatch(name) else biases.get(name)
        tensor = mapped.pop(name).to(device, dtype)
        # Of OneAlign's linears the only one whose inputs are no multiple of 16. A small model's others are left: rows
        # that come to them in 8 bits already have no room to be aligned.
        tensors[name] = align(Weight(name, tensor)).weight if name == "vision.patch.weight" else tensor
    return tensors


def _bias_type(name: str, weight: torch.dtype, between: torch.dtype) -> torch.dtype | None:
    """What a linear's bias becomes, None for what it is already: cuBLAS adds it in the type of its result."""
    if weight in (torch.float16, torch.bfloat16):
        return weight
    return between if weight == FP8 and _BIAS_LAST.fullmatch(name) else None


def _stacked(mapped: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Each decoder layer's q, kv_visual and kv_text as one weight, qkv, and as parts of it, where all are int8 or int4.

    They leave `mapped`. One product reads them.
    """
    tensors: dict[str, Tensor] = {}
    for layer in [name.removesuffix("q.weight") for name in mapped if re.fullmatch(r"decoder\..*\.q\.weight", name)]:
        linears = [f"{layer}{one}" for one in ("q", "kv_visual", "kv_text")]
        types = {mapped[f"{linear}.weight"].dtype for linear in linears}
        biases = sum(f"{linear}.bias" in mapped for linear in linears)
        if types not in ({torch.int8}, {torch.uint8}) or biases not in (0, len(linears)):
            continue
        parts = ["weight", "scale"] + ["groups"] * (torch.uint8 in types) + ["bias"] * (biases > 0)
        for part in parts:
            names = [f"{linear}.{part}" for linear in linears]
            ends = list(accumulate(len(mapped[name]) for name in names))
            stacked = tensors[f"{layer}qkv.{part}"] = torch.cat([mapped.pop(name).to(device) for name in names])
            tensors |= {name: stacked[first:end] for name, first, end in zip(names, [0, *ends], ends)}
    return tensors
