"""What loading and scoring may not do, and what they say when an extra is missing. `test_rings.py` holds imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command_line import python
from support.goldens import PICTURES, ROOT, Golden

STRACE = shutil.which("strace")


def test_a_torch_artifact_loads_without_torchs_compiler(rounded: Callable[[str, str], Path]) -> None:
    """Importing the compiler takes longer than all else that loads a small model."""
    load = f"Scorer.load({str(rounded('narrow-112', 'int8'))!r}, engine='torch').warm()"
    code = f"import sys; from qalign_fast import Scorer; {load}; print('torch._dynamo' in sys.modules)"
    assert python(code).strip() == "False"


def test_scoring_with_the_embedded_model_needs_no_runtime() -> None:
    picture = str(PICTURES / "chelsea_small.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'huggingface_hub', 'av', 'typer'): sys.modules[name] = None\n"
        f"from qalign_fast import Scorer; print(Scorer.load().score({picture!r}).value)"
    )
    assert 1 <= float(python(code)) <= 5


@pytest.mark.parametrize("missing", ["onnxruntime", "torch", "av", "pebble", "pyarrow", "filelock"])
def test_an_extra_that_is_missing_is_one_line_that_helps(missing: str, goldens: dict[str, Golden]) -> None:
    use = {
        "onnxruntime": f"Scorer.load({str(goldens['narrow-112'].artifact)!r})",
        "torch": f"Scorer.load({str(ROOT / 'tests/golden/narrow-112')!r})",
        "av": "Scorer.load().score_video('clip.mp4')",
    }.get(missing, "import qalign_fast.jobs.job")
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from qalign_fast import MissingExtraError, Scorer\n"
        f"try: {use}\nexcept MissingExtraError as error: print(error)"
    )
    extra = {"onnxruntime": "cpu", "torch": "torch", "av": "video"}.get(missing, "jobs")
    assert f"pip install 'qalign-fast[{extra}]'" in python(code)


# torch imports dill where datasets has installed it, and dill tries out a folder for temporary files
WITHOUT_DILL = "import sys; sys.modules['dill'] = None; from qalign_fast.cli import main; main()"


def test_scoring_writes_nothing_and_opens_no_socket(tmp_path: Path) -> None:
    """`CI` is unset, because it hides onnxruntime's telemetry. strace, where it is installed, also sees native code."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    log = tmp_path / "trace"
    command = [sys.executable, "-B", "-c", WITHOUT_DILL, "score", str(PICTURES), "--format", "jsonl"]
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
