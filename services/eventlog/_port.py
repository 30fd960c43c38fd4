"""The durable, partitioned log that everything hangs on: what its drivers promise, written once.

*Durable.* `append` returns, and `put` calls back without an error, only when the record survives a
`kill -9` of every process and, as far as the disk is honest, a power cut (SQLite: commit with
synchronous=FULL; Kafka: acks=all, idempotent producer). An error means *unknown*: the record may or
may not be on the log; appending it again must be harmless, and is (versions).

*Order.* Records of one lane are read in the order of their offsets; what one caller puts into a
lane in some order lies there in that order. Between lanes there is none. Offsets of a lane grow;
they need not be dense where a reader starts, and are dense from there on.

*Coalescing.* While a lane's last append is not acknowledged, joinable records that arrive for it
become one record with several entries, of at most BLOCK_ROWS_MAX rows and BLOCK_BYTES_MAX bytes. An
idle lane appends at once.

*Groups.* A reader with a group shares the lanes with the group's other readers and goes on where
the group committed; a committed offset is always the next one to read. A reader without a group
gets every lane, from where it says. Delivery is at least once: after a crash, records are read
again.

*Bounds.* `queued_bytes` counts what waits; above `queued_bytes_max` `put` and `append` raise
Unavailable at once.

*Epoch.* `incarnation` names this life of a topic's lanes: it changes exactly when they are made
anew. What a group committed counts for the life in which it was read, and for no other. An open log
keeps to the life of a topic that it met first: when another one has taken its place, readers'
`batch` and `commit`, `spans`, `committed` and `incarnation` raise Broken within some seconds, so
that no place is carried over from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self

from schemas.envelope import Envelope, Logged, Outgoing
from schemas.topics import Topic

Done = Callable[[Exception | None, int], None]
"""Called once in the loop's thread: with None and the record's offset when it is durable, else with
Unavailable and -1.
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of one lane."""

    topic: Topic
    lane: int
    records: Sequence[Logged]

    @property
    def next_offset(self) -> int:
        """The offset behind the batch: what to commit when its effects are durable."""
        return self.records[-1].offset + 1


class Start(Enum):
    """Where a reader begins in a lane for which nothing else says it."""

    BEGINNING = "beginning"
    END = "end"


@dataclass(frozen=True, slots=True)
class Span:
    """What a lane holds: offsets from `begin` (inclusive) to `end` (exclusive, the next to be
    written).
    """

    begin: int
    end: int


class Reader(Protocol):
    """Reads lanes of some topics. An async context manager; one task uses it at a time."""

    async def batch(self, *, records_max: int = 500, wait_ms: int = 1000) -> Batch | None:
        """The next records of one lane; None if nothing came in `wait_ms`. Lanes take turns. Raises
        Unavailable.
        """
        ...

    def seek(self, topic: Topic, lane: int, offset: int) -> None:
        """Read on from `offset` (the log's beginning where that is later), whatever was committed
        or fetched.
        """
        ...

    def pause(self, topic: Topic, lane: int) -> None:
        """Give no batches of the lane until `resume`."""
        ...

    def resume(self, topic: Topic, lane: int) -> None:
        """End a `pause`."""
        ...

    async def commit(self, topic: Topic, lane: int, next_offset: int) -> None:
        """For the group: everything before `next_offset` is done. Raises Unavailable."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


LanesChanged = Callable[[Topic, Sequence[int]], None]


class EventLog(Protocol):
    """See the module's text for the guarantees. An async context manager."""

    lanes: int
    """The installation's number of lanes, fixed when the log was made."""

    @property
    def queued_bytes(self) -> int:
        """Bytes of everything that was put and is neither durable nor failed."""
        ...

    @property
    def queued_bytes_max(self) -> int:
        """Above it `put` and `append` raise Unavailable."""
        ...

    def put(self, topic: Topic, lane: int, envelope: Envelope, done: Done) -> None:
        """Hand a record over; `done` is called when it is durable or has failed. Raises Unavailable
        if the queue is full.

        The envelope and its block belong to the log from here on: the caller must not change them,
        the log may keep them, and does not change them either.
        """
        ...

    async def append(self, out: Sequence[Outgoing]) -> list[int]:
        """Append (topic, lane, record) triples; their offsets when *all* are durable. Raises
        Unavailable: outcome unknown.
        """
        ...

    def reader(
        self,
        topics: Sequence[Topic],
        *,
        group: str | None = None,
        start: Start | Mapping[int, int] = Start.BEGINNING,
        lanes: Sequence[int] | None = None,
        on_assigned: LanesChanged | None = None,
        on_revoked: LanesChanged | None = None,
    ) -> Reader:
        """A reader; `start` counts where the group has committed nothing, and for readers without a
        group.

        A mapping gives the first offset of each lane (of the one topic). `lanes` restricts a reader
        without a group. The callbacks tell which lanes this reader was given and has lost (readers
        with a group), before any of their batches and after the last one.
        """
        ...

    async def spans(self, topic: Topic) -> Mapping[int, Span]:
        """What each lane of the topic holds now. Raises Unavailable."""
        ...

    async def committed(self, group: str, topic: Topic) -> Mapping[int, int]:
        """The group's next offset for each lane it has committed. Raises Unavailable."""
        ...

    async def checkpoint(
        self, agent: str, lane: int, slot: int, state: bytes, offset: int, epoch: int
    ) -> None:
        """Keep a piece of an agent's lane state with the last offset it covers. The caller has its
        outputs durable before.
        """
        ...

    async def checkpoints(
        self, agent: str, lanes: Sequence[int]
    ) -> Mapping[tuple[int, int], tuple[bytes, int, int]]:
        """(lane, slot) to (state, offset, epoch): what was kept last of each. Raises
        Unavailable.
        """
        ...

    async def incarnation(self, topic: Topic) -> str:
        """The unique name of the life of the topic that this log keeps to. Raises Unavailable."""
        ...

    async def create(self, topics: Sequence[Topic]) -> None:
        """Make the topics that are not there yet; raises Broken where one has another number of
        lanes.
        """
        ...

    async def trim(self, now_ms: int) -> int:
        """Apply retention where the engine does not do it itself; returns how many records went."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...
