"""The documents are true: examples run, paths, links and options exist, tables are what the results give."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from safetensors import safe_open

from qalign_bench.figures import tables
from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast.artifact.manifest import MANIFEST, open_artifact
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.references import EMBEDDED
from support.documents import DOCUMENTS, examples, run_example, tools_named
from support.goldens import GOLDEN, ROOT, Golden
from support.servers import RunningServer, running_server

pytestmark = pytest.mark.usefixtures("kernels")  # of a user who has built them
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
SUFFIXES = tuple(".py .md .json .sh .cpp .h .c .toml .jpg".split())
COMMANDS = (
    *"score run serve export verify info build bench report threshold calibrate drift compare rank".split(),
    *("evaluate", "levels", "card"),
)
USES = re.compile(rf"(?:qalign-fast |`)({'|'.join(COMMANDS)}) ([^`\n#]*)")  # a command and what follows it
KINDS = "linear|float linear|norm|float32"
ROW = re.compile(rf"^\| `((?:vision|abstractor|decoder)\..+?)` \| \[(.+?)\] \| ({KINDS}) \|", re.MULTILINE)


def text_of(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as found:
        yield found


@pytest.mark.parametrize(("document", "program"), list(examples()))
def test_python_runs_as_written(
    document: str, program: str, goldens: dict[str, Golden], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Where it asks a server at port 8000, it gets one."""
    if "8000" in program:
        program = program.replace("8000", str(request.getfixturevalue("server").port))
    run_example(document, program, tmp_path, goldens["narrow-448"].artifact)


def test_every_tool_that_an_example_names_has_an_environment() -> None:
    assert tools_named() <= {path.parent.name for path in (ROOT / "tests/tools").glob("*/requirements.txt")}


def test_readme_has_two_examples_one_table_and_at_most_130_lines() -> None:
    text = text_of("README.md")
    assert [document for document, _ in examples()].count("README.md") == 2
    assert text.count("<!-- table: ") == 1
    assert len(text.splitlines()) <= 130


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(document)):
        assert link.startswith("https://") or ((ROOT / document).parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    """What is set as code and looks like a file of the repository; a pattern has to match one."""
    prose = re.sub(r"```.*?```", "", text_of(document), flags=re.DOTALL)
    words = [word for span in re.findall(r"`([^`\n]+)`", prose) for word in span.split()]
    for word in words:
        path = word.partition("::")[0].rstrip("/")
        if word.startswith(FOLDERS) or ("/" in word and word.endswith(SUFFIXES) and not word.startswith(("/", "-"))):
            assert list(ROOT.glob(path)), word


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_tables_are_what_the_results_give(document: str) -> None:
    text = text_of(document)
    assert tables.with_tables(text, tables.RESULTS) == text, "run `make tables`"
    assert text.count("<!-- table: ") >= 1


def test_every_receipt_is_listed_with_its_command() -> None:
    listed = set(re.findall(r"`([\w*]+\.json)`", text_of("bench/results/README.md")))
    found = {path.name for name in listed for path in tables.RESULTS.glob(name)}
    assert found == {path.name for path in tables.RESULTS.glob("*.json")}


@cache
def options(command: str) -> frozenset[str]:
    """Those that the command's --help names."""
    shown = subprocess.run(
        [sys.executable, "-m", "qalign_fast.cli", command, "--help"],
        env={"COLUMNS": "250", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(re.findall(r"--[\w-]+", shown.stdout))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_are_those_of_the_command(document: str) -> None:
    for command, rest in USES.findall(text_of(document)):
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest))
        assert named <= options(command), f"qalign-fast {command} {rest}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_and_modules_that_are_named_alone_exist(document: str) -> None:
    text = text_of(document)
    known = frozenset().union(*map(options, COMMANDS))
    assert set(re.findall(r"`(--[a-z][\w-]*)", text)) <= known | {"--per_channel"}  # optimum's
    for module in re.findall(r"python -m\s+(qalign_[\w.]+)(?!.*commit)", text):
        assert importlib.util.find_spec(module), module


def test_every_field_of_a_manifest_is_explained() -> None:
    rows = re.findall(r"^\| (`[\w.*`, ]+?`) \|", text_of("docs/artifact.md"), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`([\w.*]+)`", row)}
    manifest = json.loads((EMBEDDED / MANIFEST).read_text("utf-8"))
    fields = set(manifest) - {"sizes"} | {f"sizes.{station}" for station in manifest["sizes"]}
    inner = {f"quantization.{name}" for name in manifest["quantization"]}
    assert fields | inner <= explained
    for station, sizes in manifest["sizes"].items():
        [row] = re.findall(rf"^\| `sizes.{station}` \| (.*)\|$", text_of("docs/artifact.md"), re.MULTILINE)
        assert re.findall(r"`(\w+)`", row) == list(sizes)


def documented(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """docs/artifact.md's tensors of a model of these sizes: name -> kind and shape."""
    found = {}
    for name, shape, kind in ROW.findall(text_of("docs/artifact.md")):
        station = getattr(config, name.partition(".")[0])
        sizes = {
            "D": station.width,
            "M": station.mlp,
            "T": config.vision.tokens,
            "P": config.vision.patch,
            "Q": config.abstractor.queries,
            "L": config.abstractor.layers,
            "Dv": config.vision.width,
            "Dllm": config.decoder.width,
        }
        layers = range("{j}" in name, station.layers if "{" in name else 1 + ("{j}" in name))
        for i in layers:
            found[name.format(i=i, j=i)] = (kind, tuple(size(part, sizes) for part in shape.split(", ")))
    return found


def size(text: str, sizes: dict[str, int]) -> int:
    """`2LD`, `T - 1` or `3PP` as a number."""
    product, _, less = text.partition(" - ")
    result = 1
    for factor in re.findall(r"\d+|Dv|Dllm|[A-Z]", product):
        result *= int(factor) if factor.isdigit() else sizes[factor]
    return result - int(less or 0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_artifacts_tensors_are_the_documented_ones(precision: str, tmp_path: Path) -> None:
    artifact = export_artifact(GOLDEN / "narrow-112", tmp_path / "a", ExportOptions(precision, ("torch",)))
    manifest = open_artifact(artifact).manifest
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (kind, shape) in documented(manifest.config).items():
        expected |= tensors_of(name, kind, shape, precision)
    with safe_open(artifact / manifest.engines["torch"]["weights"], "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    found = {
        name: (part.get_dtype(), tuple(part.get_shape()))
        for name, part in slices.items()
        if not name.startswith("gap.") and (name in expected or not name.endswith(".bias"))  # a linear's may be there
    }
    assert found == expected


def tensors_of(name: str, kind: str, shape: tuple[int, ...], precision: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A row of the table as it lies in the file, a linear's bias left out."""
    if kind == "float32":
        return {name: ("F32", shape)}
    if kind == "norm":
        return {f"{name}.weight": ("F32", shape), f"{name}.bias": ("F32", shape)}
    outputs, inputs = shape
    if kind == "float linear" or precision in ("fp32", "fp16"):
        return {f"{name}.weight": ("F16" if (kind, precision) == ("linear", "fp16") else "F32", shape)}
    scale = {f"{name}.scale": ("F32", (outputs,))}
    if precision == "int8":
        return {f"{name}.weight": ("I8", shape)} | scale
    blocks = -(-inputs // 128)
    return scale | {
        f"{name}.weight": ("U8", (outputs, blocks, 64)),
        f"{name}.groups": ("U8", (outputs, 4 * blocks)),
    }
