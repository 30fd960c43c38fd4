"""What MQTT tests need: a log that is done when the test says so, a transport that remembers, and
packets as a client writes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from schemas.blocks import Block
from schemas.catalogue import Device
from schemas.envelope import Change, Envelope, Letter
from schemas.points import PointPolicy
from schemas.samples import Kind
from schemas.topics import RECORDS_REFUSED, SAMPLES_RECEIVED, Topic
from services.clock import ManualClock
from services.dialects import Inbound, Intake, Lookup, Principal, Publish
from services.errors import Broken, Malformed, Unauthorized, Unavailable
from services.eventlog import Done
from services.ingress._mqtt_session import Session
from services.ingress._mqtt_wire import V311, variable
from services.ingress.mqtt import MqttListener
from services.settings import Settings
from tests.support.lookup import ListedLookup

TOPIC = "v1/devices/me/telemetry"
TENANT = "acme"


class HandLog:
    """A log with four lanes, or another number; what was put is done when `settle` is called."""

    def __init__(self, lanes: int = 4, queued_bytes_max: int = 64 << 20) -> None:
        self.lanes, self.queued_bytes_max, self.queued_bytes = lanes, queued_bytes_max, 0
        self.waiting: list[tuple[Topic, int, Envelope, Done]] = []
        self.durable: list[tuple[Topic, int, Envelope]] = []
        self.put_calls = 0
        self.broken = False
        """Raise Broken from now on."""

    def put(self, topic: Topic, lane: int, envelope: Envelope, done: Done) -> None:
        """Note a record; refuse it above the bound."""
        if self.broken:
            raise Broken("the writer has stopped")
        if self.queued_bytes + envelope.bytes_estimate > self.queued_bytes_max:
            raise Unavailable("full")
        self.put_calls += 1
        self.queued_bytes += envelope.bytes_estimate
        self.waiting.append((topic, lane, envelope, done))

    def settle(
        self, wanted: Callable[[Topic, int], bool] = lambda *_: True, error: Exception | None = None
    ) -> int:
        """Call `done` of what waits and is wanted; how many records that was."""
        due = [item for item in self.waiting if wanted(item[0], item[1])]
        self.waiting = [item for item in self.waiting if not wanted(item[0], item[1])]
        for topic, lane, envelope, done in due:
            self.queued_bytes -= envelope.bytes_estimate
            if error is None:
                self.durable.append((topic, lane, envelope))
            done(error, -1 if error else len(self.durable))
        return len(due)

    def settle_lane(self, lane: int) -> int:
        """Call `done` of what waits in one lane."""
        return self.settle(lambda _, other: other == lane)

    def rows(self) -> int:
        """Samples that are durable."""
        return sum(len(e.record) for _, _, e in self.durable if isinstance(e.record, Block))

    def values(self) -> list[list[int]]:
        """The values of each durable block, in the order in which they became durable."""
        return [list(e.record.bits) for _, _, e in self.durable if isinstance(e.record, Block)]

    def blocks(self) -> list[tuple[int, Block]]:
        """Lane and block of what waits."""
        return [
            (lane, envelope.record)
            for topic, lane, envelope, _ in self.waiting
            if topic is SAMPLES_RECEIVED and isinstance(envelope.record, Block)
        ]

    def letters(self) -> list[Letter]:
        """Dead letters, durable or not."""
        records = [(t, e) for t, _, e in self.durable] + [(t, e) for t, _, e, _ in self.waiting]
        return [
            envelope.record
            for topic, envelope in records
            if topic is RECORDS_REFUSED and isinstance(envelope.record, Letter)
        ]


class HandTransport:
    """Remembers what was written and done."""

    def __init__(self) -> None:
        self.written = b""
        self.writes = 0
        self.closed = self.aborted = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the close"
        self.written += bytes(data)
        self.writes += 1

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed twice"
        self.reading = True

    def taken(self) -> bytes:
        """What was written since the last call."""
        written, self.written = self.written, b""
        return written


def decode_lines(inbound: Inbound, lookup: Lookup) -> Intake:
    """The door of these tests: `series=value,series=value`; `!…` is refused, `~…` is one text,
    `+…` also makes a point. Series ids are `lane << 48 | number`.
    """
    body, block = inbound.body, Block()
    if body.startswith(b"!"):
        raise Malformed("cannot be used", where="/0")
    if body.startswith(b"?"):
        raise Unavailable("the catalogue is busy")
    changes = []
    if body.startswith(b"~"):
        text_index = block.policy_index(_POLICY)
        text_value = body.decode("latin-1")
        block.add(series_of(0), inbound.received_ms, Kind.STRING, text_value, policy=text_index)
        return Intake(block)
    if body.startswith(b"+"):
        body = body[1:]
        changes.append(Change("point", body.decode("latin-1"), {}, first=True))
    policy = block.policy_index(_POLICY)
    try:
        for pair in filter(None, body.split(b",")):
            series, value = map(int, pair.split(b"="))
            block.add(series, inbound.received_ms, Kind.LONG, value, policy=policy)
    except (ValueError, OverflowError) as error:
        raise Malformed(f"no samples: {error}") from error
    return Intake(block, changes)


_POLICY = PointPolicy(TENANT)


def series_of(lane: int, number: int = 0) -> int:
    """A series of a lane, where there are more lanes than `lane`."""
    return lane << 48 | number


def sample(lane: int = 0, value: int = 1) -> bytes:
    """A payload with one sample."""
    return b"%d=%d" % (series_of(lane), value)


def authenticate(token: str) -> Principal:
    """`token-NAME` is the device NAME, `reader-NAME` one without the right to send."""
    kind, _, name = token.partition("-")
    if kind == "token" and name:
        return Principal(TENANT, f"key-{name}", frozenset({"ingest"}), device=name)
    if kind == "reader" and name:
        return Principal(TENANT, f"key-{name}", frozenset({"read"}), device=name)
    raise Unauthorized("unknown token")


class Desk:
    """A listener without sockets: a log in the test's hand, a clock that stands, connections of
    bytes.
    """

    def __init__(
        self, log: HandLog | None = None, clock: ManualClock | None = None, **settings: Any
    ) -> None:
        self.log = log or HandLog()
        self.clock = clock or ManualClock()
        settings = {"mqtt_messages_per_second": 0, "mqtt_bytes_per_second": 0} | settings
        self.expires_ms = inf
        """When the credentials of sessions that are opened from now on expire."""
        self.listener = MqttListener(
            log=self.log,  # type: ignore[arg-type]
            authenticate=lambda token: replace(authenticate(token), expires_ms=self.expires_ms),
            lookup=ListedLookup([Device("d1", tenant=TENANT)]),
            publishes={TOPIC.encode(): ("lines", Publish(TOPIC, decode_lines))},
            clock=self.clock,
            told=lambda *_: None,
            settings=replace(Settings(), **settings),
        )

    def open(self, address: str = "10.0.0.1") -> Client:
        """A connection that has sent nothing."""
        transport = HandTransport()
        session = self.listener.accept(transport, address)
        return Client(self, transport, session)

    def client(self, version: int = V311, **connect_members: Any) -> Client:
        """A connection that is logged in; CONNACK is taken."""
        client = self.open()
        client.send(connect(version, **connect_members))
        client.taken()
        return client

    async def turn(self) -> None:
        """Let the loop turn: what was gathered goes to the log."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def settle(self, error: Exception | None = None) -> None:
        """Everything is durable, or has failed."""
        await self.turn()
        while self.log.settle(error=error):
            await self.turn()


