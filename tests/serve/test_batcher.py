"""The batcher between many requests and one engine, on an event loop, with an engine that a test holds."""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from qalign_fast.errors import InternalError
from qalign_fast.feed.items import ClipOptions, Scored
from qalign_fast.serve.batcher import Answer, Batcher, Ticket
from qalign_fast.serve.cache import ScoreCache, digest_of
from qalign_fast.serve.problems import Late, QueueFull, TooMany
from support.held_scorer import (
    HeldScorer,
    answers,
    count_of,
    make,
    on_loop,
    score_for,
    until,
    wanted,
)

LONG = 1e4  # seconds: longer than any test
NEVER = 1e7  # milliseconds


def submit(
    batcher: Batcher,
    *names: str,
    client: str = "me",
    tasks: Sequence[str] = ("quality",),
    timeout: float = LONG,
    **more: Any,
) -> list[Ticket]:
    return batcher.submit([wanted(name, **more) for name in names], tasks, client, timeout)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def value(answer: Answer, task: str = "quality") -> float:
    return answer.scored.get()[task].value


async def busy(batcher: Batcher, scorer: HeldScorer) -> list[Ticket]:
    """Holds the engine on a picture of its own, so that what comes next waits."""
    scorer.scoring.hold()
    tickets = submit(batcher, "first", client="first")
    assert await scorer.scoring.next() == ["first"]
    assert await scorer.reading.next() == "first"
    return tickets


# batches


@on_loop
async def test_one_picture_alone_waits_for_nobody() -> None:
    batcher, _ = make(HeldScorer(), max_wait_ms=NEVER)
    (answer,) = await answers(submit(batcher, "a"))
    assert value(answer) == score_for(b"a").value
    assert batcher.pending == 0


@on_loop
async def test_a_batch_waits_for_pictures_that_are_being_read() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer, max_wait_ms=NEVER)
    scorer.reading.hold()
    tickets = submit(batcher, "a", "b")
    scorer.reading.let()
    await until(lambda: count_of(metrics, "qalign_decode_duration_seconds_count") == 1)
    assert scorer.scoring.all() == []
    scorer.reading.let()
    await answers(tickets)
    (batch,) = scorer.scoring.all()
    assert sorted(batch) == ["a", "b"]


@on_loop
async def test_a_batch_waits_no_longer_than_it_may() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_wait_ms=20)
    for round in range(3):  # the timer has to work again
        scorer.reading.hold()
        tickets = submit(batcher, f"a{round}", f"b{round}")
        scorer.reading.let()
        assert len(await scorer.scoring.next()) == 1  # though the other one is not read
        scorer.reading.let()
        await answers(tickets)
        assert len(await scorer.scoring.next()) == 1
    scorer.reading.open()


@on_loop
async def test_a_picture_that_cannot_be_read_ends_the_wait() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer, max_wait_ms=NEVER)
    scorer.reading.hold()
    (a,) = submit(batcher, "a")
    assert await scorer.reading.next() == "a"
    (b,) = submit(batcher, "b", data=b"bad")
    assert await scorer.reading.next() == "b"
    scorer.reading.let(2)
    assert value(await a.future) == score_for(b"a").value
    assert isinstance((await b.future).scored.error, Exception)
    await until(lambda: count_of(metrics, "qalign_batch_size_sum") == 1)


@on_loop
async def test_batches_hold_no_more_than_they_may() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer, max_batch=4)
    first = await busy(batcher, scorer)
    tickets = submit(batcher, *names("a", 11))
    await until(lambda: len(batcher._read) == 8)  # two batches are read ahead, no more
    scorer.scoring.open()
    found = await answers(tickets)
    assert [value(answer) for answer in found] == [score_for(name.encode()).value for name in names("a", 11)]
    assert await answers(first)
    batches = scorer.scoring.all()
    assert max(map(len, batches)) == 4
    assert sorted(name for batch in batches for name in batch) == sorted(names("a", 11))
    await until(lambda: count_of(metrics, "qalign_batch_size_sum") == 12)


