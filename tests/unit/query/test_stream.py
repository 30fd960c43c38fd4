"""Who follows gets each change once, in the order of the log, wherever it comes in and whatever is
repeated, missed or restarted; who cannot keep up, or may not any more, is told why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from schemas.blocks import Block
from schemas.envelope import Envelope, Tick
from schemas.topics import SAMPLES_ACCEPTED
from services.errors import Unauthorized, Unavailable
from services.eventlog import EventLog
from services.query import _replay, stream
from tests.support.follow import Ground, Sent, a_ground, until

Body = Callable[[Ground], Awaitable[None]]


def run(folder: Path, body: Body) -> None:
    """Run the test's body on fresh ground."""

    async def whole() -> None:
        async with a_ground(folder) as ground, asyncio.timeout(30):
            await body(ground)

    asyncio.run(whole())


def values(first: int, last: int) -> list[Sent]:
    """Changes of the parameters in turn."""
    return [("abc"[number % 3], number) for number in range(first, last + 1)]


async def accept(ground: Ground, first: int, last: int) -> list[Envelope]:
    """So many records of one change each."""
    return [await ground.accept(value) for value in values(first, last)]


def test_every_reader_gets_each_change_once_in_order(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        await accept(ground, 1, 3)
        await ground.tell_all()
        readers = [await process.follow() for _ in range(3)]
        await accept(ground, 4, 50)
        await ground.accept(*values(51, 60))
        await ground.tell_all()
        for reader in readers:
            await reader.until(lambda events: len(events.changes) == 57)
            assert reader.events.changes == values(4, 60)
            assert reader.events.last_id == reader.events.got[-1][0]
        first = readers[0].events.got[0]
        assert first[2] == {
            "id": "acme/b",
            "key": "b",
            "value": 4,
            "timestamp": "2023-11-14T22:13:20.004Z",
        }
        assert readers[0].events.retry_ms == 3_000

    run(tmp_path, body)


def test_nobody_sees_what_is_of_others(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        mine, theirs = await process.follow("acme"), await process.follow("bolt")
        await ground.accept(("a", 1), tenant="bolt")
        await ground.accept(("a", 2), device="other of acme")
        await ground.accept(("not declared", 3))
        await ground.accept(("a", 4))
        await ground.repeat(Envelope(Block()), Envelope(Tick(1)))
        await ground.accept(("a", 5), tenant="bolt")
        await ground.tell_all()
        await mine.until(lambda events: len(events.changes) == 1)
        await theirs.until(lambda events: len(events.changes) == 2)
        assert mine.events.changes == [("a", 4)]
        assert theirs.events.changes == [("a", 1), ("a", 5)]

    run(tmp_path, body)


def test_a_filter_names_parameters_and_without_one_new_ones_count(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        some = await process.follow(query={"key": "a,c"})
        one = await process.follow(query={"paramId": "acme/b"})
        every = await process.follow()
        await ground.accept(*values(1, 9))
        await ground.tell_all()
        await every.until(lambda events: len(events.changes) == 9)
        await some.until(lambda events: len(events.changes) == 6)
        await one.until(lambda events: len(events.changes) == 3)
        assert some.events.changes == [value for value in values(1, 9) if value[0] != "b"]
        assert one.events.changes == [value for value in values(1, 9) if value[0] == "b"]

    run(tmp_path, body)


def test_what_a_judge_puts_out_again_is_no_change(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        records = await accept(ground, 1, 10)
        await ground.repeat(*records[4:])
        await accept(ground, 11, 12)
        await ground.repeat(records[9])
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) >= 12)
        assert reader.events.changes == values(1, 12)
        # One who comes again, and reads it all from the log, gets no other answer.
        late = ground.start()
        late.live.offsets = dict.fromkeys(late.live.offsets, 0)
        again = await late.follow(since=reader.events.got[2][0])
        await ground.tell_all()
        await again.until(lambda events: len(events.changes) >= 9)
        assert again.events.got == reader.events.got[3:]

    run(tmp_path, body)


def test_a_process_that_begins_among_repetitions_knows_them(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        records = await accept(ground, 1, 10)
        process = ground.start()
        process.live.offsets = dict.fromkeys(process.live.offsets, 10)
        reader = await process.follow()
        await ground.repeat(*records[3:])
        await accept(ground, 11, 11)
        await ground.tell_all()
        await reader.until(lambda events: bool(events.changes))
        assert reader.events.changes == values(11, 11)

    run(tmp_path, body)


def test_two_processes_give_a_change_the_same_id(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        one, two = ground.start(), ground.start()
        first, second = await one.follow(), await two.follow()
        await accept(ground, 1, 4)
        await one.live.read_on()
        await accept(ground, 5, 8)
        await ground.tell_all()
        for reader in (first, second):
            await reader.until(lambda events: len(events.changes) == 8)
        assert first.events.got == second.events.got
        # At one of them the reader is ahead of what the process has read.
        behind = ground.start()
        resumed = await behind.follow(since=first.events.got[4][0])
        await ground.tell_all()
        await resumed.until(lambda events: len(events.changes) == 3)
        assert resumed.events.got == first.events.got[5:]

    run(tmp_path, body)


@pytest.mark.parametrize("restarted", [False, True])
def test_who_comes_again_goes_on_behind_its_last_event(tmp_path: Path, restarted: bool) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        await accept(ground, 1, 200)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 200)
        if restarted:
            process = ground.start()
            await ground.tell_all()
        ids = [event[0] for event in reader.events.got]
        resumed = [await process.follow(since=since) for since in (ids[0], ids[150], ids[199])]
        await accept(ground, 201, 210)
        await ground.tell_all()
        for follower, first in zip(resumed, (2, 152, 201), strict=True):
            await follower.until(lambda events, first=first: len(events.changes) >= 211 - first)
            assert follower.events.changes == values(first, 210)
            assert not follower.events.of("gap")

    run(tmp_path, body)


def test_nothing_falls_between_the_log_and_the_ring(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        reader = await ground.start().follow()
        await accept(ground, 1, 300)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 300)
        process = ground.start()
        await ground.tell_all()
        writing = asyncio.create_task(accept(ground, 301, 600))
        resumed = []
        while not writing.done() and len(resumed) < 100:
            resumed.append(await process.follow(since=reader.events.got[len(resumed)][0]))
            await process.live.read_on()
        await writing
        await ground.tell_all()
        assert len(resumed) > 3
        for number, follower in enumerate(resumed):
            wanted = values(number + 2, 600)
            await follower.until(lambda events, w=wanted: len(events.changes) >= len(w))
            assert follower.events.changes == wanted

    run(tmp_path, body)


def test_a_new_reader_can_come_again_before_its_first_change(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        await accept(ground, 1, 5)
        await ground.tell_all()
        reader = await process.follow()
        await reader.until(lambda events: bool(events.last_id))
        reader.connection.leave()
        await reader.task
        await accept(ground, 6, 7)
        resumed = await ground.start().follow(since=reader.events.last_id)
        await ground.tell_all()
        await resumed.until(lambda events: len(events.changes) == 2)
        assert resumed.events.changes == values(6, 7)

    run(tmp_path, body)


@pytest.mark.parametrize("since", ["other-5-4", "0123456789-1-1", "nonsense", "-", "x" * 5_000])
def test_an_id_of_another_log_is_said_and_all_is_told(tmp_path: Path, since: str) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        await accept(ground, 1, 5)
        await ground.tell_all()
        reader = await process.follow(since=since)
        await reader.until(lambda events: len(events.changes) == 5)
        assert [event for _, event, _ in reader.events.got] == ["gap"] + ["message"] * 5
        assert reader.events.of("gap") == [{"reason": _replay.NO_SUCH}]

    run(tmp_path, body)


def test_an_id_that_the_log_never_reached_is_of_another_log(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        await accept(ground, 1, 1)
        await ground.tell_all()
        await reader.until(lambda events: bool(events.changes))
        mark, _, _ = reader.events.last_id.split("-")
        ahead = await process.follow(since=f"{mark}-ff-{1 << 60:x}")
        await ahead.until(lambda events: bool(events.changes))
        assert [event for _, event, _ in ahead.events.got] == ["gap", "message"]

    run(tmp_path, body)


class Forgetful:
    """A log whose accepted records begin later than they do."""

    def __init__(self, log: EventLog, begin: int) -> None:
        self._log, self._begin = log, begin
        self.lanes, self.incarnation = log.lanes, log.incarnation

    async def spans(self, topic: object) -> object:
        """Retention has taken what lay before."""
        spans = await self._log.spans(topic)  # type: ignore[arg-type]
        return {lane: type(span)(self._begin, span.end) for lane, span in spans.items()}

    def reader(self, topics: object, *, start: dict[int, int], lanes: object) -> object:
        """A reader of what is left."""
        start = {lane: max(self._begin, offset) for lane, offset in start.items()}
        return self._log.reader(topics, start=start, lanes=lanes)  # type: ignore[arg-type]


def test_what_the_log_does_not_have_any_more_is_said(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        reader = await ground.start().follow()
        await accept(ground, 1, 9)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 9)
        ids = [event[0] for event in reader.events.got]
        ground.log = Forgetful(ground.log, 6)  # type: ignore[assignment]
        process = ground.start()
        process.live.offsets = dict.fromkeys(process.live.offsets, 9)
        lost = await process.follow(since=ids[2])
        whole = await process.follow(since=ids[5])
        await lost.until(lambda events: len(events.changes) == 3)
        await whole.until(lambda events: len(events.changes) == 3)
        assert [kind for _, kind, _ in lost.events.got] == ["gap"] + ["message"] * 3
        assert lost.events.of("gap") == [{"reason": _replay.NOT_KEPT}]
        assert lost.events.changes == whole.events.changes == values(7, 9)
        assert not whole.events.of("gap")

    run(tmp_path, body)


def test_a_view_that_starts_anew_elsewhere_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        await accept(ground, 1, 4)
        await ground.tell_all()
        await accept(ground, 5, 8)
        # Beyond what it had read, as the store has that: what lies between is on the log.
        process.live.offsets = dict.fromkeys(process.live.offsets, 6)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 8)
        # And before it.
        process.live.offsets = dict.fromkeys(process.live.offsets, 2)
        await accept(ground, 9, 9)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 9)
        assert reader.events.changes == values(1, 9)
        assert not reader.events.of("gap")

    run(tmp_path, body)


def test_a_record_without_rows_behind_a_jump_does_not_hide_it(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        await accept(ground, 1, 2)
        await ground.tell_all()
        await accept(ground, 3, 3)
        await ground.repeat(Envelope(Tick(1)))
        await accept(ground, 4, 4)
        process.live.offsets = dict.fromkeys(process.live.offsets, 3)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 4)
        assert reader.events.changes == values(1, 4)

    run(tmp_path, body)


def test_more_than_may_wait_is_read_from_the_log(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start(queued_rows_max=1_000)
        reader = await process.follow()
        await reader.until(lambda events: bool(events.last_id))
        big, count = 100, 30
        for first in range(0, count * big, big):
            await ground.accept(*values(first, first + big - 1))
        process.running.cancel()  # What is told now waits.
        await asyncio.gather(process.running, return_exceptions=True)
        await process.live.read_on()
        assert process.hub._queued_rows <= 1_000 + big
        process.running = asyncio.create_task(process.hub.run())
        await reader.until(lambda events: len(events.changes) == count * big)
        assert [value for _, value in reader.events.changes] == list(range(count * big))

    run(tmp_path, body)


def test_who_cannot_keep_up_is_cut_off_and_told_why(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start(stream_changes_max=100)
        slow, quick = await process.follow(), await process.follow()
        await accept(ground, 1, 1)
        await ground.tell_all()
        await slow.until(lambda events: len(events.changes) == 1)
        slow.connection.hold()
        for first in range(2, 302, 50):
            await accept(ground, first, first + 49)
            await ground.tell_all()
            await quick.until(lambda events, n=first + 49: len(events.changes) == n)
        ring = slow.reader.ring
        assert ring.end - ring.first <= 100
        process.hub.tidy()
        assert slow.reader.ending is None
        process.clock.advance(1_000)
        process.hub.tidy()
        assert slow.reader.ending is not None
        slow.connection.release()
        await slow.task
        assert slow.connection.ended
        assert [kind for _, kind, _ in slow.events.got][-1] == "error"
        assert "too slow" in slow.events.of("error")[0]["reason"]
        got = slow.events.changes
        assert got == values(1, len(got))
        # With its last event id it gets the rest.
        again = await process.follow(since=slow.events.last_id)
        await again.until(lambda events: len(events.changes) == 301 - len(got))
        assert got + again.events.changes == values(1, 301)
        assert quick.events.changes == values(1, 301)

    run(tmp_path, body)


def test_the_ring_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start(stream_bytes_max=64 << 10)
        reader = await process.follow()
        await accept(ground, 1, 1_000)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 1_000)
        ring = reader.reader.ring
        assert 20 < ring.end - ring.first < 200

    run(tmp_path, body)


def test_who_is_outrun_by_a_burst_reads_on_from_the_log(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start(stream_changes_max=100)
        readers = [await process.follow() for _ in range(3)]
        for first in range(1, 2_001, 400):
            await ground.accept(*values(first, first + 399))
        await ground.tell_all()
        for reader in readers:
            await reader.until(lambda events: len(events.changes) == 2_000)
            assert reader.events.changes == values(1, 2_000)
            assert reader.reader.ending is None

    run(tmp_path, body)


def test_who_takes_nothing_for_long_is_cut_off(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        await reader.until(lambda events: bool(events.last_id))
        reader.connection.hold()
        await accept(ground, 1, 1)
        await ground.tell_all()
        await until(lambda: reader.reader.sending_since_ms is not None)
        process.clock.advance(29_000)
        process.hub.tidy()
        assert reader.reader.ending is None
        process.clock.advance(2_000)
        process.hub.tidy()
        reader.connection.release()
        await reader.task
        assert "too slow" in reader.events.of("error")[0]["reason"]

    run(tmp_path, body)


def test_streams_at_a_time_are_bounded(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start(stream_readers_max=2)
        first, _ = await process.follow(), await process.follow()
        with pytest.raises(Unavailable) as refused:
            await process.follow()
        assert refused.value.retry_after_ms
        first.connection.leave()
        await first.task
        await process.follow()
        process.live.is_ready = False
        with pytest.raises(Unavailable):
            await process.follow("bolt")

    run(tmp_path, body)


def test_a_credential_that_ends_or_is_revoked_ends_the_stream(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        good = [True]

        def valid() -> None:
            if not good[0]:
                raise Unauthorized("not any more")

        ends_ms = process.clock.now_ms() + 10_000
        expiring = await process.follow(expires_ms=ends_ms)
        revoked, other = await process.follow(valid=valid), await process.follow()
        process.hub.tidy()
        assert expiring.reader.ending is None
        process.clock.advance(10_000)
        process.hub.tidy()
        await expiring.task
        assert "expired" in expiring.events.of("error")[0]["reason"]
        good[0] = False
        process.hub.configured(stream.Configured("point", "1", None))
        process.hub.tidy()
        assert revoked.reader.ending is None
        process.hub.configured(stream.Configured("key", "1", None))
        process.hub.tidy()
        await revoked.task
        assert "not valid" in revoked.events.of("error")[0]["reason"]
        assert revoked.connection.ended
        assert other.reader.ending is None

    run(tmp_path, body)


def test_an_idle_stream_says_that_it_is_there_and_where_it_stands(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        await reader.until(lambda events: bool(events.last_id))
        began_at = reader.events.last_id
        await ground.accept(("a", 1), tenant="bolt")
        await ground.tell_all()
        process.clock.advance(14_000)
        process.hub.tidy()
        await asyncio.sleep(0.05)
        assert reader.events.comments == 0
        process.clock.advance(2_000)
        process.hub.tidy()
        await reader.until(lambda events: events.comments == 1)
        assert reader.events.last_id != began_at
        resumed = await ground.start().follow(since=reader.events.last_id)
        await ground.accept(("a", 2))
        await ground.tell_all()
        await resumed.until(lambda events: bool(events.changes))
        assert resumed.events.changes == [("a", 2)]

    run(tmp_path, body)


def test_the_stop_ends_every_stream_and_takes_no_more(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        readers = [await process.follow() for _ in range(3)]
        await process.hub.hang_up()
        for reader in readers:
            assert reader.task.done()
            assert reader.connection.ended
            assert "stops" in reader.events.of("error")[0]["reason"]
        with pytest.raises(Unavailable):
            await process.follow()

    run(tmp_path, body)


def test_a_ring_that_nobody_follows_is_let_go(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        process = ground.start()
        reader = await process.follow()
        await accept(ground, 1, 2)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 2)
        reader.connection.leave()
        await reader.task
        process.clock.advance(59_000)
        process.hub.tidy()
        assert process.hub._rings
        process.clock.advance(2_000)
        process.hub.tidy()
        assert not process.hub._rings
        await accept(ground, 3, 4)
        await ground.tell_all()
        again = await process.follow(since=reader.events.last_id)
        await again.until(lambda events: len(events.changes) == 2)
        assert again.events.changes == values(3, 4)

    run(tmp_path, body)


def test_a_change_waits_until_the_catalogue_knows_its_parameter(tmp_path: Path) -> None:
    async def body(ground: Ground) -> None:
        asked: list[int] = []

        async def caught_up(offset: int) -> None:
            asked.append(offset)
            await asyncio.sleep(0.01)
            ground.lookup.revision = offset

        ground.lookup.caught_up = caught_up  # type: ignore[method-assign]
        process = ground.start()
        reader = await process.follow()
        await ground.accept(("a", 1), revision=5)
        await ground.accept(("new", 2), revision=7)
        await ground.accept(("a", 3), revision=7)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 2)
        assert reader.events.changes == [("a", 1), ("a", 3)]
        assert asked == [7]

    run(tmp_path, body)


def test_a_log_that_is_away_ends_the_stream_with_that_reason(tmp_path: Path) -> None:
    class Away:
        def __init__(self, log: EventLog) -> None:
            self.lanes, self.incarnation, self.spans = log.lanes, log.incarnation, log.spans

        def reader(self, *_: object, **__: object) -> object:
            raise Unavailable("the broker is away")

    async def body(ground: Ground) -> None:
        reader = await ground.start().follow()
        await accept(ground, 1, 3)
        await ground.tell_all()
        await reader.until(lambda events: len(events.changes) == 3)
        process = ground.start()
        await ground.tell_all()
        await process.follow()
        process.hub._log = Away(ground.log)  # type: ignore[assignment]
        resumed = await process.follow(since=reader.events.got[0][0])
        await resumed.task
        assert "away" in resumed.events.of("error")[0]["reason"]

    run(tmp_path, body)


def test_the_topic_is_the_one_that_the_view_follows() -> None:
    assert _replay.SAMPLES_ACCEPTED is SAMPLES_ACCEPTED
