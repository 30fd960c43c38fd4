"""The live view on a real log: nothing falls between store and tail, at the start or later."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from schemas.blocks import Block
from schemas.envelope import Envelope, Mark, Tick
from schemas.points import PointPolicy
from schemas.queries import LatestQuery, RangeQuery
from schemas.samples import Kind, Sample
from schemas.topics import (
    LANES_STORED,
    SAMPLES_ACCEPTED,
    SAMPLES_RECEIVED,
    SINK_GROUP,
    TOPICS,
)
from services.errors import Broken, Unavailable
from services.eventlog import Batch, EventLog, Reader, open_eventlog
from services.query.live import LiveView
from services.settings import Settings
from tests.support.rounds import rounds, seed
from tests.support.stores import MemoryStore, Row, a_block, rows_of

LANES = 2
LAST = 1 << 63
SERIES = (1, 2, (1 << 48) | 1, (3 << 48) | 7)
EVER = RangeQuery("acme", SERIES, 0, 1_000, 10_000)
ALL = LatestQuery("acme", SERIES)


@asynccontextmanager
async def a_log(path: Path) -> AsyncIterator[EventLog]:
    """An empty log in the folder."""
    async with open_eventlog(f"sqlite:///{path / 'log.sqlite'}", lanes=LANES) as log:
        await log.create(TOPICS)
        yield log


@asynccontextmanager
async def running(view: LiveView) -> AsyncIterator[LiveView]:
    """The view, following."""
    task = asyncio.create_task(view.run())
    try:
        yield view
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(check: Callable[[], bool]) -> None:
    """Wait for a condition, at most some seconds."""
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.002)


class Sink:
    """The sink of accepted samples, one step at a time: insert, commit, mark."""

    def __init__(self, log: EventLog, store: MemoryStore) -> None:
        self.log, self.store = log, store
        self.inserted = dict.fromkeys(range(LANES), 0)
        self.marks = 0

    async def insert(self, lane: int, blocks: list[Block]) -> None:
        """Store what is new of the lane's blocks."""
        for block in blocks[self.inserted[lane] :]:
            self.store.put(block)
        self.inserted[lane] = len(blocks)

    async def commit(self, lane: int) -> None:
        """Say to the log how far the store is."""
        async with self.log.reader([SAMPLES_ACCEPTED], group=SINK_GROUP) as reader:
            await reader.commit(SAMPLES_ACCEPTED, lane, self.inserted[lane])

    async def mark(self, lane: int) -> None:
        """Say to everybody how far the store is."""
        life = await self.log.incarnation(SAMPLES_ACCEPTED)
        mark = Mark(SAMPLES_RECEIVED.name, lane, self.inserted[lane], self.inserted[lane], life)
        await self.log.append([(LANES_STORED, 0, Envelope(mark, key=mark.key))])
        self.marks += 1


