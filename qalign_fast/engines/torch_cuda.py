"""An artifact's folded weights in, `encode` and `decode` on an NVIDIA GPU out.

A batch is rounded up to one of a few sizes, each of which is launched as one graph of kernels; rows that fill it up are
copies of a real picture, cut off the result. Tokens stay on the device, where every task's decoding reads them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qalign_fast.artifact.manifest import Artifact, Manifest
from qalign_fast.engines.common import bucket_of, fill_up, score_grey_picture, split_batch
from qalign_fast.engines.compile_ahead import Launches, compile_ahead
from qalign_fast.engines.contract import Tokens
from qalign_fast.engines.cuda_graphs import Graphs, Runner, Step
from qalign_fast.engines.cuda_model import build_model
from qalign_fast.engines.torch_weights import read_folded, set_threads
from qalign_fast.errors import DeviceError, one_line
from qalign_fast.families.family import Constants, Family
from qalign_fast.families.prompt import Prompt

if TYPE_CHECKING:
    pass


class CudaEngine:
    """A folded model on our Triton kernels and one NVIDIA GPU."""

    name = "torch"
    in_flight = 2  # while one is awaited, the next one's pixels go up and its kernels are queued

    def __init__(
        self,
        family: Family,
        model: Any,
        precision: str,
        constants: Mapping[str, Constants],
        prompts: tuple[Prompt, ...],
        device: str,
        runner: Runner,
    ) -> None:
        """The model's tensors and the constants are on the device."""
        self.family, self.config, self.precision, self.prompts = family, model.config, precision, prompts
        self.device = device
        self.kernels = model.ops.name
        self.model, self._constants, self._runner = model, constants, runner
        visual = self.config.picture_tokens
        self._turns = {name: model.turns(visual, *between) for name, between in constants.items()}  # of pictures
        self._lock = Lock()  # buffers and graphs are one call's at a time

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """Returns before the GPU is done, as tokens are read there. Raises DeviceError for what it does not do."""
        batches = list(split_batch(pixels))
        with self._lock, self._runner.scope(), self._refusals(f"{len(pixels)} picture{'s' * (len(pixels) > 1)}"):
            return torch.cat([self._run("encode", self.model.encode, x) for x in self._runner.upload(batches)])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Raises as `encode` does."""
        given, (prefix, suffix) = cast(Tensor, tokens), self._constants[prompt.name]

        def step(tokens: Tensor) -> Tensor:
            logits: Tensor = self.model.decode(tokens, prefix, suffix, self._turns[prompt.name])
            return logits

        with self._refusals(f"{len(tokens)} times {tokens.shape[1]} visual tokens"):
            with self._lock, self._runner.scope():
                if tokens.shape[1] == self.config.picture_tokens:
                    parts = [self._run(prompt.name, step, part) for part in split_batch(given)]
                else:  # clips are of many lengths, and their kernels are large
                    parts = [self._runner.call(lambda clips: self.model.decode(clips, prefix, suffix), given)]
                arrive = self._runner.download(torch.cat(parts))
            logits: npt.NDArray[np.float32] = arrive().numpy()
            return logits

    def _run(self, name: str, step: Step, x: Tensor) -> Tensor:
        size = bucket_of(len(x))
        return self._runner.run((name, size), step, fill_up(x, size, torch.cat))[: len(x)]

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
        launches = Launches(manifest.family.name, manifest.config, manifest.precision, mapped, constants)
        compile_ahead([launches], torch.device(device))
        engine = build_engine(manifest, device, mapped, constants)
        score_grey_picture(engine)
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
    from qalign_kernels.cuda.runtime import device_of

    place = torch.device(device)
    facts, precision = device_of(place), manifest.precision
    model, there = build_model(manifest.family, manifest.config, precision, mapped, constants, place, facts)
    return CudaEngine(manifest.family, model, precision, there, manifest.task_prompts, device, runner or Graphs(place))
