"""Between whoever appends and the log's driver: what waits for a lane becomes few, large records.

Nobody waits on purpose. A driver takes what is there when it can write; while it writes, more
gathers. So an idle lane appends at once and a busy one appends blocks that grow with the load.

`put` only notes the record, in a queue that one other thread may empty, because it is called once
for every request; lanes are told apart and records joined when the driver takes them, all parts of
a record in one go.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from struct import error as StructError
from typing import NamedTuple

from schemas.blocks import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block
from schemas.envelope import Entry, Envelope, Headers, Receipts, encode, joinable
from schemas.topics import Topic
from services.errors import Broken, Unavailable
from services.eventlog._port import Done

LaneKey = tuple[str, int]
"""A topic's name and a lane."""


class Part(NamedTuple):
    """One call of `put`: what came, how large it is, when (monotonic ms), and who wants to know."""

    topic: Topic
    lane: int
    envelope: Envelope
    done: Done
    rows: int
    bytes: int
    at_ms: float


@dataclass(slots=True)
class Gathered:
    """What becomes one record of a lane: the parts in their order, at least one."""

    parts: Sequence[Part]
    bytes: int

    @property
    def topic(self) -> Topic:
        return self.parts[0].topic

    @property
    def lane(self) -> int:
        return self.parts[0].lane

    def envelope(self) -> Envelope:
        """The record: the part's own envelope if there is one part, else a new one. Any thread may
        ask.
        """
        if len(self.parts) == 1:
            return self.parts[0].envelope
        return _joined([part.envelope for part in self.parts])


class Encoded(NamedTuple):
    """A record as it goes to the log, with the envelope that readers of this process may get."""

    gathered: Gathered
    envelope: Envelope
    value: bytes
    headers: Headers


class Coalescer:
    """What waits, by lane. `put` and `settle` belong to the loop's thread, `take` to the driver's
    writing one; they may be different threads.
    """

    def __init__(self, queued_bytes_max: int, now_ms: Callable[[], float]) -> None:
        self.queued_bytes = 0
        """Of everything that was put and is not settled."""
        self.queued_bytes_max = queued_bytes_max
        self._now_ms = now_ms
        self._incoming: deque[Part] = deque()
        self._waiting: dict[LaneKey, deque[Part]] = {}

    @property
    def waits(self) -> bool:
        """Whether `take` may give something."""
        return bool(self._incoming or self._waiting)

    def put(self, topic: Topic, lane: int, envelope: Envelope, done: Done) -> None:
        """Note a record. Raises Unavailable if the queue is full, Broken if the record can never go
        in (`Block.pieces` cuts a block).
        """
        rows, size = _measured(envelope)
        queued = self.queued_bytes + size
        if queued > self.queued_bytes_max:
            raise Unavailable("the queue to the event log is full")
        self.queued_bytes = queued
        self._incoming.append(Part(topic, lane, envelope, done, rows, size, self._now_ms()))

    def check(self, envelopes: Sequence[Envelope]) -> None:
        """Raise what `put` would raise for one of these, before the first of them is put."""
        size = sum(_measured(envelope)[1] for envelope in envelopes)
        if self.queued_bytes + size > self.queued_bytes_max:
            raise Unavailable("the queue to the event log is full")

    def take(
        self, *, bytes_max: int, each_max: int, skip: Collection[LaneKey] = ()
    ) -> list[Gathered]:
        """The next records, at most `each_max` of a lane and about `bytes_max` in all; lanes take
        turns, those in `skip` are left out.
        """
        self._sort()
        taken: list[Gathered] = []
        size, waiting = 0, self._waiting
        turns = [key for key in waiting if key not in skip]
        for _ in range(each_max):
            again = []
            for key in turns:
                if size >= bytes_max:
                    return taken
                # The lane goes to the end of the dictionary: the next call begins with another.
                parts = waiting.pop(key)
                gathered = _gather(parts)
                taken.append(gathered)
                size += gathered.bytes
                if parts:
                    waiting[key] = parts
                    again.append(key)
            turns = again
            if not turns:
                break
        return taken

    def settle(self, gathered: Gathered) -> None:
        """The record is durable or has failed: its bytes do not wait any more."""
        self.queued_bytes -= gathered.bytes

    def _sort(self) -> None:
        incoming, waiting = self._incoming, self._waiting
        for _ in range(len(incoming)):
            part = incoming.popleft()
            key = (part.topic.name, part.lane)
            parts = waiting.get(key)
            if parts is None:
                waiting[key] = deque((part,))
            else:
                parts.append(part)


