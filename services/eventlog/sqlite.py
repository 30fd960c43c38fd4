"""The embedded event log: one SQLite file, written by one thread of one process. The default, and
the log of the tests.

The loop's thread holds what is needed to answer without the file: each lane's first and next
offset, what groups have committed, the newest records. The writing thread (`_sqlite_writer`) makes
things durable, two reading threads fetch what is older than memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from schemas.envelope import Envelope, Logged, Outgoing
from schemas.topics import Topic
from services.clock import Clock, SystemClock
from services.errors import Broken, Unavailable
from services.eventlog._coalesce import Coalescer, LaneKey, Waiting
from services.eventlog._port import Done, LanesChanged, Reader, Span, Start
from services.eventlog._sqlite_file import (
    CHECKPOINT,
    COMMIT,
    LANES_MAX,
    NEW_TOPIC,
    TOPICS_MAX,
    LogFile,
    Statement,
    base_of,
)
from services.eventlog._sqlite_reader import Lane, LaneReader, Readers
from services.eventlog._sqlite_retention import drop_old, drop_replaced
from services.eventlog._sqlite_writer import Answer, Job, Turn, Writer
from services.eventlog._tail import Tail
from services.metrics import LOG_APPENDS, LOG_BYTES, LOG_ERRORS, LOG_QUEUED_BYTES, LOG_SECONDS

_log = logging.getLogger(__name__)


class SqliteLog:
    """See `EventLog` for the guarantees. Spawned processes may each open a file of their own; an
    open log must not be carried across a fork.

    `tail_bytes_max` bounds the newest records in memory, `drain_ms` says how long closing waits for
    what was put. `before_commit` is called in the writing
    thread when a transaction is ready; tests let it wait, or raise OSError.
    """

    def __init__(
        self,
        path: str,
        *,
        lanes: int,
        prefix: str = "",
        queued_bytes_max: int = 64 * 1024 * 1024,
        tail_bytes_max: int = 32 * 1024 * 1024,
        drain_ms: int = 5_000,
        clock: Clock | None = None,
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        if not 1 <= lanes <= LANES_MAX:
            raise Broken(f"{lanes} lanes: there can be 1 to {LANES_MAX}")
        self.lanes = lanes
        self._drain_ms = drain_ms
        self._prefix, self._clock = prefix, clock or SystemClock()
        self._file = LogFile(path, lanes, prefix, before_commit)
        self._coalescer = Coalescer(queued_bytes_max, self._clock.monotonic_ms)
        self._tail = Tail(tail_bytes_max)
        self._lanes: dict[str, list[Lane]] = {}
        self._committed: dict[str, dict[LaneKey, int]] = {}
        self._readers = Readers(
            lanes=self._lanes_of,
            committed=lambda group: self._committed.get(group, {}),
            fetch=self._fetch,
            commit=self._commit,
            check=self._check_open,
        )
        self._closed: Exception | None = Unavailable("the event log is not open")
        self._creating = asyncio.Lock()

    @property
    def queued_bytes(self) -> int:
        """Of everything that was put and is neither durable nor failed."""
        return self._coalescer.queued_bytes

    @property
    def queued_bytes_max(self) -> int:
        """Above this `put` and `append` raise."""
        return self._coalescer.queued_bytes_max

    # -- writing -----------------------------------------------------------------------------------

    def put(self, topic: Topic, lane: int, envelope: Envelope, done: Done) -> None:
        """Hand a record over. `done` must not raise."""
        self._check_lane(topic, lane)
        self._coalescer.put(topic, lane, envelope, done)
        self._writer.nudge()

    async def append(self, out: Sequence[Outgoing]) -> list[int]:
        """Append (topic, lane, record) triples; their offsets when all are durable."""
        for topic, lane, _ in out:
            self._check_lane(topic, lane)
        if len(out) > 1:
            self._coalescer.check([envelope for _, _, envelope in out])
        waiting = Waiting(len(out))
        for index, (topic, lane, envelope) in enumerate(out):
            self.put(topic, lane, envelope, waiting.done_of(index))
        return await waiting.future

    async def checkpoint(
        self, agent: str, lane: int, slot: int, state: bytes, offset: int, epoch: int
    ) -> None:
        """Keep a piece of an agent's lane state, in the file's own table."""
        row = (self._prefix + agent, lane, slot, bytes(state), offset, epoch)
        await self._do([(CHECKPOINT, row)])

    async def _commit(self, group: str, topic: Topic, lane: int, next_offset: int) -> None:
        self._check_lane(topic, lane)
        row = (self._prefix + group, self._prefix + topic.name, lane, next_offset)
        await self._do([(COMMIT, row)])
        self._committed.setdefault(group, {})[topic.name, lane] = next_offset

    async def _do(self, statements: Sequence[Statement]) -> Sequence[int]:
        """One job of the writing thread; how many rows each statement touched."""
        self._check_open()
        future: asyncio.Future[Sequence[int]] = asyncio.get_running_loop().create_future()

        def done(error: Exception | None, touched: Sequence[int]) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(touched)

        self._writer.add(Job(statements, done))
        return await future

    # -- what the writing thread tells -------------------------------------------------------------

    def _told(self, turn: Turn) -> None:
        now_ms = self._clock.monotonic_ms()
        appends: dict[str, int] = {}
        followers: set[LaneReader] = set()
        for gathered, envelope, offset in turn.landed:
            self._coalescer.settle(gathered)
            lane = self._lanes[gathered.topic.name][gathered.lane]
            lane.end = offset + 1
            followers |= lane.followers
            self._tail.add(lane.key, offset, envelope, gathered.bytes)
            appends[gathered.topic.name] = appends.get(gathered.topic.name, 0) + 1
            LOG_SECONDS.observe((now_ms - gathered.parts[0].at_ms) / 1000)
        for gathered, _ in turn.failed:
            self._coalescer.settle(gathered)
            LOG_ERRORS.inc(len(gathered.parts))
        for name, count in appends.items():
            LOG_APPENDS.labels(name).inc(count)
            LOG_BYTES.labels(name).inc(turn.bytes[name])
        for reader in followers:
            reader.wake()
        self._answer(turn.answers())

    def _answer(self, answers: Iterator[Answer]) -> None:
        whole = False
        try:
            for done, error, result in answers:
                done(error, result)
            whole = True
        finally:
            # A callback that raises is its caller's fault; the others are told all the same.
            if not whole:
                self._loop.call_soon(self._answer, answers)

    def _found(self, spans: Mapping[LaneKey, Span]) -> None:
        """The file was opened anew after a failure; records that had failed may lie there."""
        for lanes in self._lanes.values():
            for lane in lanes:
                span = spans.get(lane.key)
                if span is not None:
                    lane.end = max(lane.end, span.end)
        self._readers.wake()

    def _ended(self, failure: Exception | None) -> None:
        if failure is not None:
            self._closed = Broken(f"the event log's writer has failed: {failure!r}")
            self._told(self._writer.abandon())
            self._readers.wake()
        if not self._end.done():
            self._end.set_result(None)

    # -- reading -----------------------------------------------------------------------------------

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
        """A reader; readers of one group share its lanes within this process."""
        return LaneReader(
            self._readers,
            topics,
            group=group,
            start=start,
            lanes=lanes,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
        )

    async def _fetch(self, lane: Lane, offset: int, records_max: int) -> Sequence[Logged]:
        found = self._tail.read(lane.key, offset, records_max)
        if found:
            return found
        records: Sequence[Logged] = await self._ask(
            self._file.read, lane.base, offset, lane.end, records_max
        )
        return records

    async def _query(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = await self._ask(self._file.query, sql, values)
        return rows

    async def _ask(self, call: Callable[..., Any], *arguments: object) -> Any:
        """A call that reads the file, in a reading thread."""
        self._check_open()
        return await self._loop.run_in_executor(self._threads, call, *arguments)

    async def spans(self, topic: Topic) -> Mapping[int, Span]:
        """What each lane of the topic holds now."""
        self._check_open()
        return {lane.number: Span(lane.begin, lane.end) for lane in self._lanes_of(topic)}

    async def committed(self, group: str, topic: Topic) -> Mapping[int, int]:
        """The group's next offset for each lane it has committed."""
        self._check_open()
        committed = self._committed.get(group, {})
        return {lane: offset for (name, lane), offset in committed.items() if name == topic.name}

    async def checkpoints(
        self, agent: str, lanes: Sequence[int]
    ) -> Mapping[tuple[int, int], tuple[bytes, int, int]]:
        """(lane, slot) to (state, offset, epoch): what was kept last of each."""
        sql = (
            "SELECT lane, slot, state, last_offset, epoch FROM checkpoints"
            " WHERE agent = ? AND lane = ?"
        )
        kept = {}
        for wanted in lanes:
            rows = await self._query(sql, (self._prefix + agent, wanted))
            for lane, slot, state, offset, epoch in rows:
                kept[lane, slot] = (state, offset, epoch)
        return kept

    # -- topics ------------------------------------------------------------------------------------

    async def incarnation(self, topic: Topic) -> str:
        """The file's own unique name and the topic's."""
        self._check_open()
        self._lanes_of(topic)
        return f"{self._file.uuid}:{topic.name}"

    async def create(self, topics: Sequence[Topic]) -> None:
        """Make the topics that are not there yet."""
        async with self._creating:
            for topic in topics:
                await self._create(topic)

    async def _create(self, topic: Topic) -> None:
        name, count = self._prefix + topic.name, topic.lane_count(self.lanes)
        known = self._file.topics.get(topic.name)
        if known is None:
            number = self._file.topics_max
            if number >= TOPICS_MAX:
                raise Broken(f"{name}: a file holds at most {TOPICS_MAX} topics")
            await self._do([(NEW_TOPIC, (number, name, count))])
            known = self._file.topics[topic.name] = (number, count)
            self._file.topics_max = number + 1
        if known[1] != count:
            raise Broken(f"{name} has {known[1]} lanes in {self._file.path}, {count} are wanted")
        lanes = self._lanes.get(topic.name)
        if lanes is None:
            self._lanes[topic.name] = [
                Lane(topic, lane, base_of(known[0], lane), span.begin, span.end)
                for lane in range(count)
                for span in [self._spans.get((topic.name, lane), Span(0, 0))]
            ]
            return
        for lane in lanes:
            lane.topic = topic

    async def trim(self, now_ms: int) -> int:
        """Apply retention and compaction; how many records went.

        What a group has not committed stays, be it old: of a group with an open reader everything.
        """
        removed = 0
        for lane in [lane for lanes in self._lanes.values() for lane in lanes]:
            if lane.topic.compacted:
                removed += await drop_replaced(lane, ask=self._query, do=self._do)
                continue
            before_ms = now_ms - lane.topic.retention_ms
            unread = self._unread(lane)
            removed += await drop_old(
                lane, before_ms=before_ms, unread=unread, ask=self._query, do=self._do
            )
        return removed

    def _unread(self, lane: Lane) -> int:
        """The lowest offset that some group may still want."""
        unread = lane.end
        for committed in self._committed.values():
            unread = min(unread, committed.get(lane.key, unread))
        for reader in lane.followers:
            if reader.group is not None:
                committed = self._committed.get(reader.group, {})
                unread = min(unread, committed.get(lane.key, lane.begin))
        return unread

    # -- life --------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _check_lane(self, topic: Topic, lane: int) -> None:
        self._check_open()
        if not 0 <= lane < len(self._lanes_of(topic)):
            raise Broken(f"{topic.name} has no lane {lane}")

    def _lanes_of(self, topic: Topic) -> list[Lane]:
        lanes = self._lanes.get(topic.name)
        if lanes is None:
            raise Broken(f"{topic.name} was not created")
        return lanes

    def _open(self) -> None:
        self._file.open()
        self._spans = self._file.spans()
        self._committed = self._file.committed()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="eventlog-reader")
        try:
            await self._loop.run_in_executor(self._threads, self._open)
        except BaseException:
            # Cancelled as well: whoever tries again must find the file's lock free.
            self._threads.shutdown()
            self._file.close()
            raise
        self._writer = Writer(
            self._file,
            self._coalescer,
            loop=self._loop,
            clock=self._clock,
            ends={key: span.end for key, span in self._spans.items()},
            told=self._told,
            found=self._found,
            ended=self._ended,
        )
        self._writer.start()
        self._closed = None
        LOG_QUEUED_BYTES.set_function(lambda: self._coalescer.queued_bytes)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._closed is None:
            self._closed = Unavailable("the event log is closed")
        self._readers.wake()
        LOG_QUEUED_BYTES.set_function(lambda: 0)
        # Reads end first: the writing thread closes the file, their connections included.
        await self._loop.run_in_executor(None, self._threads.shutdown)
        self._writer.stop()
        await asyncio.wait([self._end], timeout=self._drain_ms / 1000)
        if not self._end.done():
            _log.error("event log: the disk has not answered for %d ms", self._drain_ms)
            self._told(self._writer.abandon())
