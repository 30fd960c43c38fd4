"""Whoever follows the accepted records learns how far a lane is judged, whatever became of what was
judged last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.blocks import Block
from schemas.envelope import Envelope, Letter, Logged, Mark, Tick, Undecodable
from schemas.points import LANE_SHIFT
from schemas.samples import Kind
from schemas.topics import LANES_STORED, RECORDS_REFUSED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED, Topic
from services.agents import samples
from services.agents._lane import LaneKeeper, Parts
from services.clock import ManualClock
from services.eventlog import EventLog
from services.settings import Settings
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.stores import MemoryStore
from tests.unit.agents.test_lanes import a_log, until
from tests.unit.agents.test_lost import judging, sinking

LANE = 2
SERIES = LANE << LANE_SHIFT


def a_record(value: float | str, ts_ms: int = 0) -> Envelope:
    """A block of one sample of the lane; a change of less than 1 is none, and a text no number."""
    kind = Kind.STRING if isinstance(value, str) else Kind.DOUBLE
    sample = a_sample(value, ts_ms, series=SERIES, kind=kind)
    return Envelope(a_block(sample, policy=a_policy(band=1.0, kind=Kind.DOUBLE)))


FIRST = a_record(1.0)
LATER = {
    "kept": a_record(9.0, 1),
    "suppressed": a_record(1.5, 1),
    "duplicate": a_record(1.0),
    "conflict": a_record(2.0),
    "refused": a_record("x", 1),
    "empty": Envelope(Block()),
    "tick": Envelope(Tick(5)),
    "no block": Envelope(Mark("t", 1, 2, 3)),
    "no record": Undecodable("not ours", b"\xff"),
}


class Appended:
    """A log that keeps what is appended, and nothing of checkpoints."""

    lanes = 4

    def __init__(self) -> None:
        self.records: list[tuple[str, int, Envelope]] = []

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        """See the port."""
        self.records += [(topic.name, lane, envelope) for topic, lane, envelope in out]
        return [0] * len(out)

    async def checkpoint(self, *_: Any) -> None:
        """See the port."""


class Still:
    """A runner that delivers nothing by itself."""

    def seek(self, lane: int, offset: int) -> None: ...

    def pause(self, lane: int) -> None: ...

    def resume(self, lane: int) -> None: ...

    async def commit(self, lane: int, next_offset: int) -> None: ...


async def put_out(*turns: Sequence[Envelope | Undecodable]) -> list[tuple[str, int, Envelope]]:
    """What the lane puts out for records that are there turn by turn."""
    log = Appended()
    parts = Parts(samples.agent(), log, MemoryStore(), ManualClock(), Settings(), 7)  # type: ignore[arg-type]
    keeper = LaneKeeper(parts, LANE, Still(), begin=0, whole=True)
    running = asyncio.create_task(keeper.run())
    for turn in turns:
        for record in turn:
            keeper.offer(Logged(keeper.expected, record))
        await until(lambda: not keeper.queued and not keeper._open)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return log.records


@pytest.mark.parametrize("name", LATER)
def test_every_record_that_is_judged_leads_to_an_accepted_one(name: str) -> None:
    async def body() -> None:
        out = await put_out([FIRST], [LATER[name]])
        accepted = [(lane, e) for topic, lane, e in out if topic == SAMPLES_ACCEPTED.name]
        assert [(lane, e.received, e.epoch) for lane, e in accepted] == [(LANE, 0, 7), (LANE, 1, 7)]
        assert [len(e.record) for _, e in accepted if isinstance(e.record, Block)] == [
            1,
            int(name == "kept"),
        ]

    asyncio.run(body())


def test_a_turn_puts_out_one_accepted_record_that_says_how_far_it_is_judged() -> None:
    async def body() -> None:
        out = await put_out([*LATER.values(), FIRST, *LATER.values()])
        [(lane, accepted)] = [(lane, e) for topic, lane, e in out if topic == SAMPLES_ACCEPTED.name]
        assert (lane, accepted.received) == (LANE, 2 * len(LATER))
        assert isinstance(accepted.record, Block)
        assert [sample.value for sample in accepted.record.samples()] == [9.0, 1.0]

    asyncio.run(body())


def test_what_does_not_say_its_lane_gets_it_from_the_keeper() -> None:
    async def body() -> None:
        out = await put_out([LATER["no record"], LATER["no block"]])
        letters = [(lane, e.record) for topic, lane, e in out if topic == RECORDS_REFUSED.name]
        assert [(to, x.lane, x.offset) for to, x in letters if isinstance(x, Letter)] == [
            (0, LANE, 0),
            (0, LANE, 1),
        ]

    asyncio.run(body())


def test_the_store_is_told_to_be_as_far_as_the_lane_is_judged(tmp_path: Path) -> None:
    """Over a real log: marks advance by records of which nothing is stored."""

    async def body() -> None:
        async with a_log(tmp_path) as log:
            store = MemoryStore()
            async with judging(log, store, samples.agent()), sinking(log, store):
                given = [FIRST, *(e for e in LATER.values() if isinstance(e, Envelope))]
                for number, record in enumerate(given):
                    await log.append([(SAMPLES_RECEIVED, 0, record)])
                    await until_marked(log, number)
        assert len(store._rows) == 2

    asyncio.run(body())


async def until_marked(log: EventLog, received: int) -> None:
    """Wait for the sink's mark of that offset."""
    async with asyncio.timeout(10), log.reader([LANES_STORED]) as reader:
        while True:
            batch = await reader.batch(wait_ms=50)
            for logged in batch.records if batch else ():
                mark = getattr(logged.envelope, "record", None)
                if isinstance(mark, Mark) and mark.received == received:
                    return
