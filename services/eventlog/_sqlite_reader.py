"""Readers of the embedded log: lanes in turn, woken by the commit, from memory or from the file.

All readers live in the process that writes. So a group's lanes are shared here, by plain counting,
and what is committed is known without asking the file.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from schemas.envelope import Logged
from schemas.topics import Topic
from services.errors import Broken
from services.eventlog._coalesce import LaneKey
from services.eventlog._port import Batch, LanesChanged, Start


@dataclass(slots=True, eq=False)
class Lane:
    """A lane as the loop's thread knows it: durable records lie from `begin` to `end`."""

    topic: Topic
    number: int
    base: int
    begin: int
    end: int
    followers: set[LaneReader] = field(default_factory=set)

    @property
    def key(self) -> LaneKey:
        return (self.topic.name, self.number)


@dataclass(slots=True, eq=False)
class _Held:
    """A lane in a reader's hand: the next offset to give."""

    lane: Lane
    position: int
    paused: bool = False
    moved: int = 0
    """Counts seeks, so that what was fetched before one is not given after it."""

    @property
    def ready(self) -> bool:
        return not self.paused and self.position < self.lane.end


Fetch = Callable[[Lane, int, int], Awaitable[Sequence[Logged]]]
"""Records of a lane from an offset on, at most so many; none where there are none any more."""


