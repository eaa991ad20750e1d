"""The wheel with kernels in an environment of numpy, Pillow and safetensors: no torch, no onnxruntime, no compiler.

This Python's environment has links to the packages that are here; the other versions' are made by pip.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from qalign_fast import Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.torch_cpu import load_folded
from qalign_kernels.cpu.ops import load_native
from qalign_kernels.cpu.sources import this_machine
from qalign_kernels.cpu.table import exact_for
from support.goldens import FOLDERS, GOLDEN, PICTURES, Rounded
from support.interpreters import environment, interpreter

STRACE = shutil.which("strace")
PACKAGES = ("numpy", "numpy.libs", "PIL", "pillow.libs", "safetensors")
SCORE = """
import json, sys
from qalign_fast import Scorer
scorer = Scorer.load(sys.argv[1] if len(sys.argv) > 1 else None)
scores = scorer.score(json.loads(sys.stdin.read()))
facts = {"engine": scorer.engine.name, "kernels": scorer.engine.kernels, "logits": [score.logits for score in scores]}
print(json.dumps(facts | {"values": [score.value for score in scores]}))
"""

ALONE = ("-P", "-c")  # with this folder on its path, an interpreter would import the work tree
VERSIONS = ("3.11", "3.12", "3.13")
MEDIA = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from qalign_fast import QAlignError, Scorer

path, scorer = Path(sys.argv[1]), Scorer.load()
pixels = np.asarray(Image.open(path).convert("RGB"))
media = {"path": path, "bytes": path.read_bytes(), "PIL": Image.open(path), "array": pixels}
logits = {name: scorer.score(one).logits for name, one in media.items()}
with path.open("rb") as file:
    logits["file"] = scorer.score(file).logits
with ProcessPoolExecutor(1, get_context("spawn")) as pool:
    logits["pickled"] = pool.submit(scorer.score, path).result().logits
errors = []
for call, given in (
    (scorer.score, [b"junk"]),
    (scorer.score, ["missing.jpg"]),
    (scorer.score, [path, "sharpness"]),
    (Scorer.load, [sys.argv[2]]),
):
    try:
        call(*given)
    except QAlignError as error:
        errors.append([type(error).__name__, str(error)])
print(json.dumps([logits, errors]))
"""


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory, made: Callable[[str], Path]) -> Path:
    """The Python of that environment. The packages are this one's, by links, so that no network is needed."""
    folder = tmp_path_factory.mktemp("slim")
    venv.create(folder, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    with ZipFile(made(this_machine())) as wheel:
        wheel.extractall(site)
    [here] = (Path(place).parent for place in find_spec("numpy").submodule_search_locations)
    for name in PACKAGES:
        if (here / name).exists():
            (site / name).symlink_to(here / name)
    return folder / "bin" / "python"


@pytest.fixture(scope="module", params=VERSIONS)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, made: Callable[[str], Path]) -> Path:
    """The same of each version of Python that we say we run on, as far as the machine has it."""
    if request.param == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(request.getfixturevalue("slim"))
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"there is no Python {request.param} here")
    folder = tmp_path_factory.mktemp("slim") / request.param
    return environment(python, folder, ("numpy", "pillow", "safetensors"), made(this_machine()))


