"""Control actions on a real log: what they make, what they refuse, who wins a race."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from schemas.catalogue import Point, Tenant
from schemas.samples import Kind
from services.catalogue import (
    View,
    api_server_id,
    digest,
    new_point,
    password_matches,
    pepper,
    series_id,
)
from services.errors import Malformed, Refused, Unavailable, Unknown
from tests.support.catalogue import SECRET, Office, a_control, offices

PEPPER = pepper(SECRET)


def office(folder: Path, body: Callable[[Office], Awaitable[Any]]) -> None:
    """Run `body` with one process that configures, with a tenant and nothing else."""

    async def run() -> None:
        async with offices(folder) as [one]:
            await one.control.add_tenant("acme", "Acme Ltd")
            await asyncio.wait_for(body(one), 30)

    asyncio.run(run())


def test_what_was_made_is_in_the_view_when_the_action_returns(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control, view = it.control, it.view
        tenant = view.tenant("acme")
        assert tenant is not None and view.tenant_of(tenant.uuid) == "acme"
        device = await control.add_device("acme", "Boiler", type="boiler")
        point = await control.add_point(
            "acme", device.id, "heat", kind=Kind.DOUBLE, unit="°C", precision=1, band=0.1
        )

        assert view.device("acme", device.id) == device
        assert view.point("acme", point.id) == view.known("acme", device.id, "heat") == point
        assert UUID(tenant.uuid) and UUID(device.id) and UUID(point.id)
        assert point.series == series_id("acme", device.id, "heat")
        assert (point.locked, point.declared, point.name) == (True, Kind.DOUBLE, "heat")
        assert point.created_ms == device.created_ms == it.clock.now_ms()

        await control.delete_point("acme", point.id)
        assert view.point("acme", point.id) is None

    office(tmp_path, body)


def test_a_process_that_starts_later_sees_the_same(tmp_path: Path) -> None:
    async def body() -> list[Any]:
        async with offices(tmp_path) as [one]:
            return [*one.view.tenants(), *one.view.devices("acme"), *one.view.keys("acme")]

    async def make() -> list[Any]:
        async with offices(tmp_path) as [one]:
            await one.control.add_tenant("acme", "Acme Ltd")
            device = await one.control.add_device("acme", "Boiler")
            await one.control.add_key("acme", use="device", name="token", device=device.id)
            return [*one.view.tenants(), *one.view.devices("acme"), *one.view.keys("acme")]

    assert asyncio.run(make()) == asyncio.run(body())


@pytest.mark.parametrize(
    ("use", "length", "begins"), [("device", 20, ""), ("client", 43, ""), ("api", 55, "ls_")]
)
def test_of_a_secret_only_its_digest_is_kept(
    use: str, length: int, begins: str, tmp_path: Path
) -> None:
    async def body(it: Office) -> None:
        device = await it.control.add_device("acme", "Boiler")
        key, secret = await it.control.add_key(
            "acme", use=use, name="gateway", device=device.id, days=2
        )

        assert (len(secret), secret.startswith(begins)) == (length, True)
        assert key.secrets == ((digest(PEPPER, secret), 0),)
        assert key.expires_ms == it.clock.now_ms() + 2 * 86_400_000
        assert it.view.key_of_secret(digest(PEPPER, secret)) == key
        if use == "api":
            assert secret.split("_", 2)[1] == key.id

        files = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
        assert key.id.encode() in files
        assert secret.encode() not in files

    office(tmp_path, body)


def test_a_rotated_key_has_both_secrets_for_the_overlap(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        key, old = await it.control.add_key("acme", use="client", name="gateway", id="gw")
        new = await it.control.rotate_key("gw", overlap_seconds=60)
        end_ms = it.clock.now_ms() + 60_000

        rotated = it.view.key("gw")
        assert rotated is not None and new != old
        assert rotated.secrets == ((digest(PEPPER, new), 0), (digest(PEPPER, old), end_ms))

        it.clock.advance(60_000)
        newest = await it.control.rotate_key("gw")
        rotated = it.view.key("gw")
        assert rotated is not None and rotated.secrets == ((digest(PEPPER, newest), 0),)
        assert it.view.key_of_secret(digest(PEPPER, old)) is None
        assert key.id == "gw"

    office(tmp_path, body)


def test_secrets_that_are_still_good_do_not_pile_up(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        await it.control.add_key("acme", use="api", name="gateway", id="gw")
        with pytest.raises(Refused, match="still good"):
            for _ in range(10):
                await it.control.rotate_key("gw", overlap_seconds=600)

    office(tmp_path, body)


def test_a_revoked_key_is_over_for_good(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        _, secret = await it.control.add_key("acme", use="api", name="gateway", id="gw")

        revoked = await it.control.revoke_key("gw")

        assert (revoked.revoked, revoked.secrets) == (True, ())
        assert it.view.key_of_secret(digest(PEPPER, secret)) is None
        with pytest.raises(Refused, match="revoked"):
            await it.control.rotate_key("gw")
        with pytest.raises(Refused, match="revoked"):
            await it.control.add_key("acme", use="api", name="gateway", id="gw")

    office(tmp_path, body)


def test_a_deleted_device_takes_its_keys_and_points_along(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        gone = await it.control.add_device("acme", "gone")
        kept = await it.control.add_device("acme", "kept")
        for device in (gone, kept):
            await it.control.add_key("acme", use="device", name=device.name, device=device.id)
            for key in ("a", "b"):
                await it.control.add_point("acme", device.id, key)

        await it.control.delete_device("acme", gone.id)

        server = it.view.api_server("acme")
        assert {device.id for device in it.view.devices("acme")} == {kept.id, server.id}
        assert [key.device for key in it.view.keys("acme")] == [kept.id]
        assert list(it.view.points("acme", gone.id)) == []
        assert list(it.view.points("acme", kept.id)) == ["a", "b"]

    office(tmp_path, body)


def test_users_and_their_passwords(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        user, password = await it.control.add_user("anna@acme.example", {"acme": ("read",)})
        assert len(password) == 20
        assert password not in user.password and password_matches(password, user.password)
        assert it.view.user("anna@acme.example") == user

        other = await it.control.set_password("anna@acme.example", "correct horse")
        changed = it.view.user("anna@acme.example")
        assert changed is not None and other == "correct horse"
        assert password_matches("correct horse", changed.password)
        assert not password_matches(password, changed.password)

        assert (await it.control.disable_user("anna@acme.example")).disabled
        assert not (await it.control.enable_user("anna@acme.example")).disabled

    office(tmp_path, body)


@pytest.mark.parametrize(
    ("action", "arguments", "error", "words"),
    [
        ("add_tenant", {"id": "Acme", "name": "x"}, Malformed, "a-z"),
        ("add_tenant", {"id": "", "name": "x"}, Malformed, "a-z"),
        ("add_tenant", {"id": "acme\n", "name": "x"}, Malformed, "a-z"),
        ("add_tenant", {"id": "acme", "name": "x"}, Refused, "already"),
        ("add_tenant", {"id": "b", "name": ""}, Malformed, "name"),
        ("add_device", {"tenant": "beta", "name": "x"}, Unknown, "no tenant 'beta'"),
        ("add_device", {"tenant": "acme", "name": "x", "id": "d1"}, Malformed, "UUID"),
        ("add_point", {"tenant": "acme", "device": "d", "key": "k"}, Unknown, "no device 'd'"),
        ("add_key", {"tenant": "acme", "use": "pin", "name": "x"}, Malformed, "use"),
        ("add_key", {"tenant": "acme", "use": "device", "name": "x"}, Unknown, "device"),
        (
            "add_key",
            {"tenant": "acme", "use": "api", "name": "x", "scopes": ["fly"]},
            Malformed,
            "s",
        ),
        ("add_key", {"tenant": "acme", "use": "api", "name": "x", "days": -1}, Malformed, "days"),
        ("add_key", {"tenant": "acme", "use": "api", "name": "x", "id": "a?b"}, Malformed, "id"),
        ("rotate_key", {"id": "gw"}, Unknown, "no key 'gw'"),
        ("revoke_key", {"id": "gw"}, Unknown, "no key 'gw'"),
        ("add_user", {"name": "anna", "tenants": {"beta": ["read"]}}, Unknown, "beta"),
        ("add_user", {"name": "an na", "tenants": {}}, Malformed, "name"),
        ("set_password", {"name": "anna"}, Unknown, "no user 'anna'"),
        ("delete_point", {"tenant": "acme", "id": "p"}, Unknown, "no point 'p'"),
        ("delete_device", {"tenant": "acme", "id": "d"}, Unknown, "no device 'd'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(
    action: str, arguments: dict[str, Any], error: type[Refused], words: str, tmp_path: Path
) -> None:
    async def body(it: Office) -> None:
        before = it.view.revision
        with pytest.raises(error, match=words):
            await getattr(it.control, action)(**arguments)
        assert it.view.revision == before

    office(tmp_path, body)


def test_a_point_cannot_be_made_where_one_is_nor_with_numbers_that_make_no_sense(
    tmp_path: Path,
) -> None:
    async def body(it: Office) -> None:
        device = await it.control.add_device("acme", "Boiler")
        await it.control.add_point("acme", device.id, "k")
        with pytest.raises(Refused, match="already"):
            await it.control.add_point("acme", device.id, "k", id=str(uuid4()))
        # What is on the log has to fit into a judge's columns.
        beyond = ({"band": 10**400}, {"band": float("inf")}, {"heartbeat_ms": 10**400})
        nonsense = ({"kind": 9}, {"band": float("nan")}, {"heartbeat_ms": -1}, {"id": "a/b"})
        for wrong in (*nonsense, *beyond):
            with pytest.raises(Malformed):
                await it.control.add_point("acme", device.id, "l", **wrong)

    office(tmp_path, body)


def test_nobody_chooses_an_id_that_is_derived_or_no_uuid(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        device = await it.control.add_device("acme", "Boiler")
        theirs = new_point("globex", api_server_id("globex"), "pressure").id
        derived = (theirs, theirs.upper(), str(uuid5(UUID(int=1), "x")), api_server_id("acme"))
        for wrong in (*derived, "temp1", ".", ".."):
            for adding in (
                it.control.add_point("acme", device.id, "k", id=wrong),
                it.control.add_device("acme", "d", id=wrong),
                it.control.add_location("acme", "l", id=wrong),
            ):
                with pytest.raises(Malformed) as caught:
                    await adding
                assert caught.value.where == "id"
        chosen = str(uuid4())
        assert (await it.control.add_point("acme", device.id, "k", id=chosen)).id == chosen

    office(tmp_path, body)


# -- two processes ---------------------------------------------------------------------------------


def race(folder: Path, body: Callable[[Office, Office], Awaitable[Any]]) -> None:
    """Run `body` with two processes on one log."""

    async def run() -> None:
        async with offices(folder, count=2) as [one, other]:
            await one.control.add_tenant("acme", "Acme Ltd")
            await other.view.caught_up(one.view.revision)
            await asyncio.wait_for(body(one, other), 30)
            await asyncio.gather(
                one.view.caught_up(other.view.revision), other.view.caught_up(one.view.revision)
            )

    asyncio.run(run())


def test_of_two_that_make_the_same_one_is_told(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        ended = await asyncio.gather(
            one.control.add_tenant("beta", "one's"),
            other.control.add_tenant("beta", "other's"),
            return_exceptions=True,
        )

        made = [end for end in ended if isinstance(end, Tenant)]
        told = [end for end in ended if isinstance(end, Refused)]
        assert (len(made), len(told)) == (1, 1)
        assert "already" in told[0].message
        assert one.view.tenant("beta") == other.view.tenant("beta") == made[0]

    race(tmp_path, body)


def test_of_two_names_for_one_place_one_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        device = await one.control.add_device("acme", "Boiler")
        await other.view.caught_up(one.view.revision)
        ended = await asyncio.gather(
            one.control.add_point("acme", device.id, "k", id=str(UUID(int=2))),
            other.control.add_point("acme", device.id, "k", id=str(UUID(int=1))),
            return_exceptions=True,
        )

        [made] = [end for end in ended if isinstance(end, Point)]
        [told] = [end for end in ended if isinstance(end, Refused)]
        assert told.code == "taken"
        await one.view.caught_up(other.view.revision)
        assert [*one.view.points("acme", device.id).values()] == [made]
        assert one.view.collisions == 0

    race(tmp_path, body)


def test_two_edits_at_once_both_count(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        _, old = await one.control.add_key("acme", use="client", name="gateway", id="gw")
        await other.view.caught_up(one.view.revision)

        new = await asyncio.gather(
            one.control.rotate_key("gw", 60), other.control.rotate_key("gw", 60)
        )

        key = one.view.key("gw")
        assert key is not None
        assert {hashed for hashed, _ in key.secrets} == {digest(PEPPER, s) for s in (old, *new)}

    race(tmp_path, body)


def test_a_rotation_at_the_same_moment_does_not_undo_a_revocation(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        for number in range(4):
            name = f"gw{number}"
            await one.control.add_key("acme", use="client", name="gateway", id=name)
            await other.view.caught_up(one.view.revision)
            actions = [one.control.revoke_key(name), other.control.rotate_key(name, 60)]
            await asyncio.gather(
                *(actions if number % 2 else actions[::-1]), return_exceptions=True
            )
            await one.view.caught_up(other.view.revision)
            await other.view.caught_up(one.view.revision)

            for view in (one.view, other.view):
                key = view.key(name)
                assert key is not None and (key.revoked, key.secrets) == (True, ())

    race(tmp_path, body)


def test_an_edit_of_what_is_deleted_at_the_same_moment_does_not_bring_it_back(
    tmp_path: Path,
) -> None:
    async def body(one: Office, other: Office) -> None:
        for number in range(4):
            device = await one.control.add_device("acme", "Boiler")
            key, _ = await one.control.add_key("acme", use="device", name="t", device=device.id)
            await other.view.caught_up(one.view.revision)
            actions = [
                one.control.delete_device("acme", device.id),
                other.control.rotate_key(key.id, 60),
            ]
            await asyncio.gather(
                *(actions if number % 2 else actions[::-1]), return_exceptions=True
            )
            await one.view.caught_up(other.view.revision)

            assert one.view.key(key.id) is None

    race(tmp_path, body)


def test_an_action_returns_when_its_own_view_has_the_change(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        behind, stop = View(), asyncio.Event()
        control = a_control(it.log, behind, it.clock)
        acting = asyncio.create_task(control.add_tenant("beta", "Beta"))
        await it.view.caught_up(it.view.revision + 1)
        done, _ = await asyncio.wait({acting}, timeout=0.05)
        assert not done

        following = asyncio.create_task(behind.follow(it.log, stop))
        assert await acting == behind.tenant("beta")
        following.cancel()

    office(tmp_path, body)


class _Silent:
    """A log that answers nothing."""

    async def append(self, out: Any) -> list[int]:
        """Wait for ever."""
        await asyncio.Event().wait()
        return []


def test_a_log_that_does_not_answer_is_said_so(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        silent: Any = _Silent()
        control = a_control(silent, it.view, it.clock, commit_seconds=0.01)
        with pytest.raises(Unavailable):
            await control.add_tenant("beta", "Beta")

    office(tmp_path, body)
