"""How batches reach a GPU and are launched there: the order of work, on any machine, and the results, on a GPU."""

from __future__ import annotations

from threading import Lock, Thread

import numpy as np
import pytest
import torch
from torch import Tensor

from qalign_fast.engines.cuda_graphs import Graphs, Pixels
from support.fake_streams import FakeCuda, FakeStream

CPU = torch.device("cpu")


def pictures(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)


def brightness(x: Tensor) -> Tensor:
    return x.float().mean((1, 2, 3)) * 2


def run(graphs: Graphs, batches: list[Pixels]) -> list[Tensor]:
    with graphs.scope():
        return [graphs.run(("brightness", len(x)), brightness, x) for x in graphs.upload(batches)]


def close(found: list[Tensor], batches: list[Pixels]) -> None:
    for y, batch in zip(found, batches, strict=True):
        torch.testing.assert_close(y.cpu(), brightness(torch.from_numpy(batch)))


def test_the_stand_in_sees_what_nothing_orders(fake_cuda: FakeCuda) -> None:
    x, other = torch.ones(3), FakeStream("other")
    with torch.cuda.stream(other):
        x + 1
    assert fake_cuda.races == ["add on other meets ones on default"]
    fake_cuda.races.clear()
    other.wait_stream(fake_cuda.current)
    with torch.cuda.stream(other):
        x + 1
    assert not fake_cuda.races


def test_a_larger_batch_goes_up_into_memory_that_nothing_uses(fake_cuda: FakeCuda) -> None:
    """Meanwhile kernels are queued whose memory has already been given back to the allocator."""
    graphs, batches = Graphs(CPU), [pictures(n, n) for n in (1, 2, 2, 5, 1, 64)]
    found = [*run(graphs, batches[:3]), *run(graphs, batches[3:])]
    assert not fake_cuda.races
    close(found, batches)


def test_callers_on_streams_of_their_own_do_not_meet(fake_cuda: FakeCuda) -> None:
    """All graphs share one pool of memory, and equal shapes share one graph."""
    graphs, batches = Graphs(CPU), [pictures(n, n) for n in (2, 2, 3, 2, 3)]
    for i, batch in enumerate(batches):
        with torch.cuda.stream(FakeStream(f"caller {i}")):
            (encoded,) = run(graphs, [batch])
            decoded = [graphs.run((task, len(batch)), torch.neg, encoded) for task in ("quality", "aesthetics")]
            close([encoded + 0, -decoded[0], -decoded[1]], [batch] * 3)
    assert not fake_cuda.races


def test_a_result_is_not_waited_for_but_by_its_caller(fake_cuda: FakeCuda) -> None:
    graphs = Graphs(CPU)
    run(graphs, [pictures(2)])
    before = dict(fake_cuda.host.clock)
    run(graphs, [pictures(2)])
    (replay,) = fake_cuda.graphs[0].replays[1:]
    assert fake_cuda.current.clock[replay.stream] >= replay.tick
    assert fake_cuda.host.clock.get(replay.stream, 0) == before.get(replay.stream, 0)


def test_an_upload_does_not_wait_for_what_is_computed_of_the_ones_before(fake_cuda: FakeCuda) -> None:
    """There are two slots, within a call and across calls, and pixels leave them before anything is computed."""
    graphs = Graphs(CPU)
    sent = graphs._uploads._stream
    run(graphs, [pictures(2)] * 2)
    for count in (1, 1, 1, 2, 3):
        run(graphs, [pictures(2)] * count)
        second_before = fake_cuda.graphs[0].replays[-3]
        assert sent.clock.get(second_before.stream, 0) < second_before.tick
    assert not fake_cuda.races


def test_a_step_reads_what_its_caller_s_stream_made_before_the_caller_changes_it(fake_cuda: FakeCuda) -> None:
    """In its first call, which captures it, and in the next ones. Nothing is uploaded."""
    graphs, batches, found = Graphs(CPU), [pictures(2, n) for n in range(3)], []
    for i, batch in enumerate(batches):
        with torch.cuda.stream(FakeStream(f"caller {i}")):
            x = torch.from_numpy(255 - batch).bitwise_not()
            with graphs.scope():
                found.append(graphs.run("brightness", brightness, x))
            x.fill_(0)
            close([found[i] + 0], [batch])
    assert not fake_cuda.races


def test_threads_that_wait_for_a_gpu_leave_their_core(fake_cuda: FakeCuda) -> None:
    graphs = Graphs(CPU)
    (y,) = run(graphs, [pictures(2)])
    assert graphs.download(y)().shape == (2,)
    assert fake_cuda.events
    assert all(event.options == {"blocking": True} for event in fake_cuda.events)


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_gpu
def test_batches_that_grow_while_work_is_queued_arrive_whole() -> None:
    device, matrix = torch.device("cuda:0"), torch.randn(4096, 4096, device="cuda:0")
    for _ in range(5):
        graphs, batches = Graphs(device), [pictures(n, n) for n in (1, 2, 4, 8, 16, 32, 64)]
        found = []
        for batch in batches:
            for _ in range(20):  # milliseconds of work that writes blocks which are given back at once
                matrix @ matrix
            found += run(graphs, [batch])
        close(found, batches)


@on_gpu
def test_threads_on_streams_of_their_own_get_their_own_results() -> None:
    """One graph and one pool are launched from two streams. Brightness is computed for some milliseconds."""
    device, lock, found = torch.device("cuda:0"), Lock(), {}
    graphs, matrix = Graphs(device), torch.randn(2048, 2048, device=device)

    def slow(x: Tensor) -> Tensor:
        y = brightness(x)
        for _ in range(10):
            y = y + 0 * (matrix @ matrix)[0, 0]
        return y

    def caller(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(device)):
            found[seed] = []
            for i in range(20):
                with lock, graphs.scope():
                    (x,) = graphs.upload([pictures(8, 100 * seed + i)])
                    y = graphs.run("slow", slow, x)
                found[seed].append((y + 0).cpu())

    torch.cuda.synchronize()
    threads = [Thread(target=caller, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, results in found.items():
        close(results, [pictures(8, 100 * seed + i) for i in range(20)])
