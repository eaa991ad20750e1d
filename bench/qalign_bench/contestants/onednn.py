"""An instruction set of our kernels in, the environment variables that hold oneDNN, and so torch, to it out."""

from __future__ import annotations

NAMES = {
    "avx2": "AVX2",
    "avxvnni": "AVX2_VNNI",
    "avx512vnni": "AVX512_CORE_VNNI",
    "avx512bf16": "AVX512_CORE_BF16",
    "amx": "AVX512_CORE_AMX",
}


def held_to(instruction_set: str | None) -> dict[str, str]:
    """Environment variables that must be set before oneDNN is first used. None: no limit."""
    return {"ONEDNN_MAX_CPU_ISA": NAMES[instruction_set]} if instruction_set else {}
