"""Jobs whose engines are actors of a local Ray: the rows are those of a local run, also where an actor is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.errors import OptionError, QAlignError
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import Watcher, run_job
from support.jobs import files, options, run_options, small_pictures
from support.local_ray import local_ray

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra `ray` has it", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Ray's own
RECURSIVE = InputOptions(recursive=True)
TWO = run_options(devices=("cpu", "cpu"), threads=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of two cores on this machine."""
    with local_ray(2, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}) as ray:
        yield ray


def test_a_killed_actor_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    from qalign_fast.jobs.ray_engines import ray_engines_for

    small_pictures(tmp_path / "in", 80)
    job = options(tmp_path / "in", taking=RECURSIVE, shard_size=16)
    run_job(tmp_path / "local", job, run_options())

    class Killing(Watcher):
        crew: Any = None
        killed = 0

        def finished(self, line: object) -> None:
            if not self.killed:
                self.killed = cluster.get(self.crew._members[0]._actor.process.remote())
                os.kill(self.killed, signal.SIGKILL)

    watcher = Killing()

    def make(*asked: Any) -> Any:
        watcher.crew = ray_engines_for(*asked)
        return watcher.crew

    assert run_job(tmp_path / "out", job, TWO, watcher=watcher, make_engines=make).complete
    assert watcher.killed
    assert files(tmp_path / "out") == files(tmp_path / "local")


def test_an_actors_error_is_raised_as_it_is(cluster: Any, tmp_path: Path) -> None:
    from qalign_fast.jobs.ray_engines import ray_engines_for

    small_pictures(tmp_path / "in", 4)
    job = options(tmp_path / "in", taking=RECURSIVE)
    with pytest.raises(QAlignError, match="no-such-engine"):
        run_job(
            tmp_path / "out", job, run_options(engine="no-such-engine", devices=("cpu",)), make_engines=ray_engines_for
        )
    with pytest.raises(OptionError, match="--dedup is for --on local"):
        run_job(
            tmp_path / "dedup",
            options(tmp_path / "in", taking=RECURSIVE, dedup=True),
            TWO,
            make_engines=ray_engines_for,
        )
