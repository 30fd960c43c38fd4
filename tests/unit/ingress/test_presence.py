"""Which devices are connected: several door processes on one log say it, and views that follow
agree, whoever is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Device
from schemas.envelope import Envelope
from schemas.topics import DEVICES_CONNECTED, TOPICS, Topic
from services.clock import ManualClock
from services.dialects import Principal
from services.errors import Unavailable
from services.eventlog import EventLog, open_eventlog
from services.ingress.mqtt import MqttListener
from services.ingress.presence import LEASE_MS, Presences
from services.presence import PresenceView
from services.settings import Settings
from tests.support.lookup import ListedLookup
from tests.support.mqtt import TENANT, Client, Desk, HandLog, authenticate, connect

DEVICE = (TENANT, "d1")


class Hall:
    """A log, a clock, door processes and a view of what they say."""

    def __init__(self, log: EventLog) -> None:
        self.log, self.clock = log, ManualClock()
        self.view = PresenceView(self.clock)
        self.views = [self.view]
        self.tasks = [asyncio.create_task(self.view.follow(log))]

    def door(self) -> Presences:
        """A door process; it says something when the test says so."""
        door = Presences(self.log, self.clock)
        self.views.append(door.view)
        self.tasks.append(asyncio.create_task(door.follow()))
        return door

    async def said(self) -> int:
        """How many records there are, once everybody has read them."""
        end = (await self.log.spans(DEVICES_CONNECTED))[0].end
        async with asyncio.timeout(10):
            while any(view.offset < end for view in self.views):
                await asyncio.sleep(0)
        return end

    async def say(self, *doors: Presences) -> int:
        """A second in which each says what it has to; how many records that makes."""
        before = await self.said()
        for door in doors:
            await door.say()
            await self.said()
        self.clock.advance(1_000)
        return await self.said() - before

    def connected(self, device: str = "d1") -> bool | None:
        """What the view answers."""
        return self.view.connected(TENANT, [device]).get(device)


@asynccontextmanager
async def a_hall(folder: Path) -> AsyncIterator[Hall]:
    """A hall on a log of its own."""
    async with open_eventlog(f"sqlite:///{folder / 'log.sqlite'}", lanes=1) as log:
        await log.create(TOPICS)
        hall = Hall(log)
        try:
            yield hall
        finally:
            for task in hall.tasks:
                task.cancel()
            await asyncio.gather(*hall.tasks, return_exceptions=True)


def in_hall(folder: Path, body: Callable[[Hall], Coroutine[Any, Any, None]]) -> None:
    """Run `body`."""

    async def flow() -> None:
        async with a_hall(folder) as hall:
            await body(hall)

    asyncio.run(flow())


def test_a_device_is_connected_while_it_has_a_session(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        door = hall.door()
        assert hall.connected() is None
        door.told(*DEVICE, True)
        assert await hall.say(door) == 2, "the lease, and the device"
        assert hall.connected() is True
        assert hall.view.connected("globex", ["d1"]) == {}
        assert await hall.say(door) == 0
        door.told(*DEVICE, False)
        assert await hall.say(door) == 1
        assert hall.connected() is False
        assert await hall.say(door) == 0

    in_hall(tmp_path, body)


def test_who_comes_and_goes_costs_one_record_a_second_at_the_most(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        door = hall.door()
        for _ in range(100):
            door.told(*DEVICE, True)
            door.told(*DEVICE, False)
        assert await hall.say(door) == 0
        for _ in range(100):
            door.told(*DEVICE, False)
            door.told(*DEVICE, True)
        assert await hall.say(door) == 2
        door.told(*DEVICE, False)
        door.told(*DEVICE, True)
        assert await hall.say(door) == 0

    in_hall(tmp_path, body)


def test_many_devices_at_once_are_said_in_several_seconds(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        door = hall.door()
        names = [f"d{number}" for number in range(1_200)]
        for name in names:
            door.told(TENANT, name, True)
        assert [await hall.say(door) for _ in range(4)] == [501, 500, 200, 0]
        assert hall.view.connected(TENANT, names) == dict.fromkeys(names, True)

    in_hall(tmp_path, body)


def test_a_process_that_lives_keeps_its_devices_and_one_that_was_killed_does_not(
    tmp_path: Path,
) -> None:
    async def body(hall: Hall) -> None:
        door = hall.door()
        door.told(*DEVICE, True)
        records = 0
        for _ in range(3 * LEASE_MS // 1_000):
            records += await hall.say(door)
            assert hall.connected() is True
        assert records == 1 + 3 * LEASE_MS // 10_000
        hall.clock.advance(LEASE_MS)
        assert hall.connected() is False

    in_hall(tmp_path, body)


def test_a_process_that_ends_says_so(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        door, idle = hall.door(), hall.door()
        door.told(*DEVICE, True)
        await hall.say(door)
        await door.leave()
        await hall.said()
        assert hall.connected() is False
        before = await hall.said()
        await idle.leave()
        assert await hall.said() == before, "who never had a session says nothing"

    in_hall(tmp_path, body)


def test_a_process_that_ends_while_it_says_something_takes_it_back(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        door = hall.door()
        door.told(*DEVICE, True)
        saying = asyncio.create_task(door.say())
        await asyncio.sleep(0)
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        await door.leave()
        async with asyncio.timeout(10):
            while await hall.said() < 2:
                await asyncio.sleep(0.01)
        assert hall.connected() is False

    in_hall(tmp_path, body)


def test_processes_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        for _ in range(5):
            door = hall.door()
            door.told(*DEVICE, True)
            await hall.say(door)
            hall.clock.advance(LEASE_MS)
        assert list(hall.view._leases) == [door.process]

    in_hall(tmp_path, body)


def test_a_device_that_comes_to_another_process_is_connected_there_at_once(
    tmp_path: Path,
) -> None:
    async def body(hall: Hall) -> None:
        killed, other = hall.door(), hall.door()
        killed.told(*DEVICE, True)
        await hall.say(killed)
        hall.clock.advance(5_000)
        other.told(*DEVICE, True)
        await hall.say(other)
        hall.clock.advance(LEASE_MS - 2_000)
        assert hall.connected() is True, "the lease of the one that was killed is over"

    in_hall(tmp_path, body)


def test_of_two_processes_the_last_to_get_the_device_says_so_and_they_do_not_quarrel(
    tmp_path: Path,
) -> None:
    async def body(hall: Hall) -> None:
        older, newer = hall.door(), hall.door()
        older.told(*DEVICE, True)
        await hall.say(older, newer)
        newer.told(*DEVICE, True)
        assert await hall.say(older, newer) == 2
        assert await hall.say(older, newer) == 0
        newer.told(*DEVICE, False)
        # The newer one says that it is gone, and the older one that it is still there.
        assert await hall.say(newer, older) == 2
        assert hall.connected() is True
        assert await hall.say(newer, older) == 0
        older.told(*DEVICE, False)
        await hall.say(newer, older)
        assert hall.connected() is False

    in_hall(tmp_path, body)


def test_what_a_killed_process_held_beside_this_one_is_said_at_the_next_renewal(
    tmp_path: Path,
) -> None:
    async def body(hall: Hall) -> None:
        stays, killed = hall.door(), hall.door()
        stays.told(*DEVICE, True)
        await hall.say(stays)
        killed.told(*DEVICE, True)
        await hall.say(killed)
        for _ in range(2 * LEASE_MS // 1_000):
            await hall.say(stays)
        assert hall.connected() is True

    in_hall(tmp_path, body)


class Away:
    """A log that takes nothing in until it is back."""

    def __init__(self, log: EventLog) -> None:
        self._log, self.back = log, False

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        """Refuse, or hand on."""
        if not self.back:
            raise Unavailable("away")
        return await self._log.append(out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def test_what_could_not_be_said_is_said_later(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        away: Any = Away(hall.log)
        hall.log = away
        door = hall.door()
        door.told(*DEVICE, True)
        assert await hall.say(door) == 0
        await door.leave()
        away.back = True
        assert await hall.say(door) == 2
        assert hall.connected() is True
        away.back = False
        door.told(*DEVICE, False)
        assert await hall.say(door) == 0
        away.back = True
        assert await hall.say(door) == 1
        assert hall.connected() is False
        away.back = False
        await door.leave()

    in_hall(tmp_path, body)


def test_compaction_leaves_what_counts(tmp_path: Path) -> None:
    async def body(hall: Hall) -> None:
        door = hall.door()
        for _ in range(20):
            door.told(*DEVICE, True)
            await hall.say(door)
            door.told(*DEVICE, False)
            await hall.say(door)
        door.told(*DEVICE, True)
        await hall.say(door)
        assert await hall.log.trim(hall.clock.now_ms()) >= 40
        later = PresenceView(hall.clock)
        assert not later.ready()
        hall.views.append(later)
        hall.tasks.append(asyncio.create_task(later.follow(hall.log)))
        await hall.said()
        assert later.ready()
        assert later.connected(TENANT, ["d1"]) == {"d1": True}

    in_hall(tmp_path, body)


# -- what the listener tells -----------------------------------------------------------------------


@pytest.fixture
def told() -> list[tuple[str, str, bool]]:
    return []


class Told(Desk):
    """A desk that notes what the listener tells."""

    def __init__(self, told: list[tuple[str, str, bool]]) -> None:
        super().__init__()
        self.log = HandLog()

        def of_device(token: str) -> Principal:
            return replace(authenticate(token), device=token)

        self.listener = MqttListener(
            log=self.log,  # type: ignore[arg-type]
            authenticate=of_device,
            lookup=ListedLookup([Device("d1", tenant=TENANT)]),
            publishes={},
            clock=self.clock,
            settings=Settings(),
            told=lambda tenant, device, connected: told.append((tenant, device, connected)),
        )


def entered(desk: Desk, client_id: str) -> Client:
    """A session of the device under a client id."""
    client = desk.open()
    client.send(connect(client_id=client_id))
    client.taken()
    return client


def test_the_first_session_and_the_end_of_the_last_one_are_told(
    told: list[tuple[str, str, bool]],
) -> None:
    async def body() -> None:
        desk = Told(told)
        one, two = entered(desk, "one"), entered(desk, "two")
        [begun] = told
        assert begun[0] == TENANT and begun[2] is True
        desk.listener.lost(one.session)
        assert told == [begun]
        desk.listener.lost(two.session)
        assert told == [begun, (*begun[:2], False)]

    asyncio.run(body())


def test_a_session_that_is_taken_over_does_not_end_the_device(
    told: list[tuple[str, str, bool]],
) -> None:
    async def body() -> None:
        desk = Told(told)
        one = entered(desk, "one")
        entered(desk, "one")
        desk.listener.lost(one.session)
        assert told[-1][2] is True

    asyncio.run(body())
