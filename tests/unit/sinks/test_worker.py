"""The sink worker under faults: what it writes, commits, repeats, sets aside and publishes."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.envelope import Envelope, Letter, Logged, Mark, Tick, Undecodable, encode
from schemas.samples import Sample
from schemas.topics import (
    LANES_STORED,
    RECORDS_REFUSED,
    SAMPLES_ACCEPTED,
    SAMPLES_RECEIVED,
    Topic,
)
from services.clock import Clock, ManualClock, SystemClock
from services.errors import Broken, Malformed, Unavailable
from services.eventlog import Batch, EventLog
from services.settings import Settings
from services.sinks import Sink, SinkWorker
from services.sinks._worker import _Collected
from tests.support.builders import a_block, a_sample
from tests.unit.sinks._fakes import FakeLog, Target

SOON_S = 10


class Marks:
    """The part of a store that the worker itself writes to."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        self.away = False

    async def insert(self, table: str, rows: Any) -> None:
        assert table == "lane_marks"
        if self.away:
            raise Unavailable("the store is away")
        self.notes += rows.to_pylist()


def a_record(*times: int, received: int = -1, epoch: int = 1, series: int = 1) -> Envelope:
    """A judged block with a row at each of the times."""
    samples: Sequence[Sample] = [a_sample(float(t), t, series=series) for t in times]
    block = a_block(*samples) if samples else Block()
    block.version = array("Q", [t + 1 for t in times])
    return Envelope(block, received=received, epoch=epoch)


@dataclass
class Bench:
    """A worker on a fake log, and what to watch it by."""

    log: FakeLog
    target: Target
    store: Marks
    stop: asyncio.Event
    running: asyncio.Task[None]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until it is so; fails when the worker ends before, or after some seconds."""
        async with asyncio.timeout(SOON_S):
            while not condition():
                assert not self.running.done(), self.running.result()
                await asyncio.sleep(0.001)

    async def until_committed(self, *commits: tuple[int, int]) -> None:
        """Wait for (lane, next offset)."""
        await self.until(lambda: {("commit", *c) for c in commits} <= set(self.log.events))

    @property
    def commits(self) -> list[tuple[object, ...]]:
        return [event[1:] for event in self.log.events if event[0] == "commit"]

    def has_mark(self, received: int) -> bool:
        """Whether a mark of that offset was published."""
        return received in [mark.received for mark in self.marks]

    @property
    def letters(self) -> list[Letter]:
        return [cast(Letter, e.record) for e in self.log.on(RECORDS_REFUSED)]

    @property
    def marks(self) -> list[Mark]:
        return [cast(Mark, e.record) for e in self.log.on(LANES_STORED)]


def settings(**changed: Any) -> Settings:
    """Batches of 10 rows or 5 ms, limits that nothing reaches."""
    given = {"sink_rows": 10, "sink_wait_ms": 5, "refused_share_max": 1.0, "refused_run_max": 10**6}
    return Settings(**(given | changed))


@asynccontextmanager
async def a_bench(
    *,
    source: Topic = SAMPLES_ACCEPTED,
    clock: Clock | None = None,
    prepare: Callable[[FakeLog, Target], None] = lambda log, target: None,
    **changed: Any,
) -> AsyncIterator[Bench]:
    """A running worker; `prepare` fills the log first."""
    log, store, stop = FakeLog(), Marks(), asyncio.Event()
    target = Target(log)
    target.error = Malformed
    prepare(log, target)
    worker = SinkWorker(
        Sink("samples", source, target.write),
        cast(EventLog, log),
        cast(Any, store),
        clock or SystemClock(),
        settings(**changed),
        backoff_ms=(1, 4),
    )
    running = asyncio.create_task(worker.run(stop))
    bench = Bench(log, target, store, stop, running)
    # One turn of the loop, in which the worker takes its reader.
    await asyncio.sleep(0)
    try:
        yield bench
    finally:
        target.open.set()
        stop.set()
        if not running.done():
            running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if task.get_name() == worker.group], "a flight is left"


def play(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's body."""
    asyncio.run(body())


