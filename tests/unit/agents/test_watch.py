"""What the lanes notice by themselves: a gap that stays, a log that was made anew or has lost
records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.envelope import Envelope, Logged, Tick
from schemas.topics import Topic
from services.agents._lane import LaneKeeper, Parts
from services.agents._lanes import STILL_SECONDS_MAX, Lanes
from services.clock import ManualClock
from services.errors import Broken
from services.eventlog import Span
from services.settings import Settings
from tests.support.stores import MemoryStore
from tests.unit.agents.test_lane import AGENT


class Log:
    """A log of one lane that says what it is told to say."""

    lanes = 1

    def __init__(self, end: int) -> None:
        self.end, self.anew = end, False

    async def spans(self, topic: Topic) -> Mapping[int, Span]:
        if self.anew:
            raise Broken(f"{topic.name} was made anew")
        return {0: Span(0, self.end)}

    async def checkpoints(self, agent: str, lanes: object) -> Mapping[Any, Any]:
        return {}

    async def append(self, out: list[Any]) -> list[int]:
        return []


class Deaf:
    """A drive that does nothing; `sought` are the offsets that were asked for."""

    def __init__(self) -> None:
        self.sought: list[int] = []

    def seek(self, lane: int, offset: int) -> None:
        self.sought.append(offset)

    def pause(self, lane: int) -> None: ...

    def resume(self, lane: int) -> None: ...

    async def commit(self, lane: int, next_offset: int) -> None: ...


def _parts(log: Log, clock: ManualClock) -> Parts:
    return Parts(AGENT, log, MemoryStore(), clock, Settings(), 1)  # type: ignore[arg-type]


def _logged(offset: int) -> Logged:
    return Logged(offset, Envelope(Tick(now_ms=offset)))


def test_a_lane_asks_again_for_what_is_missing_though_nothing_comes() -> None:
    async def body() -> None:
        clock, drive = ManualClock(), Deaf()
        keeper = LaneKeeper(_parts(Log(9), clock), 0, drive, begin=0, whole=True)
        running = asyncio.create_task(keeper.run())
        keeper.offer(_logged(5))
        keeper.offer(_logged(6))
        assert drive.sought == [0]
        clock.advance(1_000)
        async with asyncio.timeout(5):
            while len(drive.sought) < 2:
                await asyncio.sleep(0.01)
        keeper.offer(_logged(0))
        assert drive.sought == [0, 0]
        running.cancel()

    asyncio.run(body())


async def _watched(log: Log, *, applied: int) -> tuple[Lanes, ManualClock]:
    """Lanes of which lane 0 has applied so many records."""
    clock = ManualClock()
    lanes = Lanes(_parts(log, clock), Deaf())
    lanes.assign([0])
    async with asyncio.timeout(5):
        while 0 not in lanes.held:
            await asyncio.sleep(0)
        for offset in range(applied):
            lanes.offer(0, _logged(offset))
        while lanes.held[0].position < applied - 1:
            await asyncio.sleep(0)
    return lanes, clock


def test_a_topic_that_was_made_anew_is_not_read_on() -> None:
    async def body() -> None:
        log = Log(9)
        lanes, _ = await _watched(log, applied=3)
        log.anew = True
        async with asyncio.timeout(5):
            await lanes.watch()

    with pytest.raises(Broken, match="was made anew"):
        asyncio.run(body())


def test_a_log_that_ends_before_what_was_judged_is_not_read_on() -> None:
    async def body() -> None:
        log = Log(9)
        lanes, clock = await _watched(log, applied=3)
        log.end = 2
        watching = asyncio.create_task(lanes.watch())
        await asyncio.sleep(0.01)
        assert not watching.done(), "a change of leaders may look so for a moment"
        clock.advance(STILL_SECONDS_MAX * 1_000 + 1)
        async with asyncio.timeout(5):
            await watching

    with pytest.raises(Broken, match="has lost records"):
        asyncio.run(body())