@on_loop
async def test_a_clip_is_scored_alone() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    first = await busy(batcher, scorer)
    tickets = [
        *submit(batcher, "a", "b"),
        *submit(batcher, "clip", clip=ClipOptions()),
        *submit(batcher, "c", "d"),
        *submit(batcher, "film", clip=ClipOptions()),
    ]
    await until(lambda: len(batcher._read) == 6)
    scorer.scoring.open()
    await answers([*tickets, *first])
    batches = scorer.scoring.all()
    assert ["clip"] in batches
    assert ["film"] in batches
    assert sorted(len(batch) for batch in batches) == [1, 1, 4]


@on_loop
async def test_an_engine_that_takes_two_batches_gets_two() -> None:
    scorer = HeldScorer(in_flight=2)
    batcher, _ = make(scorer, max_batch=1)
    scorer.scoring.hold()
    tickets = submit(batcher, "a", "b", "c")
    assert {(await scorer.scoring.next())[0], (await scorer.scoring.next())[0]} == {"a", "b"}
    await until(lambda: len(batcher._read) == 1)
    assert scorer.scoring.all() == []
    scorer.scoring.let()
    assert await scorer.scoring.next() == ["c"]
    scorer.scoring.open()
    await answers(tickets)


# equal pictures


@on_loop
async def test_equal_pictures_in_flight_are_computed_once() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer)
    scorer.reading.hold()
    tickets = [*submit(batcher, "a", data=b"same"), *submit(batcher, "b", data=b"same", client="you")]
    tickets += submit(batcher, "c", data=b"other one")
    tickets += submit(batcher, "d", data=b"same length"[:9])
    assert batcher.pending == 3
    scorer.reading.open()
    found = await answers(tickets)
    assert [answer.scored.key for answer in found] == ["a", "b", "c", "d"]
    assert value(found[0]) == value(found[1]) == score_for(b"same").value
    assert value(found[2]) == score_for(b"other one").value
    assert value(found[3]) == score_for(b"same leng").value
    assert sorted(scorer.names()) == ["a", "c", "d"]
    assert count_of(metrics, "qalign_shared_total") == 1
    assert batcher.pending == 0


@on_loop
async def test_each_of_equal_pictures_has_its_own_name_in_its_error() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    scorer.reading.hold()
    tickets = [*submit(batcher, "a", data=b"bad"), *submit(batcher, "b\n", data=b"bad")]
    scorer.reading.open()
    a, b = await answers(tickets)
    assert str(a.scored.error) == "a: not a picture"
    assert str(b.scored.error) == "b\\n: not a picture"
    assert b.scored.key == "b\n"
    assert type(a.scored.error) is type(b.scored.error)


@on_loop
async def test_a_picture_that_waits_takes_on_more_tasks() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    batcher._most_readers = 1
    scorer.reading.hold()
    first = submit(batcher, "first", "second")  # two, for one alone takes no reader
    assert await scorer.reading.next() == "first"
    (one,) = submit(batcher, "a", data=b"same", tasks=("quality",))
    (other,) = submit(batcher, "b", data=b"same", tasks=("aesthetics",))
    scorer.reading.open()
    assert set((await one.future).scored.get()) >= {"quality"}
    assert value(await other.future, "aesthetics") == score_for(b"same", "aesthetics").value
    await answers(first)
    assert ("a", ("quality", "aesthetics")) in scorer.scored
    assert "b" not in scorer.names()


@on_loop
async def test_a_picture_that_is_read_already_is_read_again_for_another_task() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    scorer.reading.hold()
    (both,) = submit(batcher, "a", data=b"same", tasks=("quality", "aesthetics"))
    assert await scorer.reading.next() == "a"
    (one,) = submit(batcher, "b", data=b"same", tasks=("aesthetics",))  # which a's job has
    (third,) = submit(batcher, "c", data=b"same", tasks=("sharpness",))
    scorer.reading.open()
    await answers([both])
    assert value(await one.future, "aesthetics") == score_for(b"same", "aesthetics").value
    assert value(await third.future, "sharpness") == score_for(b"same", "sharpness").value
    assert sorted(scorer.names()) == ["a", "c"]


