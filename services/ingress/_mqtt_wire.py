"""MQTT packets as bytes and back, the first and last step of the MQTT door. Pure functions.

Only what a door for devices needs, in 3.1.1 and 5.0; PUBLISH, the one hot packet, is read in place
by the session, and only its 5.0 properties come here. What a client wrote wrongly raises
`BadPacket` with the reason that 5.0 has for it.

https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html
https://docs.oasis-open.org/mqtt/mqtt/v5.0/os/mqtt-v5.0-os.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from services.errors import Malformed

V311, V5 = 4, 5
"""Protocol levels as CONNECT names them."""

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(8, 16)

PINGRESP_PACKET = b"\xd0\x00"


class Reason(IntEnum):
    """Reason codes of 5.0 that this door gives."""

    SUCCESS = 0x00
    NO_SUBSCRIPTION = 0x11
    MALFORMED = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_VERSION = 0x84
    BAD_USER_NAME = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    SHUTTING_DOWN = 0x8B
    BAD_AUTH_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    TAKEN_OVER = 0x8E
    FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    SHARED_NOT_SUPPORTED = 0x9E
    SUBSCRIPTION_IDS_NOT_SUPPORTED = 0xA1


_RETURN_CODES = {
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_VERSION: 1,
    Reason.SERVER_UNAVAILABLE: 3,
    Reason.BAD_USER_NAME: 4,
    Reason.NOT_AUTHORIZED: 5,
}
"""CONNACK's return codes in 3.1.1; for any other reason the connection is closed without one."""

IDENTIFIER_REJECTED = b"\x20\x02\x00\x02"
"""CONNACK of 3.1.1 for an empty client id with a session that shall be kept."""


