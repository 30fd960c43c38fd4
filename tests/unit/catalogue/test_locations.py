"""Locations by control: what they take, the tree they make, what keeps one from being deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Device, Location
from schemas.envelope import Envelope
from schemas.topics import CATALOGUE_CHANGED
from services.catalogue import Caller, Control, first
from services.catalogue._checks import DEPTH_MAX
from services.catalogue.remote import listing
from services.errors import Conflicting, Malformed, Refused, Unknown
from tests.support.catalogue import Office, offices


def office(folder: Path, body: Callable[[Office], Coroutine[Any, Any, None]]) -> None:
    """Run `body` where there is a tenant "acme"."""

    async def flow() -> None:
        async with offices(folder) as [it]:
            await it.control.add_tenant("acme", "Acme")
            await it.control.add_tenant("globex", "Globex")
            await body(it)

    asyncio.run(flow())


def test_a_location_is_made_changed_and_deleted(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        it.clock.advance(7)
        made = await it.control.add_location(
            "acme", "Works", time_zone="Europe/Zurich", street="Main 1", country_code="CH"
        )
        assert it.view.location("acme", made.id) == made
        assert it.view.location("globex", made.id) is None
        assert (made.type, made.has_address) == ("Building", True)
        changed = await it.control.change_location(
            "acme", made.id, label="Old works", street="", country_code=""
        )
        assert (changed.label, changed.time_zone) == ("Old works", "Europe/Zurich")
        assert not changed.has_address
        assert it.view.locations("acme") == [changed]
        assert [each["id"] for each in listing(it.view, "location")] == [made.id]
        await it.control.delete_location("acme", made.id)
        assert it.view.locations("acme") == []
        with pytest.raises(Unknown):
            await it.control.delete_location("acme", made.id)

    office(tmp_path, body)


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({"label": ""}, "label"),
        ({"type": "Planet"}, "type"),
        ({"time_zone": "over there"}, "time_zone"),
        ({"country_code": "Switzerland"}, "country_code"),
        ({"description": "x" * 1_001}, "description"),
        ({"street": "a\x00b"}, "street"),
        ({"id": "no uuid"}, "id"),
    ],
)
def test_what_a_location_does_not_take(tmp_path: Path, members: dict[str, Any], where: str) -> None:
    async def body(it: Office) -> None:
        with pytest.raises(Malformed) as caught:
            await it.control.add_location("acme", **{"label": "x", **members})
        assert caught.value.where == where
        assert it.view.locations("acme") == []

    office(tmp_path, body)


def test_a_location_is_never_part_of_itself(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = it.control
        top = await control.add_location("acme", "site", type="Campus")
        middle = await control.add_location("acme", "building", parent=top.id)
        low = await control.add_location("acme", "floor", type="Floor", parent=middle.id)
        for place in (top, middle, low):
            with pytest.raises(Malformed) as caught:
                await control.change_location("acme", top.id, parent=place.id)
            assert caught.value.where == "parent"
        elsewhere = await control.add_location("globex", "other")
        for parent in (elsewhere.id, "nothing"):
            with pytest.raises(Unknown) as missing:
                await control.change_location("acme", low.id, parent=parent)
            assert missing.value.where == "parent"
        moved = await control.change_location("acme", low.id, parent="")
        assert moved.parent == ""

    office(tmp_path, body)


def test_a_tree_of_locations_has_an_end(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        parent = ""
        for depth in range(DEPTH_MAX):
            parent = (await it.control.add_location("acme", str(depth), parent=parent)).id
        with pytest.raises(Malformed, match="one in the other"):
            await it.control.add_location("acme", "too deep", parent=parent)

    office(tmp_path, body)


def test_a_tree_that_is_hung_elsewhere_has_an_end_too(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control, trees = it.control, []
        for depth in (DEPTH_MAX // 2 + 1, DEPTH_MAX // 2 - 1):
            tree = [""]
            for level in range(depth):
                tree.append((await control.add_location("acme", str(level), parent=tree[-1])).id)
            trees.append(tree[1:])
        upper, lower = trees
        deeper = await control.add_location("acme", "one more", parent=lower[-1])
        with pytest.raises(Malformed, match="one in the other"):
            await control.change_location("acme", lower[0], parent=upper[-1])
        await control.delete_location("acme", deeper.id)
        await control.change_location("acme", lower[0], parent=upper[-1])
        for id in (upper[1], lower[0], lower[-1]):
            place = it.view.location("acme", id)
            assert place is not None
            back = await control.change_location("acme", id, parent=place.parent)
            assert back == place

    office(tmp_path, body)


def test_what_is_too_deep_already_may_be_sent_back_as_it_is(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        for level in range(DEPTH_MAX + 2):
            parent = str(level - 1) if level else ""
            made = first(Location(str(level), tenant="acme", label="x", parent=parent))
            record = Envelope(made, key=made.key)
            [offset] = await it.log.append([(CATALOGUE_CHANGED, 0, record)])
        await it.view.caught_up(offset)
        low = str(DEPTH_MAX + 1)
        changed = await it.control.change_location("acme", low, label="y", parent=parent)
        assert changed.label == "y"

    office(tmp_path, body)


def test_no_gateway_is_behind_itself(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        upper = await it.control.add_device("acme", "upper")
        middle = await it.control.add_device("acme", "middle", gateway=upper.id)
        lower = await it.control.add_device("acme", "lower", gateway=middle.id)
        for gateway in (upper, middle, lower):
            with pytest.raises(Malformed) as caught:
                await it.control.change_device("acme", upper.id, gateway=gateway.id)
            assert caught.value.where == "gateway"
        assert it.view.device("acme", upper.id) == upper
        moved = await it.control.change_device("acme", lower.id, gateway=upper.id)
        assert moved.gateway == upper.id

    office(tmp_path, body)


def test_a_location_that_is_needed_stays(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = it.control
        place = await control.add_location("acme", "building")
        floor = await control.add_location("acme", "floor", parent=place.id)
        with pytest.raises(Conflicting, match="part of it"):
            await control.delete_location("acme", place.id)
        device = await control.add_device("acme", "d", location=floor.id)
        with pytest.raises(Conflicting, match="devices"):
            await control.delete_location("acme", floor.id)
        await control.change_device("acme", device.id, location="")
        await control.delete_location("acme", floor.id)
        await control.delete_location("acme", place.id)

    office(tmp_path, body)


def test_a_device_is_somewhere_and_behind_something_that_is_there(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = it.control
        place = await control.add_location("acme", "building")
        gateway = await control.add_device("acme", "gateway")
        device = await control.add_device(
            "acme", "d", model="M", serial="S", description="it", location=place.id,
            gateway=gateway.id,
        )  # fmt: skip
        assert Device.of(device.body()) == it.view.device("acme", device.id) == device
        for members in ({"location": "nowhere"}, {"gateway": "nothing"}):
            with pytest.raises(Unknown) as caught:
                await control.change_device("acme", device.id, **members)
            assert caught.value.where == next(iter(members))
        with pytest.raises(Malformed):
            await control.change_device("acme", gateway.id, gateway=gateway.id)
        changed = await control.change_device("acme", device.id, serial="T", gateway="")
        assert (changed.model, changed.serial, changed.gateway) == ("M", "T", "")

    office(tmp_path, body)


def test_somebody_of_one_tenant_makes_no_location_in_another(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        editor = it.control.by(Caller("anna", "http", "acme"))
        with pytest.raises(Refused):
            await editor.add_location("globex", "x")
        assert it.view.locations("globex") == []

    office(tmp_path, body)


def test_a_location_reads_back_as_it_was_written() -> None:
    location = Location("l", tenant="acme", type="Room", label="x", street="s", created_ms=3)
    assert Location.of(location.body()) == location


def test_a_gateway_that_is_gone_is_nobodys(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        gateway = await it.control.add_device("acme", "gateway")
        device = await it.control.add_device("acme", "d", gateway=gateway.id)
        await it.control.delete_device("acme", gateway.id)
        await it.control.add_device("acme", "another", id=gateway.id)
        assert it.view.device("acme", device.id) == replace(device, gateway="")

    office(tmp_path, body)


# -- at the same moment ----------------------------------------------------------------------------

Call = Callable[[], Coroutine[Any, Any, Any]]
Both = Callable[[list[Office]], Coroutine[Any, Any, None]]


def at_once(folder: Path, body: Both, processes: int) -> None:
    """Run `body` with the controls of one process, or of two."""

    async def flow() -> None:
        async with offices(folder, processes) as all_:
            await all_[0].control.add_tenant("acme", "Acme")
            await body(all_)
            await caught_up(all_)
            for each in all_:
                sound(each)

    asyncio.run(flow())


def sound(it: Office) -> None:
    """Everything hangs on what is there, and nothing on itself."""
    locations = {each.id: each.parent for each in it.view.locations("acme")}
    devices = {each.id: each for each in it.view.devices("acme")}
    gateways = {each.id: each.gateway for each in devices.values()}
    for ups in (locations, gateways):
        assert set(ups.values()) <= {"", *ups}
        for id in ups:
            seen = [id]
            while up := ups[seen[-1]]:
                assert up not in seen, "a cycle"
                seen.append(up)
    assert {each.location for each in devices.values()} <= {"", *locations}
    points = it.view._things["point"].values()
    assert {each.device for each in points} <= set(devices)  # type: ignore[attr-defined]


async def caught_up(all_: list[Office]) -> None:
    """Have all processes know the same."""
    newest = max(each.view.revision for each in all_)
    for each in all_:
        await each.view.caught_up(newest)


@pytest.mark.parametrize("processes", [1, 2])
def pairs(
    one: Control, other: Control, places: list[str], devices: list[str]
) -> list[tuple[Call, Call]]:
    """Two actions each that do not go together."""
    (a, b, c), (device, gateway) = places, devices
    return [
        (
            lambda: one.change_location("acme", a, parent=b),
            lambda: other.change_location("acme", b, parent=a),
        ),
        (
            lambda: one.change_device("acme", device, gateway=gateway),
            lambda: other.change_device("acme", gateway, gateway=device),
        ),
        (
            lambda: one.change_device("acme", device, gateway=gateway),
            lambda: other.delete_device("acme", gateway),
        ),
        (
            lambda: one.delete_location("acme", b),
            lambda: other.change_device("acme", device, location=b),
        ),
        (
            lambda: one.delete_device("acme", device),
            lambda: other.add_point("acme", device, "k"),
        ),
        (
            lambda: one.delete_location("acme", a),
            lambda: other.add_device("acme", "e", location=a),
        ),
        (
            lambda: one.delete_location("acme", c),
            lambda: other.add_location("acme", "d", parent=c),
        ),
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_done_at_once_leaves_nothing_in_the_air(
    tmp_path: Path, processes: int, number: int
) -> None:
    async def body(all_: list[Office]) -> None:
        one, other = all_[0].control, all_[-1].control
        for _ in range(5):
            places = [(await one.add_location("acme", name)).id for name in "abc"]
            devices = [(await one.add_device("acme", name)).id for name in "dg"]
            await caught_up(all_)
            this, that = pairs(one, other, places, devices)[number]
            ended = await asyncio.gather(this(), that(), return_exceptions=True)
            errors = [end for end in ended if isinstance(end, BaseException)]
            assert all(isinstance(error, Refused) for error in errors), errors

    at_once(tmp_path, body, processes)
