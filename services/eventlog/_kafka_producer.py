"""How records get onto Kafka: one idempotent producer at a time, behind `KafkaLog`.

aiokafka tries an idempotent batch again for ever and does not let it go when it is told to stop. So
what was given up here, and told to be unknown, could come behind what follows it. A producer that
failed is therefore cut off from its brokers before the next one sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from services.errors import Broken, Unavailable

SEND_SECONDS_MAX = 10
"""After this time whoever waits for a record is told that its outcome is unknown."""
REQUEST_BYTES_MAX = 1 << 20
_CLOSE_SECONDS_MAX = 5
_AGAIN_SECONDS = 0.5

_logger = logging.getLogger(__name__)


class Record(NamedTuple):
    """What Kafka is given."""

    value: bytes
    key: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Producer:
    """Sends records; several tasks may at a time, those of one lane one after the other."""

    def __init__(self, brokers: Sequence[str]) -> None:
        self._brokers = list(brokers)
        self._producer: Any = None
        self._usable = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect. Raises KafkaError."""
        self._producer = self._new()
        await self._producer.start()
        self._usable.set()

    async def send(
        self, topic: str, lane: int, records: Sequence[Record]
    ) -> list[int | Unavailable | Broken]:
        """Of each record its offset once it is durable, in the order given; or Unavailable: its
        outcome is unknown; Broken: it is too large for Kafka.
        """
        producer, sent, failed = None, [], None
        try:
            async with asyncio.timeout(SEND_SECONDS_MAX):
                await self._usable.wait()
                producer = self._producer
                for value, key, headers in records:
                    sent.append(
                        await producer.send(
                            topic, value, key=key, partition=lane, headers=list(headers)
                        )
                    )
                await asyncio.gather(*sent)
        except (KafkaError, TimeoutError) as error:
            failed = error
            if producer is not None:
                self._replace(producer)
        # The first that was not taken is at fault where it is too large; what is behind it is not.
        unsent = [_refusal(topic, failed)] + [_refusal(topic, None)] * len(records)
        outcomes = [_outcome(topic, future, failed) for future in sent]
        return [*outcomes, *unsent[: len(records) - len(sent)]]

    async def close(self) -> None:
        """End; what is still under way has an unknown outcome."""
        self._usable.clear()
        if self._renewing:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if self._producer is not None:
            await _cut_off(self._producer)

    def _replace(self, failed: Any) -> None:
        if failed is self._producer and (self._renewing is None or self._renewing.done()):
            self._usable.clear()
            self._renewing = asyncio.create_task(self._renew(), name="renew the Kafka producer")

    async def _renew(self) -> None:
        await _cut_off(self._producer)
        away = False
        while True:
            self._producer = self._new()
            try:
                async with asyncio.timeout(SEND_SECONDS_MAX):
                    await self._producer.start()
                break
            except (KafkaError, TimeoutError) as error:
                if not away:
                    _logger.warning("Kafka is away: %r", error)
                away = True
                await _cut_off(self._producer)
            await asyncio.sleep(_AGAIN_SECONDS)
        _logger.info("Kafka takes records again")
        self._usable.set()

    def _new(self) -> Any:
        return AIOKafkaProducer(
            bootstrap_servers=self._brokers,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=512 * 1024,
            max_request_size=REQUEST_BYTES_MAX,
            compression_type="lz4",
            request_timeout_ms=8_000,
            metadata_max_age_ms=30_000,
        )


def _outcome(
    topic: str, sent: asyncio.Future[Any], failed: Exception | None
) -> int | Unavailable | Broken:
    """What became of a record that the client took."""
    if not sent.done() or sent.cancelled():
        return _refusal(topic, failed)
    if (error := sent.exception()) is not None:
        return _refusal(topic, error)
    offset = int(sent.result().offset)
    if offset < 0:
        return Unavailable(f"Kafka does not say where a record of {topic} lies")
    return offset


def _refusal(topic: str, error: BaseException | None) -> Unavailable | Broken:
    kind = Broken if isinstance(error, MessageSizeTooLargeError) else Unavailable
    return kind(f"Kafka did not take a record of {topic}: {error!r}")


async def _cut_off(producer: Any) -> None:
    """End a producer for good, with whatever it still holds.

    Its own `stop` first waits until everything is sent, and leaves its sender running where that
    takes too long.
    """
    if producer._closed:
        return
    producer._closed = True
    producer._message_accumulator.fail_all(KafkaError("the producer was given up"))
    sending = producer._sender.sender_task
    if sending is not None:
        sending.remove_done_callback(producer._sender._fail_all)
        sending.cancel()
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(_CLOSE_SECONDS_MAX):
            await producer.client.close()
    if sending is not None:
        await asyncio.wait([sending], timeout=_CLOSE_SECONDS_MAX)
        if sending.done() and not sending.cancelled():
            # What its last requests say of their failure interests nobody any more.
            sending.exception()
