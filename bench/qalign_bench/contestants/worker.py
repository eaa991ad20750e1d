"""Our own engine as a contestant.

    python -m qalign_bench.contestants.worker '<json>'        wire.py describes the messages

The command `latency` times single forwards over pictures in memory; `pipeline` scores files as `Scorer` does.
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from qalign_bench.contestants.wire import Handler, Message, peak_memory, serve
from qalign_bench.figures.environment import versions
from qalign_bench.figures.spread import median
from qalign_bench.peers.measured_process import random_pictures
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import MANIFEST, Artifact, is_artifact, open_artifact, read_manifest
from qalign_fast.engines.candidates import weights_of
from qalign_fast.engines.contract import Engine, Tokens
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import DeviceError
from qalign_fast.families.prompt import Prompt
from qalign_fast.levels import score_of
from qalign_kernels.cpu.table import exact_for

_RUNTIMES = {"onnx": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",), "torch": ("torch",)}


def load(spec: Message) -> tuple[Message, dict[str, Handler]]:
    """Loads the engine that the spec asks for. Raises what `load_engine` raises."""
    started = time.perf_counter()
    engine, size = _made(spec) if spec["model"].startswith("random:") else _loaded(spec)
    if spec.get("instruction_set") and engine.kernels.startswith("native"):
        engine = _held_to(spec["instruction_set"], engine.name, Path(spec["model"]), spec["threads"])
    ready = {
        "name": "qalign-fast",
        "load_s": time.perf_counter() - started,
        "versions": versions("qalign-fast", "numpy", *_RUNTIMES.get(engine.name.partition("-")[0], ())),
        "device": engine.device,
        "engine": engine.name,
        "precision": engine.precision,
        "kernels": engine.kernels,
        "weights_bytes": size,
    }
    timed = _Timed(engine)
    return ready, {
        "latency": lambda command: _latency(timed, command, spec["seed"]),
        "pipeline": lambda command: _pipeline(timed, command),
    }


def _loaded(spec: Message) -> tuple[Engine, int | None]:
    """The engine, and how many bytes it has of weights."""
    options = LoadOptions(spec["device"], spec["precision"], spec["engine"] or "auto", spec["threads"])
    engine = load_engine(spec["model"], options)
    return engine, weights_bytes(Path(spec["model"]), engine.name)


def _made(spec: Message) -> tuple[Engine, int]:
    """The same for random numbers, which are made on the device."""
    import torch

    from qalign_bench.contestants.random_model import load, make
    from qalign_fast.engines.devices import choose_device, needs_of
    from qalign_fast.engines.torch_weights import set_threads

    set_threads(spec["threads"])
    place = choose_device(spec["device"], needs_of(spec["precision"]))
    model = make(spec["model"], spec["precision"], torch.device(place))
    size = model.bytes
    return load(model, place), size


def _held_to(instruction_set: str, engine: str, artifact: Path, threads: int | None) -> Engine:
    """The engine on kernels for an instruction set that is not this CPU's best. Raises DeviceError without it."""
    opened = open_artifact(artifact, remembered=True)
    wanted = instruction_set, threads, exact_for(opened.manifest.precision)
    held = _native_held(opened, *wanted) if engine == "native" else _torch_held(opened, *wanted)
    if held is None:
        raise DeviceError(
            f"instruction set {instruction_set!r}: this CPU does not have it, or `qalign-fast build` has not been run"
        )
    return held


def _native_held(artifact: Artifact, instruction_set: str, threads: int | None, exact: bool) -> Engine | None:
    from qalign_fast.engines.native_cpu import load_native_engine
    from qalign_kernels.cpu.numpy_ops import load_numpy

    ops = load_numpy(instruction_set, threads=threads, exact=exact)
    return None if ops is None else load_native_engine(artifact, threads, ops)


def _torch_held(artifact: Artifact, instruction_set: str, threads: int | None, exact: bool) -> Engine | None:
    from qalign_fast.engines.torch_cpu import load_folded
    from qalign_kernels.cpu.ops import load_native

    ops = load_native(instruction_set, threads=threads, exact=exact)
    return None if ops is None else load_folded(artifact, threads, ops)


def weights_bytes(model: Path, engine: str) -> int | None:
    """Bytes of the files from which an engine reads its weights; None for a checkpoint."""
    if not is_artifact(model):
        return None
    manifest = read_manifest(model / MANIFEST)
    stems = tuple(name.removesuffix(".onnx") for name in manifest.engines[weights_of(engine)].values())
    return sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(stems))


class _Timed:
    """An engine that adds up how long its calls took. It runs one call at a time."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision
        self.family, self.config, self.prompts = engine.family, engine.config, engine.prompts
        self.tail = engine.tail
        self.kernels = engine.kernels
        self.in_flight, self._turn = engine.in_flight, Lock()
        self.counted = engine.device if engine.name == "torch" else "cpu"  # its memory can be asked about
        self._engine = engine
        self.seconds = {"encode": 0.0, "decode": 0.0}

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        with self._turn, _Clock(self.seconds, "encode"):
            tokens = self._engine.encode(pixels)
            if self.name == "torch" and self.device.startswith("cuda"):  # encode returns before the device is done
                import torch

                torch.cuda.synchronize()
            return tokens

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        with self._turn, _Clock(self.seconds, "decode"):
            return self._engine.decode(tokens, prompt)


class _Clock:
    """Adds the seconds that its block took to those of a station."""

    def __init__(self, seconds: dict[str, float], station: str) -> None:
        self._seconds, self._station = seconds, station

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._station] += time.perf_counter() - self._started


def _latency(engine: _Timed, command: Message, seed: int) -> Message:
    batch, tasks = command["batch"], command["tasks"]
    pixels = random_pictures(seed, batch, engine.config.pixels.side)
    prompts = {p.task: p for p in engine.prompts if p.medium == "image"}
    chosen = [prompts[task] for task in tasks]
    times, stations = [], []
    for i in range(command["warmup"] + command["repeat"]):
        engine.seconds = dict.fromkeys(engine.seconds, 0.0)
        started = time.perf_counter()
        tokens = engine.encode(pixels)
        logits = [engine.decode(tokens, prompt) for prompt in chosen]
        scores = [[score_of(row, task).value for row in rows] for rows, task in zip(logits, tasks)]
        if i >= command["warmup"]:
            times.append(1e3 * (time.perf_counter() - started))
            stations.append(engine.seconds)
    return {
        "ms": times,
        "stations_ms": {name: 1e3 * median([seconds[name] for seconds in stations]) for name in engine.seconds},
        "peak_memory_bytes": peak_memory(engine.counted),
        "scores": scores,
    }


def _pipeline(engine: _Timed, command: Message) -> Message:
    engine.seconds = dict.fromkeys(engine.seconds, 0.0)
    started = time.perf_counter()
    results = Scorer(engine).score_tasks_iter(
        command["files"], command["tasks"], batch_size=command["batch"], workers=command["workers"]
    )
    done = sum(1 for _ in results)
    return {
        "seconds": time.perf_counter() - started,
        "engine_busy_s": sum(engine.seconds.values()),
        "pictures": done,
        "peak_memory_bytes": peak_memory(engine.counted),
    }


if __name__ == "__main__":
    serve(load)
