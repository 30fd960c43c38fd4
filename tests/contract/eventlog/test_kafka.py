"""What only Kafka can do to a log: be away, killed and back, and have its topics replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from schemas.topics import LANES_STORED, SAMPLES_RECEIVED
from services.errors import Broken, Unavailable
from services.eventlog import EventLog, Reader, Start
from services.eventlog._kafka_reader import KafkaReader
from tests.contract.eventlog._places import LANES, KafkaPlace, opened
from tests.contract.eventlog._records import a_record, numbers_of, read_all, read_until, until
from tests.support.kafka import (
    Broker,
    commit_raw,
    committed_raw,
    delete_topics,
    shared_broker,
)

pytestmark = [pytest.mark.needs_kafka, pytest.mark.system]

STALL_SECONDS_MAX = 20


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, started."""
    broker = Broker(tmp_path / "kafka")
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


class Appender:
    """Appends numbers to one lane, each until it is told to be durable."""

    def __init__(self, log: EventLog, lane: int) -> None:
        self.durable: dict[int, int] = {}
        """Number to the offset that was told."""
        self.unknown = 0
        self.longest_seconds = 0.0
        self._log, self._lane = log, lane

    async def run(self) -> None:
        """Append for ever."""
        number = 0
        while True:
            began = time.monotonic()
            try:
                [offset] = await self._log.append(
                    [(SAMPLES_RECEIVED, self._lane, a_record(number))]
                )
            except Unavailable:
                self.unknown += 1
            else:
                self.durable[number] = offset
                number += 1
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            await asyncio.sleep(0.002)


class Follower:
    """A member of a group that reads all lanes through everything, and commits."""

    def __init__(self, log: EventLog) -> None:
        self.reached: dict[int, int] = {}
        self._log = log

    async def run(self) -> None:
        """Read for ever."""
        async with self._log.reader([SAMPLES_RECEIVED], group="g") as reader:
            while True:
                try:
                    batch = await reader.batch(wait_ms=200)
                    if batch is not None:
                        self.reached[batch.lane] = batch.next_offset
                        await reader.commit(batch.topic, batch.lane, batch.next_offset)
                except Unavailable:
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("outage", ["short", "until it is told"])
def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    broker: Broker, outage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with opened(KafkaPlace(broker.address)) as log:
            appenders = [Appender(log, lane) for lane in range(LANES)]
            follower = Follower(log)
            bodies = [*(one.run() for one in appenders), follower.run()]
            tasks = [asyncio.create_task(body) for body in bodies]
            await until(lambda: all(len(one.durable) > 50 for one in appenders))
            await until(lambda: len(follower.reached) == LANES)

            broker.kill()
            caplog.clear()
            began = time.monotonic()
            if outage != "short":
                await until(lambda: all(one.unknown for one in appenders))
            noise = len(caplog.records) / (time.monotonic() - began)
            await asyncio.to_thread(broker.start)

            counts = [len(one.durable) for one in appenders]
            back = time.monotonic()
            await until(
                lambda: all(
                    len(one.durable) > count + 50
                    for one, count in zip(appenders, counts, strict=True)
                )
            )
            ends = {lane: one.durable[max(one.durable)] for lane, one in enumerate(appenders)}
            await until(
                lambda: all(follower.reached.get(lane, 0) > end for lane, end in ends.items())
            )
            print(
                f"{outage}: goes on {time.monotonic() - back:.1f} s after the broker, "
                f"longest append {max(one.longest_seconds for one in appenders):.1f} s, "
                f"{noise:.0f} log lines a second"
            )
            assert noise < 5, "aiokafka's lines are bounded"
            assert time.monotonic() - back < STALL_SECONDS_MAX
            assert max(one.longest_seconds for one in appenders) < STALL_SECONDS_MAX
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended

            lanes = await read_all(log, SAMPLES_RECEIVED)
            for lane, one in enumerate(appenders):
                there = {logged.offset: numbers_of([logged])[0] for logged in lanes[lane]}
                assert [there[offset] for offset in one.durable.values()] == list(one.durable)
                assert list(one.durable.values()) == sorted(one.durable.values())
                again = list(there.values())
                assert [
                    n for i, n in enumerate(again) if n not in again[max(0, i - 3) : i]
                ] == list(range(max(again) + 1))

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())


@pytest.fixture
def place() -> Iterator[KafkaPlace]:
    """An empty log on the broker that tests share."""
    place = KafkaPlace(shared_broker())
    yield place
    asyncio.run(place.remake())


