"""How the embedded log keeps records: in memory, in the file, and until when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.envelope import Change, Envelope
from schemas.topics import CATALOGUE_CHANGED, SAMPLES_RECEIVED, TOPICS
from services.clock import ManualClock
from services.eventlog import Span, Start
from tests.contract.eventlog._places import LANES, SqlitePlace
from tests.contract.eventlog._records import a_record, numbers_of, read_all, read_until


@pytest.fixture
def place(tmp_path: Path) -> SqlitePlace:
    """An empty log, not opened."""
    return SqlitePlace(tmp_path)


# -- memory and file -------------------------------------------------------------------------------


@pytest.mark.parametrize("tail_bytes_max", [0, 30_000, 10_000_000])
def test_readers_do_not_notice_where_memory_ends(place: SqlitePlace, tail_bytes_max: int) -> None:
    async def scenario() -> None:
        async with place.log(tail_bytes_max=tail_bytes_max) as log:
            await log.create(TOPICS)
            for number in range(60):
                await log.append([(SAMPLES_RECEIVED, lane, a_record(number)) for lane in (0, 1)])
            lanes = await read_all(log, SAMPLES_RECEIVED)
            assert numbers_of(lanes[0]) == numbers_of(lanes[1]) == [*range(60)]

    asyncio.run(scenario())


def test_what_was_fetched_before_a_seek_or_a_pause_is_not_given_after_it(
    place: SqlitePlace,
) -> None:
    async def scenario() -> None:
        async with place.log(tail_bytes_max=0) as log:
            await log.create(TOPICS)
            await log.append([(SAMPLES_RECEIVED, 0, a_record(number)) for number in range(5)])
            await log.append([(SAMPLES_RECEIVED, 0, a_record(5))])
            async with log.reader([SAMPLES_RECEIVED]) as reader:
                fetching = asyncio.create_task(reader.batch(wait_ms=10_000))
                # Two turns of the loop: the task is waiting for the reading thread now.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                reader.seek(SAMPLES_RECEIVED, 0, 1)
                batch = await fetching
                assert batch is not None and batch.records[0].offset == 1
                reader.seek(SAMPLES_RECEIVED, 0, 0)
                fetching = asyncio.create_task(reader.batch(wait_ms=100))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                reader.pause(SAMPLES_RECEIVED, 0)
                assert await fetching is None
                reader.resume(SAMPLES_RECEIVED, 0)
                batch = await reader.batch()
                assert batch is not None and batch.records[0].offset == 0

    asyncio.run(scenario())


# -- retention and compaction ----------------------------------------------------------------------

SHORT = replace(SAMPLES_RECEIVED, retention_ms=1000)


def test_old_records_go_when_every_group_has_read_them(place: SqlitePlace) -> None:
    async def scenario() -> None:
        clock = ManualClock(1_000_000)
        async with place.log(clock=clock) as log:
            await log.create([SHORT])
            for number in range(400):
                await log.append([(SHORT, 0, a_record(number))])
                clock.advance(10)
            assert await log.trim(clock.now_ms() - 3001) == 0
            reader = log.reader([SHORT], group="agents.judge")
            async with reader:
                # A group that reads and has committed nothing still wants everything.
                assert await log.trim(clock.now_ms()) == 0
                await reader.commit(SHORT, 0, 200)
                assert await log.trim(clock.now_ms()) == 200
                await reader.commit(SHORT, 0, 390)
                assert await log.trim(clock.now_ms()) == 100
            assert await log.spans(SHORT) == {
                0: Span(300, 400), **{lane: Span(0, 0) for lane in range(1, LANES)}
            }  # fmt: skip
            async with log.reader([SHORT]) as late:
                late.seek(SHORT, 0, 17)
                assert numbers_of((await read_until(late, {0: 400}))[0]) == [*range(300, 400)]

    asyncio.run(scenario())


def test_offsets_go_on_after_everything_was_deleted(place: SqlitePlace) -> None:
    async def scenario() -> None:
        clock = ManualClock(1_000_000)
        async with place.log(clock=clock) as log:
            await log.create([SHORT])
            for number in range(5):
                await log.append([(SHORT, 0, a_record(number))])
            clock.advance(5000)
            assert await log.trim(clock.now_ms()) == 5
        async with place.log(clock=clock) as log:
            await log.create([SHORT])
            assert (await log.spans(SHORT))[0] == Span(5, 5)
            assert await log.append([(SHORT, 0, a_record(5))]) == [5]
            async with log.reader([SHORT], start=Start.BEGINNING) as reader:
                assert numbers_of((await read_until(reader, {0: 6}))[0]) == [5]

    asyncio.run(scenario())


def test_a_newer_record_of_a_key_replaces_the_older_ones(place: SqlitePlace) -> None:
    async def scenario() -> None:
        async with place.log(tail_bytes_max=0, clock=ManualClock(0)) as log:
            await log.create([CATALOGUE_CHANGED])
            for number in range(600):
                change = Change("point", str(number % 2), {"n": number})
                await log.append([(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key))])
            async with log.reader([CATALOGUE_CHANGED]) as slow:
                batch = await slow.batch(records_max=10)
                assert batch is not None and batch.next_offset == 10
                # Compacted topics keep the last record of a key for ever, however old.
                assert await log.trim(10**15) == 598
                assert [logged.offset for logged in (await read_until(slow, {0: 600}))[0]] == [
                    598,
                    599,
                ]
            assert (await log.spans(CATALOGUE_CHANGED))[0] == Span(0, 600)
            assert await log.trim(10**15) == 0

    asyncio.run(scenario())
