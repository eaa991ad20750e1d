"""Queries, keys and values in, context out: over a picture's rows, and over a prompt's prefix and rows by modality.

    context_i = Σ_j softmax_j(q_i · k_j) v_j            queries come scaled already

A fast form agrees to 1e-5 of the values' largest magnitude. On AMX a number is the sum of two bfloat16, which agrees to
1e-4. Engines of 8 bits, 4 bits and bfloat16 need not be exact: there queries, keys, values and weights of values are
rounded. On AMX they become bfloat16, which costs up to 4e-3; with AVX512-VNNI or AVX-VNNI they become whole numbers of
12 to 15 bits, which costs up to 1e-3.

Letters: B batch, T rows of a sequence, V visual and S text rows of it (T = V + S), P prefix rows, D width, H heads, Dh
head width, N = B*T. Rows by modality are B*V visual ones, sequence after sequence, then B*S text ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {  # torch's kernels on a GPU, by the names that we report
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.MATH: "math",
}
_HOPPER = 90
_SOUND_CUDNN = 91501  # older ones read past queries that are no multiple of 128, as 1025 is (pytorch/pytorch#169849)
_one_at_a_time = Lock()  # torch's choice of backends holds for the whole process: it is set and put back under this


def attention_backends(capability: int, dtype: torch.dtype) -> list[SDPBackend]:
    """Torch's kernels for `attention` on an NVIDIA GPU, best first: torch takes the first that can.

    cuDNN is first on Hopper (capability 90), because it alone uses that GPU's instructions; elsewhere flash is. Neither
    takes float32. A kernel that is switched off in torch.backends.cuda stays off.
    """
    cudnn, flash, efficient, math = BACKENDS
    fast = {
        cudnn: torch.backends.cuda.cudnn_sdp_enabled() and _cudnn_version() >= _SOUND_CUDNN,
        flash: torch.backends.cuda.flash_sdp_enabled(),
    }
    order = (cudnn, flash) if capability == _HOPPER else (flash, cudnn)
    return [*(one for one in order if fast[one] and dtype != torch.float32), efficient, math]


def _cudnn_version() -> int:
    """0 where torch has no cuDNN that it can use."""
    try:
        return torch.backends.cudnn.version() or 0
    except RuntimeError:  # torch was built with another version
        return 0


def attention_by(backends: Sequence[SDPBackend], q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attention` by the first of these kernels that can. Raises RuntimeError where none can."""
    with _one_at_a_time, sdpa_kernel([*backends], set_priority=True):
        return attention(q, k, v, heads)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """q [B, Tq, D], k and v [B, Tk, D] -> context [B, Tq, D]; every query sees every key."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)


def attention_by_modality(
    q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
) -> Tensor:
    """Causal attention with rotary positions over the prefix, then each sequence's visual rows, then its text rows.

    q          rows by modality [N, D], or [B, D] where only each sequence's last row asks
    kv_visual  [B*V, 2D], keys that are not rotated yet, then values
    kv_text    [B*S, 2D], the same
    prefix     [2, P, H, Dh], keys that are rotated, and values
    turns      [2, T, Dh], cosines and sines of the rows' positions

    All are float32. Returns the context of q's rows, in q's shape.
    """
    heads, width = prefix.shape[2:]
    k, v = sequence(kv_visual, kv_text, batch).unflatten(-1, (2, heads, width)).unbind(2)  # each [B, T, H, Dh]
    k, v = (torch.cat((p.expand(batch, -1, -1, -1), x), 1) for p, x in zip(prefix, (rotate(k, turns), v), strict=True))
    last = len(q) == batch
    visual = 0 if last else len(kv_visual)
    q = sequence(q[:visual], q[visual:], batch).unflatten(-1, (heads, width))  # [B, T or 1, H, Dh]
    q = rotate(q, turns[:, -1:] if last else turns)
    places = torch.arange(k.shape[1], device=q.device)
    seen = places <= places[-q.shape[1] :].unsqueeze(1)  # [T or 1, P+T]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0).transpose(1, 2).flatten(2)
    return torch.cat([part.flatten(0, 1) for part in context.split((visual // batch, q.shape[2] - visual // batch), 1)])


def sequence(visual: Tensor, text: Tensor, batch: int) -> Tensor:
    """Rows [B*V, ...] and [B*S, ...] -> [B, T, ...]."""
    return torch.cat([x.unflatten(0, (batch, len(x) // batch)) for x in (visual, text)], dim=1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x [B, T, H, Dh] turned by its rows' positions, `turns` [2, T, Dh]; number i of a head is paired with i + Dh/2.

    These are rotary positions (Su et al., arXiv 2104.09864) as LLaMA has them.
    """
    cos, sin = turns.unsqueeze(2)  # each [T, 1, Dh]
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
