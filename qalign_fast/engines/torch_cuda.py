"""An artifact's folded weights in, `encode` and `decode` on an NVIDIA GPU out.

A batch is rounded up to one of a few sizes. Each size is launched as one graph of kernels. Copies of a real picture
fill it up, and are cut off the result. Tokens stay on the device, where the decoding of every task reads them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qalign_fast.artifact.manifest import Artifact, Manifest
from qalign_fast.artifact.prompt_tensors import load_tail
from qalign_fast.engines.common import bucket_of, fill_up, score_grey_picture, split_batch
from qalign_fast.engines.compile_ahead import Launches, compile_ahead
from qalign_fast.engines.contract import Tokens
from qalign_fast.engines.cuda_graphs import Graphs, Runner, Step
from qalign_fast.engines.cuda_model import build_model
from qalign_fast.engines.torch_weights import read_folded, set_threads
from qalign_fast.errors import DeviceError, one_line
from qalign_fast.families.family import Constants, Family, Tail
from qalign_fast.families.prompt import Prompt


class CudaEngine:
    """A folded model on our Triton kernels and one NVIDIA GPU. Tokens are torch tensors [B, V, D] on the GPU."""

    name = "torch"
    in_flight = 2  # while one is awaited, the pixels of the next are uploaded and its kernels are queued
    takes_tensors = True  # pixels that lie on the GPU, too

    def __init__(
        self,
        family: Family,
        model: Any,
        precision: str,
        constants: Mapping[str, Constants],
        prompts: tuple[Prompt, ...],
        device: str,
        runner: Runner,
        tail: Tail | None = None,
    ) -> None:
        """The model's tensors and the `constants`, by the prompt's name, are on the device already; `tail` is not."""
        self.family, self.config, self.precision, self.prompts = family, model.config, precision, prompts
        self.device, self.kernels = device, model.ops.name
        self.model, self._constants, self._runner, self.tail = model, constants, runner, tail or {}
        visual = self.config.picture_tokens
        self._turns = {name: model.turns(visual, *between) for name, between in constants.items()}  # for pictures
        self._lock = Lock()  # one call at a time uses the buffers and graphs

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8] | Tensor) -> Tokens:
        """As `Engine.encode`. It returns before the GPU is done, because tokens are read there.

        A tensor's pixels may be changed after it returns, on the stream that is current in this thread.
        """
        with self._lock, self._runner.scope(), self._refusals(f"{len(pixels)} picture{'s' * (len(pixels) > 1)}"):
            return torch.cat([self._run("encode", self.model.encode, x) for x in self._there(pixels)])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """As `Engine.decode`."""
        given, (prefix, suffix) = cast(Tensor, tokens), self._constants[prompt.name]

        def step(tokens: Tensor) -> Tensor:
            logits: Tensor = self.model.decode(tokens, prefix, suffix, self._turns[prompt.name])
            return logits

        with self._refusals(f"{len(tokens)} times {tokens.shape[1]} visual tokens"):
            with self._lock, self._runner.scope():
                if tokens.shape[1] == self.config.picture_tokens:
                    parts = [self._run(prompt.name, step, part) for part in split_batch(given)]
                else:  # no graph, because clips have many lengths and their kernels are large
                    parts = [self._runner.call(lambda clips: self.model.decode(clips, prefix, suffix), given)]
                arrive = self._runner.download(torch.cat(parts))
            logits: npt.NDArray[np.float32] = arrive().numpy()
            return logits

    def _there(self, pixels: npt.NDArray[np.uint8] | Tensor) -> Iterable[Tensor]:
        """Batches on the device. A tensor lies there already."""
        if not isinstance(pixels, Tensor):
            return self._runner.upload(list(split_batch(pixels)))
        assert pixels.device == torch.device(self.device)
        assert pixels.dtype == torch.uint8
        return split_batch(pixels.contiguous())

    def _run(self, name: str, step: Step, x: Tensor) -> Tensor:
        size = bucket_of(len(x))
        return self._runner.run((name, size), step, fill_up(x, size, torch.cat))[: len(x)]

    @contextmanager
    def _refusals(self, batch: str) -> Iterator[None]:
        """Turns what the device refuses into DeviceErrors. `batch` says what was given: "3 pictures"."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"device {self.device!r}: no room for {batch} beside the weights ({one_line(error)}); "
                "a smaller batch needs less, int8 and int4 artifacts do too"
            ) from error
        except refusals() as error:
            raise DeviceError(
                f"device {self.device!r}: {batch} failed ({type(error).__name__}: {one_line(error)}); "
                "a smaller batch may do, device='cpu' works without CUDA and Triton"
            ) from error


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions of torch, its libraries and Triton for what a device cannot do. Triton also runs compilers."""
    found = (RuntimeError, OSError, subprocess.CalledProcessError)
    if find_spec("triton") is None:
        return found
    from qalign_kernels.cuda.runtime import TritonError

    return (*found, TritonError)


def load_cuda(artifact: Artifact, device: str, threads: int | None = None) -> CudaEngine:
    """The engine of an artifact's folded weights on a GPU. `device` is "cuda:N", as `choose_device` returned it.

    The first picture is scored here, so that what this machine's driver, torch or Triton cannot do shows now. Raises
    DeviceError for that and for weights that do not fit, and ArtifactError as `read_folded` does.
    """
    set_threads(threads)
    mapped, constants = read_folded(artifact)
    try:
        manifest = artifact.manifest
        launches = Launches(manifest.family.name, manifest.config, manifest.precision, mapped, constants)
        compile_ahead([launches], torch.device(device))
        engine = build_engine(manifest, device, mapped, constants, tail=load_tail(artifact))
        score_grey_picture(engine)
        return engine
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"device {device!r}: the {artifact.manifest.precision} weights and a picture do not fit "
            f"({one_line(error)}); int8 and int4 artifacts need less memory"
        ) from error
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
    tail: Tail | None = None,
) -> CudaEngine:
    """The engine of tensors and constants as `read_folded` returns them, on the host or already on the device.

    `runner`: CUDA graphs by default. `tail`: as `load_tail` returns it.
    """
    from qalign_kernels.cuda.runtime import device_of

    place = torch.device(device)
    facts, precision = device_of(place), manifest.precision
    model, there = build_model(manifest.family, manifest.config, precision, mapped, constants, place, facts)
    given = manifest.family, model, precision, there, manifest.task_prompts, device
    return CudaEngine(*given, runner or Graphs(place), tail)
