"""The event log on Apache Kafka, through aiokafka: for more than one machine.

One record of a lane is on its way at a time, so that what arrives meanwhile becomes the next one
and a lane's order is kept whatever the producer does. What Kafka does not confirm in time has an
unknown outcome, and whoever waits is told so; the log itself goes on when Kafka is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from schemas.envelope import Envelope, Outgoing
from schemas.topics import CHECKPOINTS, TOPICS, Topic
from services import metrics
from services.clock import SystemClock
from services.errors import Broken, Unavailable
from services.eventlog import _kafka_admin, _kafka_noise
from services.eventlog._coalesce import Coalescer, Encoded, Gathered, LaneKey, Waiting, encoded
from services.eventlog._kafka_lives import Lives
from services.eventlog._kafka_producer import Producer, Record
from services.eventlog._kafka_reader import KafkaReader
from services.eventlog._port import Done, LanesChanged, Reader, Span, Start

_TAKE_BYTES_MAX = 8 << 20
_LANE_RECORDS_MAX = 64
"""Of one turn of a lane. Records with keys are not joined, and would otherwise go one a turn."""
_CLOSE_SECONDS_MAX = 5
_CHECKPOINT_SECONDS_MAX = 10
"""Longest pause between two checkpoints that are read, before the reading begins anew."""

_logger = logging.getLogger(__name__)


class KafkaLog:
    """See `EventLog` for the guarantees. `brokers` is host:port, comma-separated."""

    def __init__(
        self, brokers: str, *, lanes: int, prefix: str = "", queued_bytes_max: int = 64 << 20
    ) -> None:
        self.lanes = lanes
        self._brokers = [broker for broker in brokers.strip("/").split(",") if broker]
        self._prefix = prefix
        self._clock = SystemClock()
        self._coalescer = Coalescer(queued_bytes_max, self._clock.monotonic_ms)
        self._open: set[LaneKey] = set()
        self._sending: set[asyncio.Task[None]] = set()
        self._pumping = False
        self._closed = True
        self._producer = Producer(self._brokers)
        self._lives = Lives(self._describe)

    @property
    def queued_bytes(self) -> int:
        """Of everything that was put and is neither durable nor failed."""
        return self._coalescer.queued_bytes

    @property
    def queued_bytes_max(self) -> int:
        """Above this `put` and `append` raise."""
        return self._coalescer.queued_bytes_max

    # -- writing

    def put(self, topic: Topic, lane: int, envelope: Envelope, done: Done) -> None:
        """Hand a record over. `done` must not raise."""
        if self._closed:
            raise Unavailable("the event log is not open")
        if not 0 <= lane < topic.lane_count(self.lanes):
            raise Broken(f"{topic.name} has no lane {lane}")
        self._coalescer.put(topic, lane, envelope, done)
        self._nudge()

    async def append(self, out: Sequence[Outgoing]) -> list[int]:
        """Append (topic, lane, record) triples; their offsets when all are durable."""
        if len(out) > 1:
            self._coalescer.check([envelope for _, _, envelope in out])
        waiting = Waiting(len(out))
        for index, (topic, lane, envelope) in enumerate(out):
            self.put(topic, lane, envelope, waiting.done_of(index))
        return await waiting.future

    def _nudge(self) -> None:
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Send what waits for every lane that has nothing under way."""
        self._pumping = False
        taken = self._coalescer.take(
            bytes_max=_TAKE_BYTES_MAX, each_max=_LANE_RECORDS_MAX, skip=self._open
        )
        good, bad = encoded(taken)
        for gathered, error in bad:
            self._settle(gathered, error, -1)
        lanes: dict[LaneKey, list[Encoded]] = {}
        for record in good:
            lane = (record.gathered.topic.name, record.gathered.lane)
            lanes.setdefault(lane, []).append(record)
        for lane, records in lanes.items():
            self._open.add(lane)
            task = asyncio.create_task(self._send(lane, records))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        metrics.LOG_QUEUED_BYTES.set(self._coalescer.queued_bytes)

    async def _send(self, key: LaneKey, records: Sequence[Encoded]) -> None:
        name, lane = key
        closed = Unavailable("the event log was closed")
        outcomes: Sequence[int | Exception] = [closed] * len(records)
        try:
            outcomes = await self._producer.send(
                self._prefix + name,
                lane,
                [Record(r.value, r.envelope.key, r.headers) for r in records],
            )
        finally:
            self._open.discard(key)
            for record, outcome in zip(records, outcomes, strict=True):
                if isinstance(outcome, int):
                    self._count(record)
                    self._settle(record.gathered, None, outcome)
                else:
                    self._settle(record.gathered, outcome, -1)
        if self._coalescer.waits:
            self._nudge()

    def _count(self, record: Encoded) -> None:
        name = record.gathered.topic.name
        metrics.LOG_APPENDS.labels(name).inc()
        metrics.LOG_BYTES.labels(name).inc(len(record.value))
        waited_ms = self._clock.monotonic_ms() - record.gathered.parts[0].at_ms
        metrics.LOG_SECONDS.observe(waited_ms / 1000)

    def _settle(self, gathered: Gathered, error: Exception | None, offset: int) -> None:
        self._coalescer.settle(gathered)
        if error is not None:
            metrics.LOG_ERRORS.inc()
        for part in gathered.parts:
            part.done(error, offset)

    # -- reading

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
        """A reader; Kafka shares the lanes between the members of a group, in all processes."""
        return KafkaReader(
            self._brokers,
            {self._prefix + topic.name: topic for topic in topics},
            {self._prefix + topic.name: topic.lane_count(self.lanes) for topic in topics},
            lives=self._lives,
            committed=lambda: _kafka_admin.committed(self._admin, f"{self._prefix}{group}"),
            group=None if group is None else self._prefix + group,
            start=start,
            lanes=lanes,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
        )

    async def spans(self, topic: Topic) -> Mapping[int, Span]:
        """What each lane of the topic holds now."""
        await self._lives.meet([self._prefix + topic.name])
        partitions = self._partitions(topic, range(topic.lane_count(self.lanes)))
        try:
            begins = await self._asker.beginning_offsets(partitions)
            ends = await self._asker.end_offsets(partitions)
        except (KafkaError, TimeoutError) as error:
            raise Unavailable(f"Kafka does not tell its offsets: {error!r}") from error
        return {p.partition: Span(begins[p], ends[p]) for p in partitions}

    async def committed(self, group: str, topic: Topic) -> Mapping[int, int]:
        """The group's next offset for each lane it has committed."""
        name = self._prefix + topic.name
        await self._lives.meet([name])
        offsets = await _kafka_admin.committed(self._admin, self._prefix + group)
        return {
            partition.partition: found.offset
            for partition, found in offsets.items()
            if partition.topic == name and self._lives.counts(name, found.metadata)
        }

    # -- checkpoints

    async def checkpoint(
        self, agent: str, lane: int, slot: int, state: bytes, offset: int, epoch: int
    ) -> None:
        """Keep a piece of an agent's lane state on the compacted topic `checkpoints`."""
        headers = [("offset", b"%d" % offset), ("epoch", b"%d" % epoch)]
        key = f"{agent}/{slot}".encode()
        record = Record(state, key, headers)
        outcomes = await self._producer.send(self._prefix + CHECKPOINTS.name, lane, [record])
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def checkpoints(
        self, agent: str, lanes: Sequence[int]
    ) -> Mapping[tuple[int, int], tuple[bytes, int, int]]:
        """(lane, slot) to (state, offset, epoch): the last of each."""
        found: dict[tuple[int, int], tuple[bytes, int, int]] = {}
        spans = await self.spans(CHECKPOINTS)
        missing = {lane: spans[lane].end for lane in lanes if spans[lane].end > spans[lane].begin}
        if not missing:
            return found
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._brokers, auto_offset_reset="earliest", fetch_max_wait_ms=20
        )
        try:
            await consumer.start()
            partitions = self._partitions(CHECKPOINTS, list(missing))
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            while missing:
                async with asyncio.timeout(_CHECKPOINT_SECONDS_MAX):
                    fetched = await _some(consumer)
                for record in (record for records in fetched.values() for record in records):
                    _note(found, agent, record)
                for partition in partitions:
                    end = missing.get(partition.partition)
                    if end is not None and await consumer.position(partition) >= end:
                        del missing[partition.partition]
        except (KafkaError, TimeoutError) as error:
            raise Unavailable(f"checkpoints cannot be read: {error!r}") from error
        finally:
            await _end(consumer)
        return found

    # -- topics

    async def incarnation(self, topic: Topic) -> str:
        """Kafka's id of this life of the topic."""
        name = self._prefix + topic.name
        await self._lives.meet([name])
        if not (life := self._lives.of(name)):
            raise Unavailable(f"{name} does not exist (yet): run `lineshaft migrate`")
        return life

    async def _describe(self, names: Sequence[str]) -> Mapping[str, _kafka_admin.Described]:
        return await _kafka_admin.describe(self._admin, names)

    async def create(self, topics: Sequence[Topic]) -> None:
        """Make the topics that are not there yet."""
        wanted = {
            self._prefix + topic.name: (topic, topic.lane_count(self.lanes)) for topic in topics
        }
        there = await self._describe(list(wanted))
        missing = {name: made for name, made in wanted.items() if name not in there}
        if missing:
            await _kafka_admin.create(self._admin, missing)
            there = await self._appeared(list(wanted))
        for name, (_, count) in wanted.items():
            if there[name].partitions != count:
                raise Broken(
                    f"{name} has {there[name].partitions} partitions, {count} lanes are wanted"
                )

    async def _appeared(self, names: Sequence[str]) -> Mapping[str, _kafka_admin.Described]:
        """The topics, once all brokers know of them. Raises Unavailable where that takes long."""
        try:
            async with asyncio.timeout(30):
                while len(there := await self._describe(names)) < len(names):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise Unavailable("Kafka does not show topics that it made") from None
        return there

    async def trim(self, now_ms: int) -> int:
        """Kafka applies retention itself."""
        return 0

    def _partitions(self, topic: Topic, lanes: Sequence[int]) -> list[TopicPartition]:
        return [TopicPartition(self._prefix + topic.name, lane) for lane in lanes]

    # -- life

    async def __aenter__(self) -> Self:
        _kafka_noise.bound()
        self._admin = AIOKafkaAdminClient(
            bootstrap_servers=self._brokers, request_timeout_ms=10_000
        )
        self._asker = AIOKafkaConsumer(bootstrap_servers=self._brokers, request_timeout_ms=10_000)
        try:
            for part in (self._admin, self._asker, self._producer):
                await part.start()
            await self._check_lanes()
        except KafkaError as error:
            await self._close()
            raise Unavailable(f"Kafka at {','.join(self._brokers)} is away: {error!r}") from error
        except (Unavailable, Broken):
            await self._close()
            raise
        self._lives.start()
        self._closed = False
        return self

    async def _check_lanes(self) -> None:
        """Topics that are there must have the installation's number of lanes."""
        names = {self._prefix + topic.name: topic for topic in TOPICS}
        for name, found in (await self._describe(list(names))).items():
            count = names[name].lane_count(self.lanes)
            if found.partitions != count:
                raise Broken(f"{name} has {found.partitions} partitions, {count} lanes are wanted")

    async def __aexit__(self, *_: object) -> None:
        deadline = self._clock.monotonic_ms() + _CLOSE_SECONDS_MAX * 1000
        while self._sending or self._coalescer.waits:
            if self._clock.monotonic_ms() > deadline:
                break
            await asyncio.sleep(0.01)
        self._closed = True
        self._lives.close()
        await self._close()

    async def _close(self) -> None:
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        closed = Unavailable("the event log was closed")
        while taken := self._coalescer.take(bytes_max=_TAKE_BYTES_MAX, each_max=1):
            for gathered in taken:
                self._settle(gathered, closed, -1)
        await self._producer.close()
        await _end(self._asker)
        await self._admin.close()


async def _some(consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]]:
    """The next records, however long they take."""
    while True:
        fetched: Mapping[TopicPartition, Sequence[Any]] = await consumer.getmany(timeout_ms=1_000)
        if fetched:
            return fetched


def _note(found: dict[tuple[int, int], tuple[bytes, int, int]], agent: str, record: Any) -> None:
    """Take one record of `checkpoints` in, if it is the agent's."""
    of, _, slot = (record.key or b"").decode(errors="replace").rpartition("/")
    headers = dict(record.headers)
    if of != agent or not slot.isdigit() or record.value is None or "offset" not in headers:
        return
    place = (record.partition, int(slot))
    found[place] = (record.value, int(headers["offset"]), int(headers.get("epoch", b"0")))


async def _end(part: Any) -> None:
    """End a client, bounded: one whose brokers are away does not end by itself."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS_MAX):
            await part.stop()
    except (TimeoutError, KafkaError) as error:
        _logger.warning("a Kafka client did not end in order: %r", error)
