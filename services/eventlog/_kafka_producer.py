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
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from services.errors import Broken, Unavailable

SEND_SECONDS_MAX = 10
"""After this time whoever waits for a record is told that its outcome is unknown."""
REQUEST_BYTES_MAX = 1 << 20
_CLOSE_SECONDS_MAX = 5
_AGAIN_SECONDS = 0.5

_logger = logging.getLogger(__name__)


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
        self,
        topic: str,
        lane: int,
        value: bytes,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> int:
        """The record's offset when it is durable. Raises Unavailable: the outcome is unknown;
        Broken: it is too large for Kafka.
        """
        producer = None
        try:
            async with asyncio.timeout(SEND_SECONDS_MAX):
                await self._usable.wait()
                producer = self._producer
                sent = await producer.send_and_wait(
                    topic, value, key=key, partition=lane, headers=list(headers)
                )
        except (KafkaError, TimeoutError) as error:
            if producer is not None:
                self._replace(producer)
            if isinstance(error, MessageSizeTooLargeError):
                raise Broken(f"{topic}: a record of {len(value)} bytes: {error}") from error
            raise Unavailable(f"Kafka did not take a record of {topic}: {error!r}") from error
        offset = int(sent.offset)
        if offset < 0:
            raise Unavailable(f"Kafka does not say where a record of {topic} lies")
        return offset

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
