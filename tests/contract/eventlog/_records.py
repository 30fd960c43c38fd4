"""Records that can be told apart when they come back, and how the suite reads and waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from schemas.blocks import Block
from schemas.envelope import Entry, Envelope, Logged
from schemas.points import PointPolicy
from schemas.samples import Conflict, Kind
from schemas.topics import Topic
from services.errors import Unavailable
from services.eventlog import EventLog, Reader, Start

POLICY = PointPolicy("mill", revision=3, kind=Kind.DOUBLE, band=0.5)
NOBODY = bytes(16)


def a_block(*numbers: int, text: str = "") -> Block:
    """A block with a row for each number (its time), with the text in every row if one is given."""
    block = Block()
    policy = block.policy_index(POLICY)
    for number in numbers:
        value, kind = (text, Kind.STRING) if text else (number / 3, Kind.DOUBLE)
        block.add(7 << 48, number, kind, value, policy=policy, rule=Conflict.LAST)
    return block


def a_record(*numbers: int, request: int | None = None, text: str = "") -> Envelope:
    """A record of `a_block`; with an entry of the request over all rows where one is given."""
    entries: tuple[Entry, ...] = ()
    if request is not None:
        request_id = request.to_bytes(16, "big")
        entries = (Entry(request_id, NOBODY, 0, 1, 0, 0, len(numbers), keyed=True),)
    return Envelope(a_block(*numbers, text=text), entries)


def numbers_of(records: Sequence[Logged]) -> list[int]:
    """The numbers of all rows, in order."""
    found: list[int] = []
    for logged in records:
        assert isinstance(logged.envelope, Envelope)
        assert isinstance(logged.envelope.record, Block)
        found += logged.envelope.record.ts_ms
    return found


async def read_all(
    log: EventLog, topic: Topic, *, start: Start | dict[int, int] = Start.BEGINNING
) -> dict[int, list[Logged]]:
    """Everything that lies on a topic now, by lane, read without a group."""
    ends = {lane: span.end for lane, span in (await log.spans(topic)).items()}
    async with log.reader([topic], start=start) as reader:
        return await read_until(reader, {lane: end for lane, end in ends.items() if end})


async def read_until(reader: Reader, ends: dict[int, int]) -> dict[int, list[Logged]]:
    """What a reader of one topic gives until it has reached these offsets (exclusive)."""
    found: dict[int, list[Logged]] = {}
    async with asyncio.timeout(20):
        while any(
            not found.get(lane) or found[lane][-1].offset + 1 < end for lane, end in ends.items()
        ):
            batch = await reader.batch(wait_ms=200)
            if batch is not None:
                found.setdefault(batch.lane, []).extend(batch.records)
    return found


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition of the test's own state."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def waiting_turns() -> None:
    """Let the loop turn until a task that was just made waits for the world."""
    for _ in range(20):
        await asyncio.sleep(0)


class Told:
    """Collects what `done` was told: (number, error, offset)."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self.errors: dict[int, Exception] = {}

    def of(self, number: int) -> Callable[[Exception | None, int], None]:
        """The callback of one record."""

        def done(error: Exception | None, offset: int) -> None:
            assert number not in self.offsets and number not in self.errors, "told twice"
            if error is None:
                self.offsets[number] = offset
            else:
                assert offset == -1
                self.errors[number] = error

        return done

    @property
    def count(self) -> int:
        """How many were told something."""
        return len(self.offsets) + len(self.errors)


async def put_patiently(
    log: EventLog, topic: Topic, lane: int, record: Envelope, done: Callable[..., None]
) -> int:
    """`put` until the queue has room; how often it was full."""
    full = 0
    while True:
        with suppress(Unavailable):
            log.put(topic, lane, record, done)
            return full
        full += 1
        await asyncio.sleep(0.001)
