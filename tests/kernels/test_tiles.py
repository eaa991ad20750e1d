"""Which tiles a product runs with: measured ones before the rule's, and another one where a device refuses a tile."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

pytest.importorskip("triton", reason="Triton is for Linux")

from triton.runtime.errors import OutOfResources

from qalign_kernels.contract.weight import Weight
from qalign_kernels.cuda import ops as triton_ops
from qalign_kernels.cuda import tiles, torch_product
from qalign_kernels.cuda.ops import TritonOps
from qalign_kernels.cuda.tiles import Tile, table_key, tile_by_rule, tile_for
from support.triton_ahead import DEVICES

WEIGHT = Weight("w", torch.zeros(16, 128, dtype=torch.int8), torch.ones(16), None, None)
OUT_OF_RESOURCES = OutOfResources(240000, 232448, "shared memory")


def test_a_measured_tile_is_taken_before_the_rule() -> None:
    device = DEVICES[86]
    lines = [[77, 4096, 4096, 32, 64, 128, 3, 4], [4928, 4096, 4096, 128, 128, 64, 3, 8]]
    table = {table_key(device): {"int8": lines}}
    for m, line in ((77, 0), (39, 0), (4928, 1), (2464, 1)):
        assert tile_for(device, "int8", m, 4096, 4096, table) == Tile(*lines[line][3:])
    for other in ((device, "int4", 77, 4096, 4096), (DEVICES[80], "int8", 77, 4096, 4096), (device, "int8", 77, 1, 1)):
        assert tile_for(*other, table) == tile_by_rule(*other)


@pytest.mark.parametrize("m", [1, 77, 2463, 4929])
def test_what_was_measured_for_many_rows_is_not_for_few_nor_for_more(m: int) -> None:
    device, large = DEVICES[90], [256, 128, 128, 4, 8]
    table = {table_key(device): {"int8": [[4928, 4096, 4096, *large]]}}
    assert tile_for(device, "int8", m, 4096, 4096, table) == tile_by_rule(device, "int8", m, 4096, 4096)


@pytest.mark.parametrize(("key", "taken"), [("90/132/3.6.0", True), ("90/114/3.6.0", False), ("90/132/3.8.0", False)])
def test_what_another_device_or_triton_measured_is_not_taken(
    key: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An H100 PCIe has 114 processors."""
    monkeypatch.setattr(tiles, "_triton", lambda: "3.6.0")
    tile = [32, 64, 128, 3, 4]
    found = tile_for(DEVICES[90], "int8", 77, 4096, 4096, {key: {"int8": [[77, 4096, 4096, *tile]]}})
    assert found == (Tile(*tile) if taken else tile_by_rule(DEVICES[90], "int8", 77, 4096, 4096))


def test_a_measured_line_without_a_tile_is_torchs_own_product_where_there_is_one() -> None:
    device, tile = DEVICES[90], [32, 64, 128, 3, 4]
    forms = ("int8", "float16", "float8_e4m3fn")
    key = table_key(device)
    table = {key: {form: [[16, 4096, 4096, *tile], [32, 4096, 4096]] for form in forms}}
    for form in forms:
        assert tile_for(device, form, 17, 4096, 4096, table) is None
        assert tile_for(device, form, 16, 4096, 4096, table) == Tile(*tile)
    without = {key: {"int8": [[32, 4096, 4096]]}}
    assert tile_for(device, "int8", 32, 4096, 4096, without) is None
    few = tile_for(device, "int8", 16, 4096, 4096, without)  # _int_mm has more than 16 rows
    assert few == tile_by_rule(device, "int8", 16, 4096, 4096)
    assert tile_for(device, "int8", 77, 4095, 4096, {key: {"int8": [[77, 4095, 4096]]}}) is not None


