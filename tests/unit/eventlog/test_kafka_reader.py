"""What a reader of Kafka gives, and what it asks its group's coordinator: with a client that the
test plays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from schemas.topics import SAMPLES_ACCEPTED
from services.errors import Broken, Unavailable
from services.eventlog import _kafka_admin
from services.eventlog._kafka_lives import Lives
from services.eventlog._kafka_reader import KafkaReader
from services.eventlog._port import Start

NAME = SAMPLES_ACCEPTED.name
FIRST, SECOND = TopicPartition(NAME, 0), TopicPartition(NAME, 1)
CHUNK = 200


class Consumer:
    """Fetches the lanes that it was sought to, a chunk at a time, and never waits for its owner."""

    def __init__(self) -> None:
        self.positions: dict[TopicPartition, int] = {}
        self.fetched = 0

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        self.positions |= dict.fromkeys(partitions, 0)

    def pause(self, partition: TopicPartition) -> None:
        """A fetch that is under way comes all the same."""

    def resume(self, partition: TopicPartition) -> None: ...

    async def getmany(self, timeout_ms: int) -> Mapping[TopicPartition, Sequence[Any]]:
        await asyncio.sleep(0.001)
        self.fetched += 1
        chunks = {}
        for partition, position in self.positions.items():
            chunks[partition] = [
                SimpleNamespace(offset=offset, value=b"", headers=(), key=None)
                for offset in range(position, position + CHUNK)
            ]
            self.positions[partition] = position + CHUNK
        return chunks

    async def stop(self) -> None: ...


def a_reader() -> KafkaReader:
    """A member of a group that has committed 40 in the first lane and nothing in the second."""

    async def describe(names: Sequence[str]) -> Mapping[str, _kafka_admin.Described]:
        return {name: _kafka_admin.Described("life", 2) for name in names}

    async def committed() -> Mapping[TopicPartition, OffsetAndMetadata]:
        return {FIRST: OffsetAndMetadata(40, "life")}

    reader = KafkaReader(
        ["nowhere"],
        {NAME: SAMPLES_ACCEPTED},
        {NAME: 2},
        lives=Lives(describe),
        committed=committed,
        group="g",
        start=Start.BEGINNING,
        lanes=None,
        on_assigned=None,
        on_revoked=None,
    )
    reader._consumer = Consumer()
    return reader


def consumer_of(reader: KafkaReader) -> Consumer:
    consumer = reader._consumer
    assert isinstance(consumer, Consumer)
    return consumer


async def read(reader: KafkaReader, batches: int) -> dict[int, list[int]]:
    """The offsets that so many batches have, by lane."""
    offsets: dict[int, list[int]] = {}
    for _ in range(batches):
        batch = await reader.batch(records_max=64)
        assert batch is not None
        offsets.setdefault(batch.lane, []).extend(logged.offset for logged in batch.records)
    return offsets


def test_nothing_is_fetched_before_the_lanes_are_placed() -> None:
    async def scenario() -> None:
        reader = a_reader()
        assert await reader.batch(wait_ms=50) is None
        assert consumer_of(reader).fetched == 0
        await reader.given({FIRST, SECOND})
        offsets = await read(reader, 8)
        assert offsets == {0: [*range(40, 40 + CHUNK)], 1: [*range(CHUNK)]}
        await reader._stop()

    asyncio.run(scenario())


def test_a_lane_comes_in_its_order_whatever_was_fetched_while_it_was_paused() -> None:
    async def scenario() -> None:
        reader = a_reader()
        await reader.given({FIRST})
        offsets = (await read(reader, 1))[0]
        reader.pause(SAMPLES_ACCEPTED, 0)
        for _ in range(5):
            assert await reader.batch(wait_ms=5) is None
        reader.resume(SAMPLES_ACCEPTED, 0)
        offsets += (await read(reader, 12))[0]
        assert offsets == [*range(40, 40 + len(offsets))]
        await reader._stop()

    asyncio.run(scenario())


def test_a_lane_that_comes_back_is_read_from_where_the_group_is() -> None:
    async def scenario() -> None:
        reader = a_reader()
        await reader.given({FIRST})
        await read(reader, 2)
        reader.revoked({FIRST})
        assert await reader.batch(wait_ms=20) is None
        await reader.given({FIRST})
        assert (await read(reader, 1))[0][0] == 40
        await reader._stop()

    asyncio.run(scenario())


def test_what_goes_wrong_while_lanes_are_placed_is_raised_where_they_are_read() -> None:
    async def broken() -> Mapping[TopicPartition, OffsetAndMetadata]:
        raise Broken("made anew")

    async def scenario() -> None:
        reader = a_reader()
        reader._committed = broken
        await reader.given({FIRST})
        with pytest.raises(Broken, match="made anew"):
            await reader.batch(wait_ms=5)
        await reader._stop()

    asyncio.run(scenario())


class Admin:
    """Gives one answer after the other to the question for a group's offsets."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    async def find_coordinator(self, group: str) -> int:
        return 1

    async def _send_request(self, request: Any, node: int) -> Any:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


LOADING, MOVED, FORBIDDEN = 14, 16, 30
HAS = SimpleNamespace(error_code=0, topics=[(NAME, [(0, 40, "life", 0), (1, -1, "", 0)])])


@pytest.mark.parametrize("code", [LOADING, MOVED])
def test_a_coordinator_that_has_just_moved_is_asked_again(code: int) -> None:
    admin: Any = Admin(SimpleNamespace(error_code=code, topics=[]), HAS)
    found = asyncio.run(_kafka_admin.committed(admin, "g"))
    assert found == {FIRST: OffsetAndMetadata(40, "life")}


@pytest.mark.parametrize(
    "answer",
    [
        SimpleNamespace(error_code=FORBIDDEN, topics=[]),
        SimpleNamespace(error_code=0, topics=[(NAME, [(0, -1, "", FORBIDDEN)])]),
    ],
)
def test_an_error_in_the_answer_is_not_taken_for_nothing_committed(answer: Any) -> None:
    admin: Any = Admin(answer)
    with pytest.raises(Unavailable):
        asyncio.run(_kafka_admin.committed(admin, "g"))
