"""Points that change, what is tied to them, users of several tenants: what control makes of it,
also where two processes do it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from schemas.catalogue import API_SERVER, ROLES, Device, Point, User
from schemas.envelope import Change, Envelope
from schemas.samples import Kind
from schemas.topics import CATALOGUE_CHANGED
from services.catalogue import (
    Caller,
    Control,
    api_server_id,
    derive,
    first,
    new_point,
    password_matches,
    series_id,
    webhook_secret,
)
from services.errors import Conflicting, Forbidden, Malformed, Refused, Taken, Unknown
from services.eventlog import EventLog
from tests.support.catalogue import SECRET, Office, a_control, offices

URL = "https://example.com/hook"


def office(folder: Path, body: Callable[[Office], Awaitable[Any]], count: int = 1) -> None:
    """Run `body` with a process that configures (or so many of them), with a tenant."""

    async def run() -> None:
        async with offices(folder, count) as all_:
            await all_[0].control.add_tenant("acme", "Acme Ltd")
            for each in all_:
                await each.view.caught_up(all_[0].view.revision)
            await asyncio.wait_for(body(*all_), 60)

    asyncio.run(run())


def server_of(it: Office) -> str:
    """The id of acme's API server."""
    return it.view.api_server("acme").id


# -- the API server --------------------------------------------------------------------------------


def test_a_tenant_comes_with_its_api_server(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        [server] = it.view.devices("acme")
        assert it.view.thing(Device.KIND, api_server_id("acme")) == server
        assert (server.type, server.created_ms) == (API_SERVER, it.clock.now_ms())

        for wrong in (
            it.control.delete_device("acme", server.id),
            it.control.add_device("acme", "another", type=API_SERVER),
            it.control.add_device("acme", "another", id=server.id),
        ):
            with pytest.raises(Refused):
                await wrong
        assert it.view.devices("acme") == [server]
        assert (await it.control.change_device("acme", server.id, disabled=True)).disabled
        assert it.view.api_server("acme").disabled

    office(tmp_path, body)


@pytest.mark.parametrize("need", ["change", "point"])
def test_a_tenant_from_before_gets_its_api_server_at_the_first_need(
    need: str, tmp_path: Path
) -> None:
    async def body(it: Office) -> None:
        change = Change("tenant", "old", {"id": "old", "name": "Old", "uuid": "u"}, True, "claim")
        offsets = await it.log.append([(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key))])
        await it.view.caught_up(offsets[0])
        server = it.view.api_server("old")
        assert it.view.thing(Device.KIND, server.id) is None

        if need == "change":
            await it.control.change_device("old", server.id, name="Line 1")
            assert it.view.api_server("old").name == "Line 1"
        else:
            await it.control.add_point("old", server.id, "heat")
        assert it.view.thing(Device.KIND, server.id) is not None

    office(tmp_path, body)


async def _hold_server_of(tenant: str, it: Office) -> Device:
    """A device of acme that has the id of another tenant's API server, as older logs may have."""
    held = Device(api_server_id(tenant), "acme", "in the way")
    [offset] = await it.log.append([(CATALOGUE_CHANGED, 0, Envelope(first(held), key=b"k"))])
    await it.view.caught_up(offset)
    return held


def test_a_tenant_whose_api_server_another_has_is_not_made(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        before = it.view.devices("acme")
        held = first(Device(api_server_id("beta"), "acme", "a moment before"))
        control = a_control(_Outrun(it.log, [held]), it.view, it.clock)  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(Conflicting):
                await control.add_tenant("beta", "Beta")
            assert it.view.tenant("beta") is None
        assert len(it.view.devices("acme")) == len(before) + 1

    office(tmp_path, body)


def test_an_api_server_whose_id_another_tenant_has_changes_nothing_of_theirs(
    tmp_path: Path,
) -> None:
    async def body(it: Office) -> None:
        body = {"id": "old", "name": "Old", "uuid": "u"}
        change = Change("tenant", "old", body, True, "claim")
        await it.log.append([(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key))])
        held = await _hold_server_of("old", it)
        with pytest.raises(Conflicting):
            await it.control.change_device("old", held.id, name="Line 1")
        assert it.view.device("acme", held.id) == held

    office(tmp_path, body)


