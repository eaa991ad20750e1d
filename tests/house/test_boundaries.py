"""Who may import whom, and what importing and scoring may not do."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.goldens import PICTURES, ROOT

PACKAGES = {
    "qalign_fast": ROOT / "qalign_fast",
    "qalign_export": ROOT / "export/qalign_export",
    "qalign_kernels": ROOT / "kernels/qalign_kernels",
    "qalign_bench": ROOT / "bench/qalign_bench",
}
NO_TORCH = (
    "image",
    "video",
    "prompt",
    "levels",
    "artifact",
    "checked",
    "choice",
    "constants",
    "fields",
    "sealed",
    "errors",
    "config",
    "engine",
    "engine_times",
    "scorer",
    "rows",
    "inputs",
    "cli",
    "hub",
)
MAY_USE_KERNELS = (
    "torch_engine.py",
    "cuda_engine.py",
    "compile_ahead.py",
    "model",
    "choice.py",
    "cli.py",
    "describe.py",
    "image.py",
)
STRACE = shutil.which("strace")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def top_level(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: not inside functions, not for type checkers only."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try):
            yield from imports(node)


def sources(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in PACKAGES[package].rglob("*.py"):
        yield path, ast.parse(path.read_text())


def test_import_directions() -> None:
    forbidden = {"qalign_kernels": ("qalign_fast", "qalign_export", "qalign_bench"), "qalign_export": ("qalign_bench",)}
    for package, others in forbidden.items():
        for path, tree in sources(package):
            assert not [name for name in imports(tree) if name.split(".")[0] in others], path
    for path, tree in sources("qalign_fast"):
        place = path.relative_to(PACKAGES["qalign_fast"])
        for name in imports(tree):
            root = name.split(".")[0]
            assert root not in ("qalign_export", "qalign_bench") or place.name == "cli.py", path
            assert root != "qalign_kernels" or place.parts[0] in MAY_USE_KERNELS, path
        top = [name.split(".")[0] for name in top_level(tree)]
        assert not {"qalign_export", "qalign_bench", "q_align", "pyiqa", "transformers"} & set(top), path
        if place.stem in NO_TORCH and len(place.parts) == 1:
            assert "torch" not in [name.split(".")[0] for name in imports(tree)], path


def test_no_file_is_named_after_a_package_it_imports() -> None:
    for package in PACKAGES:
        for path, tree in sources(package):
            assert path.stem not in {name.split(".")[0] for name in imports(tree)}, path
            assert path.name != "utils.py"


def python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_import_takes_no_runtime_along() -> None:
    heavy = ("torch", "onnxruntime", "transformers", "av", "typer", "rich", "huggingface_hub", "onnx", "scipy")
    code = f"import sys, json, qalign_fast; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    assert json.loads(python(code)) == []


def test_import_takes_along_only_what_every_use_needs() -> None:
    """Models' and clips' readers come with the first model and the first clip."""
    later = (
        "qalign_fast.engines.load",
        "qalign_fast.artifact.manifest",
        "qalign_fast.pixels.clip",
        "qalign_kernels",
        "tempfile",
        "decimal",
    )
    code = f"import sys, json, qalign_fast; print(json.dumps([m for m in {later!r} if m in sys.modules]))"
    assert json.loads(python(code)) == []


def test_a_torch_artifact_loads_without_torchs_compiler(rounded: Callable[[str, str], Path]) -> None:
    """Importing it takes longer than all else that loading a small model is."""
    load = f"Scorer.load({str(rounded('narrow-112', 'int8'))!r}, engine='torch').warm()"
    code = f"import sys; from qalign_fast import Scorer; {load}; print('torch._dynamo' in sys.modules)"
    assert python(code).strip() == "False"


def test_scoring_with_the_embedded_model_needs_no_torch() -> None:
    picture = str(PICTURES / "chelsea_small.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'huggingface_hub', 'av', 'typer'): sys.modules[name] = None\n"
        f"from qalign_fast import Scorer; print(Scorer.load().score({picture!r}).value)"
    )
    assert 1 <= float(python(code)) <= 5


@pytest.mark.parametrize("missing", ["onnxruntime", "torch", "av"])
def test_an_extra_that_is_missing_is_one_line_that_helps(missing: str) -> None:
    use = {
        "onnxruntime": "Scorer.load()",
        "torch": f"Scorer.load({str(ROOT / 'tests/golden/narrow-112')!r})",
        "av": "Scorer.load().score_video('clip.mp4')",
    }[missing]
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from qalign_fast import MissingExtraError, Scorer\n"
        f"try: {use}\nexcept MissingExtraError as error: print(error)"
    )
    extra = {"onnxruntime": "cpu", "torch": "torch", "av": "video"}[missing]
    assert f"pip install 'qalign-fast[{extra}]'" in python(code)


def test_scoring_writes_nothing_and_opens_no_socket(tmp_path: Path) -> None:
    """With `CI` unset, for it hides onnxruntime's telemetry. strace sees native code too, where it is installed."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    log = tmp_path / "trace"
    command = [sys.executable, "-B", "-m", "qalign_fast.cli", "score", str(PICTURES), "--format", "jsonl"]
    if STRACE:
        command = [STRACE, "-f", "-e", "trace=socket,connect,openat,mkdir,mkdirat", "-o", str(log), *command]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(work)}
    run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 6
    assert list(home.rglob("*")) == []
    assert list(work.rglob("*")) == []
    if STRACE:
        calls = log.read_text().splitlines()
        assert len(calls) > 100
        assert not [c for c in calls if "socket(" in c or "connect(" in c]
        writes = [c for c in calls if any(flag in c for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "mkdir"))]
        assert not [c for c in writes if '"/dev/' not in c and '"/proc/' not in c and '"/sys/' not in c]