# -- writing and committing


def test_what_is_written_is_committed_and_then_its_mark_is_published() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            bench.log.add(SAMPLES_ACCEPTED, 2, a_record(1, received=40), a_record(2, received=41))
            await bench.until(lambda: bench.marks)
            assert bench.log.events[-3:] in (
                [("write", 0, 1), ("commit", 2, 2), ("append", LANES_STORED.name, 0)],
                # Where the second came too late for the first's batch.
                [("write", 1), ("commit", 2, 2), ("append", LANES_STORED.name, 0)],
            )
            life = await bench.log.incarnation(SAMPLES_ACCEPTED)
            assert bench.marks[-1] == Mark(SAMPLES_RECEIVED.name, 2, 41, 2, life)
            assert bench.log.on(LANES_STORED)[-1].key == bench.marks[-1].key

    play(body)


def test_the_time_behind_samples_does_not_take_their_mark() -> None:
    async def body() -> None:
        def prepare(log: FakeLog, target: Target) -> None:
            target.ticks = True
            tick = Envelope(Tick(5, "triggers"))
            log.add(SAMPLES_ACCEPTED, 2, a_record(1, received=40), tick)

        async with a_bench(prepare=prepare) as bench:
            await bench.until_committed((2, 2))
            await bench.until(lambda: bench.has_mark(40))

    play(body)


def test_a_batch_is_due_when_its_first_record_has_waited_long_enough() -> None:
    clock = ManualClock()

    async def body() -> None:
        async with a_bench(clock=clock, sink_wait_ms=500) as bench:
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1))
            [reader] = bench.log.readers
            await bench.until(lambda: reader.read == 1)
            clock.advance(400)
            bench.log.add(SAMPLES_ACCEPTED, 1, a_record(2))
            await bench.until(lambda: reader.read == 2)
            assert bench.target.writes == []
            # The age counts from the first record, not from the last one.
            clock.advance(100)
            bench.log.add(SAMPLES_ACCEPTED, 3, a_record(3))
            await bench.until_committed((0, 1), (1, 1))
            assert (1, 3) not in bench.target.rows

    play(body)


def test_a_batch_is_due_when_it_has_enough_rows() -> None:
    async def body() -> None:
        async with a_bench(clock=ManualClock(), sink_rows=4) as bench:
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1, 2), a_record(3, 4), a_record(5, 6))
            await bench.until_committed((0, 2))
            assert bench.target.writes == [[0, 1]]

    play(body)


def test_while_a_batch_is_written_the_next_one_is_read_and_no_more() -> None:
    async def body() -> None:
        async with a_bench(sink_rows=10) as bench:
            bench.target.open.clear()
            records = [a_record(time) for time in range(100)]
            bench.log.add(SAMPLES_ACCEPTED, 0, *records)
            [reader] = bench.log.readers
            await bench.until(lambda: reader.read == 20)
            await bench.until(lambda: bench.target.writes)
            # A hundred turns of the loop in which an unbounded worker would go on reading.
            for _ in range(100):
                await asyncio.sleep(0)
            assert reader.read == 20
            assert len(bench.target.writes) == 1
            assert bench.commits == []
            bench.target.open.set()
            await bench.until_committed((0, 100))

    play(body)


def test_while_the_store_is_away_the_same_is_tried_again_and_nothing_is_committed() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            bench.target.failures = [Unavailable("away") for _ in range(8)]
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1))
            await bench.until_committed((0, 1))
            assert bench.target.writes == [[0]] * 9
            assert bench.log.events.index(("write", 0)) < bench.log.events.index(("commit", 0, 1))
            assert bench.letters == []

    play(body)


def test_a_stop_while_the_store_is_away_ends_the_worker_without_a_commit() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            bench.target.failures = [Unavailable("away") for _ in range(10_000)]
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1))
            await bench.until(lambda: len(bench.target.writes) > 3)
            bench.stop.set()
            async with asyncio.timeout(SOON_S):
                await bench.running
            assert bench.commits == []

    play(body)


