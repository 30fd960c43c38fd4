"""The rules of MQTT for one connection, 3.1.1 and 5.0: bytes in, bytes out, no socket.

The session reads packets and keeps the limits; `_mqtt_publishes` is what becomes of a PUBLISH. What
a breach of the rules is answered with:

    breach                                      3.1.1               5.0
    first packet is not CONNECT                 close               close
    another protocol or level                   CONNACK 1, close    CONNACK 1, close
    unknown token, no user name                 CONNACK 4, close    CONNACK 0x86, close
    empty client id with a session to keep      CONNACK 2, close    (an id is assigned)
    malformed packet, second CONNECT            close               DISCONNECT 0x81, 0x82
    packet, payload or topic too large          close               DISCONNECT 0x95
    more un-acknowledged than announced         is not read         DISCONNECT 0x93
    device above its rate                       is not read         is not read
    QoS 2, retain, topic alias                  served, ignored, -  DISCONNECT 0x9B, 0x9A, 0x94
    unknown topic                               PUBACK              PUBACK 0x90
    payload that cannot be used (dead letter)   close               PUBACK 0x99 (QoS 0: 0x99, close)
    credential without the right                close               PUBACK 0x87 (QoS 0: 0x87, close)
    unknown filter                              SUBACK 0x80         SUBACK 0x8F (shared: 0x9E)
    the log does not have the data              close               DISCONNECT 0x89
    keepalive over                              close               DISCONNECT 0x8D
    same device and client id again             close               DISCONNECT 0x8E
    too many sessions of the device             close               DISCONNECT 0x97
    credential revoked or expired               close               DISCONNECT 0x87
    server stops                                close               DISCONNECT 0x8B

There are no sessions beyond the connection, no retained messages and no routing between clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Protocol
from uuid import uuid4

from services.clock import Clock
from services.dialects import Lookup, Principal, Publish
from services.errors import Refused, Unauthorized, Unavailable
from services.ingress import _mqtt_wire as wire
from services.ingress._mqtt_gather import Gather
from services.ingress._mqtt_limits import Rate
from services.ingress._mqtt_publishes import Publishes
from services.ingress._mqtt_wire import V5, V311, BadPacket, Reason
from services.settings import Settings

UNACKED, BUDGET, RATE, WRITING, REFUSING = 1, 2, 4, 8, 16
"""Why a connection is not read; bits."""
BEHIND = UNACKED | BUDGET | WRITING
"""Those that say that something behind the connection is full."""

KEEPALIVE_FACTOR = 1.5
IDLE_MS_MAX = 3_600_000
"""Silence of a 3.1.1 client that asked for no keepalive."""
WRITING_MS_MAX = 30_000
"""How long a client may leave our answers unread."""
CLOSING_MS_MAX = 5_000
"""How long a closing connection may take to get rid of its last bytes."""
_HEADER_BYTES = 2 + 2 + 1_024
"""Allowed around topic and payload of a PUBLISH: lengths, packet id, properties."""

FILTERS = frozenset(
    {
        "v1/devices/me/attributes",
        "v1/devices/me/attributes/response/+",
        "v1/devices/me/rpc/request/+",
        "v1/devices/me/rpc/response/+",
    }
)
"""What a client may subscribe to; matched as text."""


class Transport(Protocol):
    """The part of asyncio's transport that a session needs."""

    def write(self, data: bytes, /) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def is_closing(self) -> bool: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Host(Protocol):
    """What a session needs of the listener."""

    settings: Settings
    clock: Clock
    lookup: Lookup
    gather: Gather
    publishes: Mapping[bytes, tuple[str, Publish]]

    def enter(self, session: Session, username: str, client_id: str) -> tuple[Principal, Rate]:
        """The principal behind the token, and the rate of its device; takes over older sessions.
        Raises Unauthorized, Forbidden, Unavailable.
        """
        ...

    def refused(self, session: Session) -> float:
        """The session's credential was refused; how many ms to hold the answer back."""
        ...

    def left(self, session: Session) -> None:
        """The session ended."""
        ...

    def behind(self, session: Session, held_up: bool) -> None:
        """Whether the session is not read because something behind it is full has changed."""
        ...

    def delivered(self) -> None:
        """A chunk was handled: look at the budget."""
        ...

    def later(self, delay_ms: float, action: Callable[[], None]) -> Callable[[], None]:
        """Have something done after a while; what calls it off."""
        ...


