"""What the process of every peer does: it loads a model, then answers the commands `latency` and `pixels`.

The messages are those of contestants/wire.py. This file also runs in interpreters that have none of this project's
packages: it needs its siblings, numpy and torch.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING or __package__:
    from qalign_bench.peers import measured_process as process
else:  # a script's own folder is on its path
    import measured_process as process

Pictures = process.Pictures
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PeerError(Exception):
    """A peer cannot run or answer. The message says what was found and what would work."""


# What a machine or a user's files do to a run. Anything else is a mistake of ours and ends the process.
_FAILURES = (PeerError, OSError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Spec:
    """What a peer's process is asked to load."""

    model: str | None  # None: no weights, for a peer that is asked for pixels alone
    precision: str
    device: torch.device
    seed: int
    own: Mapping[str, Any]  # all that was given, the peer's own keys included

    def dtype(self) -> torch.dtype:
        """Raises PeerError for a precision that torch has no float of."""
        if self.precision not in DTYPES:
            raise PeerError(f"precision {self.precision!r} is not one this peer has: {', '.join(DTYPES)}")
        return DTYPES[self.precision]


class PixelPath(Protocol):
    """A peer's own way from a file to pixels."""

    def values(self, file: str) -> object:
        """Turns a file into what the model takes, in the peer's own way. This is timed."""
        ...

    def resized(self, file: str) -> Pictures:
        """Returns the same file's picture before normalization, uint8 [S, S, 3]."""
        ...


class Peer(Protocol):
    """A model that the engines are compared with."""

    name: str
    packages: Sequence[str]  # their versions are told, beside torch's and numpy's
    precision: str
    device: torch.device
    side: int  # S
    weights_bytes: int | None
    stations: Mapping[str, nn.Module]  # their times are told apart
    pixel_path: PixelPath | None

    def prepare(self, pictures: Pictures) -> Tensor:
        """Turns pictures into what the model takes, on its device. This is not timed."""
        ...

    def score(self, prepared: Tensor, task: str) -> list[float]:
        """Runs one forward and returns a score on 1..5 for each picture. Raises PeerError for an unknown task."""
        ...


def serve(load: Callable[[Spec], Peer]) -> None:
    """Loads the peer that the first argument asks for and answers commands, as `answer_commands` does."""

    def begin(text: str) -> tuple[process.Message, process.Handler]:
        spec, started = parse_spec(text), time.perf_counter()
        peer = load(spec)
        return _ready(peer, time.perf_counter() - started), lambda command: _run(peer, command, spec.seed)

    process.answer_commands(begin, _FAILURES)


def parse_spec(text: str) -> Spec:
    """Reads a spec and sets torch's threads.

    Raises MessageError for text that is no JSON object, PeerError for a device that is not there.
    """
    given = process.read_object(text, "the spec")
    device = given.get("device") or "auto"
    has = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    if device == "auto":
        device = has[0]
    if device.partition(":")[0] not in has:
        raise PeerError(f"device {device!r} is not available; torch has: {', '.join(has)}")
    if given.get("threads"):
        torch.set_num_threads(given["threads"])
    precision = given.get("precision") or ("bf16" if device == "cpu" else "fp16")
    return Spec(given.get("model"), precision, torch.device(device), given.get("seed") or 0, given)


def _ready(peer: Peer, load_s: float) -> dict[str, Any]:
    cuda = peer.device.type == "cuda"
    return {
        "name": peer.name,
        "load_s": load_s,
        "versions": {package: version(package) for package in ("torch", "numpy", *peer.packages)},
        "device": torch.cuda.get_device_name(peer.device) if cuda else "cpu",
        "engine": "torch",
        "precision": peer.precision,
        "kernels": None,
        "weights_bytes": peer.weights_bytes,
    }


def _run(peer: Peer, command: Mapping[str, Any], seed: int) -> dict[str, Any]:
    kinds = {"latency": _latency, "pixels": _pixels}
    kind = command.get("run")
    if kind not in kinds:
        raise PeerError(f"no run {kind!r} in a peer; there are: {', '.join(kinds)}")
    try:
        return kinds[kind](peer, command, seed)
    except KeyError as error:
        raise PeerError(f"run {kind}: the command has no {error}") from error


def _whole(command: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = command[key]
    if type(value) is not int or value < least:
        raise PeerError(f"{key} is {value!r}; expected a whole number from {least}")
    return value


def _latency(peer: Peer, command: Mapping[str, Any], seed: int) -> dict[str, Any]:
    batch, repeat, warmup = _whole(command, "batch"), _whole(command, "repeat"), _whole(command, "warmup", 0)
    tasks = command["tasks"]
    prepared = peer.prepare(process.random_pictures(seed, batch, peer.side))
    for _ in range(warmup):
        _forward(peer, prepared, tasks)
    if peer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(peer.device)
    times, scores = [], []
    with Clock(peer.stations, peer.device) as clock:
        for _ in range(repeat):
            started = time.perf_counter()
            scores = _forward(peer, prepared, tasks)
            times.append(1e3 * (time.perf_counter() - started))
            clock.lap()
    memory = {"host": process.host_peak(), "device": _device_peak(peer.device)}
    return {"ms": times, "stations_ms": clock.medians(), "peak_memory_bytes": memory, "scores": scores}


def _forward(peer: Peer, prepared: Tensor, tasks: Sequence[str]) -> list[list[float]]:
    """A whole forward for each task. Scores come as lists on the host, so a GPU's work has ended."""
    return [peer.score(prepared, task) for task in tasks]


def _device_peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


class Clock:
    """How long modules take in each lap, by hooks. On a GPU events in its stream tell, so that nothing waits."""

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self._modules, self._device = modules, device
        self._marks: dict[str, list[Any]] = {name: [] for name in modules}  # start, end, start, end, ...
        self._laps: dict[str, list[float]] = {name: [] for name in modules}
        self._hooks: list[Any] = []

    def __enter__(self) -> Clock:
        for name, module in self._modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._marker(name)))
            self._hooks.append(module.register_forward_hook(self._marker(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def lap(self) -> None:
        """Ends a lap. Its work must be done."""
        for name, marks in self._marks.items():
            self._laps[name].append(sum(map(self._between, marks[::2], marks[1::2])))
            marks.clear()

    def medians(self) -> dict[str, float]:
        """The median milliseconds of a lap, by module."""
        return {name: statistics.median(laps) for name, laps in self._laps.items()}

    def _marker(self, name: str) -> Callable[..., None]:
        return lambda *_: self._marks[name].append(self._now())

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) if self._device.type == "cuda" else 1e3 * (end - start))


def _pixels(peer: Peer, command: Mapping[str, Any], _seed: int) -> dict[str, Any]:
    if peer.pixel_path is None:
        raise PeerError(f"{peer.name} has no pixel path of its own; the upstream peer has one")
    files, repeat, threads = command["files"], _whole(command, "repeat"), torch.get_num_threads()
    torch.set_num_threads(1)  # the other contestants are measured on one core too
    times = [[_time_file(peer.pixel_path, file) for _ in range(repeat)] for file in files]
    torch.set_num_threads(threads)
    hashes = [hashlib.sha256(peer.pixel_path.resized(file).tobytes()).hexdigest() for file in files]
    return {"ms": times, "sha256": hashes}


def _time_file(path: PixelPath, file: str) -> float:
    started = time.perf_counter()
    path.values(file)
    return 1e3 * (time.perf_counter() - started)
