"""Receipts in, the table by which engines are chosen out: qalign_fast/engines/engine_times.json.

    python -m qalign_bench.figures.engine_times

A receipt is bench/results/engines_NAME.json. It was printed by

    qalign-fast bench latency --model random:one-align --precision int8 --engine native --engine onnx --json

on a machine whose best instruction set it is about. --instruction-set holds our kernels to a set but not onnxruntime,
so an older set is measured on an older CPU, or under bench/as_avx2/run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qalign_fast.engines.engine_times import SAME_KERNELS, TABLE, Measured, write_times
from qalign_fast.errors import QAlignError

RESULTS = Path(__file__).parents[2] / "results"
_NATIVE = "native "


class ReceiptError(QAlignError):
    """A file that is no measurement of several engines, or no fair one of the full size."""


def main() -> None:
    TABLE.write_text(table(RESULTS), "utf-8")


def table(results: Path) -> str:
    """The table's JSON from all receipts in a folder. Raises ReceiptError, which names the file."""
    found: dict[tuple[str, str], Measured] = {}
    for path in sorted(results.glob("engines_*.json")):
        for entry in read_receipt(path):
            case = entry.instruction_set, entry.precision
            if case in found:
                raise ReceiptError(f"{path}: {' '.join(case)} is in {found[case].receipt} too; keep one of them")
            found[case] = entry
    return write_times([found[case] for case in sorted(found)])


def read_receipt(path: Path) -> Iterator[Measured]:
    """What a receipt says of each precision. Raises ReceiptError."""
    try:
        found = json.loads(path.read_text("utf-8"))
        runs = [run for run in found["runs"] if not run["is_peer"] and run["batch"] == 1 and len(run["tasks"]) == 1]
        if found["interrupted"]:
            raise ReceiptError(f"{path}: was interrupted")
        for precision in sorted({run["precision"] for run in runs}):
            engines = {run["engine"]: run for run in runs if run["precision"] == precision}
            yield _measured(path, precision, engines)
    except (ValueError, KeyError, TypeError) as error:
        raise ReceiptError(f"{path}: not what `qalign-fast bench latency --json` prints ({error!r})") from error


def _measured(path: Path, precision: str, engines: Mapping[str, Mapping[str, Any]]) -> Measured:
    what = f"{path}: {precision}"
    ours = next((run for engine, run in engines.items() if engine in SAME_KERNELS), None)
    if ours is None or "onnx" not in engines:
        raise ReceiptError(f"{what} was measured with {', '.join(engines)}; expected native and onnx, one task each")
    facts = ours["environment"]
    if not str(ours["kernels"]).startswith(_NATIVE):
        raise ReceiptError(f"{what} ran on {ours['kernels']}; expected the C++ kernels (`qalign-fast build`)")
    kernels = ours["kernels"].removeprefix(_NATIVE)
    if kernels != facts["instruction_set"]:
        raise ReceiptError(
            f"{what} was held to {kernels}, onnxruntime to nothing on a CPU with {facts['instruction_set']}: run it "
            "on a CPU that has no more, or for avx2 under bench/as_avx2/run"
        )
    if ours["baseline"]["ratio"] is None:
        raise ReceiptError(f"{what} is of {ours['model']}; expected OneAlign's sizes, as random:one-align has them")
    ms = {engine: round(run["ms_p50"], 1) for engine, run in sorted(engines.items())}
    return Measured("cpu", kernels, precision, ms, facts["cpu"], facts["date"][:10], f"bench/results/{path.name}")


if __name__ == "__main__":
    main()
