"""The follower of periods: when it has what rewritten, and what it does when the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from schemas.catalogue import Point
from schemas.envelope import Change, Envelope, Logged
from schemas.queries import LatestQuery
from schemas.topics import SAMPLES_ACCEPTED, TOPICS
from services.catalogue import View, new_point
from services.clock import ManualClock, SystemClock
from services.errors import Malformed, Unavailable
from services.eventlog import open_eventlog
from services.metrics import RETENTION_OPEN, RETENTION_ROWS, RETENTION_SERIES
from services.runtime import Runtime, until
from services.settings import Settings
from services.sinks import SERVICE
from services.sinks._retention import Pace, Retention
from services.store import RETAINED_MAX, Owned, Store
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.catalogue import a_view, put
from tests.support.stores import MemoryStore

MINUTE_MS = 60_000
PACE = Pace(tick_ms=1, again_ms=60_000, all_ms=3_600_000, backoff_ms=(1, 2))
SOON_S = 10


class Expiring(MemoryStore):
    """Rows of a series have one period, and are rewritten at once. `asked_for` lists the questions;
    `failing` is raised once; `open` rewrites are there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept_ms: dict[Owned, int] = {}
        self.asked_for: list[dict[Owned, int]] = []
        self.open = 0
        self.failing: Exception | None = None
        self.once_retained: list[Owned] = []

    async def retain(self, periods: Mapping[Owned, int]) -> dict[Owned, int]:
        """Ten rows of each series that has another period."""
        assert len(periods) <= RETAINED_MAX
        await self._open.wait()
        if (error := self.failing) is not None:
            self.failing = None
            raise error
        self._check()
        assert not self.open, "one at a time"
        self.asked_for.append(dict(periods))
        changed = {
            owned: keep_ms
            for owned, keep_ms in periods.items()
            if owned in self.kept_ms and self.kept_ms[owned] != keep_ms
        }
        self.kept_ms |= changed
        return dict.fromkeys(changed, 10)

    async def retaining(self) -> int:
        """What the test says."""
        self._check()
        return self.open

    async def retained(self) -> list[Owned]:
        """What the test says."""
        self._check()
        return self.once_retained


def a_point(key: str, minutes: int, *, tenant: str = "acme") -> Point:
    """A point that is kept for so long."""
    return new_point(tenant, "device", key, keep_minutes=minutes)


def owned(point: Point) -> Owned:
    """Its series, with whom it belongs to."""
    return point.tenant, point.series


@dataclass
class Work:
    """A follower at work, and what it stands between."""

    view: View
    store: Expiring
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.retention = Retention(self.view, self.store, self.clock, PACE)
        self.stop = asyncio.Event()

    async def asked(self, count: int) -> Sequence[dict[Owned, int]]:
        """The questions, once there are so many; and no more for some turns."""
        await until(lambda: len(self.store.asked_for) >= count, seconds=SOON_S)
        await asyncio.sleep(0.02)
        assert len(self.store.asked_for) == count
        return self.store.asked_for


@asynccontextmanager
async def working(*points: Point, store: Expiring | None = None) -> AsyncIterator[Work]:
    """A follower of a catalogue with these points."""
    work = Work(a_view(*points), store or Expiring())
    running = asyncio.create_task(work.retention.run(work.stop))
    try:
        yield work
    finally:
        work.stop.set()
        await asyncio.wait_for(running, SOON_S)


def test_after_the_start_all_that_have_or_had_a_period_are_gone_through_and_then_hourly() -> None:
    kept, for_ever, once = a_point("kept", 60), a_point("for ever", 0), a_point("once", 0)
    store = Expiring()
    store.once_retained = [owned(once), owned(kept), ("acme", 7)]

    async def body() -> None:
        expected = {owned(kept): 60 * MINUTE_MS, owned(once): 0}
        async with working(kept, for_ever, once, store=store) as work:
            assert await work.asked(1) == [expected]
            work.clock.advance(PACE.all_ms - 1)
            await work.asked(1)
            work.clock.advance(1)
            assert await work.asked(2) == [expected, expected]

    asyncio.run(body())


def test_a_changed_period_is_brought_to_the_rows_at_once_and_looked_at_again() -> None:
    point = a_point("one", 60)
    store = Expiring()
    store.kept_ms[owned(point)] = 60 * MINUTE_MS

    async def body() -> None:
        before = RETENTION_ROWS._value.get()
        async with working(point, store=store) as work:
            await work.asked(1)
            put(work.view, a_point("one", 5))
            assert (await work.asked(2))[1] == {owned(point): 5 * MINUTE_MS}
            assert RETENTION_ROWS._value.get() == before + 10
            assert (RETENTION_OPEN._value.get(), RETENTION_SERIES._value.get()) == (1, 1)
            work.clock.advance(PACE.again_ms)
            assert (await work.asked(3))[2] == {owned(point): 5 * MINUTE_MS}
            assert (RETENTION_OPEN._value.get(), RETENTION_SERIES._value.get()) == (0, 0)
            work.clock.advance(PACE.again_ms)
            await work.asked(3)

    asyncio.run(body())


def test_what_does_not_change_a_period_asks_nothing() -> None:
    point = a_point("one", 60)

    async def body() -> None:
        async with working(point) as work:
            await work.asked(1)
            put(work.view, a_point("one", 60))
            put(work.view, a_point("two", 0))
            put(work.view, new_point("acme", "device", "one", keep_minutes=60, name="renamed"))
            work.view.apply(Change(Point.KIND, point.id, None), work.view.revision + 1)
            await work.asked(1)

    asyncio.run(body())