@on_loop
async def test_clips_are_equal_only_if_their_frames_are() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    scorer.reading.hold()
    tickets = [
        *submit(batcher, "a", data=b"same", clip=ClipOptions(1.0)),
        *submit(batcher, "b", data=b"same", clip=ClipOptions(2.0)),
        *submit(batcher, "c", data=b"same", clip=ClipOptions(1.0)),
        *submit(batcher, "d", data=b"same"),
    ]
    scorer.reading.open()
    await answers(tickets)
    assert sorted(scorer.names()) == ["a", "b", "d"]


@on_loop
async def test_one_of_two_equal_pictures_may_be_given_up() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    scorer.reading.hold()
    (a,) = submit(batcher, "a", data=b"same")
    (b,) = submit(batcher, "b", data=b"same")
    batcher.cancel([a])
    assert batcher.pending == 1
    scorer.reading.open()
    assert value(await b.future) == score_for(b"same").value
    assert a.future.cancelled()


# the cache


@on_loop
async def test_no_score_is_kept_unless_it_is_wanted() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer)
    for _ in range(2):
        await answers(submit(batcher, "a", digest=b"d"))
    assert len(scorer.scored) == 2
    assert count_of(metrics, "qalign_cache_hits_total") == 0


@on_loop
async def test_kept_scores_answer_at_once() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer, cache=10)
    first = (await answers(submit(batcher, "a", digest=b"d")))[0]
    (hit,) = submit(batcher, "b", digest=b"d")
    assert hit.future.done()
    answer = await hit.future
    assert answer.scored == replace(first.scored, key="b")
    assert (answer.waited, answer.inference) == (0.0, 0.0)
    assert count_of(metrics, "qalign_cache_hits_total") == 1
    assert batcher.pending == 0
    # another task is not there; then it is, beside the first one
    await answers(submit(batcher, "a", digest=b"d", tasks=("aesthetics",)))
    assert len(scorer.scored) == 2
    (both,) = submit(batcher, "a", digest=b"d", tasks=("quality", "aesthetics"))
    assert both.future.done()


@on_loop
async def test_errors_are_not_kept() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, cache=10)
    for data in (b"bad", b"poison"):
        for _ in range(2):
            (answer,) = await answers(submit(batcher, "a", data=data, digest=b"digest of " + data))
            assert answer.scored.error
    assert len(scorer.reading.all()) == 4


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = ScoreCache(2)

    def put(digest: bytes, **more: Any) -> None:
        cache.put(digest, Scored("x", {"quality": score_for(digest)}, **more))

    put(b"a")
    put(b"b")
    assert cache.get(b"a", ["quality"])
    put(b"c")
    assert cache.get(b"b", ["quality"]) is None
    assert cache.get(b"a", ["quality"]) == {"quality": score_for(b"a")}
    assert cache.get(b"c", ["quality"]) == {"quality": score_for(b"c")}
    put(b"d", timeline=("a moment",))
    assert cache.get(b"d", ["quality"]) is None


def test_what_a_picture_is_kept_by_depends_on_how_it_is_read() -> None:
    digests = {digest_of(b"x"), digest_of(b"y")}
    digests |= {digest_of(b"x", clip) for clip in (None, ClipOptions(), ClipOptions(2.0), ClipOptions(timeline=True))}
    assert len(digests) == 6


# the bound of the queue


@on_loop
async def test_the_queue_is_never_over_its_bound_and_takes_all_or_none() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer, queue=8)
    scorer.reading.hold()
    tickets = submit(batcher, *names("a", 5))
    with pytest.raises(QueueFull, match="5 of 8"):
        submit(batcher, *names("b", 4))
    assert batcher.pending == count_of(metrics, "qalign_queue_size") == 5
    tickets += submit(batcher, *names("c", 3))
    with pytest.raises(QueueFull):
        submit(batcher, "d")
    with pytest.raises(QueueFull):
        batcher.check_room(1, LONG)
    with pytest.raises(TooMany, match="the limit is 8"):
        submit(batcher, *names("e", 9))
    scorer.reading.open()
    await answers(tickets)
    assert sorted(scorer.names()) == sorted(names("a", 5) + names("c", 3))
    assert batcher.pending == count_of(metrics, "qalign_queue_size") == 0


