"""A log in lists, for faults that a real one does not make when it is asked to: what the worker
sees of `EventLog` and `Reader`, and nothing more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

from schemas.blocks import Block
from schemas.envelope import Envelope, Logged, Tick, Undecodable
from schemas.topics import Topic
from services.errors import Broken, Unavailable
from services.eventlog import Batch, LanesChanged, Span
from services.store import Store


class FakeLog:
    """`events` notes commits and appends in their order. What is in `away` raises Unavailable, what
    is in `anew` Broken: "read", "commit", "append".
    """

    def __init__(self) -> None:
        self.lanes = 4
        self.events: list[tuple[object, ...]] = []
        self.away: set[str] = set()
        self.anew: set[str] = set()
        self.readers: list[FakeReader] = []
        self._records: dict[tuple[str, int], list[Logged]] = defaultdict(list)
        self._committed: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)

    def add(self, topic: Topic, lane: int, *records: Envelope | Undecodable) -> None:
        """Put records behind a lane's last one."""
        for record in records:
            there = self._records[topic.name, lane]
            there.append(Logged(len(there), record))
        for reader in self.readers:
            reader.woken.set()

    def on(self, topic: Topic, lane: int = 0) -> list[Envelope]:
        """The records of a lane."""
        envelopes = (logged.envelope for logged in self._records[topic.name, lane])
        return [envelope for envelope in envelopes if isinstance(envelope, Envelope)]

    def check(self, what: str) -> None:
        """Raise Unavailable if that is away, Broken if it finds a topic made anew."""
        if what in self.anew:
            raise Broken("the topic was made anew")
        if what in self.away:
            raise Unavailable(f"{what} is away")

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        """See the port."""
        self.check("append")
        for topic, lane, envelope in out:
            self.add(topic, lane, envelope)
            self.events.append(("append", topic.name, lane))
        return [len(self._records[topic.name, lane]) - 1 for topic, lane, _ in out]

    def reader(
        self,
        topics: Sequence[Topic],
        *,
        group: str,
        on_assigned: LanesChanged,
        on_revoked: LanesChanged,
    ) -> FakeReader:
        """See the port; every lane goes to the newest reader."""
        reader = FakeReader(self, topics[0], group, on_assigned, on_revoked)
        self.readers.append(reader)
        return reader

    async def incarnation(self, topic: Topic) -> str:
        """See the port."""
        return f"{topic.name}'s life"

    async def spans(self, topic: Topic) -> Mapping[int, Span]:
        """See the port."""
        return {lane: Span(0, len(self._records[topic.name, lane])) for lane in range(self.lanes)}

    async def committed(self, group: str, topic: Topic) -> Mapping[int, int]:
        """See the port."""
        return self._committed[group, topic.name]

    def at(self, reader: FakeReader, lane: int) -> Logged | None:
        """The record where a reader stands in a lane."""
        there = self._records[reader.topic.name, lane]
        position = reader.positions[lane]
        return there[position] if position < len(there) else None


class FakeReader:
    """Gives one record at a time, of the lanes in turn."""

    def __init__(
        self,
        log: FakeLog,
        topic: Topic,
        group: str,
        on_assigned: LanesChanged,
        on_revoked: LanesChanged,
    ) -> None:
        self.topic, self.group = topic, group
        self.positions: dict[int, int] = {}
        self.woken = asyncio.Event()
        self._log, self._on_assigned, self._on_revoked = log, on_assigned, on_revoked

    @property
    def read(self) -> int:
        """How many records it has given."""
        return sum(self.positions.values())

    def revoke(self, *lanes: int) -> None:
        """Take lanes away."""
        for lane in lanes:
            self.positions.pop(lane)
        self._on_revoked(self.topic, lanes)

    def assign(self, *lanes: int) -> None:
        """Give lanes, from where the group committed."""
        committed = self._log._committed[self.group, self.topic.name]
        self.positions |= {lane: committed.get(lane, 0) for lane in lanes}
        self._on_assigned(self.topic, lanes)

    async def batch(self, *, records_max: int, wait_ms: int) -> Batch | None:
        """See the port."""
        self._log.check("read")
        # A turn of the loop at least, as a real reader's.
        await asyncio.sleep(0)
        for lane in sorted(self.positions, key=self.positions.__getitem__):
            if (logged := self._log.at(self, lane)) is not None:
                self.positions[lane] += 1
                return Batch(self.topic, lane, [logged])
        self.woken.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.woken.wait(), wait_ms / 1000)
        return None

    async def commit(self, topic: Topic, lane: int, next_offset: int) -> None:
        """See the port."""
        self._log.check("commit")
        assert lane in self.positions, "commits a lane that it does not have"
        self._log._committed[self.group, topic.name][lane] = next_offset
        self._log.events.append(("commit", lane, next_offset))

    async def __aenter__(self) -> Self:
        self.assign(*range(self._log.lanes))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._log.readers.remove(self)


class Target:
    """A sink's other end: notes (offset, times of the rows) and can be slow, away or picky."""

    def __init__(self, log: FakeLog) -> None:
        self._log = log
        self.rows: set[tuple[int, int]] = set()
        """(series, ts_ms) of everything that was written."""
        self.writes: list[list[int]] = []
        """Offsets of each write that was tried."""
        self.failures: list[Exception] = []
        """Raised one after the other by the next writes."""
        self.bad: set[int] = set()
        """Times of rows that can never be written."""
        self.error: type[Exception] = ValueError
        self.ticks = False
        """Whether ticks are passed over, as the table of the samples does."""
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, store: Store, records: Sequence[Logged]) -> None:
        """The sink's `write`."""
        self.writes.append([logged.offset for logged in records])
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        rows: set[tuple[int, int]] = set()
        for logged in records:
            assert isinstance(logged.envelope, Envelope)
            block = logged.envelope.record
            if self.ticks and isinstance(block, Tick):
                continue
            if not isinstance(block, Block):
                raise self.error("no block")
            rows |= set(zip(block.series, block.ts_ms, strict=True))
        if any(ts_ms in self.bad for _, ts_ms in rows):
            raise self.error("a bad row")
        self.rows |= rows
        self._log.events.append(("write", *(logged.offset for logged in records)))
