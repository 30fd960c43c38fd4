"""Publishes and the log: when they are answered, in which order, and what happens when the log is
slow, full or fails.
"""

from __future__ import annotations

import pytest

from schemas.blocks import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX
from schemas.topics import CATALOGUE_CHANGED, RECORDS_REFUSED, SAMPLES_RECEIVED
from services import metrics
from services.errors import Broken, Unavailable
from services.ingress._mqtt_wire import V5, V311
from tests.support.mqtt import (
    Desk,
    HandLog,
    connect,
    puback,
    publish,
    run,
    sample,
    series_of,
)

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


def pubrec(packet_id: int) -> bytes:
    return b"\x50\x02" + packet_id.to_bytes(2, "big")


def pubrel(packet_id: int) -> bytes:
    return b"\x62\x02" + packet_id.to_bytes(2, "big")


def pubcomp(packet_id: int) -> bytes:
    return b"\x70\x02" + packet_id.to_bytes(2, "big")


# -- acknowledgement -------------------------------------------------------------------------------


@VERSIONS
def test_nothing_is_acknowledged_before_the_log_has_it(version: int) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version)
        client.send(publish(sample(), 1, version=version))
        await desk.turn()
        assert desk.log.put_calls == 1
        assert client.taken() == b""
        desk.log.settle()
        assert client.taken() == puback(1)

    run(test)


def test_acknowledgements_keep_the_order_of_arrival_when_lanes_finish_in_another() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        for packet_id, lane in [(1, 2), (2, 0), (3, 1), (4, 2)]:
            client.send(publish(sample(lane), packet_id))
        await desk.turn()
        desk.log.settle_lane(1)
        desk.log.settle_lane(0)
        assert client.taken() == b""
        desk.log.settle_lane(2)
        assert client.taken() == puback(1) + puback(2) + puback(3) + puback(4)

    run(test)


def test_one_write_acknowledges_all_that_a_record_brought() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(b"".join(publish(sample(1), packet_id) for packet_id in range(1, 51)))
        await desk.turn()
        writes = client.transport.writes
        desk.log.settle()
        assert client.taken() == b"".join(puback(packet_id) for packet_id in range(1, 51))
        assert client.transport.writes == writes + 1

    run(test)


def test_a_message_of_several_lanes_waits_for_all_of_them() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(b",".join(sample(lane) for lane in (0, 1, 3)), 1))
        await desk.turn()
        for lane in (3, 0):
            desk.log.settle_lane(lane)
            assert client.taken() == b""
        desk.log.settle()
        assert client.taken() == puback(1)

    run(test)


def test_what_the_catalogue_must_hold_counts_as_well() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(b"+" + sample(), 1))
        await desk.turn()
        assert [(t, lane, e.key) for t, lane, e, _ in desk.log.waiting] == [
            (CATALOGUE_CHANGED, 0, b"point/" + sample() + b"?"),
            (SAMPLES_RECEIVED, 0, None),
        ]
        desk.log.settle(lambda topic, _: topic is SAMPLES_RECEIVED)
        assert client.taken() == b""
        desk.log.settle()
        assert client.taken() == puback(1)

    run(test)


def test_a_message_without_samples_is_acknowledged_at_once_but_not_out_of_turn() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(b"", 1))
        assert client.taken() == puback(1)
        client.send(publish(sample(), 2) + publish(b"", 3))
        assert client.taken() == b""
        await desk.settle()
        assert client.taken() == puback(2) + puback(3)

    run(test)


def test_qos_0_goes_the_same_way_without_an_answer() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(sample()))
        await desk.settle()
        assert (desk.log.rows(), client.taken(), client.closed) == (1, b"", False)

    run(test)


# -- gathering -------------------------------------------------------------------------------------


def test_what_all_connections_bring_in_a_turn_is_one_record_a_lane() -> None:
    async def test() -> None:
        desk = Desk()
        clients = [desk.client(token=f"token-d{n}") for n in range(20)]
        for value, client in enumerate(clients):
            client.send(publish(sample(value % 2, value), 1))
        await desk.turn()
        assert [(lane, len(block)) for lane, block in desk.log.blocks()] == [(0, 10), (1, 10)]
        assert list(desk.log.blocks()[1][1].bits) == list(range(1, 20, 2))

    run(test)