# -- points ----------------------------------------------------------------------------------------


def test_a_point_stays_itself_under_another_key(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        device, control, view = server_of(it), it.control, it.view
        point = await control.add_point("acme", device, "heat", kind=Kind.DOUBLE, precision=1)

        moved = await control.change_point("acme", point.id, key="oven", band=0.5, keep_minutes=60)

        assert (moved.id, moved.series, moved.key) == (point.id, point.series, "oven")
        assert (moved.band, moved.keep_minutes, moved.precision) == (0.5, 60, 1)
        assert view.known("acme", device, "oven") == view.point("acme", point.id) == moved
        assert view.known("acme", device, "heat") is None

        again = await control.add_point("acme", device, "heat", kind=Kind.STRING)
        assert again.id != point.id and again.series not in (point.series, 0)
        with pytest.raises(Taken):
            await control.change_point("acme", point.id, key="heat")
        await control.delete_point("acme", again.id)
        back = await control.change_point("acme", point.id, key="heat")
        assert (back.origin, back.series) == ("", series_id("acme", device, "heat"))

        assert await control.change_point("acme", point.id) == back
        for wrong in ({"key": ""}, {"name": ""}, {"precision": 16}, {"keep_minutes": -1}):
            with pytest.raises(Malformed):
                await control.change_point("acme", point.id, **wrong)  # type: ignore[arg-type]
        with pytest.raises(Unknown):
            await control.change_point("acme", "p", key="x")
        assert view.point("acme", point.id) == back

    office(tmp_path, body)


def test_of_two_that_are_given_one_key_at_once_the_first_in_the_log_has_it(
    tmp_path: Path,
) -> None:
    async def body(one: Office, other: Office) -> None:
        device = server_of(one)
        for number in range(6):
            points = [
                await one.control.add_point("acme", device, f"{name}{number}") for name in "ab"
            ]
            one.clock.advance(1)
            await other.view.caught_up(one.view.revision)
            wanted = f"wanted{number}"
            asked = [
                (one.control, points[number % 2]),
                (other.control, points[1 - number % 2]),
            ]
            ended = await asyncio.gather(
                *(c.change_point("acme", point.id, key=wanted) for c, point in asked),
                return_exceptions=True,
            )
            told = [end for end in ended if isinstance(end, BaseException)]
            assert [type(end) for end in told] == [Taken], told
            [won] = [end for end in ended if isinstance(end, Point)]
            await one.view.caught_up(other.view.revision)
            await other.view.caught_up(one.view.revision)
            for view in (one.view, other.view):
                assert view.known("acme", device, wanted) == won
                assert not view.crowded("acme", device, wanted)
                keys = {view.point("acme", point.id).key for point in points}  # type: ignore[union-attr]
                assert len(keys - {wanted}) == 1, "the other one is back at its key"

    office(tmp_path, body, count=2)  # type: ignore[arg-type]


class _Outrun:
    """A log in which another process is a moment earlier, once: with the changes given."""

    def __init__(self, log: EventLog, changes: Sequence[Change]) -> None:
        self._log = log
        self._changes = list(changes)

    async def append(self, out: Any) -> list[int]:
        """Append, behind what the other one appends."""
        before: list[Any] = []
        if out[0][0] is CATALOGUE_CHANGED:
            changes, self._changes = self._changes, []
            before = [(CATALOGUE_CHANGED, 0, Envelope(each, key=each.key)) for each in changes]
        return (await self._log.append([*before, *out]))[len(before) :]


@pytest.mark.parametrize("by", ["push", "change of key", "declaration"])
@pytest.mark.parametrize("older", [True, False])
def test_a_key_that_another_one_got_a_moment_before_stays_theirs(
    by: str, older: bool, tmp_path: Path
) -> None:
    async def body(it: Office) -> None:
        device, now_ms = server_of(it), it.clock.now_ms()
        ages = (now_ms - 1, now_ms + 1)
        point = await it.control.add_point("acme", device, "old")
        if by == "change of key":
            theirs = new_point(
                "acme", device, "new", origin="third", created_ms=ages[0 if older else 1]
            )
            change = Change("point", theirs.id, theirs.body(), claim="theirs")
        else:
            theirs = new_point("acme", device, "new", created_ms=ages[0 if older else 1])
            change = first(theirs)
        log: Any = _Outrun(it.log, [change])
        control = a_control(log, it.view, it.clock)
        with pytest.raises(Taken):
            if by == "declaration":
                await control.add_point("acme", device, "new", id=str(uuid4()))
            else:
                await control.change_point("acme", point.id, key="new", name="x")

        assert it.view.known("acme", device, "old") == point
        assert it.view.known("acme", device, "new") == theirs
        assert not it.view.crowded("acme", device, "new")
        assert it.view.collisions == 0

    office(tmp_path, body)


# -- equipment, bindings ---------------------------------------------------------------------------


def test_bindings_tie_points_to_equipment_once_for_each_role(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control, device = it.control, server_of(it)
        await control.add_tenant("beta", "Beta")
        press = await control.add_equipment("acme", "Press")
        theirs = await control.add_equipment("beta", "Theirs")
        strokes = await control.add_point("acme", device, "strokes", kind=Kind.DOUBLE)
        text = await control.add_point("acme", device, "text", kind=Kind.STRING)

        bound = await control.add_binding("acme", strokes.id, press.id, role="counter")
        await control.add_binding("acme", strokes.id, press.id, role="value")
        assert it.view.binding("acme", bound.id) == bound
        for error, arguments in (
            (Taken, ("acme", strokes.id, press.id, "counter")),
            (Malformed, ("acme", text.id, press.id, "counter")),
            (Malformed, ("acme", strokes.id, press.id, "pet")),
            (Unknown, ("acme", strokes.id, theirs.id, "value")),
            (Unknown, ("beta", strokes.id, theirs.id, "value")),
            (Unknown, ("acme", "nothing", press.id, "value")),
        ):
            with pytest.raises(error):
                await control.add_binding(*arguments[:3], role=arguments[3])
        await control.delete_binding("acme", bound.id)
        with pytest.raises(Unknown):
            await control.delete_binding("acme", bound.id)
        again = await control.add_binding("acme", strokes.id, press.id, role="counter")
        assert again.id == bound.id

        assert (await control.change_equipment("acme", press.id, name="Press 2")).name == "Press 2"
        with pytest.raises(Unknown):
            await control.change_equipment("beta", press.id, name="x")
        await control.delete_equipment("acme", press.id)
        assert it.view.thing("binding", again.id) is None
        assert it.view.all_equipment("acme") == []

    office(tmp_path, body)


def test_a_deleted_point_takes_along_what_is_tied_to_it(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = it.control
        press = await control.add_equipment("acme", "Press")
        device = await control.add_device("acme", "Boiler")
        for delete in ("point", "device"):
            point = await control.add_point("acme", device.id, "heat", kind=Kind.DOUBLE)
            binding = await control.add_binding("acme", point.id, press.id)
            trigger, _ = await control.add_trigger("acme", point.id, when=">", bound=1, url=URL)
            if delete == "point":
                await control.delete_point("acme", point.id)
            else:
                await control.delete_device("acme", device.id)
            assert it.view.thing("binding", binding.id) is None
            assert it.view.thing("trigger", trigger.id) is None
            assert it.view.thing("point", point.id) is None

    office(tmp_path, body)


def test_what_is_tied_to_a_point_that_is_deleted_at_the_same_moment_does_not_stay(
    tmp_path: Path,
) -> None:
    async def body(one: Office, other: Office) -> None:
        press = await one.control.add_equipment("acme", "Press")
        for number in range(6):
            point = await one.control.add_point("acme", server_of(one), "heat", kind=Kind.DOUBLE)
            await other.view.caught_up(one.view.revision)
            actions = [
                one.control.delete_point("acme", point.id),
                other.control.add_binding("acme", point.id, press.id),
                other.control.add_trigger("acme", point.id, when=">", bound=1, url=URL),
            ]
            order = actions if number % 2 else actions[::-1]
            await asyncio.gather(*order, return_exceptions=True)
            await one.view.caught_up(other.view.revision)
            await other.view.caught_up(one.view.revision)
            for view in (one.view, other.view):
                assert view.bindings("acme", equipment=press.id) == []
                assert view.triggers("acme", point.id) == []

    office(tmp_path, body, count=2)  # type: ignore[arg-type]


# -- triggers --------------------------------------------------------------------------------------

GOOD: list[tuple[Kind | None, dict[str, Any]]] = [
    (Kind.DOUBLE, {"when": ">=", "bound": 80, "hysteresis": 2.5, "delay_ms": 5_000}),
    (Kind.LONG, {"when": "!=", "bound": 2**62}),
    (Kind.BOOL, {"when": "=", "bound": False}),
    (Kind.STRING, {"when": "=", "bound": "warm"}),
    (Kind.STRING, {"when": "!=", "bound": 42}),
    (Kind.DATE, {"when": "=", "bound": 1_700_000_000_000}),
    (None, {"when": "<", "bound": 1.5}),
    (Kind.DOUBLE, {"when": "<", "bound": 0, "url": "http://[::1]:8080/a?b=c#d"}),
]
BAD: list[tuple[Kind | None, dict[str, Any], str]] = [
    (Kind.DOUBLE, {"when": "~", "bound": 1}, "when"),
    (Kind.DOUBLE, {"when": ">", "bound": "80"}, "bound"),
    (Kind.DOUBLE, {"when": ">", "bound": True}, "bound"),
    (Kind.DOUBLE, {"when": ">", "bound": float("inf")}, "bound"),
    (Kind.DOUBLE, {"when": ">", "bound": 10**400}, "bound"),
    (Kind.BOOL, {"when": "=", "bound": 1}, "bound"),
    (Kind.BOOL, {"when": ">", "bound": True}, "when"),
    (Kind.STRING, {"when": "<", "bound": 1}, "when"),
    (Kind.STRING, {"when": "=", "bound": "x" * 1_025}, "bound"),
    (Kind.DATE, {"when": "=", "bound": "2026-01-01"}, "bound"),
    (Kind.DATE, {"when": ">", "bound": 1}, "when"),
    (None, {"when": "<", "bound": "a"}, "when"),
    (Kind.DOUBLE, {"when": "=", "bound": 1, "hysteresis": 1.0}, "hysteresis"),
    (Kind.DOUBLE, {"when": ">", "bound": 1, "hysteresis": -1.0}, "hysteresis"),
    (Kind.DOUBLE, {"when": ">", "bound": 1, "hysteresis": float("nan")}, "hysteresis"),
    (Kind.DOUBLE, {"when": ">", "bound": 1, "delay_ms": -1}, "delay_ms"),
    (Kind.DOUBLE, {"when": ">", "bound": 1, "delay_ms": 86_400_001}, "delay_ms"),
    *(
        (Kind.DOUBLE, {"when": ">", "bound": 1, "url": url}, "url")
        for url in (
            "",
            "ftp://example.com/",
            "https://",
            "https:///path",
            "//example.com",
            "https://user:pass@example.com/",
            "https://user@example.com/",
            "https://example.com/a b",
            "https://example.com/ü",
            "https://example.com\\@evil.example/",
            "https://example.com:99999/",
            "https://[::1/",
            "https://example.com/" + "x" * 2_048,
            "javascript:alert(1)",
        )
    ),
]


def test_triggers_make_sense_on_the_values_of_their_point(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        points = {
            kind: await it.control.add_point("acme", server_of(it), f"of {kind}", kind=kind)
            for kind in (None, Kind.DOUBLE, Kind.LONG, Kind.BOOL, Kind.STRING, Kind.DATE)
        }
        for kind, rule in GOOD:
            made, secret = await it.control.add_trigger(
                "acme", points[kind].id, **{"url": URL} | rule
            )
            assert it.view.trigger("acme", made.id) == made
            assert secret == webhook_secret(SECRET, made.id)
        before = it.view.revision
        for kind, rule, where in BAD:
            with pytest.raises(Malformed) as caught:
                await it.control.add_trigger("acme", points[kind].id, **{"url": URL} | rule)
            assert caught.value.where == where, rule
        assert it.view.revision == before

    office(tmp_path, body)


def test_a_trigger_changes_within_the_same_rules_and_a_point_has_so_many(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = it.control
        point = await control.add_point("acme", server_of(it), "heat", kind=Kind.DOUBLE)
        rule: dict[str, Any] = {"when": ">", "bound": 80, "url": URL, "hysteresis": 2}
        trigger, _ = await control.add_trigger("acme", point.id, **rule)

        changed = await control.change_trigger("acme", trigger.id, bound=0, disabled=True)
        assert (changed.bound, changed.disabled, changed.hysteresis) == (0, True, 2.0)
        assert it.view.policy(point).rules == ()
        with pytest.raises(Malformed):
            await control.change_trigger("acme", trigger.id, when="=")
        with pytest.raises(Unknown):
            await control.change_trigger("beta", trigger.id, bound=1)
        for _ in range(19):
            await control.add_trigger("acme", point.id, **rule)
        with pytest.raises(Refused, match="20"):
            await control.add_trigger("acme", point.id, **rule)
        await control.delete_trigger("acme", trigger.id)
        assert it.view.trigger("acme", trigger.id) is None

    office(tmp_path, body)


def test_the_secret_of_a_webhook_is_its_own() -> None:
    secret = webhook_secret(SECRET, "t1")
    assert secret.startswith("whsec_") and secret != webhook_secret(SECRET, "t2")
    assert secret != webhook_secret(b"another installation", "t1")
    assert derive(SECRET, "webhook t1") != derive(SECRET, "keys")


# -- users -----------------------------------------------------------------------------------------

ADMIN, EDITOR, OPERATOR = (ROLES[role] for role in ("admin", "editor", "operator"))
ANNA = Caller("anna", "http", "acme", frozenset(ADMIN))


async def with_shared_user(it: Office) -> Control:
    """Two tenants, and bob who may enter both; what anna, an admin of acme, can have done."""
    await it.control.add_tenant("beta", "Beta")
    await it.control.add_user("anna", {"acme": ADMIN})
    await it.control.add_user("bob", {"acme": OPERATOR, "beta": ADMIN}, password="bob's own")
    return it.control.by(ANNA)


def user_of(it: Office, name: str) -> User:
    """The user as it is now."""
    found = it.view.user(name)
    assert found is not None
    return found


def test_an_admin_gains_nothing_over_another_tenant_through_a_user_of_both(
    tmp_path: Path,
) -> None:
    async def body(it: Office) -> None:
        control = await with_shared_user(it)
        before = user_of(it, "bob")
        for changes in ({"password": "chosen by anna"}, {"disabled": True}, {"disabled": False}):
            with pytest.raises(Refused, match="other tenants"):
                await control.change_user("acme", "bob", **changes)  # type: ignore[arg-type]
        for forbidden in (
            control.change_user("beta", "bob", scopes=OPERATOR),
            control.remove_user("beta", "bob"),
            control.set_rights("anna", "beta", ADMIN),
            control.set_password("bob"),
        ):
            with pytest.raises(Forbidden):
                await forbidden
        assert user_of(it, "bob") == before

        await control.change_user("acme", "bob", scopes=EDITOR)
        assert user_of(it, "bob").tenants == {"acme": EDITOR, "beta": ADMIN}
        await control.remove_user("acme", "bob")
        left = user_of(it, "bob")
        assert left.tenants == {"beta": ADMIN} and password_matches("bob's own", left.password)
        for gone in (control.change_user("acme", "bob", password="12345678"),
                     control.remove_user("acme", "bob"),
                     control.set_rights("bob", "acme", OPERATOR)):  # fmt: skip
            with pytest.raises(Unknown):
                await gone

    office(tmp_path, body)


def test_who_lets_a_user_into_another_tenant_meanwhile_is_not_outrun(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        await one.control.add_tenant("beta", "Beta")
        for number in range(4):
            name = f"bob{number}"
            await one.control.add_user(name, {"acme": OPERATOR}, password="bob's own")
            await other.view.caught_up(one.view.revision)
            actions = [
                other.control.set_rights(name, "beta", ADMIN),
                one.control.by(ANNA).change_user("acme", name, disabled=True),
            ]
            entered, changed = await asyncio.gather(*actions, return_exceptions=True)
            await one.view.caught_up(other.view.revision)
            user = user_of(one, name)
            assert isinstance(entered, User) and "beta" in user.tenants
            # Either it came first and stays, or it was refused and is undone.
            assert user.disabled == isinstance(changed, User)

    office(tmp_path, body, count=2)  # type: ignore[arg-type]


def test_nobody_gives_more_than_they_have_nor_changes_who_may_more(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        await it.control.add_user("boss", {"acme": ADMIN}, password="boss's own")
        # An admin by scope, who may not push.
        limited = it.control.by(Caller("lim", "http", "acme", frozenset({"read", "admin"})))
        for forbidden in (
            limited.add_user("eve", {"acme": EDITOR}),
            limited.add_key("acme", use="api", name="k", scopes=("ingest",)),
            limited.change_user("acme", "boss", password="chosen by lim"),
            limited.change_user("acme", "boss", scopes=("read",)),
            limited.remove_user("acme", "boss"),
            limited.set_rights("boss", "acme", ("read",)),
        ):
            with pytest.raises(Forbidden):
                await forbidden
        await limited.add_key("acme", use="api", name="k", scopes=("read",))
        await limited.add_user("eve", {"acme": ("read",)})
        with pytest.raises(Forbidden):
            await limited.change_user("acme", "eve", scopes=("view", "configure"))
        assert user_of(it, "boss").tenants == {"acme": ADMIN}

    office(tmp_path, body)


def test_admins_do_not_lock_themselves_out(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = await with_shared_user(it)
        for own in (
            control.change_user("acme", "anna", scopes=OPERATOR),
            control.change_user("acme", "anna", disabled=True),
            control.remove_user("acme", "anna"),
        ):
            with pytest.raises(Refused, match="nobody"):
                await own
        await control.change_user("acme", "anna", password="another of anna")
        assert password_matches("another of anna", user_of(it, "anna").password)

    office(tmp_path, body)


def test_a_user_who_may_enter_no_tenant_any_more_is_deleted(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = await with_shared_user(it)
        await control.add_user("eve", {"acme": OPERATOR})
        await control.remove_user("acme", "eve")
        assert it.view.user("eve") is None

    office(tmp_path, body)


def test_keys_expire_when_they_are_told_and_are_revoked_in_their_tenant(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        now_ms = it.clock.now_ms()
        key, _ = await it.control.add_key("acme", use="api", name="k", expires_ms=now_ms + 5)
        assert key.expires_ms == now_ms + 5
        with pytest.raises(Malformed):
            await it.control.add_key("acme", use="api", name="k", expires_ms=now_ms)
        with pytest.raises(Unknown):
            await it.control.revoke_key(key.id, tenant="beta")
        assert (await it.control.by(ANNA).revoke_key(key.id, tenant="acme")).revoked
        await it.control.by(ANNA).log_out("acme", "0a")
        assert it.view.revoked("0a") and not it.view.revoked("0b")

    office(tmp_path, body)
