"""Lanes that have lost their checkpoint, or what followed it, on a log whose beginning is gone:
they know what the store knows, and wait until it knows everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas.envelope import Envelope, Receipts
from schemas.samples import Verdict
from schemas.topics import RECEIPTS_ISSUED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED, SINK_GROUP, Topic
from services.agents import Agent, samples
from services.agents._lane import Parts, Readiness
from services.agents._lanes import Lanes
from services.agents._loop import run_loop
from services.clock import ManualClock, SystemClock
from services.eventlog import EventLog, Span
from services.settings import Settings
from services.sinks import SinkWorker, all_sinks
from tests.support.builders import a_block, a_sample, an_entry
from tests.support.stores import MemoryStore
from tests.unit.agents.test_lane import AGENT
from tests.unit.agents.test_lanes import a_log, until
from tests.unit.agents.test_watch import Deaf

LONG_AFTER_MS = 10**15
SETTINGS = Settings(sink_wait_ms=10)


class Killed(Lanes):
    """Lanes that end without a last checkpoint."""

    async def close(self) -> None:
        """Only what a dead process cannot go on doing."""
        self.revoke(list(self.held))


@asynccontextmanager
async def judging(
    log: EventLog, store: MemoryStore, agent: Agent, lanes_class: type[Lanes] = Lanes
) -> AsyncIterator[Readiness]:
    """One life of the judge."""
    stop, readiness = asyncio.Event(), Readiness()
    parts = Parts(agent, log, store, SystemClock(), SETTINGS, 1, readiness=readiness)
    running = asyncio.create_task(run_loop(parts, stop, lanes_class=lanes_class))
    yield readiness
    stop.set()
    await running


@asynccontextmanager
async def sinking(log: EventLog, store: MemoryStore) -> AsyncIterator[None]:
    """One life of the sink."""
    stop = asyncio.Event()
    sink = next(sink for sink in all_sinks() if sink.name == "samples")
    worker = SinkWorker(sink, log, store, SystemClock(), SETTINGS, backoff_ms=(1, 5))
    running = asyncio.create_task(worker.run(stop))
    yield
    stop.set()
    await running


async def judged(log: EventLog, ts_ms: int, value: float) -> int:
    """The verdict on one more sample of series 1."""
    async with log.reader([RECEIPTS_ISSUED]) as reader:
        while await reader.batch(wait_ms=0):
            pass
        record = Envelope(a_block(a_sample(value, ts_ms)), (an_entry(),))
        await log.append([(SAMPLES_RECEIVED, 0, record)])
        async with asyncio.timeout(10):
            batch = None
            while batch is None:
                batch = await reader.batch(wait_ms=100)
    envelope = batch.records[0].envelope
    assert isinstance(envelope, Envelope) and isinstance(envelope.record, Receipts)
    return envelope.record.items[0].verdicts[0]


def test_a_lane_without_a_checkpoint_waits_until_the_store_has_what_was_judged_before(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with a_log(tmp_path) as log:
            store.away = True
            async with sinking(log, store):
                async with judging(log, store, samples.agent()):
                    assert await judged(log, 0, 1.0) == Verdict.KEPT
                await log.trim(LONG_AFTER_MS)
            store.away = False
            assert (await log.spans(SAMPLES_RECEIVED))[0] == Span(1, 1)
            assert (await log.spans(SAMPLES_ACCEPTED))[0] == Span(0, 1)

            without = replace(samples.agent(), name="without a checkpoint")
            async with judging(log, store, without) as readiness:
                verdict = asyncio.create_task(judged(log, 0, 2.0))
                await until(lambda: readiness.why_not == "waiting for the sinks of lane 0")
                await asyncio.wait([verdict], timeout=0.1)
                assert not verdict.done() and not store.asked
                async with sinking(log, store):
                    assert await verdict == Verdict.CONFLICT
                assert readiness.why_not is None

    asyncio.run(body())


def test_a_checkpoint_behind_which_records_are_gone_is_not_believed(tmp_path: Path) -> None:
    async def body() -> None:
        store = MemoryStore()
        async with a_log(tmp_path) as log, sinking(log, store):
            async with judging(log, store, samples.agent()):
                assert await judged(log, 0, 1.0) == Verdict.KEPT
            async with judging(log, store, samples.agent(), Killed):
                assert await judged(log, 1, 1.0) == Verdict.KEPT
            async with log.reader([SAMPLES_RECEIVED], group="agents.samples") as reader:
                await reader.commit(SAMPLES_RECEIVED, 0, 2)
            await log.trim(LONG_AFTER_MS)
            assert (await log.spans(SAMPLES_RECEIVED))[0] == Span(2, 2)

            async with judging(log, store, samples.agent()):
                assert await judged(log, 1, 2.0) == Verdict.CONFLICT
                assert await judged(log, 0, 1.0) == Verdict.DUPLICATE

    asyncio.run(body())


class Log:
    """A log of two lanes of which `received` and `accepted` say what they hold; nothing is kept of
    checkpoints.
    """

    lanes = 2

    def __init__(self, received: Mapping[int, Span], accepted: Mapping[int, Span]) -> None:
        self.received, self.accepted = received, accepted
        self.stored: dict[int, int] = {}

    async def spans(self, topic: Topic) -> Mapping[int, Span]:
        return self.received if topic is SAMPLES_RECEIVED else self.accepted

    async def committed(self, group: str, topic: Topic) -> Mapping[int, int]:
        assert (group, topic) == (SINK_GROUP, SAMPLES_ACCEPTED)
        return self.stored

    async def checkpoints(self, agent: str, lanes: object) -> Mapping[Any, Any]:
        return {}


def lanes_of(log: Log, epoch: int = 1, agent: Agent = AGENT) -> Lanes:
    """Lanes on the log that nobody drives."""
    parts = Parts(agent, log, MemoryStore(), ManualClock(), Settings(), epoch)  # type: ignore[arg-type]
    return Lanes(parts, Deaf())


def test_a_lane_that_waits_holds_up_no_other_and_its_wait_ends_when_it_is_taken_away() -> None:
    async def body() -> None:
        log = Log({0: Span(5, 9), 1: Span(0, 9)}, {0: Span(0, 4), 1: Span(0, 4)})
        lanes = lanes_of(log)
        readiness = lanes.parts.readiness
        lanes.assign([0])
        await until(lambda: readiness.why_not == "waiting for the sinks of lane 0")
        lanes.assign([1])
        await until(lambda: list(lanes.held) == [1])
        await until(lambda: readiness.why_not == "waiting for the sinks of lane 0")
        lanes.revoke([0])
        await until(lambda: readiness.why_not is None)
        lanes.assign([0])
        await until(lambda: readiness.why_not == "waiting for the sinks of lane 0")
        log.stored[0] = 3
        lanes.revoke([1])
        await until(lambda: readiness.why_not == "waiting for the sinks of lane 0")
        log.stored[0] = 4
        await until(lambda: list(lanes.held) == [0])
        assert readiness.why_not is None
        await lanes.close()

    asyncio.run(body())


def test_a_log_that_was_made_anew_waits_for_what_was_accepted_from_the_one_before() -> None:
    async def body() -> None:
        log = Log({0: Span(0, 1), 1: Span(0, 0)}, {0: Span(0, 4), 1: Span(0, 4)})
        lanes = lanes_of(log, epoch=2)
        lanes.assign([0, 1])
        readiness = lanes.parts.readiness
        await until(lambda: readiness.why_not == "waiting for the sinks of lanes 0, 1")
        log.stored = {0: 4, 1: 4}
        await until(lambda: readiness.why_not is None)
        assert sorted(lanes.held) == [0, 1]
        await lanes.close()

    asyncio.run(body())


def test_an_agent_that_never_asks_the_store_does_not_wait_for_it() -> None:
    async def body() -> None:
        log = Log({0: Span(5, 9), 1: Span(0, 9)}, {0: Span(0, 4), 1: Span(0, 4)})
        lanes = lanes_of(log, epoch=2, agent=replace(AGENT, ask=None))
        lanes.assign([0, 1])
        await until(lambda: sorted(lanes.held) == [0, 1])
        assert lanes.parts.readiness.why_not is None
        await lanes.close()

    asyncio.run(body())


def test_what_retention_took_from_the_sinks_is_not_waited_for() -> None:
    async def body() -> None:
        log = Log({0: Span(5, 9), 1: Span(5, 5)}, {0: Span(4, 4), 1: Span(0, 0)})
        lanes = lanes_of(log)
        lanes.assign([0, 1])
        await until(lambda: sorted(lanes.held) == [0, 1])
        assert lanes.parts.readiness.why_not is None
        await lanes.close()

    asyncio.run(body())