class Client:
    """One end of a connection of bytes."""

    def __init__(self, desk: Desk, transport: HandTransport, session: Session | None) -> None:
        self.desk, self.transport, self._session = desk, transport, session

    @property
    def session(self) -> Session:
        """The other end."""
        assert self._session is not None
        return self._session

    def send(self, data: bytes) -> None:
        """Deliver bytes."""
        self.session.data_received(data)

    def taken(self) -> bytes:
        """What came back since the last call."""
        return self.transport.taken()

    @property
    def closed(self) -> bool:
        return self.transport.closed


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async test function."""
    asyncio.run(test())


# -- packets as a client writes them ---------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    """A length and the bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def packet(first: int, body: bytes) -> bytes:
    """A fixed header and the body."""
    return bytes((first,)) + variable(len(body)) + body


def connect(
    version: int = V311,
    *,
    token: str | None = "token-d1",
    client_id: str = "c1",
    clean: bool = True,
    keepalive_s: int = 0,
    properties: bytes = b"",
) -> bytes:
    """CONNECT with a token as user name and no password."""
    flags = (0x02 if clean else 0) | (0x80 if token is not None else 0)
    body = text("MQTT") + bytes((version, flags)) + keepalive_s.to_bytes(2, "big")
    if version == 5:
        body += variable(len(properties)) + properties
    body += text(client_id) + (text(token) if token is not None else b"")
    return packet(0x10, body)


def publish(
    payload: bytes,
    packet_id: int = 0,
    *,
    version: int = V311,
    topic: str | bytes = TOPIC,
    qos: int | None = None,
    dup: bool = False,
    retain: bool = False,
    properties: bytes = b"",
) -> bytes:
    """PUBLISH, of QoS 1 where there is a packet id."""
    level = (1 if packet_id else 0) if qos is None else qos
    body = text(topic) + (packet_id.to_bytes(2, "big") if level else b"")
    if version == 5:
        body += variable(len(properties)) + properties
    return packet(0x30 | dup << 3 | level << 1 | retain, body + payload)


def puback(packet_id: int, reason: int = 0) -> bytes:
    """PUBACK as the server writes it."""
    raw = packet_id.to_bytes(2, "big")
    return b"\x40\x03" + raw + bytes((reason,)) if reason else b"\x40\x02" + raw


def subscribe(packet_id: int, filters: Mapping[str, int], *, version: int = V311) -> bytes:
    """SUBSCRIBE to filters with their QoS."""
    body = packet_id.to_bytes(2, "big") + (b"\0" if version == 5 else b"")
    return packet(0x82, body + b"".join(text(name) + bytes((q,)) for name, q in filters.items()))