class Accepted:
    """What lies on `samples.accepted`, and the reference answers."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.blocks: dict[int, list[Block]] = {lane: [] for lane in range(LANES)}
        self.best: dict[tuple[int, int], int] = {}

    async def append(self, rows: list[Row]) -> None:
        """Accept a block of each lane that the rows belong to."""
        for lane, block in a_block(rows).by_lane(LANES).items():
            await self.log.append([(SAMPLES_ACCEPTED, lane, Envelope(block, received=1))])
            self.blocks[lane].append(block)
        for series, ts_ms, version in rows:
            place = (series, ts_ms)
            self.best[place] = max(self.best.get(place, 0), version)

    def range(self) -> list[Row]:
        """The answer to EVER."""
        return sorted((series, ts_ms, version) for (series, ts_ms), version in self.best.items())

    def latest(self) -> dict[int, tuple[int, int]]:
        """Series to its newest (time, version)."""
        return {series: (ts_ms, version) for series, ts_ms, version in self.range()}


def read(view: LiveView, store: MemoryStore) -> list[Row]:
    """What a range read over everything answers."""
    tail = view.tail(EVER)
    return rows_of(view.merge(EVER, store.select(EVER), tail))


def latest(view: LiveView) -> dict[int, tuple[int, int]]:
    """What a latest read over everything answers."""
    return {series: (ts, version) for series, ts, version in rows_of(view.latest(ALL))}


def has_read(view: LiveView, accepted: Accepted, marks: int) -> bool:
    """Whether the view has read what is on the log."""
    at = [view.offsets.get(lane, 0) >= len(blocks) for lane, blocks in accepted.blocks.items()]
    return view.ready() and all(at) and view.marks_offset >= marks


@pytest.mark.parametrize("round_", range(rounds(6)))
def test_every_start_and_every_moment_gives_the_reference(tmp_path: Path, round_: int) -> None:
    chance = random.Random(f"{seed()}/live/{round_}")

    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            accepted, sink = Accepted(log), Sink(log, store)
            for _ in range(4):
                async with running(LiveView(log, store, Settings())) as view:
                    for _ in range(12):
                        await happen(chance, accepted, sink)
                        await until(partial(has_read, view, accepted, sink.marks))
                        assert read(view, store) == accepted.range()
                        assert latest(view) == accepted.latest()

    asyncio.run(flow())


async def happen(chance: random.Random, accepted: Accepted, sink: Sink) -> None:
    """One thing that can happen next."""
    lane = chance.randrange(LANES)
    match chance.randrange(5):
        case 0 | 1:
            await accepted.append(some_rows(chance))
        case 2:
            await sink.insert(lane, accepted.blocks[lane])
        case 3:
            await sink.commit(lane)
        case 4:
            await sink.mark(lane)


def test_records_without_rows_are_followed_and_not_held(tmp_path: Path) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            accepted = Accepted(log)
            await log.append([(SAMPLES_ACCEPTED, 0, Envelope(Block(), received=0))])
            async with running(LiveView(log, store, Settings(tail_rows_max=3))) as view:
                await until(view.ready)
                await accepted.append([(1, 1, 1), (1, 2, 2)])
                for received in (2, 3):
                    empty = Envelope(Block(), received=received)
                    await log.append([(SAMPLES_ACCEPTED, 0, empty)])
                await until(lambda: view.offsets.get(0) == 4)
                assert view.tail_rows == 2
                assert read(view, store) == accepted.range()
                assert latest(view) == accepted.latest()

    asyncio.run(flow())


def some_rows(chance: random.Random) -> list[Row]:
    """A few rows at few places, so that they meet."""
    return [
        (
            chance.choice(SERIES),
            chance.randrange(12),
            chance.randrange(1, 50) + chance.choice((0, LAST)),
        )
        for _ in range(chance.randrange(1, 6))
    ]


def test_marks_empty_the_tail(tmp_path: Path) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            accepted, sink = Accepted(log), Sink(log, store)
            async with running(LiveView(log, store, Settings())) as view:
                await accepted.append([(1, 1, 1), (1, 2, 2)])
                await until(lambda: view.tail_rows == 2)
                await sink.insert(0, accepted.blocks[0])
                await sink.mark(0)
                await until(lambda: view.tail_rows == 0)
                assert read(view, store) == accepted.range()
                await accepted.append([(1, 3, 3)])
                await until(lambda: view.tail_rows == 1)

    asyncio.run(flow())


def test_a_sink_that_ended_before_its_mark_does_not_keep_reads_from_an_idle_lane(
    tmp_path: Path,
) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            accepted, sink = Accepted(log), Sink(log, store)
            async with running(LiveView(log, store, Settings(tail_rows_max=3))) as view:
                await accepted.append([(1, ts_ms, 1) for ts_ms in range(4)])
                await until(lambda: view.offsets.get(0) == 1)
                with pytest.raises(Unavailable):
                    view.tail(EVER)
                await sink.insert(0, accepted.blocks[0])
                await sink.commit(0)
                await until(partial(can_read, view))
                assert read(view, store) == accepted.range()

    asyncio.run(flow())


def can_read(view: LiveView) -> bool:
    """Whether a range can be read."""
    try:
        view.tail(EVER)
    except Unavailable:
        return False
    return True


def test_while_the_store_is_away_at_the_start_reads_are_unavailable(tmp_path: Path) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            store.put(a_block([(1, 1, 1)]))
            store.away = True
            async with running(LiveView(log, store, Settings())) as view:
                await until(lambda: len(store.asked) >= 2)
                with pytest.raises(Unavailable):
                    view.latest(ALL)
                with pytest.raises(Unavailable):
                    view.tail(EVER)
                store.away = False
                await until(view.ready)
                assert latest(view) == {1: (1, 1)}

    asyncio.run(flow())


def test_a_sample_stored_while_the_view_warms_itself_is_not_missed(tmp_path: Path) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            accepted, sink = Accepted(log), Sink(log, store)
            await accepted.append([(1, 1, 1)])
            await sink.insert(0, accepted.blocks[0])
            await sink.commit(0)
            store.hold(looks_first=True)
            async with running(LiveView(log, store, Settings())) as view:
                await until(lambda: bool(store.asked))
                await accepted.append([(1, 9, 9)])
                await sink.insert(0, accepted.blocks[0])
                await sink.commit(0)
                await sink.mark(0)
                store.release()
                await until(lambda: has_read(view, accepted, 1))
                assert latest(view) == accepted.latest()
                assert read(view, store) == accepted.range()

    asyncio.run(flow())


def test_it_is_ready_only_when_it_has_read_what_was_there(tmp_path: Path) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            accepted = Accepted(log)
            for ts_ms in range(200):
                await accepted.append([(1, ts_ms, 1)])
            async with running(LiveView(log, store, Settings())) as view:
                await until(view.ready)
                assert read(view, store) == accepted.range()

    asyncio.run(flow())


def test_a_full_tail_recovers_when_the_sink_has_caught_up(tmp_path: Path) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            accepted, sink = Accepted(log), Sink(log, store)
            view = LiveView(log, store, Settings(tail_rows_max=3))
            async with running(view):
                for ts_ms in range(5):
                    await accepted.append([(1, ts_ms, 1)])
                await until(lambda: has_read(view, accepted, 0))
                assert view.tail_rows == 3
                with pytest.raises(Unavailable):
                    view.tail(EVER)
                assert latest(view) == accepted.latest()
                await sink.insert(0, accepted.blocks[0])
                await sink.mark(0)
                await until(lambda: view.marks_offset == 1)
                assert read(view, store) == accepted.range()

    asyncio.run(flow())


def test_other_records_and_marks_of_other_topics_and_lives_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            async with running(LiveView(log, store, Settings())) as view:
                stray = Mark("facts.received", 0, 9, 9, await log.incarnation(SAMPLES_ACCEPTED))
                for mark in (stray, Mark(SAMPLES_RECEIVED.name, 0, 9, 9, "an earlier life")):
                    await log.append([(LANES_STORED, 0, Envelope(mark, key=mark.key))])
                await log.append([(SAMPLES_ACCEPTED, 0, Envelope(stray))])
                # The time, which an agent has said to itself, is nothing to speak of.
                await log.append([(SAMPLES_ACCEPTED, 0, Envelope(Tick(1, "triggers")))])
                unjudged = Block.of_samples([Sample(1, 9, Kind.DOUBLE, 0.5)], PointPolicy("acme"))
                await log.append([(SAMPLES_ACCEPTED, 0, Envelope(unjudged))])
                await log.append([(SAMPLES_ACCEPTED, 0, Envelope(a_block([(1, 1, 1)])))])
                await until(lambda: view.marks_offset == 2 and view.offsets.get(0) == 4)
                assert view.tail_rows == 1
                warned = [record for record in caplog.records if "no judged block" in record.msg]
                assert [record.args for record in warned] == [(0, 0), (0, 2)]

    asyncio.run(flow())


def test_a_topic_that_was_made_anew_ends_the_view(tmp_path: Path) -> None:
    async def flow() -> None:
        async with a_log(tmp_path) as log:
            faulty = FaultyLog(log)
            view = LiveView(cast(EventLog, faulty), MemoryStore(), Settings())
            following = asyncio.create_task(view.run())
            await until(view.ready)
            faulty.anew = True
            async with asyncio.timeout(10):
                with pytest.raises(Broken, match="made anew"):
                    await following

    asyncio.run(flow())


class FaultyLog:
    """A log whose readers can be away once, do not get certain accepted records any more, or find
    a topic made anew.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.away = self.anew = False
        self.gone: set[int] = set()
        self.readers = 0
        self.asked_in_vain = 0
        self.commits: Callable[[], Coroutine[Any, Any, None]] | None = None
        """What happens to who asks for commits; None: they are told."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reader(self, *args: Any, **kwargs: Any) -> FaultyReader:
        """A reader of the log under it."""
        self.readers += 1
        return FaultyReader(self, self._log.reader(*args, **kwargs))

    async def committed(self, *args: Any) -> Mapping[int, int]:
        """The commits of the log under it."""
        if self.commits is not None:
            self.asked_in_vain += 1
            await self.commits()
        return await self._log.committed(*args)


class FaultyReader:
    """See FaultyLog."""

    def __init__(self, log: FaultyLog, reader: Reader) -> None:
        self._log, self._reader = log, reader
        self.seek = reader.seek

    async def batch(self, **kwargs: Any) -> Batch | None:
        """The next batch, or what is left of it."""
        batch = await self._reader.batch(**kwargs)
        if self._log.anew:
            raise Broken("the topic was made anew")
        if batch is not None and self._log.away:
            self._log.away = False
            raise Unavailable("the log is away")
        if batch is not None and batch.topic == SAMPLES_ACCEPTED:
            left = [logged for logged in batch.records if logged.offset not in self._log.gone]
            batch = Batch(batch.topic, batch.lane, left) if left else None
        return batch

    async def __aenter__(self) -> FaultyReader:
        await self._reader.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._reader.__aexit__(*error)


def with_faults(
    tmp_path: Path,
    body: Callable[[LiveView, FaultyLog, Accepted, Sink], Coroutine[Any, Any, None]],
) -> None:
    """Run `body` with a view that has read and stored one sample of a faulty log; in the end it
    must know everything.
    """

    async def flow() -> None:
        async with a_log(tmp_path) as log:
            store, faulty = MemoryStore(), FaultyLog(log)
            accepted, sink = Accepted(log), Sink(log, store)
            async with running(LiveView(cast(EventLog, faulty), store, Settings())) as view:
                await accepted.append([(1, 1, 1)])
                await until(lambda: has_read(view, accepted, 0))
                await body(view, faulty, accepted, sink)
                await until(lambda: has_read(view, accepted, 0))
                assert read(view, store) == accepted.range()
                assert latest(view) == accepted.latest()

    asyncio.run(flow())


def test_a_log_that_is_away_costs_nothing(tmp_path: Path) -> None:
    async def body(view: LiveView, log: FaultyLog, accepted: Accepted, sink: Sink) -> None:
        log.away = True
        await accepted.append([(1, 9, 5)])
        await until(lambda: not log.away)
        await until(lambda: has_read(view, accepted, 0))
        assert log.readers == 1, "the same reader finds its way back"

    with_faults(tmp_path, body)


async def fail() -> None:
    """As a log that is away."""
    raise Unavailable("nobody tells commits")


@pytest.mark.parametrize("commits", [fail, asyncio.Event().wait], ids=["refused", "never told"])
def test_nobody_who_reads_waits_for_commits(
    tmp_path: Path, commits: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    async def body(view: LiveView, log: FaultyLog, accepted: Accepted, sink: Sink) -> None:
        log.commits = commits
        for turn in range(3):
            await until(lambda turn=turn: log.asked_in_vain > turn)
            began = asyncio.get_running_loop().time()
            await accepted.append([(1, 9 + turn, 5)])
            await until(lambda: has_read(view, accepted, 0))
            assert asyncio.get_running_loop().time() - began < 2
        assert log.readers == 1
        log.commits = None

    with_faults(tmp_path, body)


def test_records_that_are_gone_before_they_were_read_come_from_the_store(tmp_path: Path) -> None:
    async def body(view: LiveView, log: FaultyLog, accepted: Accepted, sink: Sink) -> None:
        log.gone = {1}
        await accepted.append([(1, 9, 5)])
        await sink.insert(0, accepted.blocks[0])
        await sink.commit(0)
        await accepted.append([(1, 2, 2)])

    with_faults(tmp_path, body)
