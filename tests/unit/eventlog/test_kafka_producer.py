"""What becomes of records that Kafka is given together: with a client that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from schemas.envelope import Change, Envelope
from schemas.topics import CATALOGUE_CHANGED
from services.errors import Broken, Unavailable
from services.eventlog import open_eventlog
from services.eventlog._kafka_producer import Producer, Record
from services.eventlog.kafka import _LANE_RECORDS_MAX, KafkaLog


class Client:
    """Takes records: of each a future with its place, or what `answers` says of it."""

    def __init__(self, **answers: Exception) -> None:
        self._answers = answers
        self.taken: list[bytes] = []

    async def send(self, topic: str, value: bytes, **_: Any) -> asyncio.Future[Any]:
        error = self._answers.get(value.decode())
        if isinstance(error, MessageSizeTooLargeError):
            raise error
        self.taken.append(value)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if error:
            future.set_exception(error)
        else:
            future.set_result(SimpleNamespace(offset=len(self.taken) - 1))
        return future


def outcomes(client: Client, *values: str) -> list[Any]:
    async def scenario() -> list[Any]:
        producer = Producer(["nowhere"])
        producer._producer = client
        producer._usable.set()
        producer._replace = lambda failed: None  # type: ignore[method-assign]
        return list(
            await producer.send("t", 0, [Record(value.encode(), None, ()) for value in values])
        )

    return asyncio.run(scenario())


def test_records_of_a_lane_go_together_and_in_their_order() -> None:
    client = Client()
    assert outcomes(client, "a", "b", "c") == [0, 1, 2]
    assert client.taken == [b"a", b"b", b"c"]


def test_one_that_failed_is_unknown_and_those_that_are_durable_are_told_so() -> None:
    found = outcomes(Client(b=KafkaError()), "a", "b", "c")
    assert [found[0], found[2]] == [0, 2]
    assert isinstance(found[1], Unavailable)


def test_one_that_is_too_large_is_at_fault_and_not_what_is_behind_it() -> None:
    found = outcomes(Client(b=MessageSizeTooLargeError()), "a", "b", "c", "d")
    assert found[0] == 0
    assert isinstance(found[1], Broken)
    assert [type(outcome) for outcome in found[2:]] == [Unavailable, Unavailable]


def test_changes_of_the_catalogue_do_not_wait_for_one_another() -> None:
    """They have keys, so they are not joined; a lane sends what waits of them in one go."""
    turns: list[int] = []

    async def send(topic: str, lane: int, records: Sequence[Record]) -> list[int]:
        turns.append(len(records))
        await asyncio.sleep(0)
        return list(range(len(records)))

    async def scenario() -> None:
        log = open_eventlog("kafka://nowhere:1", lanes=1, prefix="")
        assert isinstance(log, KafkaLog)
        log._closed = False
        log._producer.send = send  # type: ignore[method-assign, assignment]
        changes = [Change("tenant", f"t{n}", {}) for n in range(100)]
        await log.append([(CATALOGUE_CHANGED, 0, Envelope(c, key=c.key)) for c in changes])

    asyncio.run(scenario())
    assert turns == [_LANE_RECORDS_MAX, 100 - _LANE_RECORDS_MAX]