def test_a_topic_that_is_made_anew_under_its_reader_is_not_read_on(place: KafkaPlace) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await log.append([(SAMPLES_RECEIVED, 0, a_record(0))])
            await log.spans(LANES_STORED)
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                await read_until(reader, {0: 1})
                await reader.commit(SAMPLES_RECEIVED, 0, 1)
                await delete_topics(place.address, place.prefix + SAMPLES_RECEIVED.name)
                async with opened(place) as anew:
                    assert await anew.committed("g", SAMPLES_RECEIVED) == {}
                    await anew.append([(SAMPLES_RECEIVED, 0, a_record(10))])
                with pytest.raises(Broken, match="made anew"):
                    await _read_on(reader)
                with pytest.raises(Broken, match="made anew"):
                    await reader.commit(SAMPLES_RECEIVED, 0, 1)
            for ask in (
                log.spans(SAMPLES_RECEIVED),
                log.committed("g", SAMPLES_RECEIVED),
                log.incarnation(SAMPLES_RECEIVED),
            ):
                with pytest.raises(Broken, match="made anew"):
                    await ask
            await log.spans(LANES_STORED)

    asyncio.run(scenario())


async def _read_on(reader: Reader) -> None:
    async with asyncio.timeout(STALL_SECONDS_MAX):
        while True:
            with suppress(Unavailable):
                await reader.batch(wait_ms=100)


@pytest.mark.parametrize(
    ("start", "numbers"), [(Start.BEGINNING, [0, 1, 2, 3]), (Start.END, [3]), ({0: 1}, [1, 2, 3])]
)
def test_what_a_member_of_an_earlier_life_commits_late_counts_for_nothing(
    place: KafkaPlace, start: Start | dict[int, int], numbers: list[int]
) -> None:
    name, group = place.prefix + SAMPLES_RECEIVED.name, place.prefix + "g"
    given: list[int] = []

    async def scenario() -> None:
        async with opened(place) as log:
            for n in range(3):
                await log.append([(SAMPLES_RECEIVED, 0, a_record(n))])
            await commit_raw(place.address, group, name, 0, 2, "the id of an earlier life")
            assert await log.committed("g", SAMPLES_RECEIVED) == {}
            async with log.reader(
                [SAMPLES_RECEIVED],
                group="g",
                start=start,
                on_assigned=lambda _, lanes: given.extend(lanes),
            ) as reader:
                await until(lambda: bool(given))
                await log.append([(SAMPLES_RECEIVED, 0, a_record(3))])
                assert numbers_of((await read_until(reader, {0: 4}))[0]) == numbers
                await reader.commit(SAMPLES_RECEIVED, 0, 3)
            assert await log.committed("g", SAMPLES_RECEIVED) == {0: 3}
            life = await log.incarnation(SAMPLES_RECEIVED)
            assert await committed_raw(place.address, group) == {(name, 0): (3, life)}

            await commit_raw(place.address, group, name, 0, 1, "")
            assert await log.committed("g", SAMPLES_RECEIVED) == {0: 1}, "an operator's tool"
            async with log.reader([SAMPLES_RECEIVED], group="g", start=start) as reader:
                assert numbers_of((await read_until(reader, {0: 4}))[0]) == [1, 2, 3]

    asyncio.run(scenario())


def test_no_lane_is_given_before_it_is_known_where_it_begins(place: KafkaPlace) -> None:
    name, group = place.prefix + SAMPLES_RECEIVED.name, place.prefix + "g"
    asked: list[int] = []

    async def late() -> Mapping[TopicPartition, OffsetAndMetadata]:
        # Meanwhile the consumer fetches from what it found committed.
        await asyncio.sleep(0.5)
        asked.append(1)
        if len(asked) == 1:
            raise Unavailable("Kafka is away")
        return {TopicPartition(name, 0): OffsetAndMetadata(2, "the id of an earlier life")}

    async def scenario() -> None:
        async with opened(place) as log:
            for n in range(4):
                await log.append([(SAMPLES_RECEIVED, 0, a_record(n))])
            await commit_raw(place.address, group, name, 0, 2, "the id of an earlier life")
            reader = log.reader([SAMPLES_RECEIVED], group="g")
            assert isinstance(reader, KafkaReader)
            reader._committed = late
            async with reader:
                assert numbers_of((await read_until(reader, {0: 4}))[0]) == [0, 1, 2, 3]
            assert len(asked) == 2

    asyncio.run(scenario())