class LaneReader:
    """The log's `Reader`."""

    def __init__(
        self,
        readers: Readers,
        topics: Sequence[Topic],
        *,
        group: str | None,
        start: Start | Mapping[int, int],
        lanes: Sequence[int] | None,
        on_assigned: LanesChanged | None,
        on_revoked: LanesChanged | None,
    ) -> None:
        if isinstance(start, Mapping) and len(topics) != 1:
            raise Broken("a reader that starts at a mapping of lanes reads one topic")
        if group is not None and lanes is not None:
            raise Broken("a reader with a group shares all lanes; it cannot choose some")
        self.topics, self.group = tuple(topics), group
        self._readers, self._start, self._lanes = readers, start, lanes
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._held: dict[LaneKey, _Held] = {}
        self._turns: deque[_Held] = deque()
        self._waiter: asyncio.Future[None] | None = None

    # -- the port ----------------------------------------------------------------------------------

    async def batch(self, *, records_max: int = 500, wait_ms: int = 1000) -> Batch | None:
        """The next records of one lane; None if nothing came in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_ms / 1000
        # A reader that finds something each time would otherwise never let go of the loop.
        await asyncio.sleep(0)
        while True:
            self._readers.check()
            while (held := self._next_ready()) is not None:
                if (batch := await self._fetch(held, records_max)) is not None:
                    return batch
            left = deadline - loop.time()
            if left <= 0:
                return None
            await self._wait(loop, left)

    def seek(self, topic: Topic, lane: int, offset: int) -> None:
        """Read on from `offset`; without effect on a lane that this reader does not hold (any
        more).
        """
        held = self._held.get((topic.name, lane))
        if held is not None:
            held.position = offset
            held.moved += 1
            self.wake()

    def pause(self, topic: Topic, lane: int) -> None:
        """Give no batches of the lane until `resume`."""
        held = self._held.get((topic.name, lane))
        if held is not None:
            held.paused = True

    def resume(self, topic: Topic, lane: int) -> None:
        """End a `pause`."""
        held = self._held.get((topic.name, lane))
        if held is not None:
            held.paused = False
            self.wake()

    async def commit(self, topic: Topic, lane: int, next_offset: int) -> None:
        """For the group: everything before `next_offset` is done."""
        if self.group is None:
            raise Broken("a reader without a group has nothing to commit for")
        await self._readers.commit(self.group, topic, lane, next_offset)

    async def __aenter__(self) -> Self:
        self._readers.check()
        self._readers.join(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._readers.leave(self)

    # -- lanes come and go -------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: a waiting `batch` shall look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def lanes(self) -> dict[LaneKey, Lane]:
        """The lanes in hand."""
        return {key: held.lane for key, held in self._held.items()}

    def wanted(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Those that a reader without a group reads."""
        return [lane for lane in lanes if self._lanes is None or lane.number in self._lanes]

    def take(self, lanes: Sequence[Lane], committed: Mapping[LaneKey, int]) -> None:
        """These lanes are this reader's from now on."""
        for lane in lanes:
            position = committed.get(lane.key)
            if position is None:
                position = self._first(lane)
            held = self._held[lane.key] = _Held(lane, position)
            self._turns.append(held)
            lane.followers.add(self)
        self._tell(self._on_assigned, lanes)
        self.wake()

    def lose(self, lanes: Sequence[Lane]) -> None:
        """These lanes are not this reader's any more."""
        for lane in lanes:
            self._turns.remove(self._held.pop(lane.key))
            lane.followers.discard(self)
        self._tell(self._on_revoked, lanes)

    def _first(self, lane: Lane) -> int:
        if isinstance(self._start, Mapping):
            return self._start.get(lane.number, lane.begin)
        return lane.begin if self._start is Start.BEGINNING else lane.end

    def _tell(self, callback: LanesChanged | None, lanes: Sequence[Lane]) -> None:
        if callback is None:
            return
        for topic in self.topics:
            numbers = [lane.number for lane in lanes if lane.topic.name == topic.name]
            if numbers:
                callback(topic, numbers)

    # -- records -----------------------------------------------------------------------------------

    def _next_ready(self) -> _Held | None:
        turns = self._turns
        for _ in range(len(turns)):
            held = turns[0]
            turns.rotate(-1)
            if held.ready:
                return held
        return None

    async def _fetch(self, held: _Held, records_max: int) -> Batch | None:
        lane, moved = held.lane, held.moved
        offset = held.position = max(held.position, lane.begin)
        if not held.ready:
            return None
        end = lane.end
        records = await self._readers.fetch(lane, offset, records_max)
        # While the file was read, the lane may have been lost, sought or paused.
        gone = self._held.get(lane.key) is not held
        if gone or held.paused or held.moved != moved:
            return None
        if not records:
            # Compaction or retention has taken all that lay there.
            held.position = end
            return None
        held.position = records[-1].offset + 1
        return Batch(lane.topic, lane.number, records)

    async def _wait(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None


class Readers:
    """Every open reader of a log, and how the readers of a group share lanes.

    `lanes` gives a topic's lanes (Broken if it was not created), `fetch` and `commit` do what they
    say, `check` raises where the log is closed.
    """

    def __init__(
        self,
        *,
        lanes: Callable[[Topic], Sequence[Lane]],
        committed: Callable[[str], Mapping[LaneKey, int]],
        fetch: Fetch,
        commit: Callable[[str, Topic, int, int], Awaitable[None]],
        check: Callable[[], None],
    ) -> None:
        self.fetch, self.commit, self.check = fetch, commit, check
        self._lanes, self._committed = lanes, committed
        self._open: list[LaneReader] = []

    @property
    def groups(self) -> set[str]:
        """Groups with an open reader."""
        return {reader.group for reader in self._open if reader.group is not None}

    def reads(self, group: str, lane: Lane) -> bool:
        """Whether an open reader of the group reads the lane."""
        return any(reader.group == group for reader in lane.followers)

    def wake(self) -> None:
        """All readers shall look again."""
        for reader in self._open:
            reader.wake()

    def join(self, reader: LaneReader) -> None:
        """A reader begins."""
        lanes = [lane for topic in reader.topics for lane in self._lanes(topic)]
        self._open.append(reader)
        if reader.group is None:
            reader.take(reader.wanted(lanes), {})
        else:
            self._share(reader.group)

    def leave(self, reader: LaneReader) -> None:
        """A reader ends."""
        self._open.remove(reader)
        reader.lose(list(reader.lanes.values()))
        if reader.group is not None:
            self._share(reader.group)

    def _share(self, group: str) -> None:
        """Lane by lane to the group's readers in the order in which they came; who loses a lane
        hears of it before another gets it.
        """
        members = [reader for reader in self._open if reader.group == group]
        shares: dict[LaneReader, list[Lane]] = {reader: [] for reader in members}
        for topic in {topic.name: topic for m in members for topic in m.topics}.values():
            subscribed = [m for m in members if any(t.name == topic.name for t in m.topics)]
            for lane in self._lanes(topic):
                shares[subscribed[lane.number % len(subscribed)]].append(lane)
        for reader, share in shares.items():
            lost = [lane for lane in reader.lanes.values() if lane not in share]
            if lost:
                reader.lose(lost)
        for reader, share in shares.items():
            gained = [lane for lane in share if lane.key not in reader.lanes]
            if gained:
                reader.take(gained, self._committed(group))
