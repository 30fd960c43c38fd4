"""Signing keys on a real log: made, followed and ended, in every process at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import SCOPES, SigningKey
from services.auth import Auth
from services.catalogue import Caller, remote
from services.errors import Forbidden, Malformed, Refused, Unauthorized, Unknown
from services.settings import Settings
from tests.support.catalogue import SECRET, Office, audits, offices

AUDIENCE = "https://api.example"


def two(folder: Path, body: Callable[[Office, Office], Awaitable[Any]]) -> None:
    """Run `body` with two processes and a client "gw" of tenant acme."""

    async def run() -> None:
        async with offices(folder, 2) as [one, other]:
            await one.control.add_tenant("acme", "Acme Ltd")
            await asyncio.wait_for(body(one, other), 30)

    asyncio.run(run())


def auth_of(it: Office) -> Auth:
    """Who speaks, as the process sees it."""
    return Auth(it.view, it.clock, Settings(), SECRET)


async def seen(other: Office, one: Office) -> None:
    """Wait until the other process knows what this one does."""
    await asyncio.wait_for(other.view.caught_up(one.view.revision), 10)


def test_a_rotation_is_known_to_every_process_before_the_key_signs(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        _, secret = await one.control.add_key("acme", use="client", name="gateway", id="gw")
        before, _ = auth_of(one).client_token("gw", secret, AUDIENCE)

        made = await one.control.rotate_signing_key()
        now_ms = one.clock.now_ms()
        assert (made.created_ms, made.signs_ms) == (now_ms, now_ms + 3_600_000)
        await seen(other, one)
        assert [key.id for key in other.view.signing_keys()] == ["first", made.id]

        one.clock.advance(3_600_000)
        after, _ = auth_of(one).client_token("gw", secret, AUDIENCE)
        assert auth_of(one).key_set() == auth_of(other).key_set()
        for token in (before, after):
            assert auth_of(other).client(token, AUDIENCE).subject == "gw"

    two(tmp_path, body)


def test_what_was_ended_in_one_process_is_ended_in_the_other(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        _, secret = await one.control.add_key("acme", use="client", name="gateway", id="gw")
        here, there = auth_of(one), auth_of(other)
        await seen(other, one)
        old, _ = here.client_token("gw", secret, AUDIENCE)
        there.client(old, AUDIENCE)
        await one.control.rotate_signing_key(0)
        await one.control.end_signing_key("first")
        await seen(other, one)
        new, _ = here.client_token("gw", secret, AUDIENCE)
        there.client(new, AUDIENCE)
        with pytest.raises(Unauthorized):
            there.client(old, AUDIENCE)

        await one.control.revoke_key("gw")
        await seen(other, one)
        with pytest.raises(Unauthorized):
            there.client(new, AUDIENCE)
        with pytest.raises(Unauthorized):
            there.client_token("gw", secret, AUDIENCE)

    two(tmp_path, body)


def test_a_process_that_starts_later_has_the_same_keys(tmp_path: Path) -> None:
    async def keys(*, rotate: bool) -> list[SigningKey]:
        async with offices(tmp_path) as [one]:
            if rotate:
                await one.control.rotate_signing_key(0)
                await one.control.rotate_signing_key(60)
                await one.control.end_signing_key("first")
            return list(one.view.signing_keys())

    made = asyncio.run(keys(rotate=True))
    assert len(made) == 2
    assert asyncio.run(keys(rotate=False)) == made


def test_there_is_always_one_that_signs(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        with pytest.raises(Refused, match="rotate first"):
            await one.control.end_signing_key("first")
        with pytest.raises(Unknown):
            await one.control.end_signing_key("never was")
        made = await one.control.rotate_signing_key(60)
        for id_ in ("first", made.id):
            with pytest.raises(Refused, match="rotate first"):
                await one.control.end_signing_key(id_)
        one.clock.advance(60_000)
        await one.control.end_signing_key("first")
        with pytest.raises(Unknown):
            await one.control.end_signing_key("first")
        with pytest.raises(Refused, match="rotate first"):
            await one.control.end_signing_key(made.id)
        assert [key.id for key in one.view.signing_keys()] == [made.id]

    two(tmp_path, body)


def test_keys_do_not_pile_up(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        for _ in range(15):
            await one.control.rotate_signing_key(0)
            one.clock.advance(1)
        with pytest.raises(Refused, match="16 signing keys"):
            await one.control.rotate_signing_key(0)
        one.clock.advance(8 * 86_400_000)
        await one.control.rotate_signing_key(0)

    two(tmp_path, body)


@pytest.mark.parametrize("seconds", [-1, 30 * 86_400 + 1])
def test_an_overlap_has_bounds(tmp_path: Path, seconds: int) -> None:
    async def body(one: Office, other: Office) -> None:
        with pytest.raises(Malformed, match="overlap_seconds"):
            await one.control.rotate_signing_key(seconds)

    two(tmp_path, body)


def test_it_is_written_down_and_no_tenants_business(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        operator = one.control.by(Caller("uid 0", "command"))
        made = await operator.rotate_signing_key(0)
        await operator.end_signing_key("first")
        written = [(r.subject, r.action, r.target, r.outcome) for r in await audits(one.log)]
        assert written[-4:] == [
            ("uid 0", "rotate_signing_key", "", "unknown"),
            ("uid 0", "rotate_signing_key", f"signing_key/{made.id}", "done"),
            ("uid 0", "end_signing_key", "first", "unknown"),
            ("uid 0", "end_signing_key", "first", "done"),
        ]
        admin = one.control.by(Caller("anna", "http", "acme", frozenset(SCOPES)))
        with pytest.raises(Forbidden):
            await admin.rotate_signing_key(0)
        with pytest.raises(Forbidden):
            await admin.end_signing_key("first")

    two(tmp_path, body)


def test_nothing_private_lies_on_the_log_or_is_shown(tmp_path: Path) -> None:
    async def body(one: Office, other: Office) -> None:
        made = await remote.act(one.control, one.view, "rotate_signing_key", {"overlap_seconds": 0})
        shown = await remote.act(one.control, one.view, "list", {"kind": "signing_key"})
        assert set(made) == {"id", "created_ms", "signs_ms"}
        assert shown == [{"id": "first", "created_ms": 0, "signs_ms": 0}, made]

    two(tmp_path, body)