@on_loop
async def test_refusals_say_when_there_will_be_room(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, queue=4)
    await busy(batcher, scorer)
    tickets = submit(batcher, "a", "b", "c")
    for seconds, retry in ((0.0, 1), (0.01, 1), (1.0, 4), (2.3, 10), (1e9, 60)):
        monkeypatch.setattr(batcher, "_frame_seconds", seconds)
        with pytest.raises(QueueFull) as refused:
            submit(batcher, "d")
        assert refused.value.retry_after == retry
        assert refused.value.response().headers["retry-after"] == str(retry)
    scorer.scoring.open()
    await answers(tickets)


@on_loop
async def test_the_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    now = 100.0
    monkeypatch.setattr("qalign_fast.serve.batcher.time.monotonic", lambda: now)
    scorer.scoring.hold()
    tickets = submit(batcher, "a", "b")
    scorer.reading.all()
    await scorer.scoring.next()
    now = 103.0
    scorer.scoring.open()
    await answers(tickets)
    assert 1.0 <= batcher._frame_seconds <= 3.0  # two pictures in one batch, or in two
    assert batcher.expected_wait() == 0.0


@on_loop
async def test_a_request_that_would_come_too_late_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    tickets = await busy(batcher, scorer)
    monkeypatch.setattr(batcher, "_frame_seconds", 5.0)
    with pytest.raises(QueueFull, match="over 4 s") as refused:
        submit(batcher, "a", timeout=4.0)
    assert refused.value.retry_after == 5
    tickets += submit(batcher, "b", timeout=6.0)
    assert batcher.expected_wait() == 10.0
    scorer.scoring.open()
    await answers(tickets)
    monkeypatch.setattr(batcher, "_frame_seconds", 5.0)
    await answers(submit(batcher, "c", timeout=4.0))  # nobody is before it


@on_loop
async def test_a_clip_counts_as_its_frames_and_never_as_more_than_there_can_be() -> None:
    """A number that a client sends must not make the server refuse everybody, nor break its clocks."""
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    tickets = await busy(batcher, scorer)
    for most, frames in ((None, 31), (5, 5), (10**9, 118), (10**400, 118), (0, 31), (-3, 1)):
        before = batcher._work
        tickets += submit(batcher, f"clip {frames} {len(tickets)}", clip=ClipOptions(max_frames=most))
        assert batcher._work - before == frames
    assert batcher.retry_after() >= 1
    scorer.scoring.open()
    await answers(tickets)
    assert (batcher._work, batcher.pending) == (0, 0)


# deadlines


@on_loop
async def test_what_waits_past_its_deadline_is_told_so_even_while_the_engine_is_stuck() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    scorer.scoring.hold()
    computed = submit(batcher, "first", timeout=0.05)
    assert await scorer.scoring.next() == ["first"]
    tickets = submit(batcher, "a", "b", timeout=0.05)
    for ticket in tickets:
        with pytest.raises(Late) as late:
            await ticket.future
        assert late.value.retry_after
        assert late.value.status == 503
    assert batcher.pending == 1
    assert not computed[0].future.done()
    scorer.scoring.open()
    (answer,) = await answers(computed)  # what was being computed is answered, late as it is
    assert value(answer) == score_for(b"first").value
    await until(lambda: batcher.pending == 0)
    assert scorer.names() == ["first"]


@on_loop
@pytest.mark.parametrize("wait", [0.0, 1.0])  # read where it would be computed, or not
async def test_what_is_being_read_at_its_deadline_is_late(wait: float) -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_wait_ms=wait)
    scorer.reading.hold()
    (ticket,) = submit(batcher, "a", timeout=0.02)
    with pytest.raises(Late):
        await ticket.future
    assert batcher.pending == (0 if wait else 1)  # one that is alone stays with its thread
    scorer.reading.open()
    await until(lambda: batcher.pending == batcher._reading == batcher._scoring == 0)
    assert scorer.names() == ([] if wait else ["a"])


@on_loop
async def test_of_equal_pictures_each_has_its_own_deadline() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    scorer.reading.hold()
    (soon,) = submit(batcher, "a", data=b"same", timeout=0.02)
    (later,) = submit(batcher, "b", data=b"same")
    with pytest.raises(Late):
        await soon.future
    scorer.reading.open()
    assert value(await later.future) == score_for(b"same").value


