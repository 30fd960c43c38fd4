"""Who may connect, speak and stay silent how much: takeover, keepalive, rates, failed logins,
revocation, expiry.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from math import inf
from typing import Any

import pytest

from services.ingress._mqtt_limits import Bucket, Failures
from services.ingress._mqtt_session import BUDGET, UNACKED, WRITING
from services.ingress._mqtt_wire import V5, V311
from tests.support.mqtt import TENANT, Client, Desk, connect, packet, puback, publish, run, sample

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


def goodbye(version: int, reason: int) -> bytes:
    return bytes((0xE0, 2, reason, 0)) if version == V5 else b""


# -- sessions of a device --------------------------------------------------------------------------


@VERSIONS
def test_the_same_client_id_of_a_device_takes_the_session_over(version: int) -> None:
    desk = Desk()
    old = desk.client(version)
    stranger = desk.client(version, token="token-d2")
    new = desk.client(version)
    assert (old.taken(), old.closed) == (goodbye(version, 0x8E), True)
    assert not stranger.closed
    assert not new.closed
    # The old one's end does not take the new one's place away.
    desk.listener.lost(old.session)
    newest = desk.client(version)
    assert new.closed and not newest.closed


@VERSIONS
def test_of_too_many_sessions_the_oldest_is_closed(version: int) -> None:
    desk = Desk(mqtt_sessions_per_device_max=2)
    clients = [desk.client(version, client_id=f"c{n}") for n in range(3)]
    assert [client.closed for client in clients] == [True, False, False]
    assert clients[0].taken() == goodbye(version, 0x97)


@VERSIONS
def test_revoked_credentials_end_their_sessions(version: int) -> None:
    desk = Desk()
    revoked, other = desk.client(version), desk.client(version, token="token-d2")
    desk.open()
    desk.listener.revoke(lambda principal: principal.subject == "key-d1")
    assert (revoked.taken(), revoked.closed) == (goodbye(version, 0x87), True)
    assert not other.closed


# -- expiry ----------------------------------------------------------------------------------------


def lapsing(version: int, **members: Any) -> tuple[Desk, Client]:
    """A client whose credential expires in ten seconds, beside one whose does not."""
    desk = Desk(**members)
    desk.expires_ms = desk.clock.now_ms() + 10_000
    return desk, desk.client(version)


@VERSIONS
def test_a_silent_or_unread_session_ends_when_its_credential_expires(version: int) -> None:
    desk, silent = lapsing(version)
    unread = desk.client(version, client_id="c2")
    unread.session.pause(UNACKED)
    desk.expires_ms = inf
    lasting = desk.client(version, client_id="c3")
    desk.clock.advance(9_999)
    desk.listener.sweep()
    assert not silent.closed and not unread.closed
    desk.clock.advance(1)
    desk.listener.sweep()
    for client in (silent, unread):
        assert (client.taken(), client.closed) == (goodbye(version, 0x87), True)
    assert not lasting.closed


@VERSIONS
def test_nothing_is_taken_in_after_the_credential_expired(version: int) -> None:
    async def test() -> None:
        desk, client = lapsing(version)
        desk.clock.advance(9_999)
        client.send(publish(sample(), 1, version=version))
        await desk.settle()
        assert client.taken() == puback(1)
        desk.clock.advance(1)
        client.send(publish(sample(), 2, version=version) + b"\xc0\x00")
        assert (client.taken(), client.closed) == (goodbye(version, 0x87), True)
        await desk.settle()
        assert desk.log.rows() == 1

    run(test)


@VERSIONS
def test_what_was_taken_in_is_acknowledged_though_the_credential_expired(version: int) -> None:
    async def test() -> None:
        desk, client = lapsing(version)
        client.send(publish(sample(), 1, version=version))
        await desk.turn()
        desk.clock.advance(10_000)
        await desk.settle()
        # It is on the log; sent again with a good credential it would be there twice.
        assert (client.taken(), client.closed) == (puback(1) + goodbye(version, 0x87), True)
        assert desk.log.rows() == 1

    run(test)


def test_connections_are_bounded_in_all_and_by_address() -> None:
    desk = Desk(mqtt_connections_max=3, mqtt_connections_per_address_max=2)
    first, _ = desk.open("10.0.0.1"), desk.open("10.0.0.1")
    assert desk.open("10.0.0.1").transport.aborted
    assert not desk.open("10.0.0.2").transport.aborted
    assert desk.open("10.0.0.3").transport.aborted
    desk.listener.lost(first.session)
    assert not desk.open("10.0.0.1").transport.aborted


# -- silence ---------------------------------------------------------------------------------------


@VERSIONS
def test_a_client_is_closed_after_one_and_a_half_keepalives_of_silence(version: int) -> None:
    desk = Desk()
    client = desk.client(version, keepalive_s=10)
    desk.clock.advance(14_000)
    client.send(b"\xc0\x00")
    assert client.taken() == b"\xd0\x00"
    desk.clock.advance(15_000)
    desk.listener.sweep()
    assert not client.closed
    desk.clock.advance(1)
    desk.listener.sweep()
    assert (client.taken(), client.closed) == (goodbye(version, 0x8D), True)


@pytest.mark.parametrize(("version", "silence_ms"), [(V311, 3_600_000), (V5, 450_000)])
def test_a_client_without_a_keepalive_may_be_silent_for_long(version: int, silence_ms: int) -> None:
    desk = Desk()
    client = desk.client(version)
    desk.clock.advance(silence_ms)
    desk.listener.sweep()
    assert not client.closed
    desk.clock.advance(1)
    desk.listener.sweep()
    assert client.closed


def test_nobody_is_silent_who_is_not_read() -> None:
    async def test() -> None:
        desk = Desk(mqtt_unacked_max=2)
        client = desk.client(keepalive_s=10)
        client.send(b"".join(publish(sample(), n) for n in (1, 2, 3)))
        assert not client.transport.reading
        desk.clock.advance(100_000)
        desk.listener.sweep()
        await desk.settle()
        desk.listener.sweep()
        assert client.transport.reading and not client.closed
        desk.clock.advance(15_001)
        desk.listener.sweep()
        assert client.closed

    run(test)


def test_a_connection_that_does_not_log_in_is_cut_off() -> None:
    desk = Desk()
    silent, slow = desk.open(), desk.open()
    slow.send(connect()[:10])
    desk.clock.advance(10_001)
    desk.listener.sweep()
    assert silent.transport.aborted and slow.transport.aborted


def test_a_client_that_leaves_its_answers_unread_is_cut_off() -> None:
    desk = Desk()
    client = desk.client()
    client.session.pause(BUDGET)
    desk.clock.advance(60_000)
    client.session.pause(WRITING)
    desk.clock.advance(30_000)
    desk.listener.sweep()
    assert not client.closed
    desk.clock.advance(1)
    desk.listener.sweep()
    assert client.transport.aborted


def test_a_connection_that_does_not_finish_closing_is_cut_off() -> None:
    desk = Desk()
    client = desk.client()
    client.send(b"\xe0\x00")
    assert client.closed and not client.transport.aborted
    desk.clock.advance(5_001)
    desk.listener.sweep()
    assert client.transport.aborted


# -- rates -----------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(100, 1_000, now_ms=0)
    assert bucket.charge(1_000, 0) == 0
    assert bucket.charge(50, 0) == 500
    assert bucket.charge(0, 250) == 250
    assert bucket.charge(0, 500) == 0
    assert not bucket.full(10_499)
    assert bucket.full(10_500)
    assert Bucket(0, 1, 0).charge(10**9, 0) == 0


def test_a_device_that_is_too_fast_is_read_again_when_its_rate_allows() -> None:
    async def test() -> None:
        desk = Desk(mqtt_messages_per_second=1_000, mqtt_messages_burst=10)
        client, other = desk.client(), desk.client(client_id="c2")
        stranger = desk.client(token="token-d2")
        client.send(b"".join(publish(sample(), n) for n in range(1, 21)))
        other.send(publish(sample(), 1))
        stranger.send(publish(sample(), 1))
        # The rate is the device's, whatever number of connections it has.
        assert [c.transport.reading for c in (client, other, stranger)] == [False, False, True]
        # It is the sender's doing, nothing is full behind it.
        assert desk.listener.paused_ms == 0
        await desk.settle()
        assert client.taken() == b"".join(puback(n) for n in range(1, 21))
        async with asyncio.timeout(5):
            while not (client.transport.reading and other.transport.reading):
                await asyncio.sleep(0.001)

    run(test)


def test_a_device_cannot_get_a_new_burst_by_connecting_again() -> None:
    async def test() -> None:
        desk = Desk(mqtt_messages_per_second=1, mqtt_messages_burst=10)
        for _ in range(3):
            client = desk.client()
            client.send(b"".join(publish(sample(), n) for n in range(1, 5)))
            reading = client.transport.reading
            desk.listener.lost(client.session)
            desk.listener.sweep()
        assert not reading
        desk.clock.advance(60_000)
        desk.listener.sweep()
        assert not list(desk.listener._members)

    run(test)


def test_packets_that_are_no_publishes_are_charged_too() -> None:
    async def test() -> None:
        desk = Desk(mqtt_messages_per_second=100, mqtt_messages_burst=10)
        client = desk.client()
        client.send(b"\xc0\x00" * 20)
        assert not client.transport.reading

    run(test)


def test_bytes_have_a_rate_of_their_own_which_is_the_device_s_too() -> None:
    async def test() -> None:
        desk = Desk(mqtt_bytes_per_second=100_000, mqtt_bytes_burst=1_000)
        client, other = desk.client(), desk.client(client_id="c2")
        stranger = desk.client(token="token-d2")
        # What has arrived of a packet is charged when the rest is there.
        packet = publish(sample().ljust(2_000, b","), 1)
        client.send(packet[:1_500])
        assert client.transport.reading
        client.send(packet[1_500:])
        other.send(publish(sample(), 1))
        stranger.send(publish(sample(), 1))
        assert [c.transport.reading for c in (client, other, stranger)] == [False, False, True]
        assert desk.listener.paused_ms == 0
        await desk.settle()
        assert client.taken() == puback(1)
        async with asyncio.timeout(5):
            while not (client.transport.reading and other.transport.reading):
                await asyncio.sleep(0.001)

    run(test)


def test_a_device_cannot_get_new_bytes_by_connecting_again() -> None:
    async def test() -> None:
        desk = Desk(mqtt_bytes_per_second=100, mqtt_bytes_burst=1_000)
        for reading in (True, True, False):
            client = desk.client()
            client.send(publish(sample().ljust(400, b",")))
            assert client.transport.reading is reading
            desk.listener.lost(client.session)
            desk.listener.sweep()
        desk.clock.advance(60_000)
        desk.listener.sweep()
        assert not list(desk.listener._members)

    run(test)


def test_the_second_half_of_a_qos_2_publish_costs_its_bytes() -> None:
    async def test() -> None:
        desk = Desk(mqtt_bytes_per_second=100, mqtt_bytes_burst=100)
        client = desk.client()
        client.send(b"\x62\x02\0\1" * 30)
        assert not client.transport.reading

    run(test)


@pytest.mark.parametrize(
    ("version", "ending"),
    [
        (V311, b"\xe0\x00"),
        (V311, b"\xf0\x00"),
        (V311, publish(b"!", 9)),
        (V5, publish(sample(), 9, version=V5, qos=2)),
        (V5, b"".join(publish(sample(), n, version=V5) for n in range(9, 12))),
    ],
    ids=["disconnect", "bad packet", "refused publish", "bad publish", "too many"],
)
@pytest.mark.parametrize("limited", ["messages", "bytes"])
def test_the_last_chunk_of_a_connection_is_charged(
    version: int, ending: bytes, limited: str
) -> None:
    async def test() -> None:
        desk = Desk(
            mqtt_unacked_max=2,
            **{f"mqtt_{limited}_per_second": 1, f"mqtt_{limited}_burst": 200},
        )
        client = desk.client(version)
        client.send(publish(sample(), version=version) * 300 + ending)
        await desk.settle()
        assert client.closed and desk.log.rows() >= 300
        rate = desk.listener._members.member((TENANT, "d1"), desk.clock.monotonic_ms()).rate
        assert rate.charge(0, 0, desk.clock.monotonic_ms()) >= 100_000

    run(test)


def test_a_packet_that_is_refused_is_charged_whole() -> None:
    async def test() -> None:
        desk = Desk(mqtt_bytes_per_second=1, mqtt_bytes_burst=1_000)
        client = desk.client()
        client.send(packet(0xF0, bytes(2_000)))
        assert client.closed
        assert not desk.client().transport.reading

    run(test)


@VERSIONS
def test_what_comes_with_the_connect_of_a_device_in_debt_waits(version: int) -> None:
    async def test() -> None:
        desk = Desk(mqtt_messages_per_second=100, mqtt_messages_burst=10)
        client = desk.client(version)
        client.send(publish(sample(), version=version) * 40 + b"\xe0\x00")
        await desk.settle()
        client = desk.open()
        burst = b"".join(publish(sample(), n, version=version) for n in range(1, 4))
        client.send(connect(version) + burst[:-5])
        # A chunk that was on its way already.
        client.send(burst[-5:])
        await desk.settle()
        # It is welcome, but not heard yet, and nothing is full behind it.
        assert client.taken().startswith(b"\x20") and not client.transport.reading
        assert (desk.log.rows(), desk.listener.paused_ms) == (40, 0)
        client.session.pause(BUDGET)
        async with asyncio.timeout(5):
            while client.session._paused != BUDGET:
                await asyncio.sleep(0.001)
        # The debt is paid; still the log has to have room.
        client.session.resume(BUDGET)
        client.session.pause(BUDGET)
        await asyncio.sleep(0.001)
        await desk.settle()
        assert desk.log.rows() == 40
        client.session.resume(BUDGET)
        await asyncio.sleep(0.001)
        await desk.settle()
        assert client.taken() == b"".join(puback(n) for n in range(1, 4))
        assert desk.log.rows() == 43

    run(test)


def test_connecting_again_and_again_gets_a_device_in_debt_nothing_more() -> None:
    async def test() -> None:
        desk = Desk(mqtt_bytes_per_second=100, mqtt_bytes_burst=1_000)
        for _ in range(3):
            client = desk.open()
            client.send(connect() + publish(sample()) * 100)
            desk.listener.lost(client.session)
            client = desk.open()
            client.send(connect())
            # Was on its way when the connection was paused.
            client.send(publish(sample()) * 100)
            desk.listener.lost(client.session)
            await desk.settle()
        assert desk.log.rows() == 100

    run(test)


@pytest.mark.parametrize("ending", [b"", b"\xe0\x00"], ids=["lost", "disconnect"])
def test_a_connection_that_is_gone_is_not_kept_until_its_debt_is_paid(ending: bytes) -> None:
    async def test() -> None:
        desk = Desk(mqtt_messages_per_second=1, mqtt_messages_burst=10)
        client = desk.client()
        client.send(b"\xc0\x00" * 1_000 + ending)
        desk.listener.lost(client.session)
        gone = weakref.ref(client.session)
        del client
        gc.collect()
        assert gone() is None

    run(test)


# -- failed logins ---------------------------------------------------------------------------------


def test_failures_are_counted_by_address_and_minute() -> None:
    failures = Failures(per_minute=2)
    assert [failures.failed("a", 0) for _ in range(3)] == [0, 0, 1_000]
    assert failures.failed("b", 0) == 0
    assert max(failures.failed("a", 1) for _ in range(100)) == 5_000
    assert failures.failed("a", 60_000) == 0
    failures.forget_old(60_001)
    assert list(failures._windows) == ["a"]


def test_the_answer_to_too_many_failed_logins_is_held_back() -> None:
    async def test() -> None:
        desk = Desk(mqtt_auth_failures_per_minute=2)
        for _ in range(2):
            client = desk.open()
            client.send(connect(token="guess"))
            assert (client.taken(), client.closed) == (b"\x20\x02\x00\x04", True)
        client = desk.open()
        began_s = asyncio.get_running_loop().time()
        client.send(connect(token="guess"))
        client.send(publish(sample(), 1))
        assert (client.taken(), client.closed, client.transport.reading) == (b"", False, False)
        async with asyncio.timeout(20):
            while not client.closed:
                await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began_s >= 1
        assert client.taken() == b"\x20\x02\x00\x04"
        # Who knows a token is let in at once, from the same address.
        assert not desk.client().closed

    run(test)


# -- the end of the listener -----------------------------------------------------------------------


async def turned(desk: Desk, times: int = 50) -> None:
    """Let a stop look around several times."""
    for _ in range(times):
        await asyncio.sleep(0.001)


@VERSIONS
def test_a_stop_waits_for_the_log_and_then_says_goodbye(version: int) -> None:
    async def test() -> None:
        desk = Desk()
        client, silent = desk.client(version), desk.client(version, client_id="c2")
        client.send(publish(sample(), 1, version=version))
        silent.send(publish(sample(), version=version))
        stopping = asyncio.create_task(desk.listener.stop())
        await turned(desk)
        assert not client.closed and not client.transport.reading
        assert desk.open().transport.aborted
        desk.log.settle()
        await turned(desk)
        assert client.taken() == puback(1) + goodbye(version, 0x8B)
        assert client.closed and silent.closed and desk.log.rows() == 2
        desk.listener.lost(client.session)
        desk.listener.lost(silent.session)
        async with asyncio.timeout(5):
            await stopping

    run(test)


def test_a_stop_hands_the_log_what_nobody_waits_for() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        for value in (1, 2):
            client.send(publish(sample(1, value)))
            await desk.turn()
        stopping = asyncio.create_task(desk.listener.stop())
        await turned(desk)
        assert not client.closed
        while desk.log.settle():
            await turned(desk)
        desk.listener.lost(client.session)
        async with asyncio.timeout(5):
            await stopping
        assert desk.log.values() == [[1], [2]]

    run(test)


@VERSIONS
def test_a_stop_does_not_wait_for_a_stalled_log_for_ever(version: int) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version)
        client.send(publish(sample(), 1, version=version))
        stopping = asyncio.create_task(desk.listener.stop())
        await turned(desk)
        assert not stopping.done()
        desk.clock.advance(5_001)
        async with asyncio.timeout(5):
            await stopping
        assert (client.taken(), client.closed) == (goodbye(version, 0x8B), True)

    run(test)
