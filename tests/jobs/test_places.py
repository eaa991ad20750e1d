"""Which engines a job starts where: GPUs, NUMA nodes as Linux describes them, and shares of a CPU's cores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qalign_fast.jobs import places
from qalign_fast.jobs.places import Place, numa_nodes, places_of
from support.command_line import python
from support.goldens import ROOT


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of 16 cores without a GPU, in whose folder of NUMA nodes there is nothing yet."""
    monkeypatch.setattr(places, "_NODES", tmp_path)
    monkeypatch.setattr(places, "_my_cores", lambda: frozenset(range(16)))
    monkeypatch.setattr(places, "_gpus", lambda: 0)
    yield tmp_path


def add_node(machine: Path, number: int, cores: str) -> None:
    (machine / f"node{number}").mkdir()
    (machine / f"node{number}/cpulist").write_text(f"{cores}\n")


def test_a_machine_is_one_place(machine: Path) -> None:
    assert places_of(["auto"]) == [Place("auto")]
    add_node(machine, 0, "0-15")
    assert places_of(["auto"]) == [Place("auto")]
    assert places_of(["cpu"]) == [Place("cpu")]


def test_each_numa_node_is_a_place(machine: Path) -> None:
    add_node(machine, 0, "0-3,8-11")
    add_node(machine, 1, "4-7,12")
    nodes = [frozenset([0, 1, 2, 3, 8, 9, 10, 11]), frozenset([4, 5, 6, 7, 12])]
    assert numa_nodes() == nodes
    assert places_of(["auto"]) == [Place("cpu", node) for node in nodes]
    assert places_of(["cpu", "cpu"]) == [Place("cpu", node) for node in nodes]


def test_nodes_hold_only_cores_that_the_process_may_use(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_node(machine, 0, "0-7")
    add_node(machine, 1, "8-15")
    add_node(machine, 2, "")  # of memory alone
    monkeypatch.setattr(places, "_my_cores", lambda: frozenset([6, 7]))  # as `taskset` leaves them
    assert numa_nodes() == [frozenset([6, 7])]
    assert places_of(["auto"]) == [Place("auto")]


def test_engines_on_one_cpu_share_its_cores(machine: Path) -> None:
    found = [place.cores for place in places_of(["cpu", "cpu", "cpu"])]
    assert [len(cores or ()) for cores in found] == [5, 5, 6]
    assert frozenset().union(*(cores or () for cores in found)) == frozenset(range(16))
    assert places_of(["cpu"] * 17) == [Place("cpu")] * 17  # more than there are cores


def test_each_gpu_is_a_place(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_node(machine, 0, "0-7")
    add_node(machine, 1, "8-15")
    monkeypatch.setattr(places, "_gpus", lambda: 3)
    assert places_of(["auto"]) == [Place("cuda:0"), Place("cuda:1"), Place("cuda:2")]
    monkeypatch.setattr(places, "_gpus", lambda: 1)
    assert places_of(["auto"]) == [Place("auto")]  # which is the GPU
    assert places_of(["cuda:1", "cpu"]) == [Place("cuda:1"), Place("cpu")]


def test_where_there_is_no_driver_a_job_starts_without_torch(tmp_path: Path) -> None:
    """Importing it takes longer than all else that starts a job."""
    if python("from qalign_fast.engines.candidates import driver_is_there as d; print(d())").strip() == "True":
        pytest.skip("NVIDIA's driver is here")
    code = (
        "import sys; from pathlib import Path\n"
        "from qalign_fast.jobs.job import run_job\n"
        "from qalign_fast.jobs.options import JobOptions, RunOptions\n"
        f"job = JobOptions(({str(ROOT / 'samples/coffee.jpg')!r},))\n"
        f"print(run_job(Path({str(tmp_path)!r}), job, RunOptions()).complete, 'torch' in sys.modules)"
    )
    assert python(code).split() == ["True", "False"]