def test_a_stop_waits_for_what_is_being_written_and_commits_it() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            bench.target.open.clear()
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1, received=5))
            await bench.until(lambda: bench.target.writes)
            bench.stop.set()
            bench.target.open.set()
            async with asyncio.timeout(SOON_S):
                await bench.running
            assert bench.commits == [(0, 1)]
            assert [mark.received for mark in bench.marks] == [5]

    play(body)


@pytest.mark.parametrize("part", ["read", "commit", "append"])
def test_while_the_log_is_away_the_worker_waits_and_then_goes_on(part: str) -> None:
    async def body() -> None:
        def prepare(log: FakeLog, target: Target) -> None:
            log.away.add(part)

        async with a_bench(prepare=prepare) as bench:
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1, received=3))
            if part == "read":
                for _ in range(20):
                    await asyncio.sleep(0)
                assert bench.target.writes == []
            else:
                await bench.until(lambda: ("write", 0) in bench.log.events)
            assert bench.marks == []
            bench.log.away.clear()
            await bench.until(lambda: bench.marks)
            assert bench.commits == [(0, 1)]
            assert bench.target.rows == {(1, 1)}

    play(body)


def test_records_without_rows_are_committed_and_marked_and_break_no_run_of_bad_ones() -> None:
    async def body() -> None:
        async with a_bench(refused_run_max=2) as bench:
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(received=3), a_record(received=4))
            await bench.until(lambda: bench.has_mark(4))
            assert ("commit", 0, 2) in bench.log.events
            assert (bench.target.rows, bench.letters) == (set(), [])
            bench.target.bad = {1, 2, 3}
            for t in (1, 2, 3):
                bench.log.add(SAMPLES_ACCEPTED, 0, a_record(t), a_record(received=5))
            async with asyncio.timeout(SOON_S):
                with pytest.raises(Broken, match="3 unusable rows in a row"):
                    await bench.running

    play(body)


def test_records_without_rows_fill_a_batch_too() -> None:
    """While the store is away they must not pile up for ever."""
    collected, empty = _Collected(), a_record(received=3)
    logged = [Logged(offset, empty) for offset in range(64)]
    collected.add(Batch(SAMPLES_ACCEPTED, 0, logged), 0)
    assert (collected.rows, collected.size) == (0, 64 * empty.bytes_estimate)
    assert collected.size >= 64 * len(encode(empty)[0])
    collected.drop([0])
    assert collected.size == 0


def test_a_topic_that_was_made_anew_ends_the_worker_without_a_mark() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            bench.target.open.clear()
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1, received=3))
            await bench.until(lambda: bench.target.writes)
            bench.log.anew.add("commit")
            bench.target.open.set()
            async with asyncio.timeout(SOON_S):
                with pytest.raises(Broken, match="made anew"):
                    await bench.running
            assert (bench.commits, bench.marks) == ([], [])

    play(body)


def test_a_lane_that_was_lost_is_neither_written_nor_committed_any_more() -> None:
    clock = ManualClock()

    async def body() -> None:
        async with a_bench(clock=clock, sink_wait_ms=500) as bench:
            [reader] = bench.log.readers
            for lane in (0, 1):
                bench.log.add(SAMPLES_ACCEPTED, lane, a_record(lane + 1))
            await bench.until(lambda: reader.read == 2)
            reader.revoke(0)
            clock.advance(500)
            bench.log.add(SAMPLES_ACCEPTED, 2, a_record(3))
            await bench.until_committed((1, 1))
            assert bench.commits == [(1, 1)]
            assert bench.target.rows == {(1, 2)}
            reader.assign(0)
            await bench.until(lambda: reader.positions[0] == 1 and reader.positions[2] == 1)
            clock.advance(500)
            bench.log.add(SAMPLES_ACCEPTED, 3, a_record(4))
            await bench.until_committed((0, 1), (2, 1))
            assert bench.target.rows == {(1, 1), (1, 2), (1, 3)}

    play(body)


