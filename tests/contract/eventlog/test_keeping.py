"""What else a log keeps: checkpoints, its incarnation, its number of lanes."""

from __future__ import annotations

import asyncio

import pytest

from schemas.topics import SAMPLES_ACCEPTED, SAMPLES_RECEIVED, TOPICS
from services.errors import Broken
from services.eventlog import open_eventlog
from tests.contract.eventlog._places import LANES, Place, opened
from tests.contract.eventlog._records import a_record, numbers_of, read_all


def test_the_last_checkpoint_of_every_slot_is_kept(place: Place) -> None:
    async def scenario() -> None:
        big = bytes(range(256)) * 3500
        async with opened(place) as log:
            assert await log.checkpoints("judge", range(LANES)) == {}
            await log.checkpoint("judge", 0, 0, b"old", 5, 1)
            await log.checkpoint("judge", 0, 0, b"new", 9, 2)
            await log.checkpoint("judge", 0, 1, big, 9, 2)
            await log.checkpoint("judge", 2, 0, b"", 3, 2)
            await log.checkpoint("other", 0, 0, b"theirs", 1, 2)
        async with opened(place) as log:
            assert await log.checkpoints("judge", [0, 1, 2]) == {
                (0, 0): (b"new", 9, 2),
                (0, 1): (big, 9, 2),
                (2, 0): (b"", 3, 2),
            }
            assert await log.checkpoints("judge", [2]) == {(2, 0): (b"", 3, 2)}
            assert await log.checkpoints("other", [0]) == {(0, 0): (b"theirs", 1, 2)}

    asyncio.run(scenario())


def test_the_incarnation_changes_exactly_when_the_log_is_made_anew(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            first = await log.incarnation(SAMPLES_RECEIVED)
            assert first == await log.incarnation(SAMPLES_RECEIVED)
            assert first != await log.incarnation(SAMPLES_ACCEPTED)
            await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])
        async with opened(place) as log:
            assert await log.incarnation(SAMPLES_RECEIVED) == first
        await place.remake()
        async with opened(place) as log:
            assert await log.incarnation(SAMPLES_RECEIVED) != first
            assert (await log.spans(SAMPLES_RECEIVED))[0].end == 0

    asyncio.run(scenario())


def test_creating_again_changes_nothing(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])
            await log.create(TOPICS)
            assert numbers_of((await read_all(log, SAMPLES_RECEIVED))[0]) == [1]

    asyncio.run(scenario())


def test_another_number_of_lanes_is_refused_and_both_are_named(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place):
            pass
        with pytest.raises(Broken) as refusal:
            async with open_eventlog(place.url, lanes=LANES + 3, prefix=place.prefix) as log:
                await log.create(TOPICS)
        assert str(LANES) in str(refusal.value) and str(LANES + 3) in str(refusal.value)

    asyncio.run(scenario())
