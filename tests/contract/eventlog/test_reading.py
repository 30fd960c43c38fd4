"""What readers without a group promise: where they begin, what they give, seek, pause, resume."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from schemas.envelope import (
    Change,
    Envelope,
    Letter,
    Mark,
    Receipt,
    Receipts,
    Tick,
    Undecodable,
    encode,
)
from schemas.topics import CATALOGUE_CHANGED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED
from services.eventlog import EventLog, Span, Start
from tests.contract.eventlog._places import LANES, Place, opened
from tests.contract.eventlog._records import (
    a_block,
    a_record,
    numbers_of,
    read_all,
    read_until,
    waiting_turns,
)


async def _fill(log: EventLog, count: int, lanes: range = range(1)) -> None:
    """Numbers 0 to `count`, one record each, into every one of the lanes."""
    for number in range(count):
        await log.append([(SAMPLES_RECEIVED, lane, a_record(number)) for lane in lanes])


def test_memory_and_disk_give_equal_records(place: Place) -> None:
    async def scenario() -> None:
        judged = replace(a_record(1, 2, request=5), received=41, epoch=3)
        judged.record.version.extend([7, 2**64 - 1])  # type: ignore[union-attr]
        records = [
            judged,
            a_record(4, text="täxt"),
            Envelope(a_block()),
            Envelope(Receipts((Receipt(b"r" * 16, b"d" * 16, 1, 2, 9, b"\0\2\3"),))),
            Envelope(Letter("reason", "detail", "mqtt", body=b"\xff" * 5000, ts_ms=3)),
            Envelope(Change("key", "k", {"scopes": ("read", "admin")}, claim="c"), key=b"key/k"),
            Envelope(Mark("samples.received", 1, 5, 6), key=b"m"),
            Envelope(Tick(77, "press")),
        ]
        async with opened(place) as log:
            for record in records:
                await log.append([(SAMPLES_ACCEPTED, 1, record)])
            fresh = (await read_all(log, SAMPLES_ACCEPTED))[1]
        async with opened(place) as log:
            old = (await read_all(log, SAMPLES_ACCEPTED))[1]
        assert fresh == old
        assert [logged.offset for logged in old] == [*range(len(records))]
        assert old[0].envelope == judged and old[1].envelope == records[1]
        assert [e.key for e in (logged.envelope for logged in old) if isinstance(e, Envelope)] == [
            record.key for record in records
        ]

    asyncio.run(scenario())


def test_a_reader_begins_where_it_says(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 3, range(2))
            spans = await log.spans(SAMPLES_RECEIVED)
            assert spans == {0: Span(0, 3), 1: Span(0, 3), 2: Span(0, 0), 3: Span(0, 0)}
            at_end = log.reader([SAMPLES_RECEIVED], start=Start.END)
            mapped = log.reader([SAMPLES_RECEIVED], start={0: 2, 1: 3, 2: 0, 3: 0})
            whole = log.reader([SAMPLES_RECEIVED])
            async with at_end, mapped, whole:
                await log.append([(SAMPLES_RECEIVED, lane, a_record(3)) for lane in range(2)])
                expected = {at_end: ([3], [3]), mapped: ([2, 3], [3]), whole: ([0, 1, 2, 3],) * 2}
                for reader, (first, second) in expected.items():
                    lanes = await read_until(reader, {0: 4, 1: 4})
                    assert (numbers_of(lanes[0]), numbers_of(lanes[1])) == (first, second)

    asyncio.run(scenario())


def test_a_reader_of_some_lanes_gets_no_others(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 2, range(LANES))
            async with log.reader([SAMPLES_RECEIVED], lanes=[1, 3]) as reader:
                assert sorted(await read_until(reader, {1: 2, 3: 2})) == [1, 3]
                assert await reader.batch(wait_ms=0) is None

    asyncio.run(scenario())


def test_a_batch_holds_consecutive_records_of_one_lane_and_no_more_than_wanted(
    place: Place,
) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 10, range(2))
            async with log.reader([SAMPLES_RECEIVED]) as reader:
                seen = {0: 0, 1: 0}
                async with asyncio.timeout(20):
                    while min(seen.values()) < 10:
                        batch = await reader.batch(records_max=3)
                        if batch is None:
                            continue
                        offsets = [logged.offset for logged in batch.records]
                        start = seen[batch.lane]
                        assert offsets == [*range(start, start + len(offsets))]
                        assert len(offsets) <= 3
                        seen[batch.lane] = batch.next_offset

    asyncio.run(scenario())


def test_lanes_take_turns(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 20, range(LANES))
            async with log.reader([SAMPLES_RECEIVED]) as reader:
                met = []
                async with asyncio.timeout(20):
                    while len(met) < 3 * LANES:
                        batch = await reader.batch(records_max=1)
                        met += [] if batch is None else [batch.lane]
                # Which one begins is the driver's affair; none may starve behind another.
                assert {lane: met.count(lane) for lane in met}.keys() == set(range(LANES))

    asyncio.run(scenario())


def test_a_waiting_reader_gets_what_comes(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log, log.reader([SAMPLES_RECEIVED]) as reader:
            waiting = asyncio.create_task(reader.batch(wait_ms=20_000))
            await waiting_turns()
            await log.append([(SAMPLES_RECEIVED, 2, a_record(9))])
            batch = await asyncio.wait_for(waiting, 10)
            assert batch is not None
            assert (batch.topic.name, batch.lane) == (SAMPLES_RECEIVED.name, 2)
            assert numbers_of(batch.records) == [9]

    asyncio.run(scenario())


def test_a_reader_with_nothing_to_read_says_so_in_time(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log, log.reader([SAMPLES_RECEIVED]) as reader:
            async with asyncio.timeout(10):
                assert await reader.batch(wait_ms=0) is None
                assert await reader.batch(wait_ms=20) is None

    asyncio.run(scenario())


def test_seek_reads_on_from_anywhere(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 10)
            async with log.reader([SAMPLES_RECEIVED]) as reader:
                assert numbers_of((await read_until(reader, {0: 10}))[0]) == [*range(10)]
                reader.seek(SAMPLES_RECEIVED, 0, 7)
                assert numbers_of((await read_until(reader, {0: 10}))[0]) == [7, 8, 9]
                reader.seek(SAMPLES_RECEIVED, 0, 0)
                first = await reader.batch(records_max=2)
                assert first is not None and numbers_of(first.records) == [0, 1]
                reader.seek(SAMPLES_RECEIVED, 0, 9)
                assert numbers_of((await read_until(reader, {0: 10}))[0]) == [9]

    asyncio.run(scenario())


def test_a_seek_wakes_a_waiting_reader(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 3)
            async with log.reader([SAMPLES_RECEIVED]) as reader:
                await read_until(reader, {0: 3})
                waiting = asyncio.create_task(reader.batch(wait_ms=20_000))
                await waiting_turns()
                reader.seek(SAMPLES_RECEIVED, 0, 1)
                batch = await asyncio.wait_for(waiting, 10)
                assert batch is not None and numbers_of(batch.records) == [1, 2]

    asyncio.run(scenario())


def test_a_paused_lane_gives_nothing_until_it_is_resumed(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 3, range(2))
            async with log.reader([SAMPLES_RECEIVED]) as reader:
                reader.pause(SAMPLES_RECEIVED, 0)
                assert sorted(await read_until(reader, {1: 3})) == [1]
                await log.append([(SAMPLES_RECEIVED, 0, a_record(3))])
                assert await reader.batch(wait_ms=100) is None
                waiting = asyncio.create_task(reader.batch(wait_ms=20_000, records_max=2))
                await waiting_turns()
                reader.resume(SAMPLES_RECEIVED, 0)
                batch = await asyncio.wait_for(waiting, 10)
                assert batch is not None and numbers_of(batch.records) == [0, 1]
                assert numbers_of((await read_until(reader, {0: 4}))[0]) == [2, 3]

    asyncio.run(scenario())


def test_one_reader_of_several_topics_gets_each_by_its_name(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])
            await log.append(
                [(SAMPLES_ACCEPTED, 0, a_record(2)), (SAMPLES_ACCEPTED, 3, a_record(3))]
            )
            met = set()
            async with log.reader([SAMPLES_RECEIVED, SAMPLES_ACCEPTED]) as reader:
                async with asyncio.timeout(20):
                    while len(met) < 3:
                        batch = await reader.batch()
                        if batch is not None:
                            met.add((batch.topic.name, batch.lane, *numbers_of(batch.records)))
            assert met == {
                (SAMPLES_RECEIVED.name, 0, 1),
                (SAMPLES_ACCEPTED.name, 0, 2),
                (SAMPLES_ACCEPTED.name, 3, 3),
            }

    asyncio.run(scenario())


def test_bytes_that_are_none_of_ours_come_out_in_their_place(place: Place) -> None:
    async def scenario() -> None:
        value, headers = encode(a_record(5))
        newer = [(name, b"99" if name == "v" else body) for name, body in headers]
        async with opened(place) as log:
            await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])
        await place.poison(SAMPLES_RECEIVED, 0, b"\x00 no record of ours", [("kind", b"block")])
        await place.poison(SAMPLES_RECEIVED, 0, b"\x01\x02", headers)
        await place.poison(SAMPLES_RECEIVED, 0, value, newer)
        async with opened(place) as log:
            await log.append([(SAMPLES_RECEIVED, 0, a_record(2))])
            records = (await read_all(log, SAMPLES_RECEIVED))[0]
        assert [logged.offset for logged in records] == [0, 1, 2, 3, 4]
        bad = [logged.envelope for logged in records[1:4]]
        assert [e.body for e in bad if isinstance(e, Undecodable)] == [
            b"\x00 no record of ours", b"\x01\x02", value,
        ]  # fmt: skip
        assert numbers_of([records[0], records[4]]) == [1, 2]

    asyncio.run(scenario())


def test_the_newest_change_of_every_key_can_be_read(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            for number in range(30):
                change = Change("point", str(number % 3), {"n": number})
                await log.append([(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key))])
            await log.trim(0)
            newest = {}
            for logged in (await read_all(log, CATALOGUE_CHANGED))[0]:
                assert isinstance(logged.envelope, Envelope)
                change = logged.envelope.record  # type: ignore[assignment]
                newest[change.id] = (logged.offset, change.body)
            assert newest == {str(n % 3): (n, {"n": n}) for n in (27, 28, 29)}

    asyncio.run(scenario())
