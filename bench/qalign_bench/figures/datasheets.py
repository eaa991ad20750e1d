"""A device's name and a precision in, what its maker says it computes out."""

from __future__ import annotations

import re

# what a weight's precision computes in: 4-bit weights meet 8-bit rows, and NF4 is expanded to a float
ARITHMETIC = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int8",
    "nf4": "bf16",
}

# Dense TFLOPS or TOPS of NVIDIA's datasheets and architecture papers, floats with float32 accumulation; by names as the
# driver gives them, so that a variant with other figures (3090 Ti, H100 PCIe) is not taken for what it is not.
DATASHEETS = {
    r"RTX 3090$": {"fp16": 71, "bf16": 71, "int8": 284},
    r"RTX 4090$": {"fp16": 165, "bf16": 165, "fp8": 330, "int8": 661},
    r"\bL4\b": {"fp16": 121, "bf16": 121, "fp8": 242, "int8": 242},
    r"\bA100\b": {"fp16": 312, "bf16": 312, "int8": 624},
    r"\bH100 80GB HBM3": {"fp16": 989, "bf16": 989, "fp8": 1979, "int8": 1979},
    r"\bH200\b": {"fp16": 989, "bf16": 989, "fp8": 1979, "int8": 1979},
}


def datasheet_gops(device_name: str, precision: str | None) -> float | None:
    """GFLOPS or GOPS its maker states, where the device is a known one."""
    arithmetic = ARITHMETIC.get(precision or "", "")
    known = (tops for pattern, tops in DATASHEETS.items() if re.search(pattern, device_name))
    tops = next(known, {}).get(arithmetic)
    return None if tops is None else 1e3 * tops