def test_a_lane_that_was_lost_while_it_was_written_is_not_committed() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            [reader] = bench.log.readers
            bench.target.open.clear()
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1, received=2))
            await bench.until(lambda: bench.target.writes)
            reader.revoke(0)
            bench.target.open.set()
            # The rows are stored, so the mark is true, whoever has the lane now.
            await bench.until(lambda: bench.marks)
            assert bench.commits == []

    play(body)


# -- what cannot be stored


def test_a_bad_row_gets_a_letter_with_its_place_and_the_others_are_stored() -> None:
    async def body() -> None:
        def prepare(log: FakeLog, target: Target) -> None:
            target.bad = {25}
            log.add(SAMPLES_ACCEPTED, 3, *(a_record(*range(t, t + 10)) for t in (10, 20, 30)))

        async with a_bench(prepare=prepare, sink_rows=100) as bench:
            await bench.until_committed((3, 3))
            assert {t for _, t in bench.target.rows} == set(range(10, 40)) - {25}
            [letter] = bench.letters
            place = (letter.topic, letter.lane, letter.offset, letter.row)
            assert place == (SAMPLES_ACCEPTED.name, 3, 1, 5)
            assert (letter.reason, letter.detail) == ("malformed", "a bad row")
            assert (letter.tenant, letter.source, letter.count) == ("acme", "sinks.samples", 1)
            body = json.loads(letter.body)
            assert (body["series"], body["ts_ms"], body["value"]) == (1, 25, 25.0)
            # The letter is on the log before the record is done with.
            appended = bench.log.events.index(("append", RECORDS_REFUSED.name, 0))
            assert appended < bench.log.events.index(("commit", 3, 3))

    play(body)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.data())
def test_whatever_rows_are_bad_they_are_set_aside_and_all_others_are_stored(
    sizes: list[int], data: st.DataObject
) -> None:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    every = set(range(sum(sizes)))
    bad = data.draw(st.sets(st.sampled_from(sorted(every))))

    async def body() -> None:
        def prepare(log: FakeLog, target: Target) -> None:
            target.bad = bad
            for start, size in zip(starts, sizes, strict=True):
                log.add(SAMPLES_ACCEPTED, 0, a_record(*range(start, start + size)))

        async with a_bench(prepare=prepare) as bench:
            await bench.until_committed((0, len(sizes)))
            assert {t for _, t in bench.target.rows} == every - bad
            told = {starts[letter.offset] + letter.row for letter in bench.letters}
            assert told == bad and len(bench.letters) == len(bad)

    play(body)


def test_a_record_that_is_no_block_gets_a_letter_of_its_own() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            tick = Envelope(Tick(7, "x"))
            bench.log.add(SAMPLES_ACCEPTED, 0, a_record(1), tick, a_record(2))
            await bench.until_committed((0, 3))
            [letter] = bench.letters
            assert (letter.offset, letter.row) == (1, -1)
            assert json.loads(letter.body) == {"now_ms": 7, "key": "x"}
            assert bench.target.rows == {(1, 1), (1, 2)}

    play(body)


def test_bytes_that_are_no_record_get_a_letter_with_the_first_of_them() -> None:
    async def body() -> None:
        async with a_bench() as bench:
            bench.log.add(SAMPLES_ACCEPTED, 0, Undecodable("not ours", b"\xff" * 5000), a_record(1))
            await bench.until_committed((0, 2))
            [letter] = bench.letters
            assert (letter.reason, letter.detail) == ("undecodable", "not ours")
            assert letter.body == b"\xff" * Letter.BODY_BYTES_MAX
            assert bench.target.rows == {(1, 1)}

    play(body)


def test_a_letter_that_cannot_be_stored_does_not_bring_another_one() -> None:
    async def body() -> None:
        async with a_bench(source=RECORDS_REFUSED) as bench:
            bench.log.add(RECORDS_REFUSED, 0, Envelope(Letter("r", "d", "s")))
            await bench.until_committed((0, 1))
            assert len(bench.letters) == 1

    play(body)