def test_while_a_lane_s_append_is_open_the_next_record_grows() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        for packet_id in range(1, 11):
            client.send(publish(sample(1, packet_id), packet_id))
            await desk.turn()
        assert desk.log.put_calls == 1
        desk.log.settle()
        assert [list(block.bits) for _, block in desk.log.blocks()] == [list(range(2, 11))]
        assert client.taken() == puback(1)
        desk.log.settle()
        assert client.taken() == b"".join(puback(packet_id) for packet_id in range(2, 11))

    run(test)


def test_a_record_stays_within_its_bounds() -> None:
    async def test() -> None:
        desk = Desk(HandLog(lanes=1))
        client = desk.client()
        rows = 700
        for packet_id in range(1, 14):
            client.send(publish(b",".join([b"1=1"] * rows), packet_id))
        client.send(publish(b",".join([b"1=1"] * 9_000), 14))
        await desk.settle()
        sizes = [len(values) for values in desk.log.values()]
        assert sum(sizes) == 13 * rows + 9_000
        assert max(sizes) <= BLOCK_ROWS_MAX
        assert all(e.bytes_estimate <= BLOCK_BYTES_MAX for _, _, e in desk.log.durable)
        assert client.taken() == b"".join(puback(packet_id) for packet_id in range(1, 15))

    run(test)


def test_long_texts_fill_a_record_as_well() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        for packet_id in range(1, 11):
            client.send(publish(b"~" + b"x" * 60_000, packet_id))
        await desk.settle()
        assert [len(values) for values in desk.log.values()] == [4, 4, 2]
        assert client.taken() == b"".join(puback(packet_id) for packet_id in range(1, 11))

    run(test)


def test_a_block_that_was_handed_on_does_not_change() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(sample(1, 1), 1))
        await desk.turn()
        (_, handed), *_ = desk.log.blocks()
        client.send(publish(sample(1, 2), 2))
        await desk.turn()
        assert list(handed.bits) == [1]

    run(test)


# -- failure ---------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("error", [Unavailable("disk full"), Broken("writer gone")])
def test_a_failed_append_is_never_acknowledged(version: int, error: Exception) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version)
        other = desk.client(version, token="token-d2")
        client.send(publish(sample(1), 1, version=version))
        client.send(publish(sample(2), 2, version=version))
        other.send(publish(sample(2), 1, version=version))
        await desk.turn()
        desk.log.settle(lambda _, lane: lane == 1, error)
        assert client.taken() == (b"\xe0\x02\x89\x00" if version == V5 else b"")
        assert client.closed
        await desk.settle()
        assert (client.taken(), other.taken()) == (b"", puback(1))

    run(test)


@VERSIONS
def test_a_sender_of_qos_0_hears_of_a_failure_as_well(version: int) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version)
        client.send(publish(sample(), version=version))
        await desk.settle(Unavailable("disk full"))
        assert client.taken() == (b"\xe0\x02\x89\x00" if version == V5 else b"")
        assert client.closed

    run(test)


@VERSIONS
def test_a_door_that_cannot_answer_now_is_a_failure_too(version: int) -> None:
    client = Desk().client(version)
    client.send(publish(b"?", 1, version=version))
    assert client.taken() == (b"\xe0\x02\x89\x00" if version == V5 else b"")
    assert client.closed


def test_a_log_that_refuses_a_record_for_good_is_a_failure_too() -> None:
    async def test() -> None:
        desk = Desk()

        client = desk.client()
        desk.log.broken = True
        client.send(publish(sample(), 1))
        await desk.turn()
        assert (client.taken(), client.closed) == (b"", True)

    run(test)


def test_what_is_durable_after_its_connection_ended_is_nobody_s_answer() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(sample(), 1) + b"\xe0\x00")
        await desk.settle()
        assert (desk.log.rows(), client.taken(), client.closed) == (1, b"", True)

    run(test)


# -- duplicates and QoS 2 --------------------------------------------------------------------------


@VERSIONS
def test_a_duplicate_of_what_is_pending_is_answered_with_it(version: int) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version)
        client.send(publish(sample(), 1, version=version))
        client.send(publish(sample(), 1, version=version, dup=True))
        await desk.settle()
        assert (desk.log.rows(), client.taken()) == (1, puback(1))

    run(test)


@VERSIONS
def test_a_duplicate_on_a_new_connection_is_appended(version: int) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version)
        client.send(publish(sample(), 1, version=version, dup=True))
        await desk.settle()
        assert (desk.log.rows(), client.taken()) == (1, puback(1))

    run(test)


