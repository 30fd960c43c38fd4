"""One connection, bytes in and bytes out: connecting, packets in any cut, what a breach is answered
with.
"""

from __future__ import annotations

import json

import pytest

from services.ingress._mqtt_wire import V5, V311
from tests.support.mqtt import (
    TOPIC,
    Desk,
    connect,
    packet,
    puback,
    publish,
    run,
    sample,
    subscribe,
    text,
)

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
RPC_ANSWERS = "v1/devices/me/rpc/response/+"
RPC_CALL = "v1/devices/me/rpc/request/1"


# -- connecting ------------------------------------------------------------------------------------


def test_a_token_opens_a_session_without_a_present_one() -> None:
    client = Desk().open()
    client.send(connect())
    assert client.taken() == b"\x20\x02\x00\x00"


def test_a_5_0_client_is_told_the_limits() -> None:
    client = Desk().open()
    client.send(connect(V5))
    answer = client.taken()
    assert answer[:1] + answer[2:4] == b"\x20\x00\x00"
    for said in [
        b"\x11\0\0\0\0",  # no session is kept
        b"\x21\x03\xe8",  # receive maximum 1000
        b"\x24\x01",  # maximum QoS 1
        b"\x25\x00",  # nothing is retained
        b"\x27\x00\x01",  # packets of about 64 KiB
        b"\x28\0\x29\0\x2a\0",
        b"\x13\x01\x2c",  # keepalive 300 s, because it asked for none
    ]:
        assert said in answer


@VERSIONS
@pytest.mark.parametrize("token", [None, "", "unknown"])
def test_an_unknown_token_or_none_is_refused_and_nothing_else_is_told(
    version: int, token: str | None
) -> None:
    client = Desk().open()
    client.send(connect(version, token=token) + publish(sample(), 1, version=version))
    expected = b"\x20\x02\x00\x04" if version == V311 else b"\x20\x03\x00\x86\x00"
    assert (client.taken(), client.closed) == (expected, True)
    assert not client.desk.log.put_calls


def test_publishes_may_follow_connect_at_once() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.open()
        client.send(connect() + publish(sample(), 7) + publish(sample(), 8))
        assert client.taken() == b"\x20\x02\x00\x00"
        await desk.settle()
        assert client.taken() == puback(7) + puback(8)

    run(test)


def test_bytes_may_come_one_by_one() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.open()
        properties = b"\x26\0\1a\0\1b"
        for byte in (
            connect(V5)
            + publish(sample(), 7, version=V5, properties=properties)
            + b"\xc0\x00"
            + publish(b",".join([sample()] * 40), 8, version=V5)
        ):
            client.send(bytes((byte,)))
        assert client.taken().endswith(b"\xd0\x00")
        await desk.settle()
        assert client.taken() == puback(7) + puback(8)
        assert desk.log.rows() == 41

    run(test)


def test_an_empty_client_id_is_for_clean_sessions_or_is_assigned() -> None:
    desk = Desk()
    for raw, answer, closed in [
        (connect(client_id=""), b"\x20\x02\x00\x00", False),
        (connect(client_id="", clean=False), b"\x20\x02\x00\x02", True),
    ]:
        client = desk.open()
        client.send(raw)
        assert (client.taken(), client.closed) == (answer, closed)
    client = desk.open()
    client.send(connect(V5, client_id="", clean=False))
    assert b"\x12\x00\x20" + client.session.client_id.encode() in client.taken()


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (publish(sample(), 1), b""),
        (b"\xc0\x00", b""),
        (b"\x00\x00", b""),
        (b"\xf0\x00", b""),
        (b"\x11" + connect()[1:], b""),
        (packet(0x10, text("MQTT") + b"\3\2\0\0\0\0"), b"\x20\x02\x00\x01"),
        (packet(0x10, text("HTTP") + b"\4\2\0\0\0\0"), b"\x20\x02\x00\x01"),
        (packet(0x10, text("MQTT") + b"\4\3\0\0\0\0"), b""),
        (packet(0x10, text("MQTT") + b"\5\3\0\0\0\0\0"), b"\x20\x03\x00\x81\x00"),
        (packet(0x10, text("MQTT") + b"\5\2\0\0\4\x15\0\1x\0\0"), b"\x20\x03\x00\x8c\x00"),
        (b"\x10\xff\xff\xff\x7f", b""),
        (b"\x10\xff\xff\xff\xff\x01", b""),
        (packet(0x10, text("MQTT") + b"\4\x82\0\0" + text("i") + text("x" * 8_200)), b""),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ],
)
def test_what_is_no_good_connect_ends_the_connection(raw: bytes, answer: bytes) -> None:
    client = Desk().open()
    client.send(raw)
    assert (client.taken(), client.closed) == (answer, True)


def test_a_header_of_many_megabytes_is_refused_before_its_body_comes() -> None:
    for version, answer in [(V311, b""), (V5, b"\xe0\x02\x95\x00")]:
        client = Desk().client(version)
        client.send(b"\x32\x80\x80\x80\x60")
        assert (client.taken(), client.closed) == (answer, True)


