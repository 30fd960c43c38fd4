"""Whatever a client sends, in whatever pieces: no exception, bounded memory, nothing acknowledged
that is not on the log.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.clock import ManualClock
from services.ingress._mqtt_wire import V5, V311
from tests.support.mqtt import (
    TOPIC,
    Client,
    Desk,
    connect,
    packet,
    puback,
    publish,
    sample,
    subscribe,
    text,
)

CALL = b'{"method":"getSessionLimits"}'


def valid_packets(version: int) -> list[bytes]:
    """One of each kind that a client may send after CONNECT."""
    head = b"\0\1" + (b"\0" if version == V5 else b"")
    return [
        publish(sample(1), version=version),
        publish(sample(2), 1, version=version),
        publish(sample(3), 2, version=version, dup=True),
        publish(sample(1), 3, version=version, qos=2),
        publish(b"!", 4, version=version),
        publish(b"", 5, version=version, topic="other"),
        publish(sample(0), 6, version=version, properties=b"\x26\0\1a\0\1b\x01\x01")
        if version == V5
        else publish(sample(0), 6),
        publish(CALL, 7, version=version, topic="v1/devices/me/rpc/request/1"),
        subscribe(8, {"v1/devices/me/attributes": 1, "#": 0}, version=version),
        packet(0xA2, head + text("v1/devices/me/attributes")),
        b"\x62\x02\0\3",
        b"\x40\x02\0\1",
        b"\xc0\x00",
        b"\xe0\x00",
    ]


@st.composite
def mutated_streams(draw: st.DrawFn) -> bytes:
    """Some packets in a row, with some bytes changed, inserted or left out."""
    version = draw(st.sampled_from([V311, V5]))
    chosen = draw(st.lists(st.sampled_from(valid_packets(version)), max_size=12))
    stream = bytearray(connect(version, keepalive_s=draw(st.integers(0, 65_535))))
    stream += b"".join(chosen)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(stream) - 1)))
        byte = draw(st.integers(0, 255))
        how = draw(st.sampled_from(["change", "insert", "cut", "drop"]))
        if how == "change" and stream:
            stream[at] = byte
        elif how == "insert":
            stream.insert(at, byte)
        elif how == "cut":
            del stream[at : at + 1 + byte % 8]
        else:
            del stream[at:]
    return bytes(stream)


def deliver(client: Client, stream: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        client.send(stream[start:end])


async def survives(stream: bytes, cuts: list[int]) -> None:
    desk = Desk(mqtt_payload_bytes_max=1_024)
    client = desk.open()
    deliver(client, stream, cuts)
    await desk.turn()
    assert len(client.session._tail) <= 8_192 + 5
    if client.closed:
        assert client.session.unanswered == 0
    await desk.settle()
    assert client.session.unanswered == 0
    assert desk.listener.gather.queued_bytes == 0
    desk.clock.advance(65_535 * 1_500 + 1)
    desk.listener.sweep()
    assert client.closed
    desk.listener.lost(client.session)


@settings(max_examples=400)
@given(mutated_streams(), st.lists(st.integers(0, 4_096), max_size=6))
def test_mutated_packets_harm_nobody(stream: bytes, cuts: list[int]) -> None:
    asyncio.run(survives(stream, cuts))


@settings(max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_harm_nobody(noise: bytes, logged_in: bool) -> None:
    asyncio.run(survives((connect() if logged_in else b"") + noise, []))


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.lists(st.integers(0, 2_000), max_size=8),
    st.data(),
)
def test_pubacks_come_in_order_and_never_before_the_log(
    messages: list[tuple[int, bool, bool]], cuts: list[int], data: st.DataObject
) -> None:
    """`messages` are (lane, in two lanes, without samples)."""

    async def test() -> None:
        desk = Desk()
        client = desk.client()
        stream = b""
        for number, (lane, wide, empty) in enumerate(messages, 1):
            body = b"" if empty else sample(lane, number)
            if wide and not empty:
                body += b"," + sample((lane + 1) % 4, number)
            stream += publish(body, number)
        deliver(client, stream, cuts)
        answered = b""
        while True:
            await desk.turn()
            answered += client.taken()
            assert answered == b"".join(puback(n) for n in range(1, len(answered) // 4 + 1))
            durable = list(map(set, desk.log.values()))
            for number in range(1, len(answered) // 4 + 1):
                _, wide, empty = messages[number - 1]
                found = sum(number in values for values in durable)
                assert found == (0 if empty else 2 if wide else 1)
            lanes = sorted({lane for _, lane, _, _ in desk.log.waiting})
            if not lanes:
                break
            wanted = data.draw(st.sampled_from(lanes))
            desk.log.settle_lane(wanted)
        assert len(answered) == 4 * len(messages)

    asyncio.run(test())


class AskedClock(ManualClock):
    """Counts how often it is asked for the time of day, which is once whenever bytes are parsed."""

    asked = 0

    def now_ms(self) -> int:
        """The moment last set."""
        self.asked += 1
        return super().now_ms()


def test_a_large_packet_in_small_pieces_is_not_parsed_again_and_again() -> None:
    async def test() -> None:
        clock = AskedClock()
        desk = Desk(clock=clock)
        client = desk.client()
        whole = publish(sample().ljust(65_000, b","), 1, topic=TOPIC)
        before = clock.asked
        for at in range(0, len(whole), 16):
            client.send(whole[at : at + 16])
        assert clock.asked - before == 2
        await desk.settle()
        assert client.taken() == puback(1)

    asyncio.run(test())
