"""Commands on a real log: what control takes in, what every process knows, and who delivers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from schemas.catalogue import Point
from schemas.commands import Command, State
from schemas.envelope import Envelope, Letter
from schemas.samples import Kind, Value
from schemas.topics import COMMANDS_CHANGED
from services.catalogue import Caller, View, commands
from services.catalogue.commands import (
    LANE_COMMANDS_MAX,
    LANE_OPEN_MAX,
    POINT_COMMANDS_MAX,
    Commands,
    advance,
)
from services.domain.commands import DELIVERY_MS
from services.errors import Forbidden, Malformed, OverQuota, Refused, Taken, Unavailable, Unknown
from tests.support.builders import NOW_MS, a_command
from tests.support.catalogue import Office, a_control, audits, offices, skipped

CLIENT = Caller("client-1", "http", "acme", frozenset({"ingest", "read"}))
EXPIRE_MS = 600_000


def run(folder: Path, body: Callable[..., Awaitable[Any]], count: int = 1) -> None:
    """Run `body` with so many processes, and a point of tenant acme that is writable."""

    async def opened() -> None:
        async with offices(folder, count) as each:
            control = each[0].control
            await control.add_tenant("acme", "Acme Ltd")
            device = await control.add_device("acme", "Boiler")
            point = await control.add_point(
                "acme", device.id, "target", kind=Kind.DOUBLE, writable=True
            )
            await each[-1].view.caught_up(each[0].view.revision)
            await asyncio.wait_for(body(*each, point), 30)

    asyncio.run(opened())


def test_a_view_has_the_commands_that_it_is_given() -> None:
    given = Commands(kept_ms=1)
    assert View(commands=given).commands is given


async def commanded(it: Office, point: Point, value: Value = 21.5) -> Command:
    """A command of the client's."""
    return await it.control.by(CLIENT).command_point("acme", point.id, value, kind=Kind.DOUBLE)


def test_a_command_is_known_when_the_action_returns_and_written_down(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        now_ms = it.clock.now_ms()
        made = await commanded(it, point)
        assert made == Command(
            made.id, "acme", point.device, point.id, point.series, Kind.DOUBLE, 21.5, "client-1",
            at_ms=now_ms, expires_ms=now_ms + EXPIRE_MS, state="queued", changed_ms=now_ms,
        )  # fmt: skip
        assert it.view.commands_of(point, now_ms) == [made]
        assert it.view.target(point, now_ms) == made
        assert it.view.commands.deliverable("acme", point.device, now_ms) == [made]
        assert it.view.commands.deliverable("globex", point.device, now_ms) == []

        last = (await audits(it.log))[-1]
        assert (last.action, last.subject, last.outcome) == ("command_point", "client-1", "done")
        assert last.arguments == {"tenant": "acme", "id": point.id, "value": 21.5, "kind": 0}

    run(tmp_path, body)


def test_every_process_knows_it_and_one_that_starts_later(tmp_path: Path) -> None:
    async def body(one: Office, other: Office, point: Point) -> None:
        made = [await commanded(one, point, float(n)) for n in range(3)]
        await other.view.commands_current()
        now_ms = one.clock.now_ms()
        assert other.view.commands_of(point, now_ms) == made[::-1]
        told = await advance(other.log, other.view.commands, made[1].id, State.DELIVERED, now_ms)
        await one.view.commands_current()
        assert one.view.commands_of(point, now_ms) == [made[2], told, made[0]]
        assert one.view.target(point, now_ms) == made[2]

        later, stop = View(), asyncio.Event()
        following = asyncio.create_task(later.follow(one.log, stop))
        await later.ready()
        assert later.commands_of(point, now_ms) == [made[2], told, made[0]]
        stop.set()
        await following

    run(tmp_path, body, count=2)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, Kind.DOUBLE),
        ("1", Kind.DOUBLE),
        (float("nan"), Kind.DOUBLE),
        (5, Kind.LONG),
        (5.0, 17),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, value: Value, kind: int) -> None:
    async def body(it: Office, point: Point) -> None:
        with pytest.raises(Malformed):
            await it.control.command_point("acme", point.id, value, kind=kind)
        assert it.view.commands_of(point, it.clock.now_ms()) == []

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind.LONG, -(2**63), 2**63),
        (Kind.BOOL, False, 0),
        (Kind.STRING, "ä" * 2048, "ä" * 2049),
        (Kind.JSON, "{}", {}),
        (Kind.DATE, NOW_MS, 1.5),
    ],
)
def test_a_value_of_the_points_type_is_taken(
    tmp_path: Path, kind: Kind, good: Value, bad: Any
) -> None:
    async def body(it: Office, point: Point) -> None:
        other = await it.control.add_point("acme", point.device, "other", kind=kind, writable=True)
        made = await it.control.command_point("acme", other.id, good, kind=kind)
        assert (made.kind, made.value, type(made.value)) == (kind, good, type(good))
        with pytest.raises(Malformed):
            await it.control.command_point("acme", other.id, bad, kind=kind)
        # What lies on the log is read as it was.
        later, stop = View(), asyncio.Event()
        following = asyncio.create_task(later.follow(it.log, stop))
        await later.ready()
        assert later.commands_of(other, it.clock.now_ms()) == [made]
        stop.set()
        await following

    run(tmp_path, body)