def test_qos_2_of_3_1_1_is_received_when_the_log_has_it_and_appended_once() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(sample(), 1, qos=2))
        await desk.turn()
        client.send(publish(sample(), 1, qos=2, dup=True))
        assert client.taken() == b""
        desk.log.settle()
        assert client.taken() == pubrec(1)
        client.send(publish(sample(), 1, qos=2, dup=True))
        assert client.taken() == pubrec(1)
        client.send(pubrel(1))
        assert client.taken() == pubcomp(1)
        client.send(pubrel(1))
        assert client.taken() == pubcomp(1)
        await desk.settle()
        assert desk.log.rows() == 1
        client.send(publish(sample(), 1, qos=2))
        await desk.settle()
        assert (client.taken(), desk.log.rows()) == (pubrec(1), 2)

    run(test)


def test_a_release_before_the_log_has_the_data_ends_the_connection() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(sample(), 1, qos=2) + pubrel(1))
        assert (client.taken(), client.closed) == (b"", True)

    run(test)


# -- dead letters ----------------------------------------------------------------------------------


def test_5_0_hears_of_a_bad_payload_when_the_dead_letter_is_durable() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(V5)
        before = metrics.DEAD_LETTERS.labels("lines", "malformed")._value.get()
        client.send(publish(sample(1), 1, version=V5))
        client.send(publish(b"!" + b"x" * 5_000, 2, version=V5))
        client.send(publish(sample(2), 3, version=V5))
        await desk.turn()
        assert client.taken() == b""
        desk.log.settle(lambda topic, _: topic is SAMPLES_RECEIVED)
        assert client.taken() == puback(1)
        desk.log.settle(lambda topic, _: topic is RECORDS_REFUSED)
        assert client.taken() == puback(2, 0x99) + puback(3)
        (letter,) = desk.log.letters()
        assert (letter.reason, letter.source, letter.tenant) == ("malformed", "lines", "acme")
        assert letter.detail == "/0: cannot be used"
        assert letter.body == b"!" + b"x" * 4_095
        assert letter.ts_ms == desk.clock.now_ms()
        assert metrics.DEAD_LETTERS.labels("lines", "malformed")._value.get() == before + 1

    run(test)


@pytest.mark.parametrize(("version", "qos"), [(V311, 0), (V311, 1), (V311, 2), (V5, 0)])
def test_else_a_bad_payload_ends_the_connection_after_what_came_before_is_answered(
    version: int, qos: int
) -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(version)
        client.send(
            publish(sample(), 1, version=version)
            + publish(b"!", 2 if qos else 0, version=version, qos=qos)
            + publish(sample(), 3, version=version)
        )
        client.send(publish(sample(), 4, version=version))
        await desk.turn()
        desk.log.settle(lambda topic, _: topic is RECORDS_REFUSED)
        assert (client.taken(), client.closed) == (b"", False)
        desk.log.settle()
        goodbye = b"\xe0\x02\x99\x00" if version == V5 else b""
        assert (client.taken(), client.closed) == (puback(1) + goodbye, True)
        assert (len(desk.log.letters()), desk.log.rows()) == (1, 1)

    run(test)


def test_a_3_1_1_client_that_sends_a_bad_payload_again_is_acknowledged_in_the_end() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(b"!bad", 5))
        await desk.settle()
        assert (client.taken(), client.closed) == (b"", True)
        client = desk.client()
        client.send(publish(b"!bad", 5, dup=True))
        assert client.taken() == puback(5)
        # Other bytes, another device, or the same bytes as a new message are not excused.
        for token, payload, dup in [
            ("token-d1", b"!worse", True),
            ("token-d2", b"!bad", True),
            ("token-d1", b"!bad", False),
        ]:
            client = desk.client(token=token, client_id=f"{token}{payload!r}{dup}")
            client.send(publish(payload, 5, dup=dup))
            await desk.settle()
            assert (client.taken(), client.closed) == (b"", True)
        assert len(desk.log.letters()) == 4

    run(test)


def test_a_bad_payload_sent_again_over_5_0_is_refused_again_without_another_letter() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client(V5)
        for dup in (False, True, True):
            client.send(publish(b"!bad", 5, version=V5, dup=dup))
            await desk.settle()
            assert client.taken() == puback(5, 0x99)
        assert len(desk.log.letters()) == 1

    run(test)


def test_a_dead_letter_that_fails_is_not_remembered() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        client.send(publish(b"!bad", 5))
        await desk.settle(Unavailable("disk full"))
        assert client.closed
        client = desk.client()
        client.send(publish(b"!bad", 5, dup=True))
        assert client.taken() == b""
        await desk.settle()
        assert client.closed and len(desk.log.letters()) == 1

    run(test)