class Waiting:
    """One `append`: its offsets come one by one, its future ends with the last of them."""

    __slots__ = ("_error", "_left", "_offsets", "future")

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._offsets = [-1] * count
        self._left = count
        self._error: Exception | None = None
        if not count:
            self.future.set_result([])

    def done_of(self, index: int) -> Done:
        """What to call for the record at `index`."""

        def done(error: Exception | None, offset: int) -> None:
            self._offsets[index] = offset
            self._error = self._error or error
            self._left -= 1
            if self._left or self.future.done():
                return
            if self._error is not None:
                self.future.set_exception(self._error)
            else:
                self.future.set_result(self._offsets)

        return done


def encoded(
    taken: Sequence[Gathered],
) -> tuple[list[Encoded], list[tuple[Gathered, Exception]]]:
    """Records as bytes, and those that cannot become bytes (a text that is no Unicode) with the
    reason.

    What was joined with a bad one goes on without it: a record is only as good as its parts.
    """
    good: list[Encoded] = []
    bad: list[tuple[Gathered, Exception]] = []
    for gathered in taken:
        try:
            envelope = gathered.envelope()
            good.append(Encoded(gathered, envelope, *encode(envelope)))
        except (ValueError, TypeError, OverflowError, StructError) as error:
            if len(gathered.parts) == 1:
                bad.append((gathered, Broken(f"a record cannot be encoded: {error}")))
                continue
            alone = [Gathered((part,), part.bytes) for part in gathered.parts]
            more_good, more_bad = encoded(alone)
            good += more_good
            bad += more_bad
    return good, bad


def _measured(envelope: Envelope) -> tuple[int, int]:
    """Rows and bytes of a record."""
    record = envelope.record
    size = envelope.bytes_estimate
    if isinstance(record, Block):
        rows = len(record)
        if rows > BLOCK_ROWS_MAX or record.bytes_estimate > BLOCK_BYTES_MAX:
            raise Broken(f"a block of {rows} rows and {size} bytes does not fit into one record")
        return rows, size
    if size > BLOCK_BYTES_MAX:
        raise Broken(f"a record of {size} bytes is too large for the event log")
    return 1, size


def _gather(waiting: deque[Part]) -> Gathered:
    """The first record of a lane: as many of its parts as belong together."""
    first = waiting.popleft()
    parts, rows, size = [first], first.rows, first.bytes
    if not joinable(first.envelope.record):
        return Gathered(parts, size)
    while waiting:
        part = waiting[0]
        rows += part.rows
        if rows > BLOCK_ROWS_MAX or size + part.bytes > BLOCK_BYTES_MAX:
            break
        if not _alike(first.envelope, part.envelope):
            break
        size += part.bytes
        parts.append(waiting.popleft())
    return Gathered(parts, size)


def _alike(first: Envelope, second: Envelope) -> bool:
    """Whether two records may become one: what holds for the whole record must be the same."""
    ours, theirs = first.record, second.record
    if type(ours) is not type(theirs) or first.epoch != second.epoch or first.key != second.key:
        return False
    if isinstance(ours, Block) and isinstance(theirs, Block):
        return bool(ours.version) == bool(theirs.version)
    return True


def _joined(envelopes: Sequence[Envelope]) -> Envelope:
    """What `schemas.envelope.join` makes of them two by two, in one go and without touching any."""
    first = envelopes[0]
    if isinstance(first.record, Receipts):
        lists = [e.record.items for e in envelopes if isinstance(e.record, Receipts)]
        record = Receipts(tuple(chain.from_iterable(lists)))
        return Envelope(record, first.entries, first.key, first.received, first.epoch)
    blocks, entries, start = [], list[Entry](), 0
    for envelope in envelopes:
        if isinstance(envelope.record, Block):
            if start and envelope.entries:
                entries += [replace(e, start=e.start + start) for e in envelope.entries]
            else:
                entries += envelope.entries
            blocks.append(envelope.record)
            start += len(envelope.record)
    received = max(envelope.received for envelope in envelopes)
    return Envelope(Block.join(blocks), tuple(entries), first.key, received, first.epoch)
