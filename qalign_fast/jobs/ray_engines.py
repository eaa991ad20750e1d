"""Engines on a Ray cluster: an actor for each scores shards. Inputs must be reachable from the actors' machines."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import MissingExtraError, OptionError
from qalign_fast.jobs.crew import Crew, MemberDiedError
from qalign_fast.jobs.local import EngineSetup, LocalEngine, default_workers

try:
    import ray
except ModuleNotFoundError as missing:
    raise MissingExtraError(f"--on ray needs Ray: pip install 'qalign-fast[jobs,ray]' ({missing})") from missing

if TYPE_CHECKING:
    from qalign_fast.jobs.dedup import Duplicates
    from qalign_fast.jobs.entries import Entry
    from qalign_fast.jobs.options import JobOptions, RunOptions


class EngineActor:
    """In an actor's process: an engine that is loaded with the first shard, so that its error reaches the job."""

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._engine: LocalEngine | None = None

    def score(self, entries: list[Entry]) -> list[Entry]:
        """Scores a shard."""
        if self._engine is None:
            self._engine = LocalEngine(self._setup)
        [found] = self._engine.run([entries])
        return found

    def process(self) -> int:
        """The process that it runs in."""
        return os.getpid()


class RayMember:
    """An actor, which is made anew when it dies."""

    def __init__(self, setup: EngineSetup) -> None:
        on_gpu = setup.device.startswith("cuda")
        # Ray gives an actor its GPUs; the first of them is cuda:0 there
        self._setup = replace(setup, device="cuda:0") if on_gpu else setup
        self._needs: dict[str, float] = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
        self._actor: Any = None

    def score(self, entries: list[Entry]) -> list[Entry]:
        if self._actor is None:
            self._actor = ray.remote(EngineActor).options(**self._needs).remote(self._setup)
        try:
            found: list[Entry] = ray.get(self._actor.score.remote(entries))
        except ray.exceptions.RayActorError as error:
            self._actor = None
            raise MemberDiedError(str(error).strip().splitlines()[0]) from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        return found

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)


def ray_engines_for(job: JobOptions, run: RunOptions, duplicates: Duplicates | None) -> Crew:
    """An actor for each device; "auto" is one for each GPU of the cluster, or for each machine if it has none.

    Connects to the cluster that Ray finds, and starts one on this machine if there is none.
    """
    if duplicates is not None:
        raise OptionError("equal pictures are found by one engine; --dedup is for --on local")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    workers = run.workers or default_workers()
    return Crew([RayMember(EngineSetup(job, run, device, run.threads, workers)) for device in _devices(run.devices)])


def _devices(asked: tuple[str, ...]) -> list[str]:
    if asked != ("auto",):
        return list(asked)
    cluster: Any = ray
    if gpus := int(cluster.cluster_resources().get("GPU", 0)):
        return ["cuda:0"] * gpus
    return ["cpu"] * sum(node["Alive"] for node in cluster.nodes())