class BadPacket(Malformed):
    """The client broke the protocol; `reason` is what a 5.0 client is told before it is cut off."""

    def __init__(self, message: str, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(message)
        self.reason = reason


# -- properties of 5.0 -----------------------------------------------------------------------------

SESSION_EXPIRY, RECEIVE_MAXIMUM, PACKET_SIZE_MAXIMUM = 0x11, 0x21, 0x27
_AUTH_METHOD, _TOPIC_ALIAS, _SUBSCRIPTION_ID, _USER_PROPERTY = 0x15, 0x23, 0x0B, 0x26

# Value shapes: a number is its size in bytes; "v" a variable integer, "s" text, "b" binary data.
_CONNECT_PROPERTIES: Mapping[int, int | str] = {
    SESSION_EXPIRY: 4,
    RECEIVE_MAXIMUM: 2,
    PACKET_SIZE_MAXIMUM: 4,
    0x22: 2,  # topic alias maximum: this door never sends an alias
    0x19: 1,  # request response information
    0x17: 1,  # request problem information
    _AUTH_METHOD: "s",
    0x16: "b",  # authentication data
}
_WILL_PROPERTIES: Mapping[int, int | str] = {
    0x18: 4,
    0x01: 1,
    0x02: 4,
    0x03: "s",
    0x08: "s",
    0x09: "b",
}
_PUBLISH_PROPERTIES: Mapping[int, int | str] = {
    0x01: 1,  # payload format indicator
    0x02: 4,  # message expiry interval
    _TOPIC_ALIAS: 2,
    0x08: "s",  # response topic
    0x09: "b",  # correlation data
    _SUBSCRIPTION_ID: "v",
    0x03: "s",  # content type
}
_SUBSCRIBE_PROPERTIES: Mapping[int, int | str] = {_SUBSCRIPTION_ID: "v"}


class _Cursor:
    """Reads forward through one packet's body; every read beyond its end is a BadPacket."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > self.end:
            raise BadPacket("a packet ends within a field")
        return self.data[start : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def binary(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        return text_of(self.binary())

    def variable(self) -> int:
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise BadPacket("a variable integer of more than four bytes")

    def properties(self, shapes: Mapping[int, int | str]) -> dict[int, int | str | bytes]:
        """The properties at this place; user properties are passed over."""
        length = self.variable()
        stop = self.at + length
        if stop > self.end:
            raise BadPacket("properties longer than their packet")
        inner = _Cursor(self.data, self.at, stop)
        self.at = stop
        found: dict[int, int | str | bytes] = {}
        while inner.at < stop:
            name = inner.variable()
            if name == _USER_PROPERTY:
                inner.text(), inner.text()
                continue
            if name not in shapes:
                raise BadPacket(f"property 0x{name:02x} does not belong here")
            if name in found:
                raise BadPacket(f"property 0x{name:02x} twice", Reason.PROTOCOL_ERROR)
            found[name] = inner.value(shapes[name])
        return found

    def value(self, shape: int | str) -> int | str | bytes:
        if isinstance(shape, int):
            return self.number(shape)
        if shape == "v":
            return self.variable()
        return self.text() if shape == "s" else self.binary()


def text_of(raw: bytes) -> str:
    """Text of the wire: UTF-8 without surrogates and without U+0000. Raises BadPacket."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadPacket("text that is not UTF-8") from error
    if "\0" in text:
        raise BadPacket("text with U+0000")
    return text


# -- from the client -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """What a CONNECT asks for. `keepalive_s` 0 is none; the will is read and not kept."""

    version: int
    client_id: str
    username: str | None
    clean: bool
    keepalive_s: int
    packet_bytes_max: int = 0
    """The largest packet the client takes; 0: any."""


def protocol_version(data: bytes, at: int, end: int) -> int:
    """Which version the CONNECT at data[at:end] speaks. Raises BadPacket for one that this door
    does not.
    """
    body = _Cursor(data, at, end)
    if body.binary() != b"MQTT" or (version := body.number(1)) not in (V311, V5):
        raise BadPacket("neither MQTT 3.1.1 nor 5.0", Reason.UNSUPPORTED_VERSION)
    return version


def parse_connect(data: bytes, at: int, end: int) -> Connect:
    """The CONNECT whose body is data[at:end]. Raises BadPacket."""
    version = protocol_version(data, at, end)
    body = _Cursor(data, at + 7, end)
    flags = body.number(1)
    will, will_qos, will_retain = flags & 0x04, flags >> 3 & 3, flags & 0x20
    if flags & 0x01 or will_qos == 3 or (not will and (will_qos or will_retain)):
        raise BadPacket(f"connect flags 0x{flags:02x}")
    if version == V311 and flags & 0x40 and not flags & 0x80:
        raise BadPacket("a password without a user name")
    keepalive_s = body.number(2)
    given = body.properties(_CONNECT_PROPERTIES) if version == V5 else {}
    client_id = body.text()
    if will:
        _skip_will(body, version)
    username = body.text() if flags & 0x80 else None
    if flags & 0x40:
        body.binary()
    if body.at != end:
        raise BadPacket("more in CONNECT than its flags say")
    if version == V5:
        _check_connect(given, will_qos, will_retain)
    packet_bytes_max = given.get(PACKET_SIZE_MAXIMUM, 0)
    assert isinstance(packet_bytes_max, int)
    clean = bool(flags & 0x02)
    return Connect(version, client_id, username, clean, keepalive_s, packet_bytes_max)


def _skip_will(body: _Cursor, version: int) -> None:
    if version == V5:
        body.properties(_WILL_PROPERTIES)
    if not body.text():
        raise BadPacket("a will without a topic")
    body.binary()


def _check_connect(given: Mapping[int, int | str | bytes], qos: int, retain: int) -> None:
    if given.get(RECEIVE_MAXIMUM) == 0 or given.get(PACKET_SIZE_MAXIMUM) == 0:
        raise BadPacket("a maximum of 0", Reason.PROTOCOL_ERROR)
    if _AUTH_METHOD in given:
        raise BadPacket("an authentication method", Reason.BAD_AUTH_METHOD)
    if qos == 2:
        raise BadPacket("a will of QoS 2", Reason.QOS_NOT_SUPPORTED)
    if retain:
        raise BadPacket("a retained will", Reason.RETAIN_NOT_SUPPORTED)


def skip_publish_properties(data: bytes, at: int, end: int) -> int:
    """Where the payload of a 5.0 PUBLISH begins whose properties begin at `at`. Raises
    BadPacket.
    """
    body = _Cursor(data, at, end)
    found = body.properties(_PUBLISH_PROPERTIES)
    if _TOPIC_ALIAS in found:
        raise BadPacket("a topic alias", Reason.TOPIC_ALIAS_INVALID)
    if _SUBSCRIPTION_ID in found:
        raise BadPacket("a subscription id from a client", Reason.PROTOCOL_ERROR)
    return body.at


def parse_subscribe(
    data: bytes, at: int, end: int, version: int
) -> tuple[bytes, list[tuple[str, int]]]:
    """Packet id (2 bytes) and pairs of filter and requested QoS. Raises BadPacket."""
    body = _Cursor(data, at, end)
    packet_id = _packet_id(body)
    if version == V5 and _SUBSCRIPTION_ID in body.properties(_SUBSCRIBE_PROPERTIES):
        raise BadPacket("a subscription id", Reason.SUBSCRIPTION_IDS_NOT_SUPPORTED)
    wanted: list[tuple[str, int]] = []
    while body.at < end:
        name, options = _filter(body), body.number(1)
        if options & 3 == 3 or options & (0xC0 if version == V5 else 0xFC):
            raise BadPacket(f"subscription options 0x{options:02x}")
        if options & 0x30 == 0x30:
            raise BadPacket("retain handling 3", Reason.PROTOCOL_ERROR)
        wanted.append((name, options & 3))
    if not wanted:
        raise BadPacket("SUBSCRIBE without a filter", Reason.PROTOCOL_ERROR)
    return packet_id, wanted


def parse_unsubscribe(data: bytes, at: int, end: int, version: int) -> tuple[bytes, list[str]]:
    """Packet id (2 bytes) and the filters. Raises BadPacket."""
    body = _Cursor(data, at, end)
    packet_id = _packet_id(body)
    if version == V5:
        body.properties({})
    names: list[str] = []
    while body.at < end:
        names.append(_filter(body))
    if not names:
        raise BadPacket("UNSUBSCRIBE without a filter", Reason.PROTOCOL_ERROR)
    return packet_id, names


def parse_acknowledgement(data: bytes, at: int, end: int) -> bytes:
    """The packet id of a PUBACK, PUBREC, PUBREL or PUBCOMP (a 5.0 one may carry more). Raises
    BadPacket.
    """
    return _packet_id(_Cursor(data, at, end))


def _packet_id(body: _Cursor) -> bytes:
    packet_id = body.take(2)
    if packet_id == b"\0\0":
        raise BadPacket("packet id 0", Reason.PROTOCOL_ERROR)
    return packet_id


def _filter(body: _Cursor) -> str:
    name = body.text()
    if not name:
        raise BadPacket("an empty topic filter")
    return name


# -- to the client ---------------------------------------------------------------------------------


def variable(value: int) -> bytes:
    """A variable byte integer, 0 to 268,435,455."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + variable(len(body)) + body


def _text(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(2, "big") + raw


def connack(
    version: int,
    reason: Reason,
    *,
    receive_max: int = 0,
    packet_bytes_max: int = 0,
    client_id: str = "",
    keepalive_s: int = 0,
) -> bytes:
    """CONNACK without a session; empty where 3.1.1 has no code for the reason. On success, 5.0 is
    told the limits, an assigned `client_id` and the server's keepalive where they are given.
    """
    if version != V5:
        code = _RETURN_CODES.get(reason)
        return b"" if code is None else bytes((0x20, 2, 0, code))
    if reason:
        return bytes((0x20, 3, 0, reason, 0))
    given = b"\x11\x00\x00\x00\x00"  # session expiry interval 0
    given += b"\x21" + receive_max.to_bytes(2, "big")
    given += b"\x24\x01\x25\x00"  # maximum QoS 1, retain not available
    given += b"\x27" + packet_bytes_max.to_bytes(4, "big")
    if client_id:
        given += b"\x12" + _text(client_id)
    # No wildcard subscriptions, no subscription identifiers, no shared subscriptions.
    given += b"\x28\x00\x29\x00\x2a\x00"
    if keepalive_s:
        given += b"\x13" + keepalive_s.to_bytes(2, "big")
    return _packet(0x20, b"\x00\x00" + variable(len(given)) + given)


def puback(packet_id: bytes, reason: int = 0) -> bytes:
    """PUBACK; a reason other than 0 exists in 5.0 only."""
    if reason:
        return b"\x40\x03" + packet_id + bytes((reason,))
    return b"\x40\x02" + packet_id


def pubrec(packet_id: bytes) -> bytes:
    """PUBREC: a QoS 2 publish has arrived."""
    return b"\x50\x02" + packet_id


def pubcomp(packet_id: bytes) -> bytes:
    """PUBCOMP: a QoS 2 publish is over."""
    return b"\x70\x02" + packet_id


def suback(version: int, packet_id: bytes, codes: Sequence[int]) -> bytes:
    """SUBACK with one code a filter."""
    return _packet(0x90, packet_id + (b"\0" if version == V5 else b"") + bytes(codes))


def unsuback(version: int, packet_id: bytes, codes: Sequence[int]) -> bytes:
    """UNSUBACK; 3.1.1 has no codes in it."""
    return _packet(0xB0, packet_id + (b"\0" + bytes(codes) if version == V5 else b""))


def publish(version: int, topic: bytes, payload: bytes) -> bytes:
    """PUBLISH of QoS 0."""
    name = len(topic).to_bytes(2, "big") + topic
    return _packet(0x30, name + (b"\0" if version == V5 else b"") + payload)


def disconnect(reason: Reason) -> bytes:
    """DISCONNECT of 5.0; a 3.1.1 server has none."""
    return bytes((0xE0, 2, reason, 0))
