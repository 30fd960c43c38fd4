"""The MQTT door on real sockets: listener, the device's telemetry door and the embedded log, in a
thread of their own.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from schemas.blocks import Block
from schemas.catalogue import Device
from schemas.envelope import Envelope, Letter
from schemas.topics import RECORDS_REFUSED, SAMPLES_RECEIVED, TOPICS, Topic
from services.clock import SystemClock
from services.dialects import Principal
from services.dialects.opticloud.telemetry import TELEMETRY
from services.errors import Unauthorized
from services.eventlog.sqlite import SqliteLog
from services.ingress.mqtt import MqttListener
from services.settings import Settings
from tests.support.lookup import ListedLookup

LANES = 4
TENANT = "acme"
DEVICES = [f"device-{number}" for number in range(20)]
TOKENS = {f"token-{device}": device for device in DEVICES}
TOKEN = "token-device-0"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}

T = TypeVar("T")


def authenticate(token: str) -> Principal:
    """The principal of one of the listed devices."""
    if token not in TOKENS:
        raise Unauthorized("unknown token")
    return Principal(TENANT, token, frozenset({"ingest"}), device=TOKENS[token])


class Server:
    """A door that is open; used from the test's thread."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, **settings: Any) -> None:
        self._loop, self._folder = loop, folder
        lifted = {"mqtt_messages_per_second": 0, "mqtt_bytes_per_second": 0}
        self._settings = replace(Settings(), **(lifted | settings))
        self.clock = SystemClock()
        self.expires_ms = inf
        """When the credentials of sessions that are opened from now on expire."""
        self.lookup = ListedLookup([Device(device, tenant=TENANT) for device in DEVICES])
        self.port = self.tls_port = 0

    def call(self, action: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the door's thread."""
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(30)

    async def open(self, tls: ssl.SSLContext | None) -> None:
        """Open log and door."""
        self._log = SqliteLog(str(self._folder / "log.sqlite"), lanes=LANES)
        await self._log.__aenter__()
        await self._log.create(TOPICS)
        self.listener = MqttListener(
            log=self._log,
            authenticate=lambda token: replace(authenticate(token), expires_ms=self.expires_ms),
            lookup=self.lookup,
            publishes={TELEMETRY.topic.encode(): ("opticloud", TELEMETRY)},
            clock=self.clock,
            told=lambda *_: None,
            settings=self._settings,
        )
        self.port = await self.listener.start("127.0.0.1", 0)
        if tls is not None:
            self.tls_port = await self.listener.start("127.0.0.1", 0, tls)

    async def close(self) -> None:
        """Close both."""
        await self.listener.stop()
        await self._log.__aexit__(None, None, None)

    def stored(self) -> Counter[tuple[str, str, Any]]:
        """(device, key, value) of every sample on the log, with how often."""
        places = self.lookup.places(TENANT)
        return Counter(
            (*places[sample.series], sample.value)
            for envelope in self.call(self._records(SAMPLES_RECEIVED))
            if isinstance(envelope.record, Block)
            for sample in envelope.record.samples()
        )

    def letters(self) -> list[Letter]:
        """The dead letters on the log."""
        records = self.call(self._records(RECORDS_REFUSED))
        return [e.record for e in records if isinstance(e.record, Letter)]

    async def _records(self, topic: Topic) -> list[Envelope]:
        spans = await self._log.spans(topic)
        wanted = sum(span.end - span.begin for span in spans.values())
        found: list[Envelope] = []
        async with self._log.reader([topic]) as reader:
            while len(found) < wanted:
                batch = await reader.batch()
                for record in batch.records if batch else ():
                    assert isinstance(record.envelope, Envelope)
                    found.append(record.envelope)
        return found


@contextmanager
def serving(
    folder: Path,
    loop: asyncio.AbstractEventLoop,
    *,
    tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """A door for the time of a `with` block."""
    server = Server(folder, loop, **settings)
    thread = threading.Thread(target=loop.run_forever, name="mqtt door")
    thread.start()
    try:
        server.call(server.open(tls))
        yield server
        server.call(server.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
