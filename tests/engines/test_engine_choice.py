"""The engine that runs an artifact with several: measured times choose it, and `info` says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qalign_bench.contestants import models
from qalign_bench.contestants.models import prepare
from qalign_bench.figures import engine_times as receipts
from qalign_bench.figures.report import notes
from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import DeviceError, MissingExtraError
from qalign_fast.artifact.manifest import Artifact, open_artifact
from qalign_fast.cli.info import describe
from qalign_fast.engines import candidates, engine_times
from qalign_fast.engines.candidates import choose
from qalign_fast.engines.engine_times import Measured, rank, read_times
from qalign_fast.engines.options import LoadOptions
from qalign_kernels.cpu import native
from support.command_line import python
from support.goldens import GOLDEN, ROOT, Rounded


def measured(kernels: str, precision: str, **ms: float) -> Measured:
    return Measured("cpu", kernels, precision, ms, "a CPU", "2026-11-27", f"bench/results/engines_{kernels}.json")


TIMES = (
    measured("avx2", "int8", torch=15000, onnx=10400),
    measured("avx512vnni", "int8", torch=2210, onnx=3900),
    measured("avx512vnni", "fp32", torch=9000, onnx=7000),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("both") / "a"
    made = export_artifact(GOLDEN / "narrow-112", out, ExportOptions("int8", ("onnx", "torch")))
    return open_artifact(made)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Pretends that the CPU has these kernels, and that these times were measured."""

    def set_to(kernels: str | None) -> None:
        monkeypatch.setattr(native, "chosen", lambda _=None: kernels)
        monkeypatch.setattr(engine_times, "read_times", lambda: TIMES)

    return set_to


@pytest.mark.parametrize(
    ("precision", "kernels", "first", "says"),
    [
        ("int8", "avx2", "onnx", "measured: onnx 10400 ms a picture, torch 15000: bench/results/engines_avx2.json"),
        ("int8", "avx512vnni", "native", "measured: torch 2210 ms a picture, onnx 3900"),
        ("fp32", "avx512vnni", "onnx", "measured: onnx 7000 ms"),
        ("int4", "avx512vnni", "native", "int4 not measured, int8 measured: torch 2210"),
        ("fp16", "avx512vnni", "onnx", "fp16 not measured, fp32 measured: onnx 7000"),
        ("fp16", "avx2", "onnx", "fp16 not measured, int8 measured: onnx 10400"),
        ("int8", "amx", "native", "by rule: not measured on amx"),
        ("int8", "portable", "onnx", "no vector instructions"),
        ("int8", None, "onnx", "not built"),
    ],
)
def test_the_fastest_measured_engine_is_first(precision: str, kernels: str | None, first: str, says: str) -> None:
    ranking = rank(precision, kernels, TIMES)
    assert ranking.engines[0] == first
    assert sorted(ranking.engines) == ["native", "onnx", "onnx-cuda", "torch"]
    assert says in ranking.why


def test_an_artifact_with_several_engines_runs_on_the_fastest(both: Artifact, on: Callable[[str | None], None]) -> None:
    found = {}
    for kernels in ("avx2", "avx512vnni", "amx", None):
        on(kernels)
        found[kernels] = choose(both, LoadOptions("cpu", engine="auto")).engine
        for engine in ("native", "torch", "onnx"):
            assert choose(both, LoadOptions("cpu", engine=engine)).engine == engine
    assert found == {"avx2": "onnx", "avx512vnni": "native", "amx": "native", None: "onnx"}