# -- breaches after that ---------------------------------------------------------------------------

BREACHES = [
    ("second CONNECT", lambda v: connect(v), 0x82),
    ("SUBSCRIBE flags", lambda v: b"\x80" + subscribe(1, {TOPIC: 0}, version=v)[1:], 0x81),
    ("PINGREQ flags", lambda v: b"\xc1\x00", 0x81),
    ("PINGREQ with a body", lambda v: b"\xc0\x01\x00", 0x82),
    ("reserved type 0", lambda v: b"\x00\x00", 0x82),
    ("a server's packet", lambda v: b"\xd0\x00", 0x82),
    ("AUTH", lambda v: b"\xf0\x00", 0x82),
    ("QoS 3", lambda v: publish(sample(), 1, version=v, qos=3), 0x81),
    ("DUP without QoS", lambda v: publish(sample(), version=v, dup=True), 0x81),
    ("packet id 0", lambda v: publish(sample(), 0, version=v, qos=1), 0x82),
    ("wildcard", lambda v: publish(b"", 1, version=v, topic="v1/+/me"), 0x90),
    ("wildcard at the end", lambda v: publish(b"", 1, version=v, topic="v1/#"), 0x90),
    ("topic not UTF-8", lambda v: publish(b"", 1, version=v, topic=b"\xff"), 0x81),
    ("topic with NUL", lambda v: publish(b"", 1, version=v, topic=b"a\0"), 0x81),
    ("empty topic", lambda v: publish(b"", 1, version=v, topic=""), 0x90),
    ("long topic", lambda v: publish(b"", 1, version=v, topic="t" * 257), 0x95),
    ("large payload", lambda v: publish(b"9" * 65_537, 1, version=v), 0x95),
    ("large packet", lambda v: publish(b"9" * 70_000, 1, version=v), 0x95),
    ("cut topic", lambda v: b"\x32\x04\x00\x09ab", 0x81),
    ("no topic", lambda v: b"\x30\x00", None),
    ("cut packet id", lambda v: b"\x32\x05\x00\x02ab\x01", 0x81),
    ("remaining length", lambda v: b"\x32\xff\xff\xff\xff\x01", 0x81),
    ("PUBACK without id", lambda v: b"\x40\x00", 0x81),
    ("PUBREL without id", lambda v: b"\x62\x01\x00", 0x81),
    (
        "UNSUBSCRIBE of nothing",
        lambda v: b"\xa2\x02\x00\x01" if v == V311 else b"\xa2\x03\0\1\0",
        0x82,
    ),
]


@VERSIONS
@pytest.mark.parametrize(("breach", "raw", "reason"), BREACHES, ids=[b[0] for b in BREACHES])
def test_a_breach_ends_the_connection_and_5_0_hears_why(
    version: int, breach: str, raw: object, reason: int | None
) -> None:
    client = Desk().client(version)
    client.send(raw(version))  # type: ignore[operator]
    answer = client.taken()
    assert client.closed
    if version == V311:
        assert answer == b""
    elif reason is not None:
        assert answer == bytes((0xE0, 2, reason, 0))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (publish(sample(), 1, version=V5, qos=2), 0x9B),
        (publish(sample(), 1, version=V5, retain=True), 0x9A),
        (publish(sample(), 1, version=V5, properties=b"\x23\0\1"), 0x94),
        (publish(sample(), 1, version=V5, properties=b"\x0b\1"), 0x82),
        (publish(sample(), 1, version=V5, properties=b"\x63\1"), 0x81),
    ],
)
def test_what_5_0_was_told_not_to_send_ends_the_connection(raw: bytes, reason: int) -> None:
    client = Desk().client(V5)
    client.send(raw)
    assert (client.taken(), client.closed) == (bytes((0xE0, 2, reason, 0)), True)


def test_a_retained_3_1_1_publish_is_a_publish() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(sample(), 1, retain=True))
        await desk.settle()
        assert (client.taken(), desk.log.rows()) == (puback(1), 1)

    run(test)


# -- the rest of a session -------------------------------------------------------------------------


@VERSIONS
def test_ping_and_disconnect(version: int) -> None:
    client = Desk().client(version)
    client.send(b"\xc0\x00")
    assert client.taken() == b"\xd0\x00"
    client.send(b"\xe0\x00")
    assert (client.taken(), client.closed) == (b"", True)


def test_a_5_0_disconnect_may_carry_a_reason() -> None:
    client = Desk().client(V5)
    client.send(b"\xe0\x02\x04\x00")
    assert (client.taken(), client.closed) == (b"", True)


