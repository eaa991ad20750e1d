"""What tests of benches share: a session without a terminal, and the keys of every run."""

from __future__ import annotations

from typing import Any

from qalign_bench.cli.options import Options
from qalign_bench.cli.session import Session

REQUIRED = (  # of every run
    "images_per_second",
    "ms_p50",
    "ms_p90",
    "ms_p99",
    "stations_ms",
    "peak_memory_bytes",
    "gflop_per_image",
    "peak_share",
    "environment",
    "baseline",
)


def session(**options: Any) -> Session:
    remarks: list[str] = []
    made = Session(Options(**options), remarks.append, lambda *_: None)
    made.facts["remarks"] = remarks
    return made