def test_an_engine_that_is_not_installed_is_passed_over(
    both: Artifact, on: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on("avx2")
    monkeypatch.setattr(candidates, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert choose(both, LoadOptions("cpu", engine="auto")).engine == "native"
    with pytest.raises(MissingExtraError, match=r"onnx runs on onnxruntime.*pip install 'qalign-fast\[cpu\]'"):
        choose(both, LoadOptions("cpu", engine="onnx"))
    monkeypatch.setattr(candidates, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"torch runs on torch.*pip install 'qalign-fast\[torch\]'"):
        choose(both, LoadOptions("cpu", engine="torch"))
    on(None)
    assert str(choose(both, LoadOptions("cpu", engine="auto"))).startswith("native on plain numpy")


def test_looking_for_a_gpu_where_there_is_no_driver_imports_no_torch() -> None:
    code = (
        "import ctypes, sys\n"
        "class NoLibrary:\n"
        "    def __init__(self, name): raise OSError(name)\n"
        "ctypes.CDLL = NoLibrary\n"
        "from qalign_fast.artifact.manifest import open_artifact\n"
        "from qalign_fast.engines.candidates import candidates\n"
        "from qalign_fast.engines.options import LoadOptions\n"
        "from qalign_fast.references import EMBEDDED\n"
        "found = [(one.engine, one.place) for one in candidates(open_artifact(EMBEDDED), LoadOptions())]\n"
        "print(found, 'torch' in sys.modules)"
    )
    assert python(code).strip() == "[('torch', 'cpu'), ('native', 'cpu')] False"


def test_if_no_engine_can_run_each_says_why(
    rounded: Rounded, on: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8-bit floats have no C++ kernels, and numpy has no such dtype."""
    on("avx512vnni")
    monkeypatch.setattr(candidates, "find_spec", lambda _: None)
    artifact = open_artifact(rounded("narrow-112", "fp8"))
    with pytest.raises(DeviceError) as caught:
        choose(artifact, LoadOptions("cpu", engine="auto"))
    assert "engine native has no kernels for fp8; it has: fp32, fp16, bf16, int8, int4; or " in str(caught.value)
    assert "pip install 'qalign-fast[torch]'" in str(caught.value)
    assert describe(artifact.directory, device="cpu")["engine"].startswith("none here: engine native has no kernels")
    with pytest.raises(DeviceError, match="device 'cuda': engine native runs on a CPU"):
        choose(artifact, LoadOptions("cuda", engine="native"))


def test_info_says_which_engine_runs_and_why(
    both: Artifact, on: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on("avx512vnni")
    facts = describe(both.directory, device="cpu")
    why = "measured: torch 2210 ms a picture, onnx 3900: bench/results/engines_avx512vnni.json"
    assert facts["engine"] == f"native on native avx512vnni ({why})"
    assert facts["could also run"] == f"torch on native avx512vnni ({why}); onnx on onnxruntime ({why})"
    assert "cannot run" not in facts
    on(None)
    assert "onnx on onnxruntime (the C++ kernels are not built" in describe(both.directory, device="cpu")["engine"]
    assert describe(None)["cannot run"] == "onnx: the artifact has no weights for it"
    assert "none here: device 'mps'" in describe(None, device="mps")["engine"]
    monkeypatch.setattr(candidates, "find_spec", lambda _: None)
    facts = describe(None)
    assert facts["engine"] == "native on plain numpy"
    assert "torch: an artifact's engine torch runs on torch, which is not installed" in facts["cannot run"]


def test_the_bench_takes_and_tells_what_would_be_chosen(
    both: Artifact, on: Callable[[str | None], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("avx2")
    assert [models._default_engine(p)[0] for p in ("int8", "int4", "bf16", "fp8")] == [
        "onnx",
        "onnx",
        "native",
        "torch",
    ]
    given = prepare(str(both.directory), None, "auto", tmp_path, print, lambda *_: None, "cpu")
    assert given.choice is not None
    assert given.choice.startswith("onnx on onnxruntime (measured: onnx 10400 ms a picture")
    found = {"runs": [], "interrupted": False, "noise": {"warning": None}, "chosen": {"int8": given.choice}}
    assert notes(found) == [f"engine of int8, chosen: {given.choice}"]
    named = prepare(str(both.directory), None, "onnx", tmp_path, print, lambda *_: None)
    assert named.choice is None
    monkeypatch.setattr(models, "_export", lambda *_: both.directory)
    assert prepare("random:mini", None, "auto", tmp_path, print, lambda *_: None).choice == (
        "onnx: measured: onnx 10400 ms a picture, torch 15000: bench/results/engines_avx2.json"
    )


# --- the table and its receipts


def run(engine: str, ms: float, **other: Any) -> dict[str, Any]:
    facts = {"cpu": "EPYC", "date": "2026-11-27T01:02:03+00:00", "instruction_set": "avx2"}
    kernels = "onnxruntime" if engine == "onnx" else "native avx2"
    made = {"is_peer": False, "batch": 1, "tasks": ["quality"], "precision": "int8", "engine": engine, "ms_p50": ms}
    made |= {"kernels": kernels, "model": "random:one-align", "baseline": {"ratio": 0.1}, "environment": facts}
    return made | other


def write(path: Path, *runs: dict[str, Any], interrupted: bool = False) -> Path:
    path.write_text(json.dumps({"interrupted": interrupted, "runs": runs}))
    return path


def test_the_packaged_table_is_what_the_receipts_say() -> None:
    assert receipts.table(ROOT / "bench" / "results") == engine_times.TABLE.read_text("utf-8")
    read_times.cache_clear()
    for entry in read_times():
        assert (ROOT / entry.receipt).is_file()


def test_a_receipt_is_what_the_bench_prints(tmp_path: Path) -> None:
    theirs = run("upstream", 1, is_peer=True)
    write(tmp_path / "engines_avx2.json", run("native", 8100.04), run("onnx", 10400), theirs, run("onnx", 1, batch=2))
    write(tmp_path / "other.json", run("torch", 1))
    text = receipts.table(tmp_path)
    entry = Measured(**json.loads(text)[0])
    assert entry == Measured(
        "cpu",
        "avx2",
        "int8",
        {"native": 8100.0, "onnx": 10400},
        "EPYC",
        "2026-11-27",
        "bench/results/engines_avx2.json",
    )
    assert len(json.loads(text)) == 1
    assert rank("int8", "avx2", (entry,)).engines[:2] == ("native", "torch")


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([run("torch", 1)], "int8 was measured with torch; expected native and onnx"),
        ([run("torch", 1, kernels="plain torch"), run("onnx", 1)], "ran on plain torch; expected the C++ kernels"),
        ([run("torch", 1, kernels="native portable"), run("onnx", 1)], "held to portable, onnxruntime to nothing"),
        ([run("torch", 1, baseline={"ratio": None}, model="random:mini"), run("onnx", 1)], "is of random:mini"),
        ([{"is_peer": False}], "not what `qalign-fast bench latency --json` prints"),
    ],
)
def test_what_is_no_fair_receipt_is_refused(tmp_path: Path, runs: list[dict[str, Any]], says: str) -> None:
    path = write(tmp_path / "engines_x.json", *runs)
    with pytest.raises(receipts.ReceiptError) as caught:
        receipts.table(tmp_path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_receipts_that_were_cut_short_or_come_twice_are_refused(tmp_path: Path) -> None:
    pair = run("torch", 1), run("onnx", 2)
    write(tmp_path / "engines_a.json", *pair, interrupted=True)
    with pytest.raises(receipts.ReceiptError, match="interrupted"):
        receipts.table(tmp_path)
    for name in "ab":
        write(tmp_path / f"engines_{name}.json", *pair)
    with pytest.raises(receipts.ReceiptError, match=r"avx2 int8 is in bench.results.engines_a\.json too"):
        receipts.table(tmp_path)


def test_an_environment_says_what_the_kernels_could_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from qalign_bench.figures.environment import environment

    monkeypatch.setattr(native, "chosen", lambda _=None: "amx")
    assert environment()["instruction_set"] == "amx"
