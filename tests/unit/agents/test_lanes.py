"""The lanes of an agent beside a sink, on a real log: what one tells the other, and how they
end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from schemas.envelope import Envelope
from schemas.queries import RangeQuery, TakenQuery
from schemas.samples import Value
from schemas.topics import SAMPLES_RECEIVED, TOPICS
from services.agents import SERVICE, samples
from services.agents._lane import Parts
from services.agents._loop import run_loop
from services.clock import SystemClock
from services.errors import Unavailable
from services.eventlog import EventLog, open_eventlog
from services.settings import Settings
from services.sinks import SinkWorker, all_sinks
from tests.support.builders import a_block, a_sample
from tests.support.stores import MemoryStore


async def until(check: Callable[[], object]) -> None:
    """Wait for a condition, at most some seconds."""
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def a_log(path: Path) -> AsyncIterator[EventLog]:
    """An empty log of one lane in the folder."""
    async with open_eventlog(f"sqlite:///{path / 'log.sqlite'}", lanes=1) as log:
        await log.create(TOPICS)
        yield log


async def send(log: EventLog, ts_ms: int, value: float = 1.0) -> None:
    """One more sample of series 1."""
    await log.append([(SAMPLES_RECEIVED, 0, Envelope(a_block(a_sample(value, ts_ms))))])


def stored(store: MemoryStore) -> dict[int, Value]:
    """Time to value of what the store holds of series 1."""
    block = store.select(RangeQuery("acme", (1,), 0, 1_000, 1_000))
    return {sample.ts_ms: sample.value for sample in block.samples()}


def test_what_the_sink_has_stored_leaves_the_memory_of_the_lane(tmp_path: Path) -> None:
    async def body() -> None:
        store, stop, settings = MemoryStore(), asyncio.Event(), Settings(sink_wait_ms=10)
        async with a_log(tmp_path) as log, asyncio.TaskGroup() as group:
            parts = Parts(samples.agent(rows_max=4), log, store, SystemClock(), settings, 1)
            group.create_task(run_loop(parts, stop))
            sink = next(sink for sink in all_sinks() if sink.name == "samples")
            group.create_task(SinkWorker(sink, log, store, SystemClock(), settings).run(stop))
            for ts_ms in range(20):
                await send(log, ts_ms)
                await until(lambda at=ts_ms: at in stored(store))
            assert not store.asked
            await send(log, 0, 2.0)
            await send(log, 20)
            await until(lambda: 20 in stored(store))
            assert store.asked == [TakenQuery((1,), (0,))]
            assert stored(store)[0] == 1.0
            stop.set()

    asyncio.run(body())


class Away:
    """A log, and its reader, that answers nothing any more; `asked` counts the questions."""

    lanes = 1

    def __init__(self) -> None:
        self.asked = 0

    def _ask(self) -> Any:
        self.asked += 1
        raise Unavailable("the log is away")

    def reader(self, *_: object, **__: object) -> Self:
        return self

    async def batch(self, **_: object) -> None:
        self._ask()

    async def incarnation(self, _: object) -> str:
        return str(self._ask())

    async def spans(self, _: object) -> None:
        self._ask()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


def test_lanes_end_although_the_log_is_away() -> None:
    async def body() -> None:
        log, stop, clock = Away(), asyncio.Event(), SystemClock()
        parts = Parts(samples.agent(), log, MemoryStore(), clock, Settings(), 1)  # type: ignore[arg-type]
        running = asyncio.create_task(run_loop(parts, stop))
        await until(lambda: log.asked > 5)
        stop.set()
        async with asyncio.timeout(2):
            await running

    asyncio.run(body())


def test_agents_wait_for_the_log_beside_the_doors_and_end_with_them() -> None:
    async def body() -> None:
        log, stop = Away(), asyncio.Event()
        runtime: Any = SimpleNamespace(log=log, store=MemoryStore(), settings=Settings(), checks={})
        async with asyncio.timeout(2), asyncio.TaskGroup() as group:
            await SERVICE.mount(runtime, group, stop)
            await until(lambda: log.asked > 1)
            assert runtime.checks["agent samples"]() == "no lanes were given yet"
            stop.set()

    asyncio.run(body())
