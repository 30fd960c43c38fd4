"""Readers of the log on Kafka: a consumer each; with a group its lanes come and go by
rebalances.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata

from schemas.envelope import Envelope, Logged, decode
from schemas.topics import Topic
from services.errors import Broken, Unavailable
from services.eventlog._kafka_lives import Lives
from services.eventlog._port import Batch, LanesChanged, Start

FETCH_WAIT_MS = 20
"""A long poll for idle partitions holds back busy ones: one fetch is under way for each broker."""
_POLL_MS = 1_000
_COMMIT_SECONDS_MAX = 10
_STOP_SECONDS_MAX = 5
_PLACE_PAUSE_SECONDS = 0.5

_logger = logging.getLogger(__name__)


class KafkaReader:
    """The log's `Reader` on Kafka."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        topics: Mapping[str, Topic],
        partitions: Mapping[str, int],
        *,
        lives: Lives,
        committed: Callable[[], Awaitable[Mapping[TopicPartition, OffsetAndMetadata]]],
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
        self._topics, self._partitions = topics, partitions
        self._lives, self._committed = lives, committed
        self._names = {topic.name: name for name, topic in topics.items()}
        self._group, self._start, self._lanes = group, start, lanes
        self.on_assigned, self.on_revoked = on_assigned, on_revoked
        self._ready: dict[TopicPartition, deque[Any]] = {}
        """What was fetched and not given, the lanes in the order of their turns."""
        self._paused: set[TopicPartition] = set()
        self._held: set[TopicPartition] = set()
        self._placed = asyncio.Event()
        self._placing: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._ending = False
        self._woken = asyncio.Event()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=list(bootstrap),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="latest" if group and start is Start.END else "earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=2 << 20,
            request_timeout_ms=10_000,
            session_timeout_ms=6_000,
            heartbeat_interval_ms=1_000,
            rebalance_timeout_ms=6_000,
            metadata_max_age_ms=30_000,
        )

    # -- the port

    async def batch(self, *, records_max: int = 500, wait_ms: int = 1000) -> Batch | None:
        """The next records of one lane; None if nothing came in time. Raises Unavailable, and
        Broken where a topic was made anew.
        """
        self._lives.check(self._topics)
        if self._placing and self._placing.done():
            self._placing.result()
        if not self._deliverable:
            await self._wait(wait_ms)
        partition = next(filter(self._gives, self._ready), None)
        if partition is None:
            return None
        records = self._ready.pop(partition)
        given = [records.popleft() for _ in range(min(records_max, len(records)))]
        if records:
            self._ready[partition] = records
        logged = [_logged(record) for record in given]
        return Batch(self._topics[partition.topic], partition.partition, logged)

    @property
    def _deliverable(self) -> bool:
        return any(map(self._gives, self._ready))

    def _gives(self, partition: TopicPartition) -> bool:
        """A lane that a rebalance brings is fetched from before it is placed (see `place`)."""
        return partition in self._held and partition not in self._paused

    async def _wait(self, wait_ms: int) -> None:
        """Until records are there or a paused lane is resumed, at most `wait_ms`."""
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="read from Kafka")
            self._polling.add_done_callback(lambda _: self._woken.set())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_ms / 1000):
                while not (self._polling.done() or self._deliverable):
                    self._woken.clear()
                    await self._woken.wait()
        if self._polling.done():
            polled, self._polling = self._polling, None
            try:
                polled.result()
            except KafkaError as error:
                raise Unavailable(f"Kafka cannot be read: {error!r}") from error

    async def _poll(self) -> None:
        """Fetch until something came. What came is taken over in the same step of the loop, so that
        no seek and no rebalance can fall in between.
        """
        while not self._deliverable:
            await self._placed.wait()
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS)
            for partition, records in fetched.items():
                # Of a paused lane there may be some already: these come behind them.
                if records:
                    self._ready.setdefault(partition, deque()).extend(records)

    def seek(self, topic: Topic, lane: int, offset: int) -> None:
        """Read on from `offset`; without effect on a lane that this reader does not hold."""
        partition = self._partition(topic, lane)
        self._drop([partition])
        with contextlib.suppress(IllegalStateError):
            self._consumer.seek(partition, offset)

    def pause(self, topic: Topic, lane: int) -> None:
        """Give no batches of the lane until `resume`."""
        partition = self._partition(topic, lane)
        self._paused.add(partition)
        with contextlib.suppress(IllegalStateError):
            self._consumer.pause(partition)

    def resume(self, topic: Topic, lane: int) -> None:
        """End a `pause`."""
        partition = self._partition(topic, lane)
        self._paused.discard(partition)
        self._woken.set()
        with contextlib.suppress(IllegalStateError):
            self._consumer.resume(partition)

    async def commit(self, topic: Topic, lane: int, next_offset: int) -> None:
        """For the group: everything before `next_offset` is done.

        A lane that went to another member is passed over: its new owner commits.
        """
        if self._group is None:
            raise Broken("a reader without a group has nothing to commit for")
        partition = self._partition(topic, lane)
        self._lives.check([partition.topic])
        if partition not in self._consumer.assignment():
            return
        try:
            async with asyncio.timeout(_COMMIT_SECONDS_MAX):
                life = self._lives.of(partition.topic)
                await self._consumer.commit({partition: (next_offset, life)})
        except (
            CommitFailedError,
            IllegalGenerationError,
            IllegalStateError,
            RebalanceInProgressError,
            UnknownMemberIdError,
        ) as error:
            _logger.info("commit of %s passed over: %r", partition, error)
        except (KafkaError, TimeoutError) as error:
            raise Unavailable(f"Kafka does not take a commit: {error!r}") from error

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
            await self._meet()
            if self._group is not None:
                self._consumer.subscribe(list(self._topics), listener=_Listener(self))
            else:
                await self._assign()
        except (KafkaError, TimeoutError) as error:
            await self._stop()
            raise Unavailable(f"Kafka cannot be read: {error!r}") from error
        except (Unavailable, Broken):
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()
        if self._group is not None:
            self.revoked(self._held)

    # -- lanes

    async def _assign(self) -> None:
        wanted = [
            TopicPartition(name, lane)
            for name, count in self._partitions.items()
            for lane in (range(count) if self._lanes is None else self._lanes)
        ]
        self._consumer.assign(wanted)
        self._held = set(wanted)
        self._placed.set()
        if self._start is Start.END:
            ends = await self._consumer.end_offsets(wanted)
            for partition, offset in ends.items():
                self._consumer.seek(partition, offset)
        else:
            begins = await self._consumer.beginning_offsets(wanted)
            starts = self._start if isinstance(self._start, Mapping) else {}
            for partition, begin in begins.items():
                self._consumer.seek(partition, max(begin, starts.get(partition.partition, 0)))

    async def given(self, partitions: Collection[TopicPartition]) -> None:
        """A rebalance gives these. The client logs what its listener raises, and goes on; so that
        is left for `batch` to raise.
        """
        self._placing = asyncio.create_task(self._place(partitions), name="place lanes")
        try:
            await asyncio.wait({self._placing})
        finally:
            self._placing.cancel()

    async def _place(self, partitions: Collection[TopicPartition]) -> None:
        """Have each lane begin where the group is in this life of its topic, else where `start`
        says. The consumer would go to a commit of whatever life, and takes a coordinator that has
        just moved for one that knows of no commit.
        """
        committed = await self._committed_patiently()
        starts = self._start if isinstance(self._start, Mapping) else {}
        fresh = []
        for partition in partitions:
            at = committed.get(partition)
            counts = at is not None and self._lives.counts(partition.topic, at.metadata)
            offset = at.offset if at and counts else starts.get(partition.partition)
            if offset is None:
                fresh.append(partition)
            else:
                self._consumer.seek(partition, offset)
        if fresh:
            consumer, to_end = self._consumer, self._start is Start.END
            await (consumer.seek_to_end if to_end else consumer.seek_to_beginning)(*fresh)
        self._drop(partitions)
        self._assigned(partitions)

    async def _committed_patiently(self) -> Mapping[TopicPartition, OffsetAndMetadata]:
        """What the group committed. Waits while Kafka is away, until the reader ends: lanes that
        are not placed must not be given.
        """
        while True:
            try:
                await self._meet()
                return await self._committed()
            except Unavailable as error:
                if self._ending:
                    raise
                _logger.warning("%s: lanes cannot be placed: %s", self._group, error)
            await asyncio.sleep(_PLACE_PAUSE_SECONDS)

    async def _meet(self) -> None:
        """Note which lives the topics have. Raises Unavailable where one is not there."""
        await self._lives.meet(self._topics)
        if missing := [name for name in self._topics if not self._lives.of(name)]:
            raise Unavailable(f"{', '.join(missing)}: not there (yet): run `lineshaft migrate`")

    def _assigned(self, partitions: Collection[TopicPartition]) -> None:
        self._held = set(partitions)
        self._placed.set()
        if self.on_assigned:
            given = dict(self._by_topic(partitions))
            for topic in self._topics.values():
                self.on_assigned(topic, given.get(topic, []))

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """A rebalance took these."""
        self._drop(partitions)
        self._paused -= set(partitions)
        self._held = self._held - set(partitions)
        self._placed.clear()
        if self.on_revoked:
            for topic, lanes in self._by_topic(partitions):
                self.on_revoked(topic, lanes)

    def _by_topic(self, partitions: Collection[TopicPartition]) -> list[tuple[Topic, list[int]]]:
        lanes: dict[str, list[int]] = {}
        for partition in sorted(partitions):
            lanes.setdefault(partition.topic, []).append(partition.partition)
        return [(self._topics[name], numbers) for name, numbers in lanes.items()]

    def _drop(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            self._ready.pop(partition, None)

    def _partition(self, topic: Topic, lane: int) -> TopicPartition:
        return TopicPartition(self._names[topic.name], lane)

    async def _stop(self) -> None:
        self._ending = True
        tasks = [task for task in (self._polling, self._placing) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_STOP_SECONDS_MAX):
                await self._consumer.stop()
        except (TimeoutError, KafkaError) as error:
            _logger.warning("a consumer did not end in order: %r", error)


def _logged(record: Any) -> Logged:
    envelope = decode(record.value, record.headers)
    if isinstance(envelope, Envelope):
        envelope.key = record.key
    return Logged(record.offset, envelope)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes a rebalance on."""

    def __init__(self, reader: KafkaReader) -> None:
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._reader.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._reader.given(assigned)
