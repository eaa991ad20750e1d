"""Who may import whom: the table of `docs/architecture.md`, held against every import in every file."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from support.command_line import python
from support.goldens import ROOT

ROW = re.compile(r"^\| (\d) \| (.+?) \| (slim)? ?\| (.+?) \|$", re.MULTILINE)
# the command line starts what lies above it, inside its commands
STARTS = {"qalign_fast/cli": ("export/qalign_export", "bench/qalign_bench")}
HEAVY = ("torch", "onnxruntime", "transformers", "av", "typer", "rich", "huggingface_hub", "onnx", "scipy")


class Place(NamedTuple):
    path: str  # a folder or a file
    order: int  # of its row
    slim: bool


@cache
def places() -> tuple[Place, ...]:
    rows = ROW.findall((ROOT / "docs/architecture.md").read_text("utf-8"))
    return tuple(
        Place(path, i, bool(slim))
        for i, row in enumerate(rows)
        for path in re.findall(r"`(.+?)`", row[1])
        for slim in [row[2]]
    )


def place_of(path: Path) -> Place | None:
    """The row that a file is in: the longest of the table's paths that holds it."""
    name = path.relative_to(ROOT).as_posix()
    found = [place for place in places() if name == place.path or name.startswith(place.path + "/")]
    return max(found, key=lambda place: len(place.path), default=None)


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("kernels", "qalign_fast", "export", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text("utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported; of `from a import b` a.b, and a where b is no module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names
            if not all(map(file_of, names)):  # else only the modules below it are meant
                yield node.module


def at_import(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: not inside functions, not for type checkers alone."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try):
            yield from imports(node)


def file_of(module: str) -> Path | None:
    """The file of one of our modules; None for another's, and for a name inside a module."""
    for root in ("", "kernels", "export", "bench", "bench/studies"):
        stem = ROOT / root / module.replace(".", "/")
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


def test_every_file_has_a_ring() -> None:
    packages = {"kernels/qalign_kernels/__init__.py"}
    assert [p for p, _ in sources() if place_of(p) is None and p.relative_to(ROOT).as_posix() not in packages] == []


def test_the_table_has_no_empty_rooms() -> None:
    assert [place.path for place in places() if not (ROOT / place.path).exists()] == []
    assert len(places()) > 10


def test_imports_point_to_lower_rings() -> None:
    wrong = []
    for path, tree in sources():
        here = place_of(path)
        for module in imports(tree) if here else ():
            file = file_of(module)
            there = place_of(file) if file else None
            if there and there.order > here.order and there.path not in STARTS.get(here.path, ()):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Inside functions and for type checkers too."""
    graph = {path: {file for module in imports(tree) if (file := file_of(module))} - {path} for path, tree in sources()}
    graph = {path: {file for file in files if file.name != "__init__.py"} for path, files in graph.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_the_command_line_starts_what_lies_above_it_inside_commands() -> None:
    for path, tree in sources():
        here = place_of(path)
        if here and here.path in STARTS:
            files = [file_of(module) for module in at_import(tree)]
            above = [file for file in files if file and place_of(file) and place_of(file).order > here.order]
            assert above == [], path


def test_slim_folders_import_nothing_heavy() -> None:
    wrong = []
    for path, tree in sources():
        here = place_of(path)
        if here and here.slim:
            own = {"typer", "rich"} if here.path == "qalign_fast/cli" else set()
            heavy = {module.split(".")[0] for module in at_import(tree)} & set(HEAVY) - own
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in heavy]
    assert wrong == []


def test_no_file_is_named_after_a_package_it_imports() -> None:
    for path, tree in sources():
        assert path.stem not in {name.split(".")[0] for name in imports(tree)}, path
        assert path.name != "utils.py"
        assert not {"q_align", "pyiqa", "transformers"} & {name.split(".")[0] for name in at_import(tree)} or {
            "peers",
            "adapters",
        } & set(path.parts)


def loaded(code: str) -> set[str]:
    return set(json.loads(python(f"import sys, json\n{code}\nprint(json.dumps(list(sys.modules)))")))


def test_each_file_of_tests_has_a_name_of_its_own() -> None:
    """pytest imports them by their names alone: of two that are called the same, one would not run."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_importing_the_package_takes_no_runtime_along() -> None:
    assert loaded("import qalign_fast") & set(HEAVY) == set()


def test_importing_the_package_takes_along_only_what_every_use_needs() -> None:
    """Models' and clips' readers come with the first model and the first clip."""
    found = loaded("import qalign_fast")
    rooms = ("qalign_fast.engines", "qalign_fast.artifact", "qalign_fast.families", "qalign_fast.cli", "qalign_kernels")
    assert [m for m in found if m.startswith(rooms) or m in ("qalign_fast.pixels.clip", "tempfile", "decimal")] == []


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_what_a_slim_product_loads_needs_neither_runtime(name: str) -> None:
    """Every module of every slim folder, with the runtime hidden."""
    slim = [path for path, _ in sources() if (here := place_of(path)) and here.slim and path.name != "__main__.py"]
    modules = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in slim]
    python(
        f"import sys; sys.modules[{name!r}] = None\n"
        + "\n".join(f"import {m.removesuffix('.__init__')}" for m in modules)
    )


IMPORTED = {
    "dataclasses",
    "qalign_fast",
    "qalign_fast.errors",
    "qalign_fast.feed",
    "qalign_fast.feed.items",
    "qalign_fast.levels",
    "qalign_fast.pixels",
    "qalign_fast.pixels.limits",
    "qalign_fast.scorer",
    "qalign_fast.version",
}


def test_importing_the_package_takes_along_nothing_but_these() -> None:
    """Beside numpy, and what numpy itself takes along."""
    before = "import sys, numpy, numpy.typing, copy; before = set(sys.modules)"
    code = f"{before}; import qalign_fast; print(*set(sys.modules) - before)"
    found = python(code)
    assert set(found.split()) <= IMPORTED
