"""Makes C++ kernels callable that this CPU cannot run, by a table or a library that `NativeOps` takes.

Kernels for another machine run under qemu, in a program (emulated.cpp). The inputs of a call are copied into a file
that both processes map, and the results are copied back. This shows only whether results are right: the time in an
emulator says nothing about the CPU.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from qalign_kernels.contract.precisions import BLOCK, GROUP
from qalign_kernels.cpu.building import compiler, identity
from qalign_kernels.cpu.description import write_description
from qalign_kernels.cpu.sources import FLAGS, SOURCES, instruction_sets, this_machine

ARM, X64 = "aarch64", "x86_64"
_SIZE = 96 << 20  # bytes of arguments at most
_LINE = 64
_FLAGS = ["-std=c++17", "-O1", "-pthread", f"-I{SOURCES}"]
_ONLY = """#include "table.h"
namespace qk {{ extern const Table table_{name}; }}
extern "C" const qk::Table* qk_table(const char*) {{ return &qk::table_{name}; }}
"""
_WEIGHT_BITS = (32, 16, 16, 8, 4)  # by `Kind` of table.h
_FUNCTIONS = ("linear", "layer_norm", "rms_norm", "swiglu", "attention", "attention_by_modality")


@dataclass(frozen=True)
class Program:
    """The kernels of one machine, and the command that runs them."""

    emulator: tuple[str, ...]
    path: Path

    def best(self, cpu: str) -> str:
        """The instruction set that is chosen on a CPU, which has qemu's name."""
        command = [*self.emulator, "-cpu", cpu, str(self.path), ""]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def build_program(folder: Path, machine: str, library: Path) -> Program:
    """The program of a machine's kernels, which are in `library`.

    Skips the test where a tool is not installed: Debian's g++-aarch64-linux-gnu and qemu-user have them.
    """
    command = compiler(machine)
    for tool in (command[0], emulator := f"qemu-{machine}"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    path, source = folder / "program", Path(__file__).with_name("emulated.cpp")
    subprocess.run([*command, *_FLAGS, "-o", path, source, library], check=True)
    system = [] if machine == this_machine() else ["-L", f"/usr/{machine}-linux-gnu"]  # its C library
    # libraries that are preloaded here, as bench/as_avx2 does, are not for the emulated CPU
    return Program((emulator, *system, "-U", "LD_PRELOAD"), path)


def instructions(path: Path, machine: str) -> dict[str, set[str]]:
    """The instructions of each copy in a library, by its name. Skips the test without a disassembler."""
    tool = "objdump" if machine == this_machine() else f"{machine}-linux-gnu-objdump"
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    names = instruction_sets(machine)
    found: dict[str, set[str]] = {name: set() for name in names}
    spaces = {f"2qk{len(name)}{name}": name for name in names}  # as the compiler writes qk::name
    of: str | None = None
    command = [tool, "-d", "--no-show-raw-insn", str(path)]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.endswith(">:"):
            of = next((name for space, name in spaces.items() if space in line), None)
        elif of and len(fields := line.split(None, 2)) > 1:
            found[of].add(fields[1])
    return found


def build_stand_in(folder: Path, name: str) -> Path:
    """A library of one copy, for a CPU with AVX512-VNNI that lacks the copy's other instructions."""
    if name == "avxvnni":  # replaces its one new instruction by that of AVX512-VNNI
        kernels = _compile(folder / "kernels.s", name, ["-S", *instruction_sets(X64)[name].split()])
        kernels.write_text(kernels.read_text().replace("{vex}", "{evex}"))
    else:  # its new instructions as plain C++
        header = Path(__file__).parent / "stand_in_cpu" / f"{name}.h"
        flags = ["-c", "-include", str(header), *instruction_sets(X64)["avx512vnni"].split()]
        kernels = _compile(folder / "kernels.o", name, flags)
    only, path = folder / "only.cpp", folder / "alone.so"
    only.write_text(_ONLY.format(name=name))
    sources = only, kernels, SOURCES / "pool.cpp", SOURCES / "identity.cpp"
    command = [*compiler(), *_FLAGS, identity(X64), "-fPIC", "-shared", "-o", path, *sources]
    subprocess.run(command, check=True)
    write_description(path, X64)
    return path


def _compile(to: Path, name: str, flags: list[str]) -> Path:
    command = [*compiler(), *FLAGS.split(), *flags, f"-DQK_ISA={name}"]
    subprocess.run([*command, "-o", to, SOURCES / "kernels.cpp"], check=True)
    return to


class _Row(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "gain", "bias")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        ("out", ctypes.c_void_p),
    ]


