"""An artifact's torch weights in, `encode` and `decode` on the C++ kernels out: numpy holds the memory, not torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import BoundedSemaphore

import numpy as np
import numpy.typing as npt

from qalign_fast.artifact.manifest import Artifact, Manifest
from qalign_fast.artifact.mapped_tensors import map_tensors, weights_file
from qalign_fast.artifact.prompt_tensors import load_constants, load_tail
from qalign_fast.engines.contract import Tokens
from qalign_fast.errors import ArtifactError, DeviceError
from qalign_fast.families.family import Tail
from qalign_fast.families.prompt import Prompt
from qalign_fast.families.schema import check_tensors
from qalign_kernels.contract.operations import Operations
from qalign_kernels.cores import cores
from qalign_kernels.cpu.numpy_ops import load_numpy
from qalign_kernels.cpu.table import exact_for

ROWS = 2048  # of a model at a time; with more, activations leave the cache and nothing is gained


class NativeEngine:
    """A folded model on numpy arrays. Tokens are numpy arrays, float32 [B, V, D].

    Calls from several threads take turns, because each has every core; so there is the memory of one. With one thread a
    call, as many run at once as there are cores.
    """

    name = "native"
    device = "cpu"
    in_flight = 1

    def __init__(
        self,
        manifest: Manifest,
        tensors: Mapping[str, npt.NDArray],
        constants: Mapping[str, tuple[npt.NDArray[np.float32], ...]],
        ops: Operations,
        at_once: int = 1,
        tail: Tail | None = None,
    ) -> None:
        """`tensors`, `constants`, `tail`: as `map_tensors`, `load_constants`, `load_tail` return them.

        `at_once`: calls, at most.
        """
        self.family, self.config, self.precision = manifest.family, manifest.config, manifest.precision
        self.prompts, self.kernels = manifest.task_prompts, ops.name
        self._constants, self.tail = constants, tail or {}
        self._at_once, self._turns, self._process = at_once, BoundedSemaphore(at_once), os.getpid()
        self._model = manifest.family.folded_model()(manifest.config, tensors, ops)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """As `Engine.encode`, a few pictures at a time."""
        with self._turn():
            parts = _parts(pixels, self.config.vision_rows(*pixels.shape[1:3]))
            return _whole([self._model.encode(part) for part in parts])

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """As `Engine.decode`, a few sequences at a time."""
        given, constants = np.asarray(tokens), self._constants[prompt.name]
        with self._turn():
            parts = _parts(given, given.shape[1] + len(prompt.suffix))
            return _whole([self._model.decode(part, *constants) for part in parts])

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of this process's turns. Those that a fork copied may be held by threads that the child does not have."""
        if self._process != os.getpid():
            self._turns, self._process = BoundedSemaphore(self._at_once), os.getpid()
        with self._turns:
            try:
                yield
            except MemoryError as error:
                raise DeviceError(f"device 'cpu': no memory for one step of the model ({error})") from error
            finally:
                self._model.ops.end_turn()


def load_native_engine(artifact: Artifact, threads: int | None = None, ops: Operations | None = None) -> NativeEngine:
    """The engine of an artifact's torch weights, on `ops`: by default the C++ kernels, or plain numpy without them.

    `threads` holds for the whole process. Raises ArtifactError for weights that are missing, cannot be read or do not
    fit the manifest's sizes.
    """
    manifest, path = artifact.manifest, weights_file(artifact)
    tensors, found = map_tensors(path)
    try:
        check_tensors(manifest.family.schema(manifest.config), found)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    for name, tensor in found.items():
        if tensor.dtype == "float8_e4m3fn":
            raise ArtifactError(f"{path}: {name} is {tensor.dtype}, which engine native has no kernels for")
    ops = ops or load_numpy(threads=threads, exact=exact_for(manifest.precision)) or _plain()
    at_once = cores() if threads == 1 else 1
    return NativeEngine(manifest, tensors, load_constants(artifact), ops, at_once, load_tail(artifact))


def _plain() -> Operations:
    from qalign_kernels.cpu.plain_numpy import PLAIN

    return PLAIN


def _parts(x: npt.NDArray, rows: int) -> Iterator[npt.NDArray]:
    """[B, ...] -> parts of at most ROWS rows, where each of B has `rows`; at least one of B."""
    size = max(1, ROWS // rows)
    for first in range(0, len(x), size):
        yield x[first : first + size]


def _whole(parts: list[npt.NDArray]) -> npt.NDArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
