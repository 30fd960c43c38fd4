"""The publishes of one MQTT connection, from the packet to its answer: decoded, handed to the log,
answered in the order of their arrival.

They stand in a line; each is answered when the log has its data and everything before it is
answered. What cannot be used goes to the dead letters first, and its place in the line is where the
client is told, or cut off.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping
from typing import Protocol

from schemas.envelope import Letter
from services import metrics
from services.dialects import Inbound, Lookup, Principal, Publish
from services.errors import OverQuota, Refused, Unavailable
from services.ingress import _mqtt_wire as wire
from services.ingress._mqtt_gather import Gather, Waiting
from services.ingress._mqtt_wire import V5, V311, BadPacket, Reason
from services.settings import Settings

_RPC_REQUEST, _RPC_RESPONSE = b"v1/devices/me/rpc/request/", b"v1/devices/me/rpc/response/"
_RPC_FILTER = "v1/devices/me/rpc/response/+"
_RPC_BYTES_MAX = 1_024
_INFLIGHT_MAX = 100
"""What `getSessionLimits` recommends, as upstream does."""

_QOS1, _DUP, _RETAIN = 0x02, 0x08, 0x01
_NOTHING: Mapping[str, str] = {}
_UNKNOWN, _REFUSED, _SILENT, _FAILED = (
    metrics.MQTT_PUBLISHES.labels(outcome)
    for outcome in ("unknown", "refused", "unanswered", "failed")
)


class Connection(Protocol):
    """What the line needs of its session."""

    version: int
    client_bytes_max: int
    deaf: bool

    @property
    def principal(self) -> Principal: ...

    @property
    def device(self) -> tuple[str, str]: ...

    @property
    def granted(self) -> Collection[str]: ...

    def write(self, data: bytes) -> None: ...

    def end(self, reason: Reason | None = None) -> None: ...

    def expired(self) -> bool:
        """Whether the credential is not good any more; the connection ends with it."""
        ...

    def answered(self) -> None:
        """The line has become shorter."""
        ...


class Publishes:
    """The line of one connection that is logged in."""

    def __init__(
        self,
        connection: Connection,
        *,
        gather: Gather,
        lookup: Lookup,
        doors: Mapping[bytes, tuple[str, Publish]],
        settings: Settings,
    ) -> None:
        self._connection, self._settings = connection, settings
        self._gather, self._lookup, self._doors = gather, lookup, doors
        self._line: deque[Waiting] = deque()
        self._received: set[bytes] = set()
        """Packet ids of QoS 2 publishes from PUBLISH to PUBREL."""
        self._last: Waiting | None = None
        self._last_reason: Reason | None = None
        self._silent = 0

    def __len__(self) -> int:
        """How many publishes wait for their answer."""
        return len(self._line)

    # -- in ----------------------------------------------------------------------------------------

    def take(
        self, flags: int, topic: bytes, packet_id: bytes, payload: bytes, received_ms: int
    ) -> None:
        """Take a publish in, as the packet has it. Raises BadPacket."""
        if flags == _QOS1:
            answer = b"\x40\x02" + packet_id
        elif flags:
            unusual = self._unusual(flags, packet_id)
            if unusual is None:
                return
            answer = unusual
        else:
            answer = b""
        if packet_id == b"\0\0":
            raise BadPacket("packet id 0", Reason.PROTOCOL_ERROR)
        if len(payload) > self._settings.mqtt_payload_bytes_max:
            raise BadPacket(f"a payload of {len(payload)} bytes", Reason.PACKET_TOO_LARGE)
        waiting = None
        if answer:
            waiting = Waiting(answer, self)
            self._line.append(waiting)
        named = self._doors.get(topic)
        if named is None:
            self._no_door(topic, payload, waiting)
        else:
            self._decode(named, payload, received_ms, waiting, flags & _DUP)
        if waiting is not None:
            waiting.outstanding -= 1

    def _unusual(self, flags: int, packet_id: bytes) -> bytes | None:
        """What will answer a publish with DUP, retain or QoS 2; None where it is not to be appended
        again.
        """
        qos, duplicate = flags >> 1 & 3, flags & _DUP
        if qos == 3 or (duplicate and not qos):
            raise BadPacket(f"publish flags 0x{flags:x}")
        if self._connection.version == V5:
            if flags & _RETAIN:
                raise BadPacket("retain", Reason.RETAIN_NOT_SUPPORTED)
            if qos == 2:
                raise BadPacket("QoS 2", Reason.QOS_NOT_SUPPORTED)
        if duplicate and self._waits(packet_id):
            # The one that waits answers both.
            return None
        if qos == 0:
            return b""
        if qos == 1:
            return wire.puback(packet_id)
        answer = wire.pubrec(packet_id)
        if packet_id in self._received:
            # On the log already; the client has not seen our PUBREC.
            repeated = Waiting(answer, self)
            repeated.outstanding = 0
            self._line.append(repeated)
            return None
        self._received.add(packet_id)
        return answer

    def _waits(self, packet_id: bytes) -> bool:
        return any(waiting.answer[2:4] == packet_id for waiting in self._line)

    def _decode(
        self,
        named: tuple[str, Publish],
        payload: bytes,
        received_ms: int,
        waiting: Waiting | None,
        duplicate: int,
    ) -> None:
        """Hand the samples of a message on."""
        dialect, door = named
        principal = self._connection.principal
        if door.scope not in principal.scopes:
            _REFUSED.inc()
            self._deny(waiting, Reason.NOT_AUTHORIZED)
            return
        inbound = Inbound(payload, received_ms, principal, _NOTHING, _NOTHING, _NOTHING)
        try:
            intake = door.decode(inbound, self._lookup)
        except Refused as error:
            _REFUSED.inc()
            self._set_aside(dialect, error, inbound, waiting, duplicate)
            return
        except Unavailable as error:
            over = isinstance(error, OverQuota)
            self._connection.end(Reason.QUOTA_EXCEEDED if over else Reason.SERVER_BUSY)
            return
        if waiting is None:
            self._silent += 1
        if intake.changes:
            self._gather.change(intake.changes, self, waiting, self._lookup.creation_failed)
        self._gather.add(intake.block, dialect, self, waiting)

    def _set_aside(
        self,
        dialect: str,
        error: Refused,
        inbound: Inbound,
        waiting: Waiting | None,
        duplicate: int,
    ) -> None:
        """A payload that cannot be used: to the dead letters first, then the answer."""
        payload, device = inbound.body, self._connection.device
        repeated = bool(duplicate) and self._gather.lettered.has(device, payload)
        if repeated and self._connection.version == V311:
            # The client would send the message for ever; an ordinary answer ends that.
            return
        holder = self._deny(waiting, Reason.PAYLOAD_FORMAT_INVALID)
        if repeated:
            return
        letter = Letter(
            reason=type(error).__name__.lower(),
            detail=f"{error.where}: {error.message}" if error.where else error.message,
            source=dialect,
            tenant=device[0],
            body=payload[: Letter.BODY_BYTES_MAX],
            ts_ms=inbound.received_ms,
        )
        self._gather.letter(letter, device, payload, holder)

    def _deny(self, waiting: Waiting | None, reason: Reason) -> Waiting:
        """Answer with a reason where the version has one for it; else the connection ends when the
        line gets here. The message's place in the line.
        """
        if waiting is not None and self._connection.version == V5:
            waiting.answer = wire.puback(waiting.answer[2:4], reason)
            return waiting
        if waiting is None:
            waiting = Waiting(b"", self)
            waiting.outstanding = 0
            self._line.append(waiting)
        waiting.answer = b""
        self._last, self._last_reason = waiting, reason
        self._connection.deaf = True
        return waiting

    # -- topics without a door ---------------------------------------------------------------------

    def _no_door(self, topic: bytes, payload: bytes, waiting: Waiting | None) -> None:
        """A topic that takes no samples: one call is answered, anything else only counted."""
        if len(topic) > self._settings.mqtt_topic_bytes_max:
            raise BadPacket(f"a topic of {len(topic)} bytes", Reason.PACKET_TOO_LARGE)
        name = wire.text_of(topic)
        if not name or "+" in name or "#" in name:
            raise BadPacket(f"topic name {name!r}", Reason.TOPIC_NAME_INVALID)
        call_id = topic.removeprefix(_RPC_REQUEST)
        if call_id != topic and call_id and b"/" not in call_id and _asks_limits(payload):
            self._tell_limits(call_id)
            return
        _UNKNOWN.inc()
        if waiting is not None and self._connection.version == V5:
            waiting.answer = wire.puback(waiting.answer[2:4], Reason.TOPIC_NAME_INVALID)

    def _tell_limits(self, call_id: bytes) -> None:
        """The answer to `getSessionLimits`, if the client listens to it."""
        connection, settings = self._connection, self._settings
        if _RPC_FILTER not in connection.granted:
            return
        answer = wire.publish(connection.version, _RPC_RESPONSE + call_id, _limits(settings))
        if not connection.client_bytes_max or len(answer) <= connection.client_bytes_max:
            connection.write(answer)

    # -- answers -----------------------------------------------------------------------------------

    def acknowledge(self) -> int:
        """Answer, in one write, the publishes at the head of the line that the log has; how
        many.
        """
        line, answers = self._line, []
        while line and not line[0].outstanding:
            answers.append(line.popleft().answer)
        if not answers:
            return 0
        # Whatever the credential is by now, the log has the data: nobody is to send it again.
        self._connection.write(b"".join(answers))
        if self._last is not None and not line:
            self._connection.end(self._last_reason)
        elif not self._connection.expired():
            self._connection.answered()
        return len(answers)

    def fail(self) -> None:
        """The log does not have a message: no acknowledgement, the client shall send it again."""
        _FAILED.inc(max(1, len(self._line)))
        self._connection.end(Reason.SERVER_BUSY)

    def release(self, packet_id: bytes) -> None:
        """PUBREL: the client has seen PUBREC, or speaks of a message that this connection never
        had.
        """
        if self._waits(packet_id):
            raise BadPacket("PUBREL before PUBREC", Reason.PROTOCOL_ERROR)
        self._received.discard(packet_id)
        self._connection.write(wire.pubcomp(packet_id))

    def count(self) -> None:
        """Put what was counted since the last call into the metrics."""
        if self._silent:
            _SILENT.inc(self._silent)
            self._silent = 0

    def clear(self) -> None:
        """The connection has ended: nobody waits any more."""
        self._line.clear()
        self._received.clear()


def _asks_limits(payload: bytes) -> bool:
    """Whether the call is `getSessionLimits`, which the vendor's own client makes after it has
    connected.
    """
    if len(payload) > _RPC_BYTES_MAX:
        return False
    try:
        call = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return isinstance(call, dict) and call.get("method") == "getSessionLimits"


def _limits(settings: Settings) -> bytes:
    """Upstream's SessionLimits; a rate is `count:seconds`, 0:0 is none."""
    rate = settings.mqtt_messages_per_second
    messages = f"{rate}:1" if rate else "0:0"
    limits = {
        "maxPayloadSize": settings.mqtt_payload_bytes_max,
        "maxInflightMessages": min(_INFLIGHT_MAX, settings.mqtt_unacked_max),
        "rateLimits": {
            "messages": messages,
            "telemetryMessages": messages,
            "telemetryDataPoints": "0:0",
        },
    }
    return json.dumps(limits, separators=(",", ":")).encode()
