"""What each compiled Triton kernel needs of its GPU: registers, shared memory, instructions. No kernel runs here.

QALIGN_FULL=1 asks for two GPUs more: they take a minute or two each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

from support.amount import FULL
from support.goldens import ROOT
from support.triton_ahead import DEVICES, FP8_SINCE

CAPABILITIES = tuple(DEVICES) if FULL else (86, 90)  # the least and the most shared memory
Kernel = dict[str, Any]  # as triton_ahead.py describes one


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    """What `triton_ahead.py` finds for each GPU, in two processes and with empty caches."""

    def kernels(capabilities: Sequence[int], cache: Path) -> list[Kernel]:
        environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
        environment.pop("TRITON_INTERPRET", None)
        program = ROOT / "tests/support/triton_ahead.py"
        command = [sys.executable, str(program), *map(str, capabilities)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        return [json.loads(line) for line in run.stdout.splitlines()]

    caches = [tmp_path_factory.mktemp("triton") for _ in range(2)]  # here, because two threads may not make them
    with ThreadPoolExecutor(2) as executor:
        return [
            kernel
            for found in executor.map(kernels, (CAPABILITIES[::2], CAPABILITIES[1::2]), caches)
            for kernel in found
        ]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiled_kernels_fit_the_gpu(capability: int, compiled: list[Kernel]) -> None:
    kernels = [kernel for kernel in compiled if kernel["capability"] == capability]
    for kernel in kernels:
        assert kernel["shared"] <= DEVICES[capability].shared, kernel
        hopper = kernel["kernel"] == "_multiply_hopper"
        assert kernel["stack"] <= (0 if hopper else 16), kernel  # bytes a thread: four spilled registers
        assert kernel["overlaps"] == (capability >= 90), kernel  # begins early, and waits for the kernel before
        multiplies = hopper or kernel["kernel"] in ("_multiply", "multiply_int4", "_attend")
        assert kernel["loads_ahead"] == multiplies, kernel  # cp.async: weights are read while others are multiplied
        if kernel["kernel"] == "multiply_int4":
            assert not kernel["put_back"], kernel  # weights are spread in registers and stay there
        if not multiplies:
            assert kernel["registers"] <= 64, kernel  # half the threads a processor may hold, to keep memory busy
        if "float8" in kernel["call"] and kernel["kernel"] == "_multiply" and kernel["call"].startswith("down"):
            assert kernel["additions"] > 0, kernel  # a step's sum to the total: tensor cores sum fp8 imprecisely
        if kernel["kernel"].startswith("_quantize"):
            assert kernel["divisions"] == ["div.rn.f32"], kernel  # no approximation
    assert {kernel["kernel"] for kernel in kernels} == {
        "_layer_norm", "_rms_norm", "_swiglu", "_quantize_rows", "_multiply", "multiply_int4", "_attend",
        "_finish_product", "_split_patches", *(["_multiply_hopper"] if capability == 90 else []),
    }  # fmt: skip
    assert any("float8" in kernel["call"] for kernel in kernels) == (capability >= FP8_SINCE)


def test_hoppers_product_is_never_waited_for_at_once(compiled: list[Kernel]) -> None:
    """Read from machine code: one product stays under way, and two programs of 4 warps fit on a processor."""
    kernels = [kernel for kernel in compiled if kernel["kernel"] == "_multiply_hopper"]
    assert {kernel["warps"] for kernel in kernels} == {4, 8}
    for kernel in kernels:
        assert kernel["outstanding"] == ["0x0", "0x1"], kernel  # 0x0: a tile's last
        held = 2 if kernel["warps"] == 4 else 1
        assert held * 32 * kernel["warps"] * (-(-kernel["registers"] // 8) * 8) <= 65536, kernel
        assert held * (kernel["shared"] + 1024) <= 228 * 1024, kernel


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_products_run_on_tensor_cores(capability: int, compiled: list[Kernel]) -> None:
    products = [
        kernel
        for kernel in compiled
        if kernel["capability"] == capability
        and "multiply" in kernel["kernel"]
        and kernel["call"] != "head"  # float32, five columns
    ]
    assert len(products) > 10
    for kernel in products:
        instructions = " ".join(kernel["products"])
        few = kernel["call"].endswith((", 1 rows", ", 16 rows"))
        wide = kernel["kernel"] == "multiply_int4" or not few  # warp groups multiply 64 rows, or channels, at least
        warp_groups = capability == 90 and wide
        expected = ".f32.f16.f16" if "float16" in kernel["call"] else "s32.s8.s8"
        if "float8" in kernel["call"]:  # of fewer rows the compiler makes float16 on sm_90, which holds all of fp8
            expected = ".f32.e4m3.e4m3" if capability == 89 or warp_groups else ".f32.f16.f16"
        assert expected in instructions, kernel
        assert instructions.startswith("wgmma" if warp_groups else "mma.sync"), kernel