@on_loop
async def test_nobody_needs_to_ask_for_a_late_answer() -> None:
    """A request that has ended asks for none of its futures; `on_loop` holds that asyncio has nothing to say."""
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    scorer.reading.hold()
    submit(batcher, "a", "b", timeout=0.01)
    await until(lambda: batcher.pending == 0)
    scorer.reading.open()


@on_loop
async def test_a_deadline_that_was_kept_holds_nothing() -> None:
    batcher, _ = make(HeldScorer())
    tickets = submit(batcher, "a", "b")
    await answers(tickets)
    held = weakref.ref(tickets[0].wanted.item.media)
    del tickets
    await asyncio.sleep(0)
    assert held() is None


# giving up


@on_loop
async def test_what_is_given_up_is_never_scored_and_lets_go_of_its_picture() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer, max_batch=4)
    batcher._most_readers = 2
    first = await busy(batcher, scorer)
    tickets = submit(batcher, *names("a", 8))
    await until(lambda: len(batcher._read) == 8)
    scorer.reading.hold()
    tickets += submit(batcher, *names("b", 20))  # they wait
    media = [weakref.ref(ticket.wanted.item.media) for ticket in tickets]
    batcher.cancel(tickets)
    assert all(ticket.future.cancelled() for ticket in tickets)
    assert batcher.pending == count_of(metrics, "qalign_queue_size") == 1
    del tickets
    await until(lambda: all(ref() is None for ref in media))  # a thread that has read one lets go of it at its end
    scorer.reading.open()
    scorer.scoring.open()
    await answers(first)
    assert scorer.names() == ["first"]
    assert (batcher._work, len(batcher._read), batcher._in_flight) == (0, 0, {})


@on_loop
async def test_giving_up_starts_no_work_on_what_is_given_up_next() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_wait_ms=NEVER)
    batcher._most_readers = 2
    scorer.reading.hold()
    tickets = submit(batcher, *names("a", 50))
    await scorer.reading.next()
    await scorer.reading.next()
    scorer.reading.let()
    await until(lambda: len(batcher._read) == 1)  # and waits for the others
    batcher.cancel(tickets)
    scorer.reading.open()
    await until(lambda: batcher._reading == 0)
    assert len(scorer.reading.all()) <= 1  # of those that waited: the one that took the place of the first
    assert scorer.scored == []


@on_loop
async def test_what_was_read_and_given_up_is_in_nobodys_way() -> None:
    """Given-up pictures once kept the places of those that are read ahead: nothing was read any more."""
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_batch=2)
    first = await busy(batcher, scorer)
    tickets = submit(batcher, *names("a", 4))
    await until(lambda: len(batcher._read) == 4)
    waiting = submit(batcher, "b")
    batcher.cancel(tickets)
    scorer.scoring.open()
    assert value((await answers(waiting))[0]) == score_for(b"b").value
    await answers(first)


@on_loop
async def test_clients_that_come_and_go_while_the_engine_is_stuck_leave_nothing() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_batch=1, queue=300)
    first = await busy(batcher, scorer)
    await until(lambda: batcher._reading == 0)
    filling = submit(batcher, "x", "y")  # all that is read ahead
    await until(lambda: len(batcher._read) == 2)
    for i in range(50):
        batcher.cancel(submit(batcher, *names(f"{i}-", 250), client=f"client {i % 7}"))
    assert (batcher.pending, batcher._in_flight.keys()) == (3, {job_kind(5), job_kind(1)})
    assert batcher._waiting.pop() is None
    scorer.scoring.open()
    await answers([*first, *filling])


def job_kind(length: int) -> tuple[object, ...]:
    return "image", ClipOptions(), length


