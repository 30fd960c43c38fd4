"""What readers with a group promise: they share the lanes and go on where the group committed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from schemas.envelope import Logged
from schemas.topics import SAMPLES_ACCEPTED, SAMPLES_RECEIVED, Topic
from services.errors import Broken
from services.eventlog import EventLog, Start
from tests.contract.eventlog._places import LANES, Place, opened
from tests.contract.eventlog._records import a_record, numbers_of, read_until, until

ALL = set(range(LANES))


async def _fill(log: EventLog, *numbers: int, lane: int = 0) -> None:
    for number in numbers:
        await log.append([(SAMPLES_RECEIVED, lane, a_record(number))])


def test_a_group_goes_on_where_it_committed(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 0, 1, 2, 3)
            assert await log.committed("g", SAMPLES_RECEIVED) == {}
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                await read_until(reader, {0: 4})
                await reader.commit(SAMPLES_RECEIVED, 0, 2)
            assert await log.committed("g", SAMPLES_RECEIVED) == {0: 2}
            assert await log.committed("g", SAMPLES_ACCEPTED) == {}
            assert await log.committed("other", SAMPLES_RECEIVED) == {}
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                assert numbers_of((await read_until(reader, {0: 4}))[0]) == [2, 3]

    asyncio.run(scenario())


def test_what_was_not_committed_is_read_again_after_the_log_was_closed(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 0, 1, 2)
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                await read_until(reader, {0: 3})
                await reader.commit(SAMPLES_RECEIVED, 0, 1)
        async with opened(place) as log:
            assert await log.committed("g", SAMPLES_RECEIVED) == {0: 1}
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                assert numbers_of((await read_until(reader, {0: 3}))[0]) == [1, 2]

    asyncio.run(scenario())


def test_what_was_committed_ends_with_the_life_of_the_topic(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 0, 1, 2)
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                await read_until(reader, {0: 3})
                await reader.commit(SAMPLES_RECEIVED, 0, 2)
        await place.remake()
        async with opened(place) as log:
            await _fill(log, 10, 11, 12, 13)
            assert await log.committed("g", SAMPLES_RECEIVED) == {}
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                lanes = await read_until(reader, {0: 4})
            assert numbers_of(lanes[0]) == [10, 11, 12, 13]

    asyncio.run(scenario())


def test_start_counts_only_where_the_group_has_committed_nothing(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 0, 1)
            await _fill(log, 10, 11, lane=1)
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                await read_until(reader, {0: 2, 1: 2})
                await reader.commit(SAMPLES_RECEIVED, 0, 1)
            late = log.reader([SAMPLES_RECEIVED], group="g", start=Start.END)
            async with late as reader:
                lanes = await read_until(reader, {0: 2})
                await _fill(log, 12, lane=1)
                lanes |= await read_until(reader, {1: 3})
                assert {lane: numbers_of(found) for lane, found in lanes.items()} == {
                    0: [1],
                    1: [12],
                }

    asyncio.run(scenario())


def test_a_mapping_says_where_a_group_begins_that_has_committed_nothing(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 0, 1, 2)
            await _fill(log, 10, 11, 12, lane=1)
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                await read_until(reader, {0: 3, 1: 3})
                await reader.commit(SAMPLES_RECEIVED, 0, 1)
            mapped = log.reader([SAMPLES_RECEIVED], group="g", start={0: 2, 1: 2})
            async with mapped as reader:
                lanes = await read_until(reader, {0: 3, 1: 3})
            assert {lane: numbers_of(found) for lane, found in lanes.items()} == {
                0: [1, 2],
                1: [12],
            }

    asyncio.run(scenario())


def test_groups_do_not_disturb_each_other(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 0, 1, 2)
            one = log.reader([SAMPLES_RECEIVED], group="one")
            two = log.reader([SAMPLES_RECEIVED], group="two")
            async with one, two:
                await read_until(one, {0: 3})
                await one.commit(SAMPLES_RECEIVED, 0, 3)
                assert numbers_of((await read_until(two, {0: 3}))[0]) == [0, 1, 2]
            assert await log.committed("two", SAMPLES_RECEIVED) == {}

    asyncio.run(scenario())


def test_a_reader_with_a_group_can_be_sought_away_from_what_was_committed(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log:
            await _fill(log, 0, 1, 2, 3)
            async with log.reader([SAMPLES_RECEIVED], group="g") as reader:
                await read_until(reader, {0: 4})
                await reader.commit(SAMPLES_RECEIVED, 0, 4)
            given: list[int] = []

            def assigned(topic: Topic, lanes: Sequence[int]) -> None:
                given.extend(lanes)
                for lane in lanes:
                    late.seek(topic, lane, 1)

            late = log.reader([SAMPLES_RECEIVED], group="g", on_assigned=assigned)
            async with late:
                assert numbers_of((await read_until(late, {0: 4}))[0]) == [1, 2, 3]
            assert set(given) == ALL

    asyncio.run(scenario())


def test_a_reader_without_a_group_cannot_commit(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log, log.reader([SAMPLES_RECEIVED]) as reader:
            with pytest.raises(Broken):
                await reader.commit(SAMPLES_RECEIVED, 0, 1)

    asyncio.run(scenario())


class _Member:
    """A reader of a group, read by a task of its own; what it holds and what it was given."""

    def __init__(self, log: EventLog) -> None:
        self.lanes: set[int] = set()
        self.found: dict[int, list[Logged]] = {}
        self.stop = asyncio.Event()
        self._log = log

    def _assigned(self, topic: Topic, lanes: Sequence[int]) -> None:
        assert topic.name == SAMPLES_RECEIVED.name
        assert self.lanes.isdisjoint(lanes)
        self.lanes |= set(lanes)

    def _revoked(self, topic: Topic, lanes: Sequence[int]) -> None:
        assert set(lanes) <= self.lanes
        self.lanes -= set(lanes)

    async def run(self) -> None:
        """Read until told to stop."""
        async with self._log.reader(
            [SAMPLES_RECEIVED], group="g", on_assigned=self._assigned, on_revoked=self._revoked
        ) as reader:
            while not self.stop.is_set():
                batch = await reader.batch(wait_ms=50)
                if batch is not None:
                    assert batch.lane in self.lanes
                    self.found.setdefault(batch.lane, []).extend(batch.records)
                    await reader.commit(batch.topic, batch.lane, batch.next_offset)


def test_readers_of_one_group_share_the_lanes(place: Place) -> None:
    async def scenario() -> None:
        async with opened(place) as log, asyncio.TaskGroup() as tasks:
            one, two = _Member(log), _Member(log)
            tasks.create_task(one.run())
            await until(lambda: one.lanes == ALL)
            second = tasks.create_task(two.run())
            await until(lambda: bool(two.lanes) and one.lanes | two.lanes == ALL)
            assert one.lanes and one.lanes.isdisjoint(two.lanes)
            for lane in ALL:
                await _fill(log, lane, lane=lane)
            await until(lambda: {*one.found, *two.found} == ALL)
            assert one.found.keys() <= one.lanes and two.found.keys() <= two.lanes

            held = set(two.lanes)
            two.stop.set()
            await second
            await until(lambda: one.lanes == ALL)
            assert not two.lanes
            for lane in held:
                await _fill(log, 100 + lane, lane=lane)
            await until(lambda: held <= one.found.keys())
            for lane in held:
                await until(lambda lane=lane: 100 + lane in numbers_of(one.found[lane]))
            one.stop.set()

    asyncio.run(scenario())
