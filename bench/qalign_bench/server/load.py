"""The load: requests at given moments (an open loop) or from clients that wait for their answers (a closed loop).

    python -m qalign_bench.server.load '<json>'        contestants/wire.py describes the messages

It is a process of its own, so that what it computes never holds up the server in its interpreter. The spec has "url",
and "requests" as requests.py describes them. The commands:

open      {"rate": requests a second, "seconds", "seed", "patience": seconds after the last arrival}
closed    {"concurrency", and "seconds" or "count"}
Both also take "marked" (false: equal pictures stay equal) and "connections" (256 at most).
Answer: {"records": a list for each field of a `Record`, "seconds", "cpu_s", "extra_answers", "most_open"}

The latency of a request of an open loop counts from the moment at which it was due: a server that holds up its clients
does not thereby hide that later ones waited too (coordinated omission).
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import count
from operator import attrgetter
from urllib.parse import urlsplit

import numpy as np

from qalign_bench.contestants.wire import Handler, Message, serve
from qalign_bench.server.client import MOST_CONNECTIONS, Client, Record, address_of
from qalign_bench.server.requests import Prepared, prepare

_PRIORITY = -10  # where the system allows it: the clients are not what is measured
_FOREVER = 3600.0
_PATIENCE = 120.0


def poisson(rate: float, seconds: float, seed: int, kinds: int) -> Iterator[tuple[float, int]]:
    """The moments at which requests are due, and which of `kinds` requests each is: a Poisson process.

    All kinds come equally often, in an order that is shuffled anew for each turn.
    """
    rng = np.random.default_rng(seed)
    moment, order = 0.0, list[int]()
    while (moment := moment + float(rng.exponential(1 / rate))) < seconds:
        order = order or [int(i) for i in rng.permutation(kinds)]
        yield moment, order.pop()


def open_loop(
    client: Client, prepared: Sequence[Prepared], arrivals: Iterator[tuple[float, int]], patience: float
) -> list[Record]:
    """Sends each request when it is due, whatever has become of those before it."""
    records: list[Record] = []
    for moment, which in arrivals:
        while client.now() < moment:
            client.poll(moment)
        records.append(Record(which, moment))
        client.submit(records[-1], prepared[which])
    end = client.now() + patience
    while client.outstanding and client.now() < end:
        client.poll(end)
    return records


def closed_loop(
    client: Client,
    prepared: Sequence[Prepared],
    concurrency: int,
    *,
    seconds: float = _FOREVER,
    most: int | None = None,
) -> list[Record]:
    """As many clients, each of which sends its next request when it has its answer, until the time or count is over.

    It also ends where no answer comes for two minutes.
    """
    records: list[Record] = []
    turns = count() if most is None else range(most)
    last = 0.0
    which = (i % len(prepared) for i in turns)

    def send(_: Record | None = None) -> None:
        nonlocal last
        last = client.now()
        if client.now() < seconds and (i := next(which, None)) is not None:
            records.append(Record(i, client.now()))
            client.submit(records[-1], prepared[i])

    client.on_done = send
    for _ in range(concurrency):
        send()
    while client.outstanding and client.now() < last + _PATIENCE:
        client.poll(client.now() + 1)
    return records


def load(spec: Message) -> tuple[Message, dict[str, Handler]]:
    """Reads the requests' files. Raises OtherHostError for a URL of another machine."""
    address_of(spec["url"])
    with contextlib.suppress(OSError):
        os.nice(_PRIORITY)
    kept: dict[bool, list[Prepared]] = {}

    def play(command: Message, loop: Callable[[Client, list[Prepared]], list[Record]]) -> Message:
        marked = command.get("marked", True)
        if marked not in kept:
            kept[marked] = [prepare(r, urlsplit(spec["url"]).netloc, marked=marked) for r in spec["requests"]]
        return run(spec["url"], kept[marked], loop, marked=marked, most=command.get("connections", MOST_CONNECTIONS))

    def play_open(command: Message) -> Message:
        arrivals = poisson(command["rate"], command["seconds"], command["seed"], len(spec["requests"]))
        return play(command, lambda client, ready: open_loop(client, ready, arrivals, command["patience"]))

    def play_closed(command: Message) -> Message:
        seconds, most = command.get("seconds") or _FOREVER, command.get("count")
        return play(
            command,
            lambda client, ready: closed_loop(client, ready, command["concurrency"], seconds=seconds, most=most),
        )

    return {"name": "load", "nice": os.nice(0)}, {"open": play_open, "closed": play_closed}


def run(
    url: str,
    prepared: list[Prepared],
    loop: Callable[[Client, list[Prepared]], list[Record]],
    *,
    marked: bool,
    most: int,
) -> Message:
    """Plays one loop with a client of its own, and says what came of it."""
    gc.disable()
    started, cpu = time.perf_counter(), time.process_time()
    client = Client(url, most=most, marked=marked)
    try:
        records = loop(client, prepared)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    finally:
        client.close()
        gc.enable()
    columns = {field.name: list(map(attrgetter(field.name), records)) for field in fields(Record)}
    return {
        "records": columns,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "extra_answers": client.extra_answers,
        "most_open": client.most_open,
    }


if __name__ == "__main__":
    serve(load)
