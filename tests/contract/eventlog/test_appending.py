"""What `put` and `append` promise: durable, in order, few records under load, bounded."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from schemas.blocks import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block
from schemas.envelope import Change, Envelope, Receipt, Receipts
from schemas.topics import CATALOGUE_CHANGED, RECEIPTS_ISSUED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED
from services.errors import Broken, Unavailable
from tests.contract.eventlog._places import LANES, Place, opened
from tests.contract.eventlog._records import (
    Told,
    a_block,
    a_record,
    numbers_of,
    put_patiently,
    read_all,
    until,
)
from tests.support.rounds import rounds, seed


def test_append_tells_the_offsets_in_the_order_of_its_records(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            assert await log.append([]) == []
            assert await log.append([(SAMPLES_RECEIVED, 2, a_record(1))]) == [0]
            out = [(SAMPLES_RECEIVED, 2, a_record(2)), (SAMPLES_ACCEPTED, 0, a_record(3))]
            assert await log.append(out) == [1, 0]
            assert numbers_of((await read_all(log, SAMPLES_RECEIVED))[2]) == [1, 2]
            assert numbers_of((await read_all(log, SAMPLES_ACCEPTED))[0]) == [3]

    asyncio.run(scenario())


def test_what_was_appended_is_there_after_the_log_was_closed(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await log.append([(SAMPLES_RECEIVED, 1, a_record(1, 2))])
        async with opened(place) as log:
            assert numbers_of((await read_all(log, SAMPLES_RECEIVED))[1]) == [1, 2]
            assert await log.append([(SAMPLES_RECEIVED, 1, a_record(3))]) == [1]

    asyncio.run(scenario())


def test_closing_writes_what_was_put(place: Place) -> None:
    async def scenario() -> None:
        told = Told()
        async with opened(place) as log:
            for number in range(100):
                log.put(SAMPLES_RECEIVED, number % LANES, a_record(number), told.of(number))
        assert len(told.offsets) == 100
        async with opened(place) as log:
            lanes = await read_all(log, SAMPLES_RECEIVED)
            assert sorted(n for found in lanes.values() for n in numbers_of(found)) == [*range(100)]

    asyncio.run(scenario())


def test_what_a_killed_process_called_durable_is_there(place: Place) -> None:
    """Killed at a moment that chance chooses, again and again, in the middle of commits."""

    async def check(durable: dict[int, tuple[int, int]]) -> None:
        async with opened(place) as log:
            lanes = await read_all(log, SAMPLES_RECEIVED)
        stands = {}
        for lane, records in lanes.items():
            assert [r.offset for r in records] == [*range(records[0].offset, len(records))]
            for logged in records:
                stands.update(dict.fromkeys(numbers_of([logged]), (lane, logged.offset)))
        assert durable.items() <= stands.items()

    chance = random.Random(seed())
    for _ in range(rounds(5)):
        asyncio.run(place.remake())
        lines = _kill_after(place, chance.randint(1, 400))
        durable = {}
        for number, lane, offset in (map(int, line.split()) for line in lines):
            durable[number] = (lane, offset)
        asyncio.run(check(durable))


def _kill_after(place: Place, count: int) -> list[str]:
    """What a child said to be durable until it was killed, at least `count` lines."""
    command = [sys.executable, "-m", "tests.contract.eventlog._child"]
    child = subprocess.Popen(
        [*command, place.url, place.prefix, str(LANES)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child, child.stdout as stdout:
        lines = [stdout.readline() for _ in range(count)]
        child.send_signal(signal.SIGKILL)
        lines += stdout.read().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def test_a_lane_keeps_the_order_in_which_it_was_put(place: Place) -> None:
    async def scenario() -> None:
        chance = random.Random(seed())
        told = Told()
        put: dict[int, list[int]] = {lane: [] for lane in range(LANES)}
        async with opened(place) as log:
            for number in range(3000):
                lane = chance.randrange(LANES)
                put[lane].append(number)
                log.put(SAMPLES_RECEIVED, lane, a_record(number), told.of(number))
                if chance.random() < 0.02:
                    await asyncio.sleep(0)
            await until(lambda: told.count == 3000)
            lanes = await read_all(log, SAMPLES_RECEIVED)
            assert {lane: numbers_of(found) for lane, found in lanes.items()} == put

    asyncio.run(scenario())


def test_what_waits_for_a_lane_becomes_few_records_with_the_entries_moved(place: Place) -> None:
    async def scenario() -> None:
        told = Told()
        async with opened(place) as log:
            for number in range(200):
                record = a_record(number * 10, number * 10 + 1, request=number)
                log.put(SAMPLES_RECEIVED, 0, record, told.of(number))
            await until(lambda: told.count == 200)
            records = (await read_all(log, SAMPLES_RECEIVED))[0]
        assert len(records) < 100
        met = []
        for logged in records:
            envelope = logged.envelope
            assert isinstance(envelope, Envelope) and isinstance(envelope.record, Block)
            for entry in envelope.entries:
                number = int.from_bytes(entry.request_id, "big")
                met.append(number)
                rows = envelope.record.ts_ms[entry.start : entry.start + entry.count]
                assert list(rows) == [number * 10, number * 10 + 1]
                assert told.offsets[number] == logged.offset
                assert entry.keyed
        assert met == [*range(200)]

    asyncio.run(scenario())


def test_a_record_keeps_to_the_limits_of_rows_and_bytes(place: Place) -> None:
    async def scenario() -> None:
        told = Told()
        async with opened(place) as log:
            for number in range(30):
                rows = range(number * 1000, number * 1000 + 1000)
                log.put(SAMPLES_RECEIVED, 0, Envelope(a_block(*rows)), told.of(number))
            for number in range(30, 60):
                text = "x" * 30_000
                log.put(SAMPLES_RECEIVED, 1, a_record(number, text=text), told.of(number))
            await until(lambda: told.count == 60)
            lanes = await read_all(log, SAMPLES_RECEIVED)
        blocks = [
            logged.envelope.record for found in lanes.values() for logged in found
            if isinstance(logged.envelope, Envelope) and isinstance(logged.envelope.record, Block)
        ]  # fmt: skip
        assert max(map(len, blocks)) <= BLOCK_ROWS_MAX
        assert max(block.bytes_estimate for block in blocks) <= BLOCK_BYTES_MAX
        assert numbers_of(lanes[0]) == [*range(30_000)]
        assert numbers_of(lanes[1]) == [*range(30, 60)]
        assert len(blocks) < 60

    asyncio.run(scenario())


def test_receipts_are_joined_and_changes_are_not(place: Place) -> None:
    async def scenario() -> None:
        told = Told()
        async with opened(place) as log:
            for number in range(50):
                receipt = Receipt(number.to_bytes(16, "big"), b"d" * 16, 0, 1, number, b"\0\1")
                log.put(RECEIPTS_ISSUED, 0, Envelope(Receipts((receipt,))), told.of(number))
                change = Change("point", str(number), {"name": "n"})
                envelope = Envelope(change, key=change.key)
                log.put(CATALOGUE_CHANGED, 0, envelope, told.of(100 + number))
            await until(lambda: told.count == 100)
            receipts = (await read_all(log, RECEIPTS_ISSUED))[0]
            changes = (await read_all(log, CATALOGUE_CHANGED))[0]
        items = []
        for logged in receipts:
            assert isinstance(logged.envelope, Envelope)
            assert isinstance(logged.envelope.record, Receipts)
            items += [item.offset for item in logged.envelope.record.items]
        assert items == [*range(50)]
        assert len(receipts) < 50
        found = [logged.envelope.record for logged in changes]  # type: ignore[union-attr]
        assert found == [Change("point", str(number), {"name": "n"}) for number in range(50)]

    asyncio.run(scenario())


def test_the_caller_s_records_are_not_changed(place: Place) -> None:
    async def scenario() -> None:
        told = Told()
        records = [a_record(n, n + 1, request=n) for n in range(50)]
        async with opened(place) as log:
            for number, record in enumerate(records):
                log.put(SAMPLES_RECEIVED, 0, record, told.of(number))
            await until(lambda: told.count == 50)
        assert records == [a_record(n, n + 1, request=n) for n in range(50)]

    asyncio.run(scenario())


def test_a_full_queue_says_so_and_drops_nothing(place: Place) -> None:
    async def scenario() -> None:
        told = Told()
        full = 0
        async with opened(place, queued_bytes_max=20_000) as log:
            assert (log.queued_bytes, log.queued_bytes_max) == (0, 20_000)
            for number in range(2000):
                record = a_record(number, text="x" * 500)
                full += await put_patiently(log, SAMPLES_RECEIVED, 0, record, told.of(number))
                assert log.queued_bytes <= 20_000
            await until(lambda: told.count == 2000)
            assert log.queued_bytes == 0
            assert numbers_of((await read_all(log, SAMPLES_RECEIVED))[0]) == [*range(2000)]
        assert full > 0 and not told.errors

    asyncio.run(scenario())


def test_an_append_that_does_not_fit_into_the_queue_leaves_nothing_behind(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place, queued_bytes_max=2_000) as log:
            out = [(SAMPLES_RECEIVED, 0, a_record(n, text="x" * 500)) for n in range(4)]
            with pytest.raises(Unavailable):
                await log.append(out)
            assert log.queued_bytes == 0
            assert await log.append(out[:2])
            assert numbers_of((await read_all(log, SAMPLES_RECEIVED))[0]) == [0, 1]

    asyncio.run(scenario())


def test_a_record_that_can_never_go_in_is_refused_at_once(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            block = a_block(*range(BLOCK_ROWS_MAX + 1))
            with pytest.raises(Broken):
                await log.append([(SAMPLES_RECEIVED, 0, Envelope(block))])
            with pytest.raises(Broken):
                await log.append([(SAMPLES_RECEIVED, 0, a_record(1, text="x" * 300_000))])
            with pytest.raises(Broken):
                await log.append([(SAMPLES_RECEIVED, LANES, a_record(1))])
            pieces = [(SAMPLES_RECEIVED, 0, Envelope(piece)) for piece in block.pieces()]
            await log.append(pieces)
            assert numbers_of((await read_all(log, SAMPLES_RECEIVED))[0]) == list(block.ts_ms)

    asyncio.run(scenario())


def test_a_text_that_is_no_unicode_fails_alone(place: Place) -> None:
    async def scenario() -> None:
        told = Told()
        async with opened(place) as log:
            for number in range(20):
                text = "\ud800" if number == 7 else "fine"
                log.put(SAMPLES_RECEIVED, 0, a_record(number, text=text), told.of(number))
            await until(lambda: told.count == 20)
            assert list(told.errors) == [7]
            assert isinstance(told.errors[7], Broken)
            good = [number for number in range(20) if number != 7]
            assert numbers_of((await read_all(log, SAMPLES_RECEIVED))[0]) == good
            assert log.queued_bytes == 0

    asyncio.run(scenario())


def test_who_stops_waiting_for_an_append_disturbs_nobody(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            tasks = [
                asyncio.create_task(log.append([(SAMPLES_RECEIVED, 0, a_record(number))]))
                for number in range(20)
            ]
            await asyncio.sleep(0)
            tasks[3].cancel()
            with suppress(asyncio.CancelledError):
                await tasks[3]
            await asyncio.gather(*(task for task in tasks if task is not tasks[3]))
            found = set(numbers_of((await read_all(log, SAMPLES_RECEIVED))[0]))
            assert found >= set(range(20)) - {3}

    asyncio.run(scenario())


def test_a_closed_log_takes_nothing(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            pass
        with pytest.raises(Unavailable):
            log.put(SAMPLES_RECEIVED, 0, a_record(1), Told().of(1))
        with pytest.raises(Unavailable):
            await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])

    asyncio.run(scenario())


def test_two_hundred_callers_at_once_each_find_their_record(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:

            async def caller(number: int) -> list[tuple[int, int]]:
                stands = []
                for step in range(5):
                    row = number * 5 + step
                    [offset] = await log.append([(SAMPLES_RECEIVED, row % LANES, a_record(row))])
                    stands.append((row, offset))
                return stands

            results = await asyncio.gather(*(caller(number) for number in range(200)))
            lanes = await read_all(log, SAMPLES_RECEIVED)
            found = {
                (row, logged.offset)
                for records in lanes.values() for logged in records for row in numbers_of([logged])
            }  # fmt: skip
            assert {stand for stands in results for stand in stands} == found
            assert len(found) == 1000

    asyncio.run(scenario())
