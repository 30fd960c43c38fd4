"""Judge and sink over a real log, under crashes, a store that comes and goes and a memory that
forgets: what is told first is the specification's verdict, and what is stored is its result.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import Envelope, Position, Receipts
from schemas.queries import RangeQuery
from schemas.samples import Conflict, Sample
from schemas.topics import RECEIPTS_ISSUED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED, SINK_GROUP, TOPICS
from services.agents import samples
from services.agents._lane import Parts
from services.agents._lanes import Lanes
from services.agents._loop import run_loop
from services.clock import SystemClock
from services.domain.dedupe import fingerprint
from services.errors import Unavailable
from services.eventlog import EventLog, open_eventlog
from services.settings import Settings
from services.sinks import SinkWorker, all_sinks
from services.store import Query
from tests.support.builders import a_block, a_policy, a_sample, an_entry
from tests.support.reference import ModelStore, ReferenceLane
from tests.support.rounds import rounds, seed
from tests.support.stores import MemoryStore

STEPS = 50
POLICY = a_policy(band=0.9)
SERIES = (1, 2, 3)
EVER = RangeQuery("acme", SERIES, 0, 1_000, 10_000)


class Flaky(MemoryStore):
    """Is away now and then, also after it has stored what it was given."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def _may_fail(self) -> None:
        if self._chance.random() < 0.2:
            raise Unavailable("the store is away")

    async def insert(self, table: str, rows: Any) -> None:
        """See the port."""
        self._may_fail()
        await super().insert(table, rows)
        self._may_fail()

    async def fetch(self, query: Query) -> Any:
        """See the port."""
        self._may_fail()
        return await super().fetch(query)


class Killed(Lanes):
    """Lanes that end without a last checkpoint."""

    async def close(self) -> None:
        """Only what a dead process cannot go on doing."""
        self.revoke(list(self.held))


class Road:
    """The judge's runner and the sink, which can be killed and started again."""

    def __init__(self, log: EventLog, chance: random.Random) -> None:
        self.log, self.store, self._chance = log, Flaky(chance), chance
        self._stop, self._running = asyncio.Event(), list[asyncio.Task[None]]()

    def start(self) -> None:
        """Run, with another size of memory each time."""
        chance, clock = self._chance, SystemClock()
        settings = Settings(sink_wait_ms=10, sink_rows=chance.choice((3, 50)), checkpoint_seconds=1)
        agent = samples.agent(rows_max=chance.choice((0, 2, 8)))
        parts = Parts(agent, self.log, self.store, clock, settings, 1)
        lanes = chance.choice((Lanes, Killed))
        self._stop = asyncio.Event()
        sink = next(sink for sink in all_sinks() if sink.name == "samples")
        worker = SinkWorker(sink, self.log, self.store, clock, settings, backoff_ms=(1, 5))
        self._running = [
            asyncio.create_task(run_loop(parts, self._stop, lanes_class=lanes)),
            asyncio.create_task(worker.run(self._stop)),
        ]

    async def end(self, *, kill: bool = False) -> None:
        """Stop in order, or not."""
        self._stop.set()
        for task in self._running if kill else ():
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def rest(self, received: int) -> None:
        """Until so many records are judged and what was accepted is stored."""
        async with asyncio.timeout(30):
            while len(await first_receipts(self.log)) < received:
                await asyncio.sleep(0.01)
            while True:
                committed = await self.log.committed(SINK_GROUP, SAMPLES_ACCEPTED)
                if committed.get(0, 0) == (await self.log.spans(SAMPLES_ACCEPTED))[0].end:
                    return
                await asyncio.sleep(0.01)


async def first_receipts(log: EventLog) -> dict[bytes, list[int]]:
    """Request to the verdicts that were told first."""
    told: dict[bytes, list[int]] = {}
    async with log.reader([RECEIPTS_ISSUED]) as reader:
        while batch := await reader.batch(wait_ms=0):
            for logged in batch.records:
                assert isinstance(logged.envelope, Envelope)
                assert isinstance(logged.envelope.record, Receipts)
                for receipt in logged.envelope.record.items:
                    told.setdefault(receipt.request_id, list(receipt.verdicts))
    return told


def some(chance: random.Random, step: int) -> list[Sample]:
    """A few samples, about half of them late."""
    return [
        a_sample(
            chance.choice((0.0, 0.5, 1.0, 2.0)),
            chance.choice((chance.randrange(12), step * 2 + chance.randrange(4))),
            series=chance.choice(SERIES),
            rule=chance.choice((Conflict.FIRST, Conflict.FIRST, Conflict.LAST, Conflict.RENEW)),
        )
        for _ in range(chance.randrange(1, 6))
    ]


@pytest.mark.parametrize("round_", range(rounds(4)))
def test_the_first_answer_and_the_stored_values_are_those_of_the_specification(
    tmp_path: Path, round_: int
) -> None:
    chance = random.Random(f"{seed()}/replay/{round_}")
    reference, want = ReferenceLane(ModelStore(), whole=True), dict[bytes, list[int]]()

    async def body() -> None:
        async with open_eventlog(f"sqlite:///{tmp_path / 'log.sqlite'}", lanes=1) as log:
            await log.create(TOPICS)
            road = Road(log, chance)
            road.start()
            for step in range(STEPS):
                if chance.random() < 0.15:
                    await road.end(kill=chance.random() < 0.5)
                    road.start()
                request, rows = step.to_bytes(16, "big"), some(chance, step)
                entry = an_entry(0, len(rows), request_id=request)
                record = Envelope(a_block(*rows, policy=POLICY), (entry,))
                await log.append([(SAMPLES_RECEIVED, 0, record)])
                verdicts, _ = reference.judge(Position(1, step), [(row, POLICY) for row in rows])
                want[request] = [int(verdict) for verdict in verdicts]
                for _ in range(chance.choice((0, 5, 50))):
                    await asyncio.sleep(0)
            await road.rest(STEPS)
            await road.end()
            assert await first_receipts(log) == want
        found = {(s.series, s.ts_ms): fingerprint(s) for s in road.store.select(EVER).samples()}
        assert found == {
            (name, ts_ms): mark
            for name, series in reference.series.items()
            for ts_ms, mark in series.taken.items()
        }

    asyncio.run(body())
