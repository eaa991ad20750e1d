"""The resize in torch, to the bit against Pillow, on the CPU and on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qalign_fast.pixels import device_square
from qalign_fast.pixels.device_square import ON_DEVICE, for_another_thread, pad_and_resize_tensor
from qalign_fast.pixels.square import pad_and_resize
from support.fake_streams import FakeCuda, FakeStream
from support.pictures import EDGES, RULE, sizes_300

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=on_gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def check(rgb: Tensor, side: int = 448, pad: tuple[int, int, int] = RULE.pad) -> None:
    found = pad_and_resize_tensor(rgb, side, pad)
    assert found.device == rgb.device
    expected = pad_and_resize(rgb.cpu().numpy(), side, pad)
    np.testing.assert_array_equal(found.cpu().numpy(), expected, f"{tuple(rgb.shape)} to {side}")


@pytest.mark.parametrize("side, every", [(448, slice(0, None, 3)), (112, slice(1, None, 3)), (30, slice(2, None, 3))])
def test_300_sizes_are_bit_identical_to_pillow(device: str, side: int, every: slice) -> None:
    """A third of them at each side, and the edges at every side."""
    for i, size in enumerate({*EDGES, *sizes_300()[every]}):
        check(torch.from_numpy(noise(*size, seed=i)).to(device), side)


@pytest.mark.parametrize("side", [1, 14, 225, 1000])
def test_any_side(device: str, side: int) -> None:
    for size in ((640, 427), (427, 640), (3, 500), (side, side), (1, 1), (1201, 5), (1, 1201)):
        check(torch.from_numpy(noise(*size)).to(device), side)


def test_12_megapixels(device: str) -> None:
    check(torch.from_numpy(noise(4000, 3000)).to(device))


def test_black_and_white_noise_is_cut_to_8_bits_as_pillow_does(device: str) -> None:
    """These give the largest sums, above and below the range."""
    for width, height, pad in (
        (100, 90, RULE.pad),
        (448, 300, (0, 0, 0)),
        (900, 1200, (255, 0, 255)),
        (90, 701, RULE.pad),
    ):
        check(torch.from_numpy(noise(width, height) // 128 * 255).to(device), pad=pad)


def test_pictures_with_any_strides(device: str) -> None:
    """Planes [3, H, W], as most tensors have; a part of a picture; every second pixel; one grey for all three."""
    hwc = torch.from_numpy(noise(301, 203)).to(device)
    planes = hwc.permute(2, 0, 1).contiguous()
    for each in (planes.permute(1, 2, 0), planes.transpose(1, 2).permute(1, 2, 0), hwc[7:150, 20:300], hwc[::2, 1::2]):
        check(each)
    check(hwc[:, :, :1].expand(-1, -1, 3))


def test_a_rule_takes_the_device_s_path(device: str) -> None:
    picture = torch.from_numpy(noise(50, 40)).to(device)
    found = RULE.apply(picture, ON_DEVICE)  # type: ignore[arg-type]
    assert torch.equal(torch.as_tensor(found), pad_and_resize_tensor(picture, 448, RULE.pad))


def test_the_picture_is_not_changed(device: str) -> None:
    picture = torch.from_numpy(noise(50, 40)).to(device)
    pad_and_resize_tensor(picture, 50, RULE.pad).fill_(0)
    np.testing.assert_array_equal(picture.cpu().numpy(), noise(50, 40))


def test_bands_of_any_height_give_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = torch.from_numpy(noise(301, 203)).to(device)
    for band in (1, 1 << 17, 1 << 20):
        monkeypatch.setattr(device_square, "_BAND", band)
        check(picture)


def test_memory_beside_a_large_picture_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands are copied and added up, but for the last sums: those of the narrow picture's columns."""
    most, read, added = 1 << 20, [], []
    select, add = Tensor.index_select, Tensor.addcmul_
    monkeypatch.setattr(device_square, "_BAND", most)
    monkeypatch.setattr(Tensor, "index_select", lambda x, *args: read.append(x.nbytes) or select(x, *args))
    monkeypatch.setattr(Tensor, "addcmul_", lambda x, *args: added.append(x.nbytes) or add(x, *args))
    for width, height in ((3001, 1203), (1203, 3001), (20, 4000)):
        rgb = torch.from_numpy(noise(width, height)).permute(1, 0, 2).contiguous().permute(1, 0, 2)
        check(rgb, 30)
        across = len(read) - len(device_square._axis(height, max(width, height), 30).inputs)
        assert max(x + y for x, y in zip(read[:across], added[:across])) <= most
        assert max(added[across:]) <= 4 * 3 * 30**2
        read.clear()
        added.clear()


def test_no_room_on_the_device_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.Tensor, "index_select", full)
    with pytest.raises(MemoryError, match="Tried to allocate"):
        pad_and_resize_tensor(torch.from_numpy(noise(5, 4)), 14, RULE.pad)


class OnCuda:
    """Stands for a tensor on a GPU."""

    device = torch.device("cuda:0")


def test_another_thread_waits_for_what_made_a_tensor(fake_cuda: FakeCuda) -> None:
    """Its stream waits for no stream of the caller; the host does."""
    another = FakeStream("another thread's")
    with torch.cuda.stream(FakeStream("the caller's")):
        x = torch.ones(3)
        ready = for_another_thread(OnCuda())  # type: ignore[arg-type]
    with torch.cuda.stream(another):
        ready()
        x + 1
    assert not fake_cuda.races
    assert all(event.options == {"blocking": True} for event in fake_cuda.events)


def test_a_tensor_of_another_device_is_ready_at_once() -> None:
    x = torch.ones(3)
    assert for_another_thread(x)() is x