@VERSIONS
def test_listed_filters_are_granted_with_at_most_qos_1_and_others_are_refused(version: int) -> None:
    client = Desk().client(version)
    filters = {
        "v1/devices/me/attributes": 0,
        "v1/devices/me/attributes/response/+": 1,
        "v1/devices/me/rpc/request/+": 2,
        RPC_ANSWERS: 1,
        "#": 1,
        "v1/devices/me/+": 0,
        TOPIC: 0,
        "$share/g/v1/devices/me/attributes": 0,
    }
    client.send(subscribe(5, filters, version=version))
    refusals = [0x80] * 4 if version == V311 else [0x8F, 0x8F, 0x8F, 0x9E]
    codes = bytes([0, 1, 1, 1, *refusals])
    head = b"\0\5" if version == V311 else b"\0\5\0"
    assert client.taken() == packet(0x90, head + codes)
    assert not client.closed


@VERSIONS
def test_unsubscribe_is_answered(version: int) -> None:
    client = Desk().client(version)
    client.send(subscribe(5, {RPC_ANSWERS: 0}, version=version))
    client.taken()
    head = b"\0\6" + (b"\0" if version == V5 else b"")
    client.send(packet(0xA2, head + text(RPC_ANSWERS) + text("other")))
    expected = packet(0xB0, b"\0\6" if version == V311 else b"\0\6\0\0\x11")
    assert client.taken() == expected
    assert not client.session.granted


@VERSIONS
def test_an_unknown_topic_is_acknowledged_and_5_0_hears_that_it_is_unknown(version: int) -> None:
    client = Desk().client(version)
    for topic in ["some/topic", "v1/devices/me/attributes", "v1/devices/me/rpc/response/4"]:
        client.send(publish(b"{}", 3, version=version, topic=topic))
        assert client.taken() == puback(3, 0x90 if version == V5 else 0)
        client.send(publish(b"{}", version=version, topic=topic))
        assert (client.taken(), client.closed) == (b"", False)


@VERSIONS
def test_session_limits_are_told_to_who_listens(version: int) -> None:
    client = Desk(mqtt_messages_per_second=50).client(version)
    call = publish(
        b'{"method":"getSessionLimits","params":{"timeout":5000}}',
        2,
        version=version,
        topic=RPC_CALL,
    )
    client.send(call)
    assert client.taken() == puback(2)
    client.send(subscribe(1, {RPC_ANSWERS: 1}, version=version))
    client.taken()
    client.send(call)
    answer = client.taken().removesuffix(puback(2))
    topic = text("v1/devices/me/rpc/response/1")
    body = answer[answer.index(topic) + len(topic) + (version == V5) :]
    assert answer[0] == 0x30
    assert json.loads(body) == {
        "maxPayloadSize": 65_536,
        "maxInflightMessages": 100,
        "rateLimits": {
            "messages": "50:1",
            "telemetryMessages": "50:1",
            "telemetryDataPoints": "0:0",
        },
    }


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (RPC_CALL, b'{"method":"getTime"}'),
        (RPC_CALL, b"[" * 1_000),
        (RPC_CALL, b'"getSessionLimits"'),
        (RPC_CALL, b"\xff"),
        (RPC_CALL + "/2", b'{"method":"getSessionLimits"}'),
        ("v1/devices/me/rpc/request/", b'{"method":"getSessionLimits"}'),
    ],
)
def test_other_calls_are_unknown_topics(topic: str, payload: bytes) -> None:
    client = Desk().client(V5)
    client.send(subscribe(1, {RPC_ANSWERS: 1}, version=V5))
    client.taken()
    client.send(publish(payload, 9, version=V5, topic=topic))
    assert client.taken() == puback(9, 0x90)


def test_a_client_with_small_packets_is_not_sent_a_large_one() -> None:
    client = Desk().client(V5, properties=b"\x27\0\0\0\x40")
    client.send(subscribe(1, {RPC_ANSWERS: 1}, version=V5))
    client.taken()
    client.send(publish(b'{"method":"getSessionLimits"}', 2, version=V5, topic=RPC_CALL))
    assert client.taken() == puback(2)


@VERSIONS
def test_a_credential_that_may_not_send_is_told_or_cut_off(version: int) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version, token="reader-d1")
        client.send(publish(sample(), 1, version=version))
        expected = puback(1, 0x87) if version == V5 else b""
        assert (client.taken(), client.closed) == (expected, version == V311)
        client = desk.client(version, token="reader-d1", client_id="c2")
        client.send(publish(sample(), version=version))
        expected = b"\xe0\x02\x87\x00" if version == V5 else b""
        assert (client.taken(), client.closed) == (expected, True)
        await desk.turn()
        assert not desk.log.put_calls

    run(test)


def test_a_payload_at_the_limit_is_taken() -> None:
    async def test() -> None:
        desk = Desk()
        for version in (V311, V5):
            client = desk.client(version, client_id=f"c{version}")
            payload = sample().ljust(65_536, b",")
            client.send(publish(payload, 1, version=version))
            await desk.settle()
            assert client.taken() == puback(1)
        assert desk.log.rows() == 2

    run(test)
