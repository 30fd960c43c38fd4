"""Packets and bytes: what is read, what is refused with which reason, what is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingress import _mqtt_wire as wire
from services.ingress._mqtt_wire import V5, V311, BadPacket, Connect, Reason
from tests.support.mqtt import connect, subscribe, text


def body_of(raw: bytes) -> tuple[bytes, int, int]:
    """A packet of less than 130 bytes with the place of its body, in other bytes around it."""
    assert raw[1] < 128
    return b"zz" + raw + b"\xff" * 8, 4, 2 + len(raw)


def read_connect(raw: bytes) -> Connect:
    return wire.parse_connect(*body_of(raw))


def reason_of(raw: bytes) -> Reason:
    with pytest.raises(BadPacket) as caught:
        read_connect(raw)
    return caught.value.reason


def raw_connect(flags: int, rest: bytes, version: int = V311) -> bytes:
    body = b"\0\4MQTT" + bytes((version, flags)) + b"\0\x0a" + rest
    return b"\x10" + wire.variable(len(body)) + body


@pytest.mark.parametrize("version", [V311, V5])
def test_a_token_is_the_user_name_and_needs_no_password(version: int) -> None:
    read = read_connect(connect(version, token="secret", client_id="x", keepalive_s=30))
    assert read == Connect(version, "x", "secret", True, 30)


def test_a_connect_without_a_user_name_says_so() -> None:
    assert read_connect(connect(token=None)).username is None


def test_will_and_password_are_passed_over() -> None:
    rest = text("id") + text("will/topic") + text(b"\xff\xfe") + text("token") + text(b"\x00")
    assert read_connect(raw_connect(0xC6, rest)).username == "token"
    properties = b"\x00"
    rest = text("id") + b"\x05\x18\0\0\0\x01" + text("w") + text(b"") + text("token")
    assert read_connect(raw_connect(0x86, properties + rest, V5)).username == "token"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (raw_connect(0x03, text("id")), Reason.MALFORMED),
        (raw_connect(0x1E, text("id") + text("w") + text("")), Reason.MALFORMED),
        (raw_connect(0x22, text("id")), Reason.MALFORMED),
        (raw_connect(0x42, text("id") + text("password")), Reason.MALFORMED),
        (raw_connect(0x02, text("id") + b"more"), Reason.MALFORMED),
        (raw_connect(0x82, text("id")), Reason.MALFORMED),
        (raw_connect(0x02, text(b"\xff\xfe")), Reason.MALFORMED),
        (raw_connect(0x02, text(b"a\x00b")), Reason.MALFORMED),
        (raw_connect(0x02, text(b"\xed\xa0\x80")), Reason.MALFORMED),
        (raw_connect(0x02, text("id"), 3), Reason.UNSUPPORTED_VERSION),
        (raw_connect(0x02, text("id"), 6), Reason.UNSUPPORTED_VERSION),
        (b"\x10\x0c\0\6MQIsdp\3\2\0\0", Reason.UNSUPPORTED_VERSION),
        (raw_connect(0x02, b"\x03\x21\0\0" + text("id"), V5), Reason.PROTOCOL_ERROR),
        (raw_connect(0x02, b"\x06\x21\0\1\x21\0\1" + text("id"), V5), Reason.PROTOCOL_ERROR),
        (raw_connect(0x02, b"\x04\x15\0\1x" + text("id"), V5), Reason.BAD_AUTH_METHOD),
        (raw_connect(0x02, b"\x02\x01\x01" + text("id"), V5), Reason.MALFORMED),
        (raw_connect(0x02, b"\x7f\x21\0\1" + text("id"), V5), Reason.MALFORMED),
        (raw_connect(0x02, b"\xff\xff\xff\xff\x01", V5), Reason.MALFORMED),
        (
            raw_connect(0x16, b"\0" + text("id") + b"\0" + text("w") + text(""), V5),
            Reason.QOS_NOT_SUPPORTED,
        ),
        (
            raw_connect(0x26, b"\0" + text("id") + b"\0" + text("w") + text(""), V5),
            Reason.RETAIN_NOT_SUPPORTED,
        ),
    ],
)
def test_a_connect_that_breaks_the_rules_is_refused_with_its_reason(
    raw: bytes, reason: Reason
) -> None:
    assert reason_of(raw) == reason


@pytest.mark.parametrize("version", [V311, V5])
def test_every_connect_that_is_cut_short_is_refused(version: int) -> None:
    properties = b"\x21\0\x10\x27\0\1\0\0\x26\0\1a\0\1b" if version == V5 else b""
    whole = connect(version, token="token", properties=properties)
    data, at, end = body_of(whole)
    assert wire.parse_connect(data, at, end).username == "token"
    for cut in range(at, end):
        with pytest.raises(BadPacket):
            wire.parse_connect(data, at, cut)


def test_the_client_s_largest_packet_is_read() -> None:
    assert read_connect(connect(V5, properties=b"\x27\0\0\1\0")).packet_bytes_max == 256


def test_subscriptions_are_pairs_of_filter_and_qos() -> None:
    data, at, end = body_of(subscribe(9, {"a/+": 2, "b": 0}))
    assert wire.parse_subscribe(data, at, end, V311) == (b"\0\x09", [("a/+", 2), ("b", 0)])
    data, at, end = body_of(subscribe(9, {"a": 1 | 0x0C | 0x20}, version=V5))
    assert wire.parse_subscribe(data, at, end, V5) == (b"\0\x09", [("a", 1)])


@pytest.mark.parametrize(
    ("version", "body", "reason"),
    [
        (V311, b"\0\1", Reason.PROTOCOL_ERROR),
        (V311, b"\0\0\0\1a\0", Reason.PROTOCOL_ERROR),
        (V311, b"\0\1\0\0\0", Reason.MALFORMED),
        (V311, b"\0\1\0\1a\3", Reason.MALFORMED),
        (V311, b"\0\1\0\1a\4", Reason.MALFORMED),
        (V311, b"\0\1\0\1a", Reason.MALFORMED),
        (V311, b"\0\1\0\1\0\0", Reason.MALFORMED),
        (V5, b"\0\1\0\0\1a\xc0", Reason.MALFORMED),
        (V5, b"\0\1\0\0\1a\x30", Reason.PROTOCOL_ERROR),
        (V5, b"\0\1\2\x0b\1\0\1a\0", Reason.SUBSCRIPTION_IDS_NOT_SUPPORTED),
    ],
)
def test_a_bad_subscribe_is_refused_with_its_reason(
    version: int, body: bytes, reason: Reason
) -> None:
    with pytest.raises(BadPacket) as caught:
        wire.parse_subscribe(body, 0, len(body), version)
    assert caught.value.reason == reason


def test_publish_properties_are_passed_over_save_those_that_change_the_meaning() -> None:
    properties = b"\x01\x01\x02\0\0\0\x09\x03\0\1j\x08\0\1r\x09\0\1c\x26\0\1a\0\1b"
    data = b"--" + bytes((len(properties),)) + properties + b"payload"
    assert data[wire.skip_publish_properties(data, 2, len(data)) :] == b"payload"
    for raw, reason in [
        (b"\x03\x23\0\1", Reason.TOPIC_ALIAS_INVALID),
        (b"\x02\x0b\1", Reason.PROTOCOL_ERROR),
        (b"\x02\x11\1", Reason.MALFORMED),
        (b"\x09\x01\1", Reason.MALFORMED),
        (b"\x04\x01\1\x01\1", Reason.PROTOCOL_ERROR),
    ]:
        with pytest.raises(BadPacket) as caught:
            wire.skip_publish_properties(raw, 0, len(raw))
        assert caught.value.reason == reason


@given(st.integers(0, 268_435_455))
def test_a_variable_integer_comes_back(value: int) -> None:
    # The packet-writing side against the properties' reading side, through a subscription id.
    raw = b"\x0b" + wire.variable(value)
    body = b"\0\1" + wire.variable(len(raw)) + raw + b"\0\1a\0"
    with pytest.raises(BadPacket) as caught:
        wire.parse_subscribe(body, 0, len(body), V5)
    assert caught.value.reason == Reason.SUBSCRIPTION_IDS_NOT_SUPPORTED
    assert len(wire.variable(value)) == 1 + (value > 127) + (value > 16_383) + (value > 2_097_151)


def test_what_is_written_is_what_the_standard_shows() -> None:
    assert wire.connack(V311, Reason.SUCCESS) == b"\x20\x02\x00\x00"
    assert wire.connack(V311, Reason.BAD_USER_NAME) == b"\x20\x02\x00\x04"
    assert wire.connack(V311, Reason.MALFORMED) == b""
    assert wire.connack(V5, Reason.BAD_USER_NAME) == b"\x20\x03\x00\x86\x00"
    given_ = wire.connack(
        V5, Reason.SUCCESS, receive_max=1000, packet_bytes_max=66_000, client_id="i", keepalive_s=9
    )
    assert given_ == (
        b"\x20\x21\x00\x00\x1e\x11\0\0\0\0\x21\x03\xe8\x24\x01\x25\x00\x27\x00\x01\x01\xd0"
        b"\x12\0\1i\x28\0\x29\0\x2a\0\x13\0\x09"
    )
    assert wire.suback(V311, b"\0\7", [1, 0x80]) == b"\x90\x04\0\7\x01\x80"
    assert wire.suback(V5, b"\0\7", [1]) == b"\x90\x04\0\7\0\x01"
    assert wire.unsuback(V311, b"\0\7", [0x11]) == b"\xb0\x02\0\7"
    assert wire.unsuback(V5, b"\0\7", [0x11]) == b"\xb0\x04\0\7\0\x11"
    assert wire.publish(V311, b"t", b"p") == b"\x30\x04\0\1tp"
    assert wire.publish(V5, b"t", b"p") == b"\x30\x05\0\1t\0p"
    assert wire.disconnect(Reason.SERVER_BUSY) == b"\xe0\x02\x89\x00"