class EmulatedTable:
    """The same as `Table` in the kernels' cpu/table.py, for a program. It must be closed."""

    def __init__(
        self, program: Program, instruction_set: str, folder: Path, cpu: str = "max", threads: int = 2
    ) -> None:
        shared = folder / f"{instruction_set}.shared"
        with shared.open("wb+") as file:
            file.truncate(_SIZE)
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        command = [*program.emulator, "-cpu", cpu, str(program.path), instruction_set, str(shared), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.name = self._process.stdout.readline().strip()
        assert self.name, f"{cpu} does not run {instruction_set}"

    def __enter__(self) -> EmulatedTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def was_starved(self) -> int:
        return 0

    def linear(self, reference: Any) -> None:
        a = reference._obj
        blocks = -(-a.inputs // BLOCK)
        columns = blocks * BLOCK if a.groups else a.inputs
        sizes = {
            "x": 4 * a.rows * a.inputs,
            "weight": a.outputs * columns * _WEIGHT_BITS[a.kind] // 8,
            "scale": 4 * a.outputs,
            "groups": a.outputs * blocks * BLOCK // GROUP,
            "bias": 4 * a.outputs,
            "residual": 4 * a.rows * a.outputs,
        }
        self._call("linear", a, sizes, 4 * a.rows * a.outputs)

    def layer_norm(self, x: int, gain: int, bias: int, eps: float, rows: int, width: int, out: int) -> None:
        size = 4 * rows * width
        sizes = {"x": size, "gain": 4 * width, "bias": 4 * width}
        self._call("layer_norm", _Row(x, gain, bias, eps, rows, width, out), sizes, size)

    def rms_norm(self, x: int, gain: int, eps: float, rows: int, width: int, out: int) -> None:
        size = 4 * rows * width
        self._call("rms_norm", _Row(x, gain, None, eps, rows, width, out), {"x": size, "gain": 4 * width}, size)

    def swiglu(self, gate_up: int, rows: int, width: int, out: int) -> None:
        size = 4 * rows * width
        self._call("swiglu", _Row(gate_up, None, None, 0, rows, width, out), {"x": 2 * size}, size)

    def attention(self, reference: Any) -> None:
        a = reference._obj
        wide = a.heads * a.width
        lengths = {"q": a.queries, "k": a.keys, "v": a.keys}
        sizes = {
            name: 4 * ((a.batch - 1) * getattr(a, f"{name}_batch") + (length - 1) * getattr(a, f"{name}_row") + wide)
            for name, length in lengths.items()
        }
        self._call("attention", a, sizes, 4 * a.batch * a.queries * wide)

    def attention_by_modality(self, reference: Any) -> None:
        a = reference._obj
        row, tokens = 4 * a.heads * a.width, a.visual + a.text
        size = a.batch * (1 if a.last else tokens) * row
        sizes = {
            "q": size,
            "kv_visual": 2 * a.batch * a.visual * row,
            "kv_text": 2 * a.batch * a.text * row,
            "prefix_kv": 2 * a.prefix * row,
            "turns": 4 * 2 * tokens * a.width,
        }
        self._call("attention_by_modality", a, sizes, size)

    def _call(self, function: str, arguments: ctypes.Structure, inputs: Mapping[str, int], result: int) -> None:
        """Sizes of inputs and of the result are in bytes. Addresses become offsets, and a missing one stays 0."""
        call = type(arguments).from_buffer_copy(arguments)
        end = _lines(ctypes.sizeof(call))
        for name, size in inputs.items():
            if address := getattr(call, name):
                assert end + size <= _SIZE
                ctypes.memmove(self._base + end, address, size)
                setattr(call, name, end)
                end += _lines(size)
        assert end + result <= _SIZE
        call.out = end
        ctypes.memmove(self._base, ctypes.addressof(call), ctypes.sizeof(call))
        self._answer(_FUNCTIONS.index(function))
        ctypes.memmove(arguments.out, self._base + end, result)

    def _answer(self, function: int) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"%d" % function)
        self._process.stdin.flush()
        if self._process.stdout.readline() != b"\n":
            raise RuntimeError(f"{_FUNCTIONS[function]} ended the program: status {self._process.wait()}")


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE
