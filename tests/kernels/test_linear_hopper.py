"""Hopper's int8 product on any machine: the kernel's own text on numpy (`gluon_on_numpy`) gives the contract's bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support import gluon_on_numpy

pytest.importorskip("triton", reason="Triton is for Linux")

from torch import Tensor

from qalign_kernels.contract.activation import quick_gelu
from qalign_kernels.contract.linear import int8_product
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight
from qalign_kernels.cuda import linear_hopper
from qalign_kernels.cuda.launch import Device
from qalign_kernels.cuda.tiles import Shares, Tile

DEVICE = Device(90, 4, 227 * 1024)  # of few processors, so that small products are shared as large ones are there
SMALL = Tile(32, 64, 32, 3, 4, hopper=True)
Run = Callable[..., Tensor]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[gluon_on_numpy.Launcher]:
    """Runs the kernel's text on numpy in place of the kernel. Programs run in a random order."""
    random.seed(0)
    module = SimpleNamespace(**vars(linear_hopper))
    launcher = gluon_on_numpy.Launcher(module, "_multiply_hopper", lambda n: random.sample(range(n), n))
    monkeypatch.setattr(linear_hopper, "_multiply_hopper", launcher)
    monkeypatch.setattr(linear_hopper, "_boxes", lambda x, *block: gluon_on_numpy.Descriptor(x, block))
    monkeypatch.setattr(linear_hopper, "overlap", lambda: {"pdl": True})
    yield launcher


def rows_and_weight(m: int, k: int, n: int, bias: bool = False) -> tuple[QuantizedRows, Weight]:
    torch.manual_seed(0)
    rows = QuantizedRows(torch.randint(-127, 128, (m, k), dtype=torch.int8), torch.rand(m, 1))
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return rows, Weight("int8", codes, torch.rand(n) / 100, None, torch.randn(n) if bias else None)


def product(x: QuantizedRows, w: Weight, tile: Tile = SMALL, modal: Modal | None = None, **after: Any) -> Tensor:
    """Asserts that every value is written, and that the sums that programs share are zeros again."""
    n = len(w.weight) if modal is None else (len(w.weight) + modal.common) // 2
    y, shares = torch.full((len(x), n), torch.nan), Shares.of(DEVICE, torch.device("cpu"))
    residual, gelu = after.get("residual"), after.get("gelu", False)
    assert w.scale is not None
    for _ in range(2):
        linear_hopper.launch(x, w.weight, w.scale, w.bias, residual, y, tile, shares, gelu, modal)
        assert not shares.sums.any()
        assert not shares.arrived.any()
    return y


def exact(x: QuantizedRows, w: Weight) -> Tensor:
    """The contract's result, in its order of operations."""
    assert w.scale is not None
    y = int8_product(x.values, w.weight).float() * x.scale * w.scale
    return y if w.bias is None else y + w.bias


@pytest.mark.parametrize(
    "shape",
    [
        (77, 128, 128),  # a picture's rows: tiles whose rows end early
        (77, 1024, 256),  # all tiles shared, each by several programs
        (300, 1024, 128),  # whole tiles first, then shared ones
        (300, 64, 192),  # too short a loop to share
        (96, 592, 64),  # the last step is 16 inputs
        (1, 16, 24),  # less than a step, columns that fill no tile
    ],
)
def test_the_product_is_the_contracts_to_the_bit(kernel: gluon_on_numpy.Launcher, shape: tuple[int, int, int]) -> None:
    x, w = rows_and_weight(*shape, bias=True)
    residual = torch.randn(shape[0], shape[2])
    assert torch.equal(product(x, w), exact(x, w))
    assert torch.equal(product(x, w, residual=residual), exact(x, w) + residual)
    torch.testing.assert_close(product(x, w, gelu=True), quick_gelu(exact(x, w)), rtol=1e-6, atol=1e-6)


def test_rows_and_weights_are_taken_where_they_lie(kernel: gluon_on_numpy.Launcher) -> None:
    x, w = rows_and_weight(77, 256, 384)
    assert torch.equal(product(x[11::6], w.part(64, 192)), exact(x, w)[11::6, 64:192])


@pytest.mark.parametrize("modal", [Modal(65, 96), Modal(65, 0), Modal(32, 64)])
def test_linears_of_each_modality_in_one_product(kernel: gluon_on_numpy.Launcher, modal: Modal) -> None:
    x, w = rows_and_weight(77, 512, modal.common + 2 * 72, bias=True)
    visual, text = (w.part(first, first + 72) for first in (modal.common, modal.common + 72))
    own = torch.cat((exact(x[: modal.split], visual), exact(x[modal.split :], text)))
    expected = torch.cat((exact(x, w.part(0, modal.common)), own), dim=1)
    assert torch.equal(product(x, w, modal=modal), expected)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_any_number_of_stages(kernel: gluon_on_numpy.Launcher, stages: int) -> None:
    x, w = rows_and_weight(77, 320, 128)
    assert torch.equal(product(x, w, SMALL._replace(stages=stages)), exact(x, w))


def test_programs_are_as_many_as_the_device_holds_at_once(kernel: gluon_on_numpy.Launcher) -> None:
    x, w = rows_and_weight(300, 256, 256)
    for tile, per_processor in ((SMALL, 2), (SMALL._replace(warps=8), 1), (Tile(128, 128, 128, 4, 4, hopper=True), 1)):
        kernel.grids.clear()
        product(x, w, tile)
        assert set(kernel.grids) <= {4 * per_processor, 12}  # 12: less than that, each with one whole tile


@pytest.mark.parametrize("fault", ["late", "early"])
def test_the_stand_in_shows_what_would_go_wrong(
    kernel: gluon_on_numpy.Launcher, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A buffer is overwritten before its product is done, or read before its boxes have come."""
    x, w = rows_and_weight(77, 1024, 128)
    right = gluon_on_numpy.warpgroup_mma_wait
    if fault == "late":
        monkeypatch.setattr(
            gluon_on_numpy, "warpgroup_mma_wait", lambda num_outstanding, deps: right(2 * num_outstanding, deps)
        )
    else:
        monkeypatch.setattr(gluon_on_numpy.Barrier, "wait", lambda self, phase: None)
        monkeypatch.setattr(gluon_on_numpy, "expect", lambda *_, **__: None)
    assert not torch.equal(product(x, w), exact(x, w))