def test_a_point_that_is_not_writable_or_of_another_tenant_takes_none(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        await it.control.change_point("acme", point.id, writable=False)
        with pytest.raises(Forbidden):
            await commanded(it, point)
        await it.control.change_point("acme", point.id, writable=True)
        await it.control.add_tenant("globex", "Globex")
        with pytest.raises(Unknown):
            await it.control.command_point("globex", point.id, 1.0, kind=Kind.DOUBLE)
        stranger = replace(CLIENT, tenant="globex")
        with pytest.raises(Forbidden):
            await it.control.by(stranger).command_point("acme", point.id, 1.0, kind=Kind.DOUBLE)
        assert it.view.commands_of(point, it.clock.now_ms()) == []

    run(tmp_path, body)


def test_too_many_that_wait_for_a_device_are_refused_until_some_are_through(
    tmp_path: Path,
) -> None:
    async def body(it: Office, point: Point) -> None:
        control = a_control(it.log, it.view, it.clock, device_commands_max=2)

        async def one() -> Command:
            made: Command = await control.command_point("acme", point.id, 1.0, kind=Kind.DOUBLE)
            return made

        first, _ = await one(), await one()
        with pytest.raises(OverQuota):
            await one()
        now_ms = it.clock.now_ms()
        await advance(it.log, it.view.commands, first.id, State.DELIVERED, now_ms)
        await one()
        with pytest.raises(OverQuota):
            await one()
        it.clock.advance(EXPIRE_MS)
        await one()

    run(tmp_path, body)


async def at_once(*asked: Awaitable[Any]) -> tuple[list[Command], int]:
    """The commands that were taken in, and how many were refused as too many."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    made = [each for each in answers if isinstance(each, Command)]
    refused = [each for each in answers if isinstance(each, OverQuota)]
    assert len(made) + len(refused) == len(answers)
    return made, len(refused)


def waiting_ids(it: Office, point: Point) -> list[str]:
    """What a deliverer finds in this process."""
    found = it.view.commands.deliverable("acme", point.device, it.clock.now_ms())
    return [each.id for each in found]


def test_of_many_at_once_so_many_are_taken_as_may_wait_and_none_is_lost(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        second = await it.control.add_point(
            "acme", point.device, "second", kind=Kind.DOUBLE, writable=True
        )
        ask = [commanded(it, (point, second)[n % 2], float(n)) for n in range(300)]
        made, refused = await at_once(*ask)
        assert (len(made), refused) == (100, 200)
        assert sorted(waiting_ids(it, point)) == sorted(each.id for each in made)
        # What was under way is not any more: one is through, one comes.
        now_ms = it.clock.now_ms()
        await advance(it.log, it.view.commands, made[0].id, State.DELIVERED, now_ms)
        assert len((await at_once(commanded(it, point), commanded(it, second)))[0]) == 1

    run(tmp_path, body)


def test_of_many_at_once_in_two_processes_a_point_takes_so_many_as_are_held(
    tmp_path: Path,
) -> None:
    async def body(one: Office, other: Office, point: Point) -> None:
        ask = [commanded((one, other)[n % 2], point, float(n)) for n in range(300)]
        made, refused = await at_once(*ask)
        assert (len(made), refused) == (POINT_COMMANDS_MAX, 300 - POINT_COMMANDS_MAX)
        for each in (one, other):
            await each.view.commands_current()
            assert sorted(waiting_ids(each, point)) == sorted(it.id for it in made)

    run(tmp_path, body, count=2)


async def filled(it: Office, count: int) -> None:
    """Have so many commands wait in the lane."""
    now_ms = it.clock.now_ms()
    waiting = [a_command(f"c{n}", device=f"d{n}", series=n, at_ms=now_ms) for n in range(count)]
    await it.log.append([(COMMANDS_CHANGED, 0, Envelope(each)) for each in waiting])
    await it.view.commands_current()


def test_of_two_at_once_one_is_the_last_of_its_lane(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        await filled(it, LANE_OPEN_MAX - 1)
        device = await it.control.add_device("acme", "Pump")
        other = await it.control.add_point("acme", device.id, "p", kind=Kind.DOUBLE, writable=True)
        made, refused = await at_once(commanded(it, point), commanded(it, other))
        assert (len(made), refused) == (1, 1)

    run(tmp_path, body)


def test_too_many_that_wait_in_a_lane_are_refused(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        await filled(it, LANE_OPEN_MAX)
        with pytest.raises(OverQuota):
            await commanded(it, point)

    run(tmp_path, body)


def test_a_repetition_under_its_key_is_the_same_command_in_every_process(tmp_path: Path) -> None:
    async def body(one: Office, other: Office, point: Point) -> None:
        async def asked(it: Office, value: float, key: str) -> Command:
            made: Command = await it.control.command_point(
                "acme", point.id, value, kind=Kind.DOUBLE, idempotency_key=key
            )
            return made

        first, again = await asyncio.gather(asked(one, 5.0, "k"), asked(other, 5.0, "k"))
        assert first == again
        now_ms = one.clock.now_ms()
        delivered = await advance(one.log, one.view.commands, first.id, State.DELIVERED, now_ms)
        assert await asked(one, 5.0, "k") == delivered
        assert (await asked(one, 6.0, "k")).id != first.id
        assert (await asked(one, 5.0, "j")).id != first.id
        assert len(one.view.commands_of(point, now_ms)) == 3
        with pytest.raises(Malformed):
            await asked(one, 5.0, "k" * 256)

    run(tmp_path, body, count=2)


def test_a_key_is_its_clients_own(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        made = [
            await it.control.by(replace(CLIENT, subject=name)).command_point(
                "acme", point.id, 5.0, kind=Kind.DOUBLE, idempotency_key="1"
            )
            for name in ("client-1", "client-2", "client-1")
        ]
        assert [each.subject for each in made] == ["client-1", "client-2", "client-1"]
        assert made[0] == made[2]
        assert it.view.commands_of(point, it.clock.now_ms()) == [made[1], made[0]]

    run(tmp_path, body)


def test_a_command_is_delivered_once_and_in_time(tmp_path: Path) -> None:
    async def body(one: Office, other: Office, point: Point) -> None:
        made, late = await commanded(one, point), await commanded(one, point)
        now_ms = one.clock.now_ms()
        await other.view.commands_current()
        told = await asyncio.gather(
            advance(one.log, one.view.commands, made.id, State.DELIVERED, now_ms + 1),
            advance(other.log, other.view.commands, made.id, State.DELIVERED, now_ms + 2),
            return_exceptions=True,
        )
        # Either may be first, and the other may have seen that before.
        assert sorted(isinstance(each, Refused) for each in told) == [False, True]
        with pytest.raises(Refused, match="delivered"):
            await advance(one.log, one.view.commands, made.id, State.DELIVERED, now_ms + 3)
        confirmed = await advance(one.log, one.view.commands, made.id, State.CONFIRMED, now_ms + 9)
        assert (confirmed.state, confirmed.changed_ms) == ("confirmed", now_ms + 9)

        one.clock.advance(EXPIRE_MS + DELIVERY_MS)
        with pytest.raises(Refused, match="expired"):
            await advance(one.log, one.view.commands, late.id, State.DELIVERED, one.clock.now_ms())
        with pytest.raises(Unknown):
            await advance(one.log, one.view.commands, "none", State.DELIVERED, now_ms)
        states = [each.state for each in one.view.commands_of(point, one.clock.now_ms())]
        assert states == ["expired", "confirmed"]
        assert one.view.target(point, one.clock.now_ms()) is None

    run(tmp_path, body, count=2)


@pytest.mark.parametrize("later_ms", [0, 1])
def test_who_tells_second_of_a_delivery_hears_so(tmp_path: Path, later_ms: int) -> None:
    """Both look before either has written, and may write of the same millisecond."""

    async def body(one: Office, other: Office, point: Point) -> None:
        made = await commanded(one, point)
        await other.view.commands_current()
        behind = Commands()
        behind.apply(0, 0, made)
        following = asyncio.Event()
        first = await advance(one.log, one.view.commands, made.id, State.DELIVERED, made.at_ms + 1)
        task = asyncio.create_task(behind.follow(one.log, following))
        with pytest.raises(Taken):
            await advance(one.log, behind, made.id, State.DELIVERED, made.at_ms + 1 + later_ms)
        assert behind.one(made.id) == first
        following.set()
        await task

    run(tmp_path, body, count=2)


class _Confirmed:
    """A log behind whose records of a delivery lies a confirmation when they are told of."""

    def __init__(self, it: Office) -> None:
        self.lanes, self._it = it.log.lanes, it

    async def append(self, out: Any) -> list[int]:
        [(topic, lane, envelope)] = out
        confirmed = Envelope(replace(envelope.record, state=State.CONFIRMED))
        offsets = await self._it.log.append([*out, (topic, lane, confirmed)])
        await self._it.view.commands.caught_up(lane, offsets[-1])
        return offsets[:1]


def test_who_told_of_a_delivery_hears_so_when_it_is_confirmed_at_once(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        made, log = await commanded(it, point), cast(Any, _Confirmed(it))
        now = await advance(log, it.view.commands, made.id, State.DELIVERED, made.at_ms + 1)
        assert now.state == "confirmed"

    run(tmp_path, body)


def test_a_command_that_the_log_does_not_take_in_time_is_answered_as_unknown(
    tmp_path: Path,
) -> None:
    async def body(it: Office, point: Point) -> None:
        made = a_command(series=point.series)
        nobody_follows = Commands()
        with pytest.raises(Unavailable):
            await commands.append(it.log, nobody_follows, made, seconds=0.05)

    run(tmp_path, body)


def test_a_record_that_is_no_command_is_counted_and_passed_over(tmp_path: Path) -> None:
    async def body(it: Office, point: Point) -> None:
        before = skipped("command")
        await it.log.append([(COMMANDS_CHANGED, 0, Envelope(Letter("?", "?", "test")))])
        made = await commanded(it, point)
        assert skipped("command") == before + 1
        assert it.view.commands_of(point, it.clock.now_ms()) == [made]

    run(tmp_path, body)


def test_who_does_not_follow_the_log_does_not_know_what_is_on_it() -> None:
    with pytest.raises(Unavailable):
        asyncio.run(Commands().current())


def test_of_a_point_the_newest_are_held_and_those_that_wait() -> None:
    held = Commands()
    waiting = a_command("waiting", expires_ms=NOW_MS + 10_000_000)
    held.apply(0, 0, waiting)
    for n in range(1, POINT_COMMANDS_MAX + 5):
        at_ms = NOW_MS + n * 1_000_000
        held.apply(0, n, a_command(f"c{n}", at_ms=at_ms))
    ids = [each.id for each in held.of(7, NOW_MS)]
    assert len(ids) == POINT_COMMANDS_MAX
    # The first one waited no more when it came to be the oldest of too many.
    assert ids == [f"c{n}" for n in range(POINT_COMMANDS_MAX + 4, 4, -1)]

    held = Commands()
    held.apply(0, 0, replace(waiting, expires_ms=NOW_MS + 10**12))
    for n in range(1, POINT_COMMANDS_MAX + 5):
        held.apply(0, n, a_command(f"c{n}", at_ms=NOW_MS + n * 1_000_000))
    ids = [each.id for each in held.of(7, NOW_MS)]
    assert ids == [f"c{n}" for n in range(POINT_COMMANDS_MAX + 4, 5, -1)] + ["waiting"]


def test_of_a_lane_so_many_are_held_and_what_waits_is_never_forgotten() -> None:
    held, last = Commands(), LANE_COMMANDS_MAX
    for n in range(last + 50):
        held.apply(3, n, a_command(f"c{n}", series=n, device=f"d{n}"))
    assert held.open(3, NOW_MS) == LANE_COMMANDS_MAX
    assert held.one("c0") is not None and held.one(f"c{last}") is None
    assert held.of(last, NOW_MS) == held.deliverable("acme", f"d{last}", NOW_MS) == []
    # Of a request that was not taken nothing can become.
    held.apply(3, last + 50, replace(a_command(f"c{last}"), state=State.DELIVERED))
    assert held.one(f"c{last}") is None
    # What was delivered makes room, and then is not known any more.
    told = replace(a_command("c7"), state=State.DELIVERED)
    held.apply(3, last + 51, told)
    held.apply(3, last + 52, a_command("new", series=last, device="new"))
    assert held.one("new") is not None and held.one("c7") is None
    held.apply(3, last + 53, replace(told, state=State.CONFIRMED))
    assert held.one("c7") is None


def test_what_is_settled_goes_first_then_what_was_delivered_and_nothing_that_waits() -> None:
    held, count = Commands(), POINT_COMMANDS_MAX
    for n in range(count):
        held.apply(0, n, a_command(f"c{n}"))
    settling = (("c5", State.DELIVERED), ("c9", State.DELIVERED), ("c9", State.CONFIRMED))
    for n, (id, state) in enumerate(settling):
        held.apply(0, count + n, replace(a_command(id), state=state))
    known = []
    for n in range(3):
        held.apply(0, 2 * count + n, a_command(f"new{n}"))
        known.append([id for id in ("c5", "c9", f"new{n}") if held.one(id) is not None])
    assert known == [["c5", "new0"], ["new1"], []]
    assert len(held.deliverable("acme", "device", NOW_MS)) == POINT_COMMANDS_MAX


def test_what_comes_twice_changes_nothing() -> None:
    held = Commands()
    queued = a_command()
    delivered = replace(queued, state=State.DELIVERED, changed_ms=NOW_MS + 1)
    for _ in range(2):
        held.apply(0, 0, queued)
        held.apply(0, 1, delivered)
    assert held.of(7, NOW_MS) == [delivered]


def test_what_is_older_than_the_log_keeps_is_not_shown() -> None:
    held = Commands(kept_ms=1_000_000)
    held.apply(0, 0, a_command())
    assert len(held.of(7, NOW_MS + 999_999)) == 1
    assert held.of(7, NOW_MS + 1_000_000) == []