# -- a stalled log ---------------------------------------------------------------------------------


def test_a_3_1_1_client_beyond_the_window_is_not_read_until_a_quarter_is_left() -> None:
    async def test() -> None:
        desk = Desk(mqtt_unacked_max=8)
        client = desk.client()
        client.send(b"".join(publish(sample(n % 4), n) for n in range(1, 10)))
        assert not client.transport.reading
        await desk.turn()
        desk.log.settle(lambda _, lane: lane in (1, 2))
        desk.log.settle_lane(3)
        assert (client.taken(), client.transport.reading) == (
            puback(1) + puback(2) + puback(3),
            False,
        )
        desk.log.settle()
        await desk.settle()
        assert client.transport.reading

    run(test)


def test_a_5_0_client_beyond_its_receive_maximum_is_cut_off() -> None:
    async def test() -> None:
        desk = Desk(mqtt_unacked_max=8)
        client = desk.client(V5)
        client.send(b"".join(publish(sample(), n, version=V5) for n in range(1, 9)))
        assert not client.closed
        client.send(publish(sample(), 9, version=V5))
        assert (client.taken(), client.closed) == (b"\xe0\x02\x93\x00", True)

    run(test)


def test_a_stalled_log_stops_the_reading_of_everybody_and_memory_stays_flat() -> None:
    async def test() -> None:
        bound = 1 << 20
        desk = Desk(HandLog(queued_bytes_max=bound))
        clients = [desk.client(token=f"token-d{n}") for n in range(10)]
        chunk = publish(b",".join([sample(1)] * 50)) * 20
        sent = 0
        for _ in range(1_000):
            for client in clients:
                if client.transport.reading:
                    client.send(chunk)
                    sent += 20 * 50
            await desk.turn()
        queued = desk.log.queued_bytes + desk.listener.gather.queued_bytes
        assert bound <= queued <= bound + 2 * 20 * 50 * 33
        assert not any(client.transport.reading for client in clients)
        assert metrics.MQTT_PAUSED._value.get() == 10
        late = desk.open()
        assert not late.transport.reading
        assert desk.listener.paused_ms == 0
        desk.clock.advance(60_000)
        assert desk.listener.paused_ms == 60_000
        desk.listener.sweep()
        assert not any(client.closed for client in [*clients, late])
        await desk.settle()
        assert all(client.transport.reading for client in [*clients, late])
        assert (desk.log.rows(), desk.log.queued_bytes) == (sent, 0)
        assert desk.listener.gather.queued_bytes == 0
        assert desk.listener.paused_ms == 0
        assert metrics.MQTT_PAUSED._value.get() == 0

    run(test)


def test_a_log_that_other_doors_have_filled_gets_the_publish_when_it_has_room() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        desk.log.queued_bytes = desk.log.queued_bytes_max
        client.send(publish(sample(1, 1), 1) + publish(sample(2, 2), 2))
        await desk.turn()
        assert (desk.log.put_calls, client.transport.reading) == (0, False)
        desk.listener.sweep()
        assert desk.log.put_calls == 0
        desk.log.queued_bytes = 0
        desk.listener.sweep()
        assert (desk.log.put_calls, client.transport.reading) == (2, True)
        await desk.settle()
        assert client.taken() == puback(1) + puback(2)

    run(test)


def test_order_holds_for_a_lane_whose_record_was_held_back() -> None:
    async def test() -> None:
        desk = Desk()
        client = desk.client()
        desk.log.queued_bytes = desk.log.queued_bytes_max
        client.send(publish(sample(1, 1), 1))
        await desk.turn()
        desk.log.queued_bytes = 0
        client.send(publish(b",".join([sample(1, 2)] * 4_096)[:65_000].rpartition(b",")[0], 2))
        await desk.turn()
        desk.listener.sweep()
        await desk.settle()
        first, *rest = [value for values in desk.log.values() for value in values]
        assert first == 1 and set(rest) == {2}
        assert client.taken() == puback(1) + puback(2)

    run(test)


def test_series_of_are_in_their_lanes() -> None:
    # The builders' promise, on which the tests above rest.
    async def test() -> None:
        desk = Desk()
        client = desk.open()
        client.send(connect() + publish(b"%d=1" % series_of(3, 9), 1))
        await desk.turn()
        assert [lane for lane, _ in desk.log.blocks()] == [3]

    run(test)