@on_loop
async def test_what_is_given_up_before_its_thread_has_begun_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was read without its picture once, into an error that all of them shared, whose traceback grew for ever."""
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    steps: list[Callable[[], bool]] = []
    monkeypatch.setattr(batcher._readers, "submit", steps.append)
    batcher.cancel(submit(batcher, *names("a", 3)))
    assert len(steps) == 3
    assert [step() for step in steps] == [False] * 3
    await until(lambda: batcher._reading == batcher._scoring == 0)
    assert scorer.reading.all() == []


@on_loop
async def test_what_is_being_scored_is_finished_for_nobody() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    first = await busy(batcher, scorer)
    batcher.cancel(first)
    assert batcher.pending == 1
    scorer.scoring.open()
    await until(lambda: batcher.pending == 0)
    assert first[0].future.cancelled()


# fairness


@on_loop
async def test_a_single_picture_waits_for_no_long_request() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_batch=8, queue=500)
    first = await busy(batcher, scorer)
    many = submit(batcher, *names("many", 200), client="many")
    await until(lambda: len(batcher._read) == 16)  # all that is read ahead is of that client
    (one,) = submit(batcher, "one", client="one")
    batches = []
    for _ in range(2):
        scorer.scoring.let()
        batches.append(await scorer.scoring.next())
        await until(lambda: len(batcher._read) == 16)  # places are filled while a batch is scored
    # it is read when the next batch has left a place, and is in the one after that, before 8 that were read earlier
    assert "one" in batches[1]
    scorer.scoring.open()
    assert value(await one.future) == score_for(b"one").value
    found = await answers([*first, *many])
    assert [value(answer) for answer in found[1:]] == [score_for(name.encode()).value for name in names("many", 200)]


@on_loop
async def test_requests_of_one_client_take_turns() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_batch=2, queue=500)
    first = await busy(batcher, scorer)
    tickets = [*submit(batcher, *names("a", 40)), *submit(batcher, *names("b", 40)), *submit(batcher, "c")]
    scorer.scoring.open()
    await answers([*first, *tickets])
    order = [name[0] for batch in scorer.scoring.all() for name in batch]
    assert "c" in order[:12]
    later = order[10:50]  # some of `a` were read before the others came
    assert abs(later.count("a") - later.count("b")) <= 4


# faults


@on_loop
async def test_a_batch_that_fails_is_cut_in_two_once() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer, max_batch=8)
    first = await busy(batcher, scorer)
    tickets = submit(batcher, "a", "b", "c", "poison", "e", "f", "g", "h")
    await until(lambda: len(batcher._read) == 8)
    scorer.scoring.open()
    found = await answers(tickets)
    await answers(first)
    sizes = [len(batch) for batch in scorer.scoring.all()]
    assert sizes == [8, 4, 4]
    failed = {answer.scored.key for answer in found if answer.scored.error}
    assert len(failed) == 4
    assert "poison" in failed
    for answer in found:
        if answer.scored.error:
            assert isinstance(answer.scored.error, InternalError)
            assert str(answer.scored.error) == "the model failed (RuntimeError: the engine)"
            assert isinstance(answer.scored.error.__cause__, RuntimeError)
        else:
            assert value(answer) == score_for(answer.scored.key.encode()).value
    await until(lambda: count_of(metrics, "qalign_batch_size_sum") == 9)


@on_loop
async def test_an_engine_that_always_fails_still_answers() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_batch=4)
    for _ in range(3):
        found = await answers(submit(batcher, *(f"{name} poison" for name in names("a", 10))))
        assert {type(answer.scored.error) for answer in found} == {InternalError}
    assert (batcher.pending, batcher._scoring, batcher._reading) == (0, 0, 0)


@on_loop
async def test_closing_ends_the_threads_and_the_scorer() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    await answers(submit(batcher, *names("a", 5)))
    threads = [*batcher._readers._shared.threads, *batcher._engine._shared.threads]
    assert threads
    batcher.close()
    assert scorer.closed
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


@on_loop
async def test_closing_with_work_under_way_raises_nothing() -> None:
    """After the grace period, requests end and take back what they asked for."""
    scorer = HeldScorer()
    batcher, _ = make(scorer, max_batch=1)
    tickets = [*await busy(batcher, scorer), *submit(batcher, *names("a", 5))]
    batcher.close()
    scorer.scoring.let()
    await answers(tickets[:1])
    batcher.cancel(tickets[:3])
    batcher.cancel(tickets)
    scorer.scoring.open()
    await until(lambda: batcher.pending == 0)
    assert scorer.names() == ["first"]


# everything at once


@on_loop
async def test_whatever_happens_every_picture_gets_its_own_score_and_nothing_is_left() -> None:
    drawn = random.Random(7)
    scorer = HeldScorer(in_flight=2)
    batcher, metrics = make(scorer, max_batch=4, queue=40, max_wait_ms=0.5, cache=20)
    seen = {"scored": 0, "bad": 0, "failed": 0, "late": 0, "gone": 0, "refused": 0}

    async def request(number: int) -> None:
        await asyncio.sleep(drawn.random() * 0.3)
        asked = []
        for i in range(drawn.choice((1, 1, 2, 9))):
            data = drawn.choice((b"bad", b"poison", *[b"%d" % drawn.randrange(60)] * 20))
            clip = ClipOptions() if drawn.random() < 0.05 else None
            digest = digest_of(data, clip) if drawn.random() < 0.5 else None
            asked.append(wanted(f"{number}-{i}", data, clip=clip, digest=digest))
        tasks = drawn.choice((("quality",), ("aesthetics",), ("quality", "aesthetics")))
        try:
            tickets = batcher.submit(asked, tasks, f"client {number % 5}", drawn.choice((LONG, LONG, 0.01)))
        except QueueFull:
            seen["refused"] += 1
            return
        assert batcher.pending <= 40
        if drawn.random() < 0.2:
            await asyncio.sleep(drawn.random() * 0.02)
            batcher.cancel(tickets)
        for each, ticket in zip(asked, tickets, strict=True):
            try:
                answer = await ticket.future
            except asyncio.CancelledError:
                seen["gone"] += 1
                continue
            except Late:
                seen["late"] += 1
                continue
            assert answer.scored.key == each.item.key
            data = each.item.media["bytes"]
            if data == b"bad":
                assert str(answer.scored.error) == f"{each.item.key}: not a picture"
                seen["bad"] += 1
            elif answer.scored.error:
                assert isinstance(answer.scored.error, InternalError)
                seen["failed"] += 1
            else:
                assert {task: answer.scored.get()[task] for task in tasks} == {t: score_for(data, t) for t in tasks}
                seen["scored"] += 1

    async with asyncio.TaskGroup() as group:
        for number in range(600):
            group.create_task(request(number))
    await until(lambda: batcher.pending == 0 and not batcher._reading and not batcher._scoring)
    # a slow machine refuses what a quick one answers late, and the other way about
    assert all(seen[what] for what in ("scored", "bad", "failed", "gone")), seen
    assert seen["late"] + seen["refused"], seen
    assert (batcher._work, len(batcher._read), batcher._in_flight) == (0, 0, {})
    assert batcher._waiting.pop() is None
    assert count_of(metrics, "qalign_queue_size") == 0


# a picture that is alone is read and computed by one thread


@on_loop
async def test_a_picture_alone_that_is_late_or_left_while_it_is_read_is_no_answer_and_leaves_nothing() -> None:
    scorer = HeldScorer()
    batcher, _ = make(scorer)
    for leave in (False, True):
        scorer.reading.hold()
        (ticket,) = submit(batcher, f"a{leave}", timeout=LONG if leave else 0.02)
        await scorer.reading.next()
        if leave:
            batcher.cancel([ticket])
        else:
            with pytest.raises(Late):
                await ticket.future
        assert batcher.pending == 1  # its thread goes on, for nobody
        scorer.reading.open()
        (after,) = submit(batcher, f"after{leave}")  # waits for that thread, and is right
        assert value(await after.future) == score_for(f"after{leave}".encode()).value
    await until(lambda: batcher._scoring == batcher.pending == 0)
    assert scorer.names() == ["aFalse", "afterFalse", "aTrue", "afterTrue"]


@on_loop
async def test_a_bad_picture_alone_has_its_error_and_the_next_one_is_scored() -> None:
    scorer = HeldScorer()
    batcher, metrics = make(scorer)
    (bad,) = submit(batcher, "bad")
    assert str((await bad.future).scored.error) == "bad: not a picture"
    (good,) = submit(batcher, "good")
    assert (await good.future).scored.error is None
    assert batcher.pending == 0
    await until(lambda: count_of(metrics, "qalign_decode_duration_seconds_count") == 2)
