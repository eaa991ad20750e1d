"""Attention on a GPU: Triton's kernel for rows by modality, and the choice among torch's, against the contracts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_kernels.contract import attention
from qalign_kernels.contract.attention import BACKENDS
from qalign_kernels.cuda import attention as attention_triton
from qalign_kernels.cuda.ops import TritonOps
from support.interpreted import GPU, interpreted
from support.triton_ahead import DEVICES
from support.triton_cases import DEVICE, FACTS, on

ENABLED = {
    "cuDNN": torch.backends.cuda.cudnn_sdp_enabled,
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}


def sequences(batch: int, visual: int, text: int, places: int, heads: int, width: int) -> list[Tensor]:
    """The tensors that attention_by_modality takes, with q for all rows."""
    d, t = heads * width, visual + text
    angle = torch.arange(places, places + t).float().outer(torch.rand(width // 2)).repeat(1, 2)
    q = torch.randn(batch * t, d) * width**-0.5
    kv = torch.randn(batch * visual, 2 * d), torch.randn(batch * text, 2 * d)
    return [q, *kv, torch.randn(2, places, heads, width), torch.stack((angle.cos(), angle.sin()))]


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 65, 12, 15, 2, 32),  # OneAlign's quality prompt
        (1, 65, 15, 18, 1, 128),  # its aesthetics prompt, a whole head
        (3, 9, 4, 33, 2, 24),  # a prefix of more than one step; a head that is no power of two
        (1, 130, 12, 15, 1, 16),  # a clip of two frames
        (2, 31, 1, 3, 1, 16),  # a step of keys that ends with the sequence
    ],
)
@pytest.mark.parametrize("last", [False, True])
@interpreted
def test_attention_by_modality(sizes: tuple[int, ...], last: bool) -> None:
    q, *others = sequences(*sizes)
    q = q[: sizes[0]] if last else q
    expected = attention.attention_by_modality(q, *others, sizes[0])
    found = attention_triton.attention_by_modality(on(q), *(on(x) for x in others), sizes[0])
    largest = max(others[0].abs().max(), others[2].abs().max())
    assert (found.cpu() - expected).abs().max() <= 1e-5 * largest
    wide = on(torch.cat((q, q, q), dim=1))  # columns of a wider product
    beside = torch.cat((others[0], others[0]), dim=1)[:, others[0].shape[1] :]
    assert torch.equal(found, attention_triton.attention_by_modality(
        wide[:, q.shape[1] : 2 * q.shape[1]], on(beside), *(on(x) for x in others[1:]), sizes[0]))  # fmt: skip
    halves = (on(x.half()) for x in others[:2])
    found = attention_triton.attention_by_modality(on(q.half()), *halves, on(others[2]), on(others[3]), sizes[0])
    assert (found.cpu() - expected).abs().max() <= 2e-3 * largest


@pytest.mark.parametrize(
    ("capability", "dtype", "cudnn", "asked"),
    [
        (90, torch.float16, 91900, ["cuDNN", "flash", "efficient", "math"]),
        (86, torch.float16, 91900, ["flash", "cuDNN", "efficient", "math"]),
        (90, torch.float16, 91002, ["flash", "efficient", "math"]),  # is wrong on a picture's 1025 rows
        (90, torch.float16, None, ["flash", "efficient", "math"]),
        (90, torch.float32, 91900, ["efficient", "math"]),
    ],
)
def test_torchs_attention_is_asked_for_by_name(
    capability: int, dtype: torch.dtype, cudnn: int | None, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order holds while attention is called, and torch is left as it was."""
    seen: list[list[str]] = []

    def look(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        order = (BACKENDS.get(SDPBackend(one), "") for one in torch._C._get_sdp_priority_order())
        seen.append([name for name in order if name and ENABLED[name]()])
        return q

    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    before = torch._C._get_sdp_priority_order()
    ops, x = TritonOps(DEVICES[capability], dtype), torch.zeros(1, 2, 32)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", look)
    ops.attention(x, x, x, 2)
    assert seen == [asked]
    assert ops.name == f"Triton, {asked[0]} attention"
    assert torch._C._get_sdp_priority_order() == before


def test_attention_that_is_off_in_torch_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    assert TritonOps(DEVICES[90], torch.float16).name == "Triton, flash attention"


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize(("queries", "keys"), [(1025, 1025), (64, 1089)])
def test_every_attention_of_torchs_gives_the_same(queries: int, keys: int, batch: int) -> None:
    """Each by its name and alone, on the vision tower's and the abstractor's shapes in the model's memory layout. The
    backend that is asked for first has to take them.
    """
    q = torch.randn(batch, queries, 3 * 1024, device=DEVICE).half()[..., :1024] / 8
    k, v = (torch.randn(batch, keys, 1024, device=DEVICE).half() for _ in range(2))
    expected = attention.attention(q.float(), k.float(), v.float(), 16)
    first = attention.attention_backends(FACTS.capability, torch.float16)[0]
    for backend in {first, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION}:
        found = attention.attention_by([backend], q, k, v, 16)
        assert (found.float() - expected).abs().max() < 2e-3 * v.abs().max(), backend


@interpreted
def test_a_sequence_does_not_see_another() -> None:
    q, visual, text, *others = sequences(2, 9, 4, 5, 2, 16)
    found = attention_triton.attention_by_modality(*(on(x) for x in (q, visual, text, *others)), 2)
    visual[9:], text[4:] = float("nan"), float("nan")
    beside = attention_triton.attention_by_modality(*(on(x) for x in (q, visual, text, *others)), 2)
    assert torch.equal(found[:9], beside[:9])
    assert torch.equal(found[18:22], beside[18:22])