class Session:
    """One connection. Single-threaded; the listener calls in, and no exception comes out but what
    is a defect of ours.
    """

    def __init__(self, transport: Transport, host: Host, address: str) -> None:
        self._transport, self._host, self.address = transport, host, address
        self._settings, self._clock = host.settings, host.clock
        self.version = V311
        self.client_id = ""
        self.granted: set[str] = set()
        """The filters that the client has subscribed to."""
        self.client_bytes_max = 0
        """The largest packet that the client takes; 0: any."""
        self._principal: Principal | None = None
        self._expires_ms = inf
        self._rate: Rate | None = None
        self._publishes = Publishes(
            self,
            gather=host.gather,
            lookup=host.lookup,
            doors=host.publishes,
            settings=host.settings,
        )
        self._silence_ms_max = float(IDLE_MS_MAX)
        self._packet_bytes_max = host.settings.mqtt_connect_bytes_max
        self._tail = bytearray()
        self._tail_needs = 0.0
        """Bytes that the tail must have before it is looked at; inf: held until reading goes on."""
        self._paused = 0
        self._wake: Callable[[], None] | None = None
        """Calls off the end of the pause for RATE."""
        self._unread_ms = 0.0
        self._opened_ms = self._heard_ms = self._clock.monotonic_ms()
        self._ended_ms = 0.0
        self.ended = False
        self.deaf = False
        """Nothing of what the client sends matters any more: the connection ends."""

    @property
    def connected(self) -> bool:
        """Whether the client has said who it is, and was believed."""
        return self._principal is not None

    @property
    def principal(self) -> Principal:
        """Who speaks; only of a connected session."""
        assert self._principal is not None
        return self._principal

    @property
    def device(self) -> tuple[str, str]:
        """Whose session it is: tenant, and device or another credential's subject."""
        return self.principal.tenant, self.principal.device or self.principal.subject

    @property
    def unanswered(self) -> int:
        """How many publishes wait for their answer."""
        return len(self._publishes)

    # -- bytes in ----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Handle a chunk of any size."""
        if self.deaf:
            return
        self._heard_ms = self._clock.monotonic_ms()
        if self._tail or self._tail_needs:
            self._tail += data
            if len(self._tail) < self._tail_needs:
                return
            data = bytes(self._tail)
            self._tail.clear()
        try:
            at = self._packets(data)
        except BadPacket as error:
            self._bad(error)
            return
        if self.ended:
            return
        if at < len(data):
            self._tail += memoryview(data)[at:]
        if at and self._rate is not None:
            self._after_packets()

    def _packets(self, data: bytes) -> int:
        """Handle the complete packets; where the incomplete one begins, or those that are held.

        However that ends, the device is charged, once, for what was handled: all bytes, and all
        packets but the second half of a QoS 2 publish. The path of a PUBLISH is written out here:
        it is what the listener does.
        """
        at, total, charged = 0, len(data), 0
        self._tail_needs = 0
        take, received_ms = self._publishes.take, self._clock.now_ms()
        if received_ms >= self._expires_ms and self.expired():
            return 0
        try:
            while total - at >= 2:
                first, length, body = data[at], data[at + 1], at + 2
                if length > 127:
                    length, body = _length(data, at + 1)
                    if length < 0:
                        break
                end = body + length
                if length > self._packet_bytes_max:
                    raise BadPacket(f"a packet of {length} bytes", Reason.PACKET_TOO_LARGE)
                if end > total:
                    if first != wire.CONNECT << 4 and self._principal is None:
                        self.end()
                    self._tail_needs = end - at
                    break
                at = end
                if first >> 4 == wire.PUBLISH and self._principal is not None:
                    charged += 1
                    payload_at = (
                        body + 2 + (data[body] << 8 | data[body + 1]) if length > 2 else end
                    )
                    topic = data[body + 2 : payload_at]
                    packet_id = b""
                    if first & 0x06:
                        packet_id = data[payload_at : payload_at + 2]
                        payload_at += 2
                    if self.version == V5:
                        if payload_at < end and data[payload_at] == 0:
                            payload_at += 1
                        else:
                            payload_at = wire.skip_publish_properties(data, payload_at, end)
                    if payload_at > end:
                        raise BadPacket("a PUBLISH that ends within its topic")
                    take(first & 0x0F, topic, packet_id, data[payload_at:end], received_ms)
                else:
                    charged += first >> 4 != wire.PUBREL
                    self._other(first, data, body, end)
                    if self._tail_needs:
                        # CONNECT of a device in debt: what is behind it is held.
                        break
                if self.deaf:
                    return total
        finally:
            if at and self._rate is not None:
                self._slow_down(self._rate.charge(charged, at, self._heard_ms))
        return at

    def _after_packets(self) -> None:
        """Once a chunk: answer what waits for nothing, look at the bounds."""
        bound = self._settings.mqtt_unacked_max
        if len(self._publishes) > bound and self.version == V5:
            self._bad(BadPacket("more than Receive Maximum", Reason.RECEIVE_MAXIMUM_EXCEEDED))
            return
        self._publishes.count()
        self._publishes.acknowledge()
        if self.ended:
            return
        if len(self._publishes) > bound:
            self.pause(UNACKED)
        self._host.delivered()

    # -- the other packets -------------------------------------------------------------------------

    def _other(self, first: int, data: bytes, at: int, end: int) -> None:
        kind, flags = first >> 4, first & 0x0F
        if self._principal is None:
            if kind != wire.CONNECT:
                self.end()
            elif flags:
                raise BadPacket(f"CONNECT with flags 0x{flags:x}")
            else:
                self._connect(data, at, end)
            return
        if flags != (0x02 if kind in (wire.PUBREL, wire.SUBSCRIBE, wire.UNSUBSCRIBE) else 0):
            raise BadPacket(f"packet type {kind} with flags 0x{flags:x}")
        if kind == wire.PINGREQ and at == end:
            self.write(wire.PINGRESP_PACKET)
        elif kind == wire.PUBREL:
            self._publishes.release(wire.parse_acknowledgement(data, at, end))
        elif kind == wire.SUBSCRIBE:
            packet_id, wanted = wire.parse_subscribe(data, at, end, self.version)
            codes = [self._subscribe(name, qos) for name, qos in wanted]
            self.write(wire.suback(self.version, packet_id, codes))
        elif kind == wire.UNSUBSCRIBE:
            packet_id, names = wire.parse_unsubscribe(data, at, end, self.version)
            codes = [0 if name in self.granted else Reason.NO_SUBSCRIPTION for name in names]
            self.granted.difference_update(names)
            self.write(wire.unsuback(self.version, packet_id, codes))
        elif kind == wire.DISCONNECT and (at == end or self.version == V5):
            self.end()
        elif kind == wire.PUBACK:
            # Of nothing: this door publishes with QoS 0.
            wire.parse_acknowledgement(data, at, end)
        else:
            raise BadPacket(f"packet type {kind} from a client", Reason.PROTOCOL_ERROR)

    def _subscribe(self, name: str, qos: int) -> int:
        if name in FILTERS:
            self.granted.add(name)
            return min(qos, 1)
        if self.version != V5:
            return 0x80
        shared = name.startswith("$share/")
        return Reason.SHARED_NOT_SUPPORTED if shared else Reason.FILTER_INVALID

    # -- connecting --------------------------------------------------------------------------------

    def _connect(self, data: bytes, at: int, end: int) -> None:
        try:
            self.version = wire.protocol_version(data, at, end)
            connect = wire.parse_connect(data, at, end)
        except BadPacket as error:
            # 3.1.1 has a return code for another protocol only; a 5.0 client learns any reason.
            if self.version == V5 or error.reason == Reason.UNSUPPORTED_VERSION:
                self.write(wire.connack(self.version, error.reason))
            self.end()
            return
        if not connect.client_id and not connect.clean and self.version == V311:
            self.write(wire.IDENTIFIER_REJECTED)
            self.end()
            return
        self.client_id = connect.client_id or uuid4().hex
        try:
            if connect.username is None:
                raise Unauthorized("no user name")
            entered = self._host.enter(self, connect.username, self.client_id)
        except Unavailable:
            self._refuse(Reason.SERVER_UNAVAILABLE)
        except Refused as error:
            unknown = isinstance(error, Unauthorized)
            reason = Reason.BAD_USER_NAME if unknown else Reason.NOT_AUTHORIZED
            delay_ms = self._host.refused(self)
            if delay_ms:
                self.deaf = True
                self.pause(REFUSING)
                self._host.later(delay_ms, partial(self._refuse, reason))
            else:
                self._refuse(reason)
        else:
            self._principal, self._rate = entered
            self._expires_ms = self._principal.expires_ms
            self._welcome(connect)
            wait_ms = self._rate.charge(0, 0, self._heard_ms)
            if wait_ms:
                # In debt from an earlier connection: what came along with CONNECT waits too.
                self._slow_down(wait_ms)
                self._tail_needs = inf

    def _refuse(self, reason: Reason) -> None:
        self.write(wire.connack(self.version, reason))
        self.end()

    def _welcome(self, connect: wire.Connect) -> None:
        s = self._settings
        keepalive_s = connect.keepalive_s
        given_s = s.mqtt_keepalive_seconds if self.version == V5 and not keepalive_s else 0
        if keepalive_s or given_s:
            self._silence_ms_max = (keepalive_s or given_s) * 1000 * KEEPALIVE_FACTOR
        self.client_bytes_max = connect.packet_bytes_max
        self._packet_bytes_max = s.mqtt_payload_bytes_max + s.mqtt_topic_bytes_max + _HEADER_BYTES
        self.write(
            wire.connack(
                self.version,
                Reason.SUCCESS,
                receive_max=s.mqtt_unacked_max,
                packet_bytes_max=self._packet_bytes_max,
                client_id="" if connect.client_id else self.client_id,
                keepalive_s=given_s,
            )
        )

    def answered(self) -> None:
        """The line of publishes has become shorter: read on once it is short enough."""
        bound = self._settings.mqtt_unacked_max // 4
        if self._paused & UNACKED and len(self._publishes) <= bound:
            self.resume(UNACKED)

    # -- reading and not reading -------------------------------------------------------------------

    def pause(self, why: int) -> None:
        """Stop reading for one more reason."""
        before, self._paused = self._paused, self._paused | why
        if self.ended or before == self._paused:
            return
        if why & WRITING:
            self._unread_ms = self._clock.monotonic_ms()
        if not before:
            self._read(False)
        if self._paused & BEHIND and not before & BEHIND:
            self._host.behind(self, True)

    def resume(self, why: int) -> None:
        """A reason is gone; read again if it was the last."""
        before, self._paused = self._paused, self._paused & ~why
        if self.ended or before == self._paused:
            return
        if before & BEHIND and not self._paused & BEHIND:
            self._host.behind(self, False)
        if not self._paused:
            self._heard_ms = self._clock.monotonic_ms()
            self._read(True)
            if self._tail_needs == inf:
                # Not at once: who resumes us may be on the way through all connections.
                self._host.later(0, self._let_go)

    def _slow_down(self, wait_ms: float) -> None:
        """Stop reading until the device's debt is paid."""
        if wait_ms and not self.ended and not self._paused & RATE:
            self.pause(RATE)
            self._wake = self._host.later(wait_ms, partial(self.resume, RATE))

    def _let_go(self) -> None:
        """Handle what was held, unless reading has stopped again."""
        if not self._paused:
            self._tail_needs = 0
            self.data_received(b"")

    def _read(self, on: bool) -> None:
        if not self._transport.is_closing():
            (self._transport.resume_reading if on else self._transport.pause_reading)()

    def sweep(self, now_ms: float) -> None:
        """Once a second (monotonic ms): end what has been silent, or stuck, for too long, and whose
        credential has expired.
        """
        if self.ended:
            if now_ms - self._ended_ms > CLOSING_MS_MAX:
                self._transport.abort()
        elif self.expired():
            return
        elif self._paused:
            if self._paused & WRITING and now_ms - self._unread_ms > WRITING_MS_MAX:
                self.abort()
        elif self._principal is None:
            if now_ms - self._opened_ms > self._settings.mqtt_connect_seconds_max * 1000:
                self.abort()
        elif now_ms - self._heard_ms > self._silence_ms_max:
            self.end(Reason.KEEP_ALIVE_TIMEOUT)

    # -- the end -----------------------------------------------------------------------------------

    def expired(self) -> bool:
        """Whether the credential is not good any more by the wall clock; the session ends with
        it.
        """
        if self._expires_ms == inf or self._clock.now_ms() < self._expires_ms:
            return False
        self.end(Reason.NOT_AUTHORIZED)
        return True

    def _bad(self, error: BadPacket) -> None:
        if not self.ended:
            self._publishes.acknowledge()
            self.end(error.reason)

    def write(self, data: bytes) -> None:
        """Send bytes, if there is somebody to send them to."""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def end(self, reason: Reason | None = None) -> None:
        """Close; a 5.0 client is told the reason first."""
        if self.ended:
            return
        if reason is not None and self.version == V5 and self.connected:
            self.write(wire.disconnect(reason))
        self.closed()
        self._transport.close()

    def abort(self) -> None:
        """Close without sending what is left."""
        self.closed()
        self._transport.abort()

    def closed(self) -> None:
        """The connection is gone, or will be."""
        if self.ended:
            return
        if self._paused & BEHIND:
            self._host.behind(self, False)
        self.ended = self.deaf = True
        self._ended_ms = self._clock.monotonic_ms()
        if self._wake is not None:
            self._wake()
        self._publishes.clear()
        self._tail.clear()
        self._host.left(self)


def _length(data: bytes, at: int) -> tuple[int, int]:
    """Remaining length in data[at:] and where the body begins; (-1, 0) while it is cut off."""
    value, shift = 0, 0
    for index in range(at, min(at + 4, len(data))):
        value |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:
            return value, index + 1
        shift += 7
    if len(data) - at >= 4:
        raise BadPacket("a remaining length of more than four bytes")
    return -1, 0