@pytest.fixture(scope="module")
def here(library: Path) -> Scorer:
    """The embedded model in this process, on the kernels that the wheel has."""
    artifact = open_artifact(GOLDEN.parents[1] / "qalign_fast/mini")
    return Scorer(load_folded(artifact, ops=load_native(library_path=library, exact=False)))


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment without programs, whose home is empty. A CPU that bench/as_avx2 hides stays hidden."""
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if name == "LD_PRELOAD"}
    return kept | {"HOME": str(tmp_path / "home"), "PATH": str(tmp_path), "TMPDIR": str(tmp_path / "home")}


def score(slim: Path, environment: dict[str, str], pictures: list[Path], *model: Path) -> dict[str, Any]:
    command = [str(slim), *ALONE, SCORE, *map(str, model)]
    given = json.dumps([str(path) for path in pictures])
    run = subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


def test_what_runs_is_the_wheel(each: Path, nowhere: dict[str, str]) -> None:
    code = "import qalign_fast, qalign_kernels; print(qalign_fast.__file__, qalign_kernels.__file__, sep='\\n')"
    run = subprocess.run([each, *ALONE, code], env=nowhere, capture_output=True, text=True, check=True)
    [site] = each.parents[1].glob("lib/python*/site-packages")
    assert [Path(path).parents[1] for path in run.stdout.splitlines()] == [site] * 2


def test_it_has_no_runtime_and_no_compiler(slim: Path, nowhere: dict[str, str]) -> None:
    code = (
        "import shutil; from importlib.util import find_spec\n"
        "print([m for m in ('torch', 'onnxruntime', 'onnx', 'av', 'typer') if find_spec(m)],"
        " [tool for tool in ('g++', 'c++', 'gcc', 'clang') if shutil.which(tool)])"
    )
    run = subprocess.run([slim, *ALONE, code], env=nowhere, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] []"


def test_the_embedded_model_runs_on_the_wheels_kernels(
    each: Path, nowhere: dict[str, str], library: Path, here: Scorer
) -> None:
    pictures = sorted(PICTURES.iterdir())
    found = score(each, nowhere, pictures)
    assert (found["engine"], found["kernels"]) == ("native", load_native(library_path=library).name)
    assert found["logits"] == [list(one.logits) for one in here.score(pictures)]


def test_every_kind_of_picture_and_error_on_each_python(each: Path, nowhere: dict[str, str], here: Scorer) -> None:
    """A warning would be an error: what the next Python drops, a newer one warns of."""
    picture = PICTURES / "rocket_landscape.jpg"
    command = [each, "-W", "error", *ALONE, MEDIA, picture, GOLDEN / "narrow-112"]
    run = subprocess.run(command, env=nowhere, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    logits, errors = json.loads(run.stdout)
    assert sorted(logits) == ["PIL", "array", "bytes", "file", "path", "pickled"]
    assert list(logits.values()) == [list(here.score(picture).logits)] * 6
    assert [name for name, _ in errors] == ["ImageError", "ImageError", "TaskError", "MissingExtraError"]
    assert [len(text.splitlines()) for _, text in errors] == [1] * 4


@pytest.mark.parametrize("folder", FOLDERS)
def test_goldens(slim: Path, nowhere: dict[str, str], rounded: Rounded, folder: str) -> None:
    expected = np.load(GOLDEN / folder / "expected.npz")
    pictures = [PICTURES / name for name in expected["picture_names"]]
    found = score(slim, nowhere, pictures, rounded(folder, "fp32"))
    np.testing.assert_allclose(found["logits"], expected["logits_quality_image"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(found["values"], expected["score_quality_image"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
def test_bits_are_those_of_torchs_memory(
    slim: Path, nowhere: dict[str, str], rounded: Rounded, library: Path, precision: str
) -> None:
    artifact, pictures = rounded("narrow-112", precision), sorted(PICTURES.iterdir())
    ops = load_native(library_path=library, exact=exact_for(precision))
    expected = [list(one.logits) for one in Scorer(load_folded(open_artifact(artifact), ops=ops)).score(pictures)]
    assert score(slim, nowhere, pictures, artifact)["logits"] == expected


def test_scoring_writes_nothing_and_opens_no_socket(slim: Path, nowhere: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "trace"
    trace = [STRACE, "-f", "-e", "trace=socket,connect,openat,mkdir,mkdirat", "-o", str(log)] if STRACE else []
    code = "import sys; from qalign_fast import Scorer; print(Scorer.load().warm().score(sys.argv[1]).value)"
    picture = str(PICTURES / "chelsea_small.png")
    run = subprocess.run(
        [*trace, slim, "-B", *ALONE, code, picture], env=nowhere, capture_output=True, text=True, check=True
    )
    assert 1 <= float(run.stdout) <= 5
    assert list(Path(nowhere["HOME"]).rglob("*")) == []
    if STRACE:
        calls = log.read_text().splitlines()
        assert any("prebuilt/kernels.so" in call for call in calls)
        assert not [c for c in calls if "socket(" in c or "connect(" in c]
        writes = [c for c in calls if any(flag in c for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "mkdir"))]
        assert not [c for c in writes if '"/dev/' not in c and '"/proc/' not in c and '"/sys/' not in c]


def test_what_is_missing_is_one_line_that_helps(slim: Path, nowhere: dict[str, str], rounded: Rounded) -> None:
    for model, extra in ((GOLDEN / "narrow-112", "torch"), (rounded("narrow-112", "fp8"), "torch")):
        code = (
            "import sys; from qalign_fast import QAlignError, Scorer\n"
            "try: Scorer.load(sys.argv[1])\nexcept QAlignError as error: print(error)"
        )
        run = subprocess.run([slim, *ALONE, code, model], env=nowhere, capture_output=True, text=True, check=True)
        assert len(run.stdout.splitlines()) == 1
        assert f"pip install 'qalign-fast[{extra}]'" in run.stdout
