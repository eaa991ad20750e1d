"""`server`: our HTTP server under load, beside its engine alone and beside the server that people write.

In the spirit of MLPerf's server scenario: requests come when they come, whatever became of those before, and what
counts is how many are answered right within a bound. server/parts.py has the parts.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qalign_bench.cli.options import WrongOptionError
from qalign_bench.cli.session import Run, Session
from qalign_bench.contestants.generated_pictures import generated_pictures
from qalign_bench.contestants.models import Model
from qalign_bench.contestants.process import Contestant, Process
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.runs import new_run, of_times
from qalign_bench.figures.spread import median, ratio
from qalign_bench.server.client import OtherHostError, address_of
from qalign_bench.server.parts import Parts
from qalign_bench.server.processes import Server, free_port, naive_command, our_command, started
from qalign_bench.server.requests import Request
from qalign_bench.server.targets import PATIENCE, Case, loaded

OURS, NAIVE = "server", "naive"
_DISTINCT, _SIZE = 16, (1224, 918)  # generated files of about 350 KB
_SECONDS = 5.0  # of each load
_ROUNDS = 2  # of the rates
_QUEUE = 64  # shorter than the load has connections, so that it can be full
_NAIVE_PATIENCE = 5.0  # seconds; it refuses nobody, so that its backlog may take long


def measure(session: Session) -> None:
    """Leaves a run for each contestant and load. Raises QAlignError where a server fails, or scores wrong."""
    options = session.options
    model = _model(session)
    files = list(options.files) or generated_pictures(options.work, _DISTINCT, *_SIZE)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(engine_contestant(model.loaded, options.device, options.threads).start())
        requests = expect(engine, [{"file": file, "tasks": list(options.tasks)} for file in files], options.tasks[0])
        servers = [stack.enter_context(server) for server in _servers(session, model.loaded)]
        patience = {NAIVE: _NAIVE_PATIENCE}
        targets = [stack.enter_context(loaded(s, requests, patience.get(s.name, PATIENCE))) for s in servers]
        done = 0

        def step(what: str) -> None:
            nonlocal done
            session.noise.sample()
            session.progress(done, parts.steps, what)
            done += 1

        parts = Parts(
            engine,
            targets,
            requests,
            options.tasks[0],
            options.seconds or _SECONDS,
            options.repeat or _ROUNDS,
            step,
            options.rates,
            options.bound_ms,
        )
        try:
            for part in (parts.check, parts.pairs, parts.saturation, parts.rates, parts.highest):
                part()
        finally:
            session.runs += _runs(session, parts, engine.ready)
            session.facts |= _facts(parts, servers)


def _model(session: Session) -> Model:
    if len(session.options.tasks) > 1:
        raise WrongOptionError("--task", "both is no task of server; give one")
    [model, *others] = session.models()
    if others or model.directory is None:
        raise WrongOptionError("--model", "server takes one model that is in files: an artifact or a checkpoint")
    return model


def engine_contestant(model: str, device: str = "auto", threads: int | None = None) -> Contestant:
    """The engine alone, in a process of its own."""
    argv = (sys.executable, "-P", "-m", "qalign_bench.server.engine")
    return Contestant("engine", argv, {"model": model, "device": device, "threads": threads})


def expect(engine: Process, requests: list[dict[str, Any]], task: str = "quality") -> list[Request]:
    """The requests with the scores that are right for them. Those without "tasks" are for `task`."""
    asked = [{"tasks": [task]} | request for request in requests]
    found = engine.ask("expected", requests=asked)["expected"]
    return [request | {"expected": expected} for request, expected in zip(asked, found, strict=True)]


def _servers(session: Session, model: str) -> Iterator[contextlib.AbstractContextManager[Server]]:
    """Ours, or the one that was named; and the naive one."""
    options = session.options
    how = ["--device", options.device, *(["--threads", str(options.threads)] if options.threads else [])]
    if options.server:
        session.remark(f"{options.server} is measured as it is: its processor time, memory and options are not known")
        yield contextlib.nullcontext(Server(OURS, options.server, None))
    else:
        port = free_port()
        command = our_command(model, port, *how, "--queue", str(_QUEUE))
        yield started(OURS, command, port)
    if options.naive:
        port = free_port()
        command = naive_command(model, port, *how, "--task", options.tasks[0])
        yield started(NAIVE, command, port)


def check_url(url: str) -> None:
    """Raises WrongOptionError for a URL of another machine."""
    try:
        address_of(url)
    except OtherHostError as error:
        raise WrongOptionError("--server", str(error)) from error


def _runs(session: Session, parts: Parts, ready: Message) -> list[Run]:
    runs = []
    if parts.engine_ms:
        times = [ms for round_ms in parts.engine_ms for ms in round_ms]
        rounds = list(map(median, parts.engine_ms))
        run = new_run(session, "Scorer.score", ready, is_peer=False) | of_times(times, rounds, 1)
        runs.append(run | {"load": {"kind": "engine"}, "ms_of": "a picture in memory"})
    if rates := parts.saturated.get("feed"):
        speed = {"images_per_second": median(rates), "images_per_second_range": [min(rates), max(rates)]}
        runs.append(new_run(session, "feed", ready, is_peer=False) | speed | {"load": {"kind": "engine"}})
    return runs + [_run(session, case, label, ready) for (_, label), case in parts.cases.items() if case.rates]


def _run(session: Session, case: Case, label: str, ready: Message) -> Run:
    server = case.target.server
    told = {"name": "our server" if server.name == OURS else "one FastAPI handler, a lock, the same engine, on uvicorn"}
    run = new_run(session, server.name, ready | told, is_peer=server.name != OURS)
    rounds = [median(times) for times in case.tally.accepted_ms if times]
    return run | {
        **case.summary(),
        "load": case.load | {"name": label},
        "load_s": server.start_s,
        "ms_of": "a request, from when it was due",
        "images_per_second": case.per_second,
        "images_per_second_range": [min(case.rates), max(case.rates)],
        "round_p50_ms": rounds,
        "timed": sum(map(len, case.tally.accepted_ms)),
        "peak_memory_bytes": {"host": case.resident, "device": None},
    }


def _facts(parts: Parts, servers: list[Server]) -> dict[str, Any]:
    """What the whole bench says, beside its runs."""
    sizes = [Path(file).stat().st_size for file in parts.files]
    return {
        "bound_ms": parts.bound_ms,
        "seconds": parts.seconds,
        "files": {"count": len(sizes), "mean_bytes": sum(sizes) / len(sizes)},
        "servers": {server.name: server.shown if server.command else server.url for server in servers},
        "added_ms": {name: _added(parts, name, pairs) for name, pairs in parts.added_ms.items()},
        "saturated": _saturated(parts),
        "highest": parts.highest_rates,
        "wrong": parts.wrong,
    }


def _added(parts: Parts, name: str, pairs: list[float]) -> dict[str, Any]:
    """The latency that a server adds to its engine, with one client."""
    http = parts.cases[name, "1 client"].tally
    alone = [median(round_ms) for round_ms in parts.engine_ms]
    rounds = [median(times) - engine for times, engine in zip(http.accepted_ms, alone)]
    return {
        "p50_ms": median([ms for times in http.accepted_ms for ms in times])
        - median([ms for times in parts.engine_ms for ms in times]),
        "of_pairs_p50_ms": median(pairs),
        "rounds_ms": [min(rounds), max(rounds)],
    }


def _saturated(parts: Parts) -> dict[str, Any]:
    """The saturated rates, and ours as a share of each other one."""
    rates = parts.saturated
    shares = {name: ratio(rates[OURS], other) for name, other in rates.items() if name != OURS and len(other)}
    return {
        "per_second": {name: median(found) for name, found in rates.items()},
        "rounds": rates,
        "ours_of": {name: {"share": s.middle, "range": [s.low, s.high]} for name, s in shares.items()},
    }
