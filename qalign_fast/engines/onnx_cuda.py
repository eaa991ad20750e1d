"""An artifact in, `encode` and `decode` on onnxruntime and an NVIDIA GPU out.

Each size of batch has buffers of its own on the device: pixels, visual tokens, logits. Encoding leaves tokens where
decoding reads them. Because no buffer moves, the CUDA provider launches each size as one graph of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from qalign_fast.artifact.manifest import Artifact
from qalign_fast.artifact.prompt_tensors import load_constants, load_tail
from qalign_fast.engines.common import BUCKETS, bucket_of, fill_up, score_grey_picture, split_batch
from qalign_fast.engines.contract import Tokens
from qalign_fast.engines.onnx_session import (
    Provider,
    cause,
    import_onnxruntime,
    open_sessions,
    refusals,
    require_provider,
)
from qalign_fast.errors import DeviceError
from qalign_fast.families.prompt import Prompt
from qalign_fast.families.schema import Values

Array = npt.NDArray[Any]
_NO_GRAPH = -1  # for clips: two of one length are rare, so a graph of kernels would seldom be used again


class _Buffers(NamedTuple):
    """The buffers of one size of batch, on the device."""

    pixels: Any  # uint8 [size, S, S, 3]
    tokens: Any  # float32 [size, Q+1, D]
    logits: Any  # float32 [size, N], N the head's outputs


class DeviceTokens:
    """The visual tokens float32 [B, Q+1, D] of one call of `encode`.

    They stay in their buffer on the device until another batch needs it, and are then copied to the host.
    """

    def __init__(self, buffer: Any, count: int) -> None:
        self.on_device = True
        self._buffer, self._count = buffer, count
        self._lock = Lock()

    def numpy(self) -> Array:
        """The tokens on the host. They leave the device at the first call."""
        with self._lock:
            if self.on_device:
                self._buffer, self.on_device = fetch(self._buffer, self._count), False
            found: Array = self._buffer
            return found

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._count, *self._buffer.shape()[1:]) if self.on_device else self._buffer.shape

    def __len__(self) -> int:
        return self._count

    def reshape(self, *shape: int) -> Array:
        return self.numpy().reshape(*shape)

    def __getitem__(self, some: Any) -> Array:
        part: Array = self.numpy()[some]
        return part


class OnnxGpuEngine:
    """An artifact's graphs on onnxruntime's CUDA or TensorRT provider. Tokens are `DeviceTokens` or numpy arrays."""

    in_flight = 1  # a second batch would push the first one's tokens out of their buffer

    def __init__(self, artifact: Artifact, graphs: str, provider: Provider) -> None:
        """`graphs`: the engine whose graphs of the manifest are run.

        The first picture is scored here, so that what the device cannot do shows now. Raises what `require_provider`
        and `open_sessions` raise, and DeviceError if a picture does not fit.
        """
        require_provider(provider)
        manifest = artifact.manifest
        self.name = graphs
        self.family, self.config, self.precision = manifest.family, manifest.config, manifest.precision
        self.device = provider.device
        self.kernels = f"onnxruntime {provider.name.removesuffix('ExecutionProvider')}"
        self.prompts, self.tail = manifest.task_prompts, load_tail(artifact)
        self._place = provider.place
        self._constants = {
            name: [self._upload(x) for x in constants] for name, constants in load_constants(artifact).items()
        }
        self._encoder, self._decoder = open_sessions(artifact, graphs, provider)
        self._buffers: dict[int, _Buffers] = {}
        self._graphs: dict[tuple[str, int], int] = {}  # (step, size of batch) -> number of its graph of kernels
        self._held: WeakValueDictionary[int, DeviceTokens] = WeakValueDictionary()  # by bucket
        self._lock = Lock()  # one call at a time uses the buffers
        score_grey_picture(self)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """As `Engine.encode`. Tokens stay on the device unless there are more pictures than the largest bucket has."""
        with self._lock:
            if len(pixels) <= BUCKETS[-1]:
                return self._encode(pixels)
            return np.concatenate([self._encode(part).numpy() for part in split_batch(pixels)])

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """As `Engine.decode`. Tokens that are on the device are read there."""
        with self._lock:
            if isinstance(tokens, DeviceTokens):
                if tokens.on_device:
                    return self._decode(self._buffers_of(len(tokens)), len(tokens), prompt)
                tokens = tokens.numpy()
            given = cast(Array, tokens)
            if given.shape[1] != self.config.picture_tokens:
                return self._decode_clips(given, prompt)
            return np.concatenate([self._decode_uploaded(part, prompt) for part in split_batch(given)])

    def _encode(self, pixels: Array) -> DeviceTokens:
        buffers = self._take(len(pixels))
        buffers.pixels.update_inplace(_filled(pixels))
        self._run(self._encoder, "encode", [buffers.pixels], buffers.tokens)
        tokens = self._held[bucket_of(len(pixels))] = DeviceTokens(buffers.tokens, len(pixels))
        return tokens

    def _decode(self, buffers: _Buffers, count: int, prompt: Prompt) -> npt.NDArray[np.float32]:
        self._run(self._decoder, prompt.name, [buffers.tokens, *self._constants[prompt.name]], buffers.logits)
        return fetch(buffers.logits, count)

    def _decode_uploaded(self, tokens: Array, prompt: Prompt) -> npt.NDArray[np.float32]:
        buffers = self._take(len(tokens))
        buffers.tokens.update_inplace(_filled(tokens))
        return self._decode(buffers, len(tokens), prompt)

    def _decode_clips(self, tokens: Array, prompt: Prompt) -> npt.NDArray[np.float32]:
        logits = self._room((len(tokens), *_shape_of(self.family.interface(self.config).decode[1])), np.float32)
        inputs = [self._upload(tokens), *self._constants[prompt.name]]
        self._run(self._decoder, prompt.name, inputs, logits, number=_NO_GRAPH)
        return fetch(logits, len(tokens))

    def _run(self, session: Any, name: str, inputs: Sequence[Any], output: Any, number: int | None = None) -> None:
        """One launch. The same name and size of output always mean the same graph of kernels."""
        ort = import_onnxruntime()
        size = output.shape()[0]
        if number is None:
            number = self._graphs.setdefault((name, size), len(self._graphs) + 1)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        binding = session.io_binding()
        for value, x in zip(session.get_inputs(), inputs, strict=True):
            binding.bind_ortvalue_input(value.name, x)
        binding.bind_ortvalue_output(session.get_outputs()[0].name, output)
        try:
            session.run_with_iobinding(binding, options)
        except refusals() as error:
            raise DeviceError(
                f"device {self.device!r}: {size} at a time failed ({cause(error)}); a smaller batch may do"
            ) from error

    def _take(self, count: int) -> _Buffers:
        """The buffers for `count` pictures, which the caller is about to write.

        If somebody still holds the tokens in them, these are copied to the host first.
        """
        held = self._held.pop(bucket_of(count), None)
        if held is not None:
            held.numpy()
        return self._buffers_of(count)

    def _buffers_of(self, count: int) -> _Buffers:
        size = bucket_of(count)
        if size not in self._buffers:
            (pixels, tokens), (_, logits) = self.family.interface(self.config)
            self._buffers[size] = _Buffers(
                self._room((size, *_shape_of(pixels)), np.uint8),
                self._room((size, *_shape_of(tokens)), np.float32),
                self._room((size, *_shape_of(logits)), np.float32),
            )
        return self._buffers[size]

    def _room(self, shape: tuple[int, ...], dtype: type) -> Any:
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(shape, dtype, *self._place)

    def _upload(self, x: Array) -> Any:
        return import_onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x), *self._place)


def fetch(buffer: Any, count: int) -> Array:
    """A copy of the first `count` entries of a buffer. If the device is a CPU, `numpy` alone would be a view."""
    return np.array(buffer.numpy()[:count])


def _filled(x: Array) -> Array:
    return np.ascontiguousarray(fill_up(x, bucket_of(len(x)), np.concatenate))


def _shape_of(values: Values) -> tuple[int, ...]:
    """The shape of the first of a graph's inputs or outputs, without the batch."""
    _, (_, *shape) = next(iter(values.values()))
    return tuple(cast("list[int]", shape))