@pytest.mark.parametrize(
    ("capability", "form", "cuda", "own"),
    [
        (80, "float16", "12.4", True),
        (89, "bfloat16", "12.4", True),
        (90, "float32", "12.4", True),
        (90, "int8", "12.9", False),
        (90, "int4", "12.9", False),
        (90, "float8_e4m3fn", "12.9", True),
        (90, "float8_e4m3fn", "13.0", True),
        (90, "float8_e4m3fn", "12.8", False),  # CUTLASS's
        (89, "float8_e4m3fn", "12.9", False),
    ],
)
def test_the_rule_takes_cublas_for_what_it_has(
    capability: int, form: str, cuda: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    tile = tile_for(DEVICES[capability], form, 77, 4096, 4096, {})
    assert tile == (None if own else tile_by_rule(DEVICES[capability], form, 77, 4096, 4096))


@pytest.mark.parametrize(
    ("capability", "cuda", "result"),
    [((9, 0), "12.9", torch.float16), ((9, 0), "12.8", torch.bfloat16), ((8, 9), "13.0", torch.bfloat16)],
)
def test_fp8_products_that_are_not_cublas_are_asked_for_bfloat16(
    capability: tuple[int, int], cuda: str, result: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert torch_product._result_dtype(torch.device("cuda:0"), torch.float16) == result


@pytest.mark.parametrize(("version", "sound"), [("2.11.0+cu128", False), ("2.12.0+cu130", True), ("2.13.0", True)])
def test_fp8_on_an_ada_gpu_is_torchs_own_since_it_keeps_to_the_stream(
    version: str, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    table = {table_key(DEVICES[89]): {"float8_e4m3fn": [[77, 4096, 4096]]}}
    assert (tile_for(DEVICES[89], "float8_e4m3fn", 77, 4096, 4096, table) is None) == sound


@pytest.mark.parametrize(
    ("tile", "error"),
    [
        ([256, 256, 128, 4, 8], OUT_OF_RESOURCES),
        ([256, 256, 128, 4, 8], RuntimeError("Triton Error [CUDA]: too many resources requested for launch")),
        ([], RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul")),
    ],
)
def test_a_measured_tile_that_is_refused_gives_way_to_the_rules_once(
    tile: list[int], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Tile | None] = []
    rule = tile_by_rule(DEVICES[90], "int8", 32, 128, 16)

    def run(x: Tensor, w: Weight, tile: Tile | None, *_: object) -> Tensor:
        tried.append(tile)
        if tile != rule:
            raise error
        return torch.zeros(32, 16)

    monkeypatch.setattr(tiles, "measured", lambda: {table_key(DEVICES[90]): {"int8": [[32, 128, 16, *tile]]}})
    monkeypatch.setattr(triton_ops, "linear", run)
    ops, x, w = TritonOps(DEVICES[90], torch.float16), torch.zeros(32, 128), WEIGHT
    with pytest.warns(UserWarning, match="refused here .*; another one is taken"):
        ops.linear(x, w)
    ops.linear(x, w)
    assert tried == [Tile(*tile) if tile else None, rule, rule]


def test_hoppers_product_gives_way_to_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Tile | None] = []

    def run(x: Tensor, w: Weight, tile: Tile | None, *_: object) -> Tensor:
        tried.append(tile)
        if tile and tile.hopper:
            raise RuntimeError("Triton Error [CUDA]: invalid argument")  # as for a matrix that TMA cannot read
        return torch.zeros(32, 16)

    monkeypatch.setattr(triton_ops, "linear", run)
    with pytest.warns(UserWarning, match="refused here"):
        TritonOps(DEVICES[90], torch.float16).linear(torch.zeros(32, 128), WEIGHT)
    assert [tile.hopper for tile in tried if tile] == [True, False]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), OUT_OF_RESOURCES])
def test_what_no_other_tile_would_help_is_raised(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full memory, and a refusal of the rule's own tile."""

    def refuse(*_: object) -> Tensor:
        raise error

    table: dict[str, Any] = {table_key(DEVICES[80]): {"int8": [[32, 128, 16, 64, 64, 128, 3, 4]]}}
    monkeypatch.setattr(tiles, "measured", lambda: table if isinstance(error, torch.OutOfMemoryError) else {})
    monkeypatch.setattr(triton_ops, "linear", refuse)
    with pytest.raises(type(error)):
        TritonOps(DEVICES[80], torch.float16).linear(torch.zeros(32, 128), WEIGHT)


def test_the_rule_pads_little_and_occupies_the_device() -> None:
    assert tile_by_rule(DEVICES[80], "int8", 1, 4096, 4096).rows == 16
    assert tile_by_rule(DEVICES[80], "float8_e4m3fn", 77, 4096, 4096).columns == 32  # 128 programs for 108 processors
    of_one = tile_by_rule(DEVICES[80], "int8", 77, 4096, 4096)
    assert (of_one.rows, of_one.columns, of_one.splits) == (80, 128, 3)  # 96 programs
    assert tile_by_rule(DEVICES[80], "int8", 77 * 64, 4096, 4096) == Tile(128, 128, 128, 3, 4)  # two a processor
    assert tile_by_rule(DEVICES[86], "int8", 77 * 64, 4096, 4096) == Tile(128, 128, 64, 4, 4)
    assert tile_by_rule(DEVICES[90], "int4", 77, 4096, 4096) == Tile(80, 128, 128, 4, 4, 8)  # 256 programs for 264
    assert tile_by_rule(DEVICES[86], "int4", 77, 4096, 4096) == Tile(80, 128, 128, 3, 4, 5)  # 160 for 164
    assert tile_by_rule(DEVICES[86], "int4", 77 * 64, 4096, 4096) == Tile(128, 128, 128, 3, 4)
    assert tile_by_rule(DEVICES[80], "float16", 77, 4096, 4096).splits == 1  # whose sums another order would change


def test_the_rule_takes_hoppers_own_product_where_there_is_one() -> None:
    h100 = DEVICES[90]
    assert tile_by_rule(h100, "int8", 77, 4096, 4096) == Tile(128, 128, 128, 3, 4, hopper=True)
    assert tile_by_rule(h100, "int8", 64, 4096, 4096).rows == 64  # the last rows of a batch
    assert tile_by_rule(h100, "int8", 77 * 64, 4096, 22016).rows == 256
    short = tile_by_rule(h100, "int8", 1025 * 64, 1024, 4096)
    assert short.rows == 128  # the other program covers its end
    for other in ((h100, "int8", 16, 4096, 4096), (h100, "int8", 77, 4100, 4096), (DEVICES[89], "int8", 77, 4096, 4096),
                  (h100, "float8_e4m3fn", 77, 4096, 4096)):  # fmt: skip
        assert not tile_by_rule(*other).hopper


def test_tiles_and_torchs_products_need_no_triton() -> None:
    modules = "qalign_kernels.cuda.tiles, qalign_kernels.cuda.torch_product"
    program = f"import sys; sys.modules['triton'] = None; import {modules}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
