"""The budget of a picture: every operation is counted, and its least time and bytes are right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qalign_bench.contestants import peak
from qalign_bench.contestants.timed_ops import Call
from qalign_bench.figures.flop import our_work
from qalign_bench.profiling import budget
from qalign_fast.artifact.manifest import open_artifact
from qalign_kernels.contract.ops import Ops

Rounded = Callable[[str, str], Path]
LIMITS = budget.Limits({"gops": 1000.0}, {"gops": 100.0}, gbs=10.0)  # what a machine has is not asked here


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_every_operation_is_counted(precision: str, rounded: Rounded) -> None:
    artifact = rounded("narrow-112", precision)
    subject = budget.on_cpu(artifact)
    found = budget.measure(subject, LIMITS, batch=2, repeat=1)
    manifest = open_artifact(artifact).manifest
    work = our_work(manifest.config, [manifest.prompts[0].prompt])
    gflop = {row["station"]: 0.0 for row in found["operations"]}
    for row in found["operations"]:
        gflop[row["station"]] += row["gflop"]
    assert gflop["vision"] == pytest.approx(1e-9 * work.vision)
    assert gflop["abstractor"] == pytest.approx(1e-9 * work.abstractor)
    # attention over a sequence is counted as what is computed of it: the square, the hidden half of it too
    assert 1 <= gflop["decoder"] / (1e-9 * (work.decoder + work.head)) < 1.05
    assert found["ms"] == pytest.approx(found["between_ms"] + sum(row["ms"] for row in found["operations"]))


def test_least_times_are_of_what_bounds_them() -> None:
    product = Call("vision", "fc1", flop=10**12, bytes=10**9, start=0, end=0)
    assert LIMITS.seconds(product) == (pytest.approx(1), "arithmetic")
    assert LIMITS.seconds(product._replace(bytes=10**11)) == (pytest.approx(10), "memory")
    assert LIMITS.seconds(product._replace(operation="attention")) == (pytest.approx(10), "arithmetic")


def test_bytes_are_of_what_is_read_and_written(rounded: Rounded) -> None:
    subject = budget.on_cpu(rounded("narrow-112", "int8"))
    budget.measure(subject, LIMITS, batch=1, repeat=1)
    calls = {(call.station, call.operation): call for call in subject.ops.calls}
    config = subject.engine.config.vision
    fc1 = calls["vision", "fc1"]
    weights = config.width * config.mlp + 2 * 4 * config.mlp  # int8; scales and bias
    assert fc1.bytes == weights + 4 * config.tokens * (config.width + config.mlp)


def test_the_table_and_the_file_say_the_same(
    rounded: Rounded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peak, "_SHAPES", {"cpu": ((32, 32, 32),)})
    monkeypatch.setattr(peak, "_SECONDS", 0)
    artifact, out = rounded("narrow-112", "int8"), tmp_path / "budget.json"
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["budget", str(artifact), "--repeat", "1", "--json", str(out)])
        budget.main()
    first, second = json.loads(out.read_text())
    assert first["model"] == second["model"] == artifact.name
    printed = capsys.readouterr().out
    for name in ("vision fc1", "decoder attention", "all of vision", "all of decoder", "between operations", "all"):
        assert f"| {name} |" in printed
    assert "| memory |" in printed or "| arithmetic |" in printed


def test_what_hands_rows_on_in_8_bits_may_do_so(rounded: Rounded) -> None:
    """TimedOps passes on the fused norms of a GPU, which give linears their rows in 8 bits."""

    class Handing(Ops):
        def layer_norm_for(self, readers, x, *others):
            handed.append(readers)
            return super().layer_norm_for(readers, x, *others)

    handed: list[object] = []
    subject = budget.on_cpu(rounded("narrow-112", "int8"))
    subject.ops.inner = Handing()
    budget.measure(subject, LIMITS, batch=1, repeat=1)
    config = subject.engine.config
    assert len(handed) >= 2 * (2 * config.vision.layers)
