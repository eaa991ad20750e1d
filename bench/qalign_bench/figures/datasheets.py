"""A device's name and a precision in, the rate that the device's maker states out."""

from __future__ import annotations

import re

from qalign_kernels.contract.precisions import PRECISIONS

_OF_PEERS = {"nf4": "bf16"}  # bitsandbytes expands its weights to a float

# Dense TFLOPS or TOPS of NVIDIA's datasheets and architecture papers, floats with float32 accumulation. Patterns fit
# names as the driver gives them, so that a variant with other figures (3090 Ti, H100 PCIe) does not match.
DATASHEETS = {
    r"RTX 3090$": {"fp16": 71, "bf16": 71, "int8": 284},
    r"RTX 4090$": {"fp16": 165, "bf16": 165, "fp8": 330, "int8": 661},
    r"\bL4\b": {"fp16": 121, "bf16": 121, "fp8": 242, "int8": 242},
    r"\bA100\b": {"fp16": 312, "bf16": 312, "int8": 624},
    r"\bH100 80GB HBM3": {"fp16": 989, "bf16": 989, "fp8": 1979, "int8": 1979},
    r"\bH200\b": {"fp16": 989, "bf16": 989, "fp8": 1979, "int8": 1979},
}


def arithmetic_of(precision: str | None) -> str:
    """The precision in which weights of a precision are multiplied; "" for one that is not known."""
    known = PRECISIONS.get(precision or "")
    return (known.arithmetic or known.name) if known else _OF_PEERS.get(precision or "", "")


def datasheet_gops(device_name: str, precision: str | None) -> float | None:
    """The GFLOPS or GOPS that the maker states; None for a device or precision that is not in the table."""
    known = (tops for pattern, tops in DATASHEETS.items() if re.search(pattern, device_name))
    tops = next(known, {}).get(arithmetic_of(precision))
    return None if tops is None else 1e3 * tops