@pytest.mark.parametrize(
    ("limits", "bad"),
    [
        ({"refused_run_max": 3}, {10, 11, 12, 13}),
        ({"refused_share_max": 0.0003}, {10, 12, 14, 16}),
    ],
)
def test_beyond_the_limit_the_worker_breaks_and_neither_commits_nor_sets_aside(
    limits: dict[str, Any], bad: set[int]
) -> None:
    async def attempt(bad: set[int]) -> Bench:
        def prepare(log: FakeLog, target: Target) -> None:
            target.bad = bad
            log.add(SAMPLES_ACCEPTED, 0, a_record(*range(40)))

        async with a_bench(prepare=prepare, **limits) as bench:
            async with asyncio.timeout(SOON_S):
                await asyncio.wait(
                    [bench.running, asyncio.create_task(bench.until_committed((0, 1)))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            return bench

    async def body() -> None:
        bench = await attempt(bad)
        assert isinstance(bench.running.exception(), Broken)
        assert (bench.commits, bench.letters) == ([], [])
        # One less is not too many.
        bench = await attempt(bad - {min(bad)})
        assert bench.commits == [(0, 1)]
        assert len(bench.letters) == len(bad) - 1

    play(body)


def test_letters_wait_for_the_log_and_the_commit_waits_for_them() -> None:
    async def body() -> None:
        def prepare(log: FakeLog, target: Target) -> None:
            target.bad = {1}
            log.away.add("append")
            log.add(SAMPLES_ACCEPTED, 0, a_record(1, 2))

        async with a_bench(prepare=prepare) as bench:
            await bench.until(lambda: (1, 2) in bench.target.rows)
            for _ in range(50):
                await asyncio.sleep(0)
            assert bench.commits == []
            bench.log.away.clear()
            await bench.until_committed((0, 1))
            assert len(bench.letters) == 1

    play(body)


# -- marks


def test_only_the_sink_of_samples_says_how_far_lanes_are_stored() -> None:
    async def body() -> None:
        async with a_bench(source=SAMPLES_RECEIVED) as bench:
            bench.log.add(SAMPLES_RECEIVED, 0, a_record(1, received=3))
            await bench.until_committed((0, 1))
            assert (bench.marks, bench.store.notes) == ([], [])

    play(body)


def test_marks_are_noted_in_the_store_once_a_second_with_the_newest_of_each_lane() -> None:
    clock = ManualClock()

    async def body() -> None:
        async with a_bench(clock=clock, sink_rows=1) as bench:
            for received in (3, 4, 5):
                bench.log.add(SAMPLES_ACCEPTED, 1, a_record(received, received=received, epoch=7))
                await bench.until(partial(bench.has_mark, received))
            assert [note["received"] for note in bench.store.notes] == [3]
            clock.advance(1_000)
            await bench.until(lambda: len(bench.store.notes) > 1)
            note = {"topic": SAMPLES_RECEIVED.name, "lane": 1, "epoch": 7, "received": 5}
            assert bench.store.notes[1:] == [note]

    play(body)


def test_marks_that_the_store_does_not_take_are_noted_later() -> None:
    clock = ManualClock()

    async def body() -> None:
        async with a_bench(clock=clock, sink_rows=1) as bench:
            bench.store.away = True
            bench.log.add(SAMPLES_ACCEPTED, 1, a_record(1, received=3))
            await bench.until(lambda: bench.marks)
            bench.store.away = False
            clock.advance(1_000)
            await bench.until(lambda: bench.store.notes)
            assert bench.store.notes[0]["received"] == 3

    play(body)


def test_a_mark_is_of_the_newest_life_of_the_log() -> None:
    async def body() -> None:
        def prepare(log: FakeLog, target: Target) -> None:
            log.add(SAMPLES_ACCEPTED, 0, a_record(1, received=900, epoch=1))
            log.add(SAMPLES_ACCEPTED, 0, a_record(2, received=4, epoch=2))

        async with a_bench(prepare=prepare, sink_rows=2) as bench:
            await bench.until_committed((0, 2))
            await bench.until(lambda: bench.marks)
            assert bench.marks[-1].received == 4
            assert bench.log.on(LANES_STORED)[-1].epoch == 2

    play(body)