def test_changes_of_one_moment_are_one_question_of_bounded_size() -> None:
    points = [a_point(f"key-{n}", 5) for n in range(RETAINED_MAX + 1)]

    async def body() -> None:
        async with working(a_point("any", 1)) as work:
            await work.asked(1)
            for point in points:
                put(work.view, point)
            _, first, second = await work.asked(3)
            assert (len(first), len(second)) == (RETAINED_MAX, 1)
            assert first | second == {owned(point): 5 * MINUTE_MS for point in points}

    asyncio.run(body())


def test_a_period_that_changes_while_it_is_being_written_is_written_too() -> None:
    point = a_point("one", 60)

    async def body() -> None:
        async with working(point) as work:
            await work.asked(1)
            work.store.hold()
            put(work.view, a_point("one", 5))
            await asyncio.sleep(0.02)
            put(work.view, a_point("one", 7))
            work.store.release()
            *_, before, last = await work.asked(3)
            assert (before, last) == (
                {owned(point): 5 * MINUTE_MS},
                {owned(point): 7 * MINUTE_MS},
            )

    asyncio.run(body())


def test_one_rewrite_is_open_at_a_time() -> None:
    async def body() -> None:
        store = Expiring()
        store.open = 2
        async with working(a_point("one", 5), store=store) as work:
            await work.asked(0)
            assert RETENTION_OPEN._value.get() == 2
            store.open = 0
            await work.asked(1)

    asyncio.run(body())


@pytest.mark.parametrize("error", [Unavailable("away"), Malformed("whatever it has against it")])
def test_what_the_store_did_not_take_is_asked_again(error: Exception) -> None:
    point = a_point("one", 60)
    store = Expiring()

    async def body() -> None:
        async with working(point, store=store) as work:
            await work.asked(1)
            store.away = True
            put(work.view, a_point("one", 5))
            await work.asked(1)
            store.failing, store.away = error, False
            assert (await work.asked(2))[1] == {owned(point): 5 * MINUTE_MS}
            # The change is still looked at a second time.
            work.clock.advance(PACE.again_ms)
            await work.asked(3)

    asyncio.run(body())


def test_a_store_that_is_away_at_the_start_is_waited_for() -> None:
    store = Expiring()
    store.away = True

    async def body() -> None:
        async with working(a_point("one", 5), store=store) as work:
            await work.asked(0)
            store.away = False
            await work.asked(1)

    asyncio.run(body())


def test_rows_that_were_stored_with_another_period_are_noted() -> None:
    kept, for_ever, other = (a_point(key, n) for key, n in (("kept", 5), ("for ever", 0), ("o", 1)))

    def logged(*rows: tuple[Point, int]) -> list[Logged]:
        """Records of one sample each, stamped with a period in minutes."""
        return [
            Logged(
                offset,
                Envelope(
                    a_block(
                        a_sample(series=point.series),
                        policy=a_policy(revision=0, keep_ms=minutes * MINUTE_MS),
                    )
                ),
            )
            for offset, (point, minutes) in enumerate(rows)
        ]

    async def body() -> None:
        async with working(kept, for_ever, other) as work:
            await work.asked(1)
            assert work.view.policy(kept).revision > 0
            events = []

            async def write(store: Store, records: Sequence[Logged]) -> None:
                events.append(len(work.store.asked_for))

            noting = work.retention.noting(write)
            await noting(work.store, logged((kept, 5), (for_ever, 0)))
            await work.asked(1)
            await noting(work.store, logged((kept, 0), (for_ever, 0)))
            assert (await work.asked(2))[1] == {owned(kept): 5 * MINUTE_MS}
            await noting(work.store, logged((kept, 60), (for_ever, 60)))
            assert (await work.asked(3))[2] == {owned(kept): 5 * MINUTE_MS, owned(for_ever): 0}
            # Looked at when they are stored, not before.
            assert events == [1, 1, 2]
            put(work.view, a_point("kept", 6))
            await work.asked(4)
            await noting(work.store, logged((kept, 5)))
            assert (await work.asked(5))[4] == {owned(kept): 6 * MINUTE_MS}

    asyncio.run(body())


def test_the_service_notes_what_its_sink_has_stored(tmp_path: Path) -> None:
    point = a_point("one", 5)
    store = Expiring()

    async def body() -> None:
        async with open_eventlog(f"sqlite:///{tmp_path / 'log.sqlite'}", lanes=1) as log:
            await log.create(TOPICS)
            clock, settings, stop = SystemClock(), Settings(sink_wait_ms=10), asyncio.Event()
            parts = {"view": a_view(a_point("other", 1), point), "log": log, "store": store}
            runtime = SimpleNamespace(**parts, clock=clock, settings=settings)
            async with asyncio.TaskGroup() as group:
                await SERVICE.mount(cast(Runtime, runtime), group, stop)
                await until(lambda: len(store.asked_for) == 1, seconds=SOON_S)
                block = a_block(
                    a_sample(series=point.series), policy=a_policy(revision=0, keep_ms=1)
                )
                block.version.append(1)
                await log.append([(SAMPLES_ACCEPTED, 0, Envelope(block))])
                await until(lambda: len(store.asked_for) == 2, seconds=SOON_S)
                assert store.asked_for[1] == {owned(point): 5 * MINUTE_MS}
                assert len(store.select(LatestQuery())) == 1
                stop.set()

    asyncio.run(body())
