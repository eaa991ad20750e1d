"""JSON commands on stdin in, a line each, JSON answers on stdout out: what the process of every peer does.

It also runs in interpreters that have none of this project's packages: numpy and torch are all it needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Pictures: TypeAlias = npt.NDArray[np.uint8]  # [B, S, S, 3]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PeerError(Exception):
    """What keeps a peer from running or answering; the message says what was found and what would work."""


# What a machine or a user's files do to a run. Anything else is a mistake of ours and ends the process.
_FAILURES = (PeerError, OSError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Spec:
    """What a peer's process is asked to be."""

    model: str | None  # None: no weights, for a peer of whom pixels alone are asked
    precision: str
    device: torch.device
    seed: int
    own: Mapping[str, Any]  # all that was given, a peer's own keys among it

    def dtype(self) -> torch.dtype:
        if self.precision not in DTYPES:
            raise PeerError(f"precision {self.precision!r} is not one this peer has: {', '.join(DTYPES)}")
        return DTYPES[self.precision]


class PixelPath(Protocol):
    def values(self, file: str) -> object:
        """A file to what the model takes, in the peer's own way: this is timed."""
        ...

    def resized(self, file: str) -> Pictures:
        """The same file's picture before normalization, uint8 [S, S, 3]."""
        ...


class Peer(Protocol):
    name: str
    packages: Sequence[str]  # whose versions are told, beside torch and numpy
    precision: str
    device: torch.device
    side: int  # S
    weights_bytes: int | None
    stations: Mapping[str, nn.Module]  # whose times are told apart
    pixel_path: PixelPath | None

    def prepare(self, pictures: Pictures) -> Tensor:
        """What the model takes, on its device: outside of what is timed."""
        ...

    def score(self, prepared: Tensor, task: str) -> list[float]:
        """One forward: a score on 1..5 for each picture. Raises PeerError for a task it does not have."""
        ...


def serve(load: Callable[[Spec], Peer]) -> None:
    """Loads what the first argument asks for and answers commands until `end` or the end of stdin.

    Exits with status 1 after an error in one line where loading fails; a command that fails is answered by one.
    """
    answers = _take_stdout()

    def answer(values: Mapping[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        spec, started = parse_spec(sys.argv[1]), time.perf_counter()
        peer = load(spec)
    except _FAILURES as error:
        answer({"error": _one_line(error)})
        raise SystemExit(1) from None
    answer(_ready(peer, time.perf_counter() - started))
    for line in sys.stdin:
        try:
            command = _object(line, "the command")
            if command.get("end"):
                return
            answer(_run(peer, command, spec.seed))
        except _FAILURES as error:
            answer({"error": _one_line(error)})


def _take_stdout() -> TextIO:
    """stdout for answers alone: what others' code prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def parse_spec(text: str) -> Spec:
    """Sets torch's threads. Raises PeerError for what is not a JSON object and for a device that is not there."""
    given = _object(text, "the spec")
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


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise PeerError(f"{what} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise PeerError(f"{what} is a {type(values).__name__}; expected an object")
    return values


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _ready(peer: Peer, load_s: float) -> dict[str, Any]:
    cuda = peer.device.type == "cuda"
    return {
        "ready": True,
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
    prepared = peer.prepare(random_pictures(seed, batch, peer.side))
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
    memory = {"host": host_peak(), "device": _device_peak(peer.device)}
    return {"ms": times, "stations_ms": clock.medians(), "peak_memory_bytes": memory, "scores": scores}


def _forward(peer: Peer, prepared: Tensor, tasks: Sequence[str]) -> list[list[float]]:
    """A whole forward for each task, the scores on the host: their lists make a GPU's work be waited for."""
    return [peer.score(prepared, task) for task in tasks]


def random_pictures(seed: int, batch: int, side: int) -> Pictures:
    """The pictures that every contestant of a bench gets, uint8 [B, S, S, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3), np.uint8)


def host_peak() -> int:
    """The process's peak of resident memory in bytes, mapped pages of files among it."""
    try:
        # ru_maxrss begins with what the process had that started this one
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


class Clock:
    """How long modules take in each lap, by hooks; on a GPU by events in its stream, so that nothing waits for them."""

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
        """Ends a lap, whose work is done."""
        for name, marks in self._marks.items():
            self._laps[name].append(sum(map(self._between, marks[::2], marks[1::2])))
            marks.clear()

    def medians(self) -> dict[str, float]:
        """Milliseconds a lap, of each module."""
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
        raise PeerError(f"{peer.name} has no way of its own from a file to pixels; the upstream peer has")
    files, repeat, threads = command["files"], _whole(command, "repeat"), torch.get_num_threads()
    torch.set_num_threads(1)  # a core is what the others are measured on
    times = [[_time_file(peer.pixel_path, file) for _ in range(repeat)] for file in files]
    torch.set_num_threads(threads)
    hashes = [hashlib.sha256(peer.pixel_path.resized(file).tobytes()).hexdigest() for file in files]
    return {"ms": times, "sha256": hashes}


def _time_file(path: PixelPath, file: str) -> float:
    started = time.perf_counter()
    path.values(file)
    return 1e3 * (time.perf_counter() - started)
