"""A function that calls operations on meta tensors in, the kernels that a GPU would run for them in Triton's cache out.

    Pool("module:walk", device, arguments).wait()

Every process of the pool runs the whole walk. Its launches compile for the device and run nowhere, and the first
process that comes to a kernel compiles it. No process sees a GPU, and none is a fork of this one, because no CUDA
context survives a fork. A pool that fails costs nothing but its time: what it left out is compiled at its first launch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from threading import Condition, Thread
from typing import Any, TypeAlias

from qalign_kernels.cores import cores
from qalign_kernels.cuda.launch import Device
from qalign_kernels.cuda.runtime import GPUTarget, cache_hook, set_driver

Walk: TypeAlias = Callable[..., Iterator[object]]  # (device, *arguments) -> yields after each of its parts
PATIENCE = 120.0  # seconds; a compiler that takes longer is stuck
_MOST = 16  # processes: each imports torch, and a model has some forty kernels
_FAILED = sys.maxsize  # stands for the parts that an ended process has done


class Idle:
    """A driver for Triton in place of a device that is not there: kernels are compiled for it, and never launched."""

    def __init__(self, device: Device) -> None:
        self.device, self.utils = device, self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.capability, 32)

    def get_current_device(self) -> int:
        return self.device.capability  # Triton keeps compiled kernels by this number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 1 << 30, "multiprocessor_count": self.device.processors}  # any kernel fits

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[None, None, int, int, int]:
        return None, None, 0, 0, 1024  # module, function, registers, spills, threads at most

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *_: None


class Pool:
    """Processes that compile what a walk launches on a device.

    They call walk(device, *arguments); `arguments` must be picklable. By default there are as many as cores, up to 16.
    """

    def __init__(
        self, walk: str, device: Device, arguments: tuple[Any, ...] = (), processes: int | None = None
    ) -> None:
        self._claims = tempfile.TemporaryDirectory(prefix="qalign-fast-")
        self._changed, self._done = Condition(), dict[int, int]()  # process -> parts of the walk it has done
        self.whole = True  # until a process fails
        command = [sys.executable, "-m", "qalign_kernels.cuda.ahead", walk, self._claims.name]
        asked = pickle.dumps((device, arguments))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._errors = Path(self._claims.name, "errors")
        for i in range(min(_MOST, cores()) if processes is None else processes):
            try:
                self._processes.append(_start(command, asked, self._errors))
            except OSError as error:  # no process can be started, or the interpreter is no longer there
                self.whole = False
                self._errors.write_text(f"{command[0]}: {error.strerror}")
                break
            self._done[i] = 0
        for i, process in enumerate(self._processes):
            Thread(target=self._follow, args=(i, process), daemon=True).start()

    def wait(self, parts: int = _FAILED, seconds: float = PATIENCE) -> bool:
        """Waits until every process has done so many parts of the walk -> whether that came in time and none failed."""
        with self._changed:
            in_time = self._changed.wait_for(lambda: min(self._done.values(), default=_FAILED) >= parts, seconds)
            return in_time and self.whole

    def problem(self) -> str | None:
        """Why not everything was compiled, in a process's last line of errors; None where nothing failed."""
        lines = self._errors.read_text(errors="replace").strip().splitlines() if self._errors.exists() else []
        return None if self.whole else (lines[-1] if lines else "a process ended")

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._claims.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, i: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for _ in process.stdout:
                with self._changed:
                    self._done[i] += 1
                    self._changed.notify_all()
        failed = process.wait() != 0
        with self._changed:
            self._done[i], self.whole = _FAILED, self.whole and not failed
            self._changed.notify_all()


def _start(command: list[str], asked: bytes, errors: Path) -> subprocess.Popen[bytes]:
    """Starts a process with this interpreter's own paths. It gets one thread, because it is one of many."""
    paths = os.pathsep.join(path for path in sys.path if path)
    settings = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with errors.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=os.environ | settings
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(asked)
    return process


def compile_walk(walk: Walk, device: Device, arguments: tuple[Any, ...], claims: Path) -> Iterator[object]:
    """Runs the walk, and compiles of its kernels those that no other process has claimed. Yields as the walk does."""
    set_driver(Idle(device))
    cache_hook(lambda name, key: not _claim(claims / hashlib.sha256(f"{name} {key}".encode()).hexdigest()))
    yield from walk(device, *arguments)


def _claim(path: Path) -> bool:
    """Claims a path -> whether it was free."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    device, arguments = pickle.load(sys.stdin.buffer)  # from the process that started this one
    done = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that no line that a library prints is counted as a part
    for _ in compile_walk(getattr(import_module(module), name), device, arguments, Path(sys.argv[2])):
        print("done", file=done, flush=True)


if __name__ == "__main__":
    main()
