"""What doors have done: people who log in are written down before they are answered, failures as
long as strangers leave room, and calls are done for who makes them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import ROLES
from services import metrics
from services.auth import Auth
from services.dialects import Actions, Principal
from services.errors import OverQuota, Unauthorized, Unavailable
from services.ingress.actions import DoorActions
from services.ingress.promises import Promises
from services.settings import Settings
from tests.support.catalogue import SECRET, Office, audits, offices

PASSWORD = "correct horse battery"
SETTINGS = Settings(token_failures_per_minute=120)


def desk(folder: Path, body: Callable[[Office, DoorActions], Awaitable[Any]]) -> None:
    """Run `body` with a tenant, its user anna, and the doors' actions."""

    async def run() -> None:
        async with offices(folder) as [one]:
            await one.control.add_tenant("acme", "Acme Ltd")
            await one.control.add_user("anna", {"acme": ROLES["admin"]}, password=PASSWORD)
            auth = Auth(one.view, one.clock, SETTINGS, SECRET)
            promises = Promises(one.log, one.clock, SETTINGS, SECRET)
            actions = DoorActions(auth, one.control, one.view, one.clock, SETTINGS, promises)
            implemented: Actions = actions
            assert implemented.user("anna") == one.view.user("anna")
            await asyncio.wait_for(body(one, actions), 60)

    asyncio.run(run())


def log_in(actions: DoorActions, name: str, password: str) -> Awaitable[tuple[str, int]]:
    """A log in, in a thread as doors do it."""
    return asyncio.to_thread(actions.log_in, name, password, lambda tenants: tenants[0])


def test_who_logs_in_is_written_down_whichever_way(tmp_path: Path) -> None:
    async def body(it: Office, actions: DoorActions) -> None:
        before = len(await audits(it.log))
        await log_in(actions, "anna", PASSWORD)
        await asyncio.to_thread(actions.user_tokens, "anna", PASSWORD, "acme")
        for wrong in (
            partial(actions.memberships, "anna", "wrong"),
            partial(actions.user_tokens, "nobody", PASSWORD, "acme"),
            partial(actions.user_tokens, "anna", PASSWORD, "beta"),
        ):
            with pytest.raises(Unauthorized):
                await asyncio.to_thread(wrong)

        found = [
            (r.subject, r.via, r.tenant, r.action, r.target, r.outcome)
            for r in (await audits(it.log))[before:]
        ]
        assert found == [
            ("anna", "http", "acme", "log_in", "user/anna", "done"),
            ("anna", "http", "acme", "log_in", "user/anna", "done"),
            ("anna", "http", "", "log_in", "user/anna", "refused"),
            ("nobody", "http", "", "log_in", "user/nobody", "refused"),
            ("anna", "http", "", "log_in", "user/anna", "refused"),
        ]
        text = str(await audits(it.log))
        assert PASSWORD not in text and "wrong" not in text

    desk(tmp_path, body)


def test_nobody_fills_the_log_with_log_ins_that_fail(tmp_path: Path) -> None:
    async def body(it: Office, actions: DoorActions) -> None:
        before = len(await audits(it.log))
        # A password that is too long is refused without the work of looking at it.
        for _ in range(150):
            with pytest.raises(Unauthorized):
                await log_in(actions, "n" * 5_000, "p" * 5_000)
        written = (await audits(it.log))[before:]
        assert len(written) == 100
        assert max(len(record.subject) for record in written) == 256

        it.clock.advance(10_000)
        with pytest.raises(Unauthorized):
            await log_in(actions, "x", "p" * 5_000)
        assert "50 before it" in (await audits(it.log))[-1].detail

    desk(tmp_path, body)


def test_clients_that_fail_are_counted_written_down_and_slowed(tmp_path: Path) -> None:
    async def body(it: Office, actions: DoorActions) -> None:
        _, secret = await it.control.add_key("acme", use="client", name="gateway", id="gw")
        before, counted = len(await audits(it.log)), _failures()

        async def ask(word: str) -> int:
            return (await asyncio.to_thread(actions.client_token, "gw", word, "x"))[1]

        for _ in range(SETTINGS.token_failures_per_minute):
            with pytest.raises(Unauthorized):
                await ask("wrong word")
        with pytest.raises(OverQuota) as slowed:
            await ask("wrong word")
        assert slowed.value.retry_after_ms > 0
        assert await ask(secret) == SETTINGS.token_seconds, "whoever has the secret is let in"
        it.clock.advance(60_000 // SETTINGS.token_failures_per_minute)
        with pytest.raises(Unauthorized):
            await ask("wrong word")
        with pytest.raises(OverQuota):
            await ask("wrong word")

        assert _failures() - counted == SETTINGS.token_failures_per_minute + 3
        written = (await audits(it.log))[before:]
        assert len(written) == 100
        assert {(r.subject, r.action, r.target, r.outcome) for r in written} == {
            ("gw", "token", "key/gw", "refused")
        }
        assert "wrong word" not in str(written)
        # People who fail to log in have room of their own.
        with pytest.raises(Unauthorized):
            await log_in(actions, "anna", "wrong")
        assert (await audits(it.log))[-1].action == "log_in"

    desk(tmp_path, body)


def _failures() -> float:
    found = re.search(
        r'^lineshaft_auth_failures_total{door="token"} (\S+)$',
        metrics.exposition().decode(),
        re.MULTILINE,
    )
    assert found is not None
    return float(found[1])


class _Away:
    """A log that is away."""

    async def append(self, out: Any) -> list[int]:
        """Refuse."""
        raise Unavailable("the log is away")


def test_nobody_is_let_in_while_it_cannot_be_written_down(tmp_path: Path) -> None:
    async def body(it: Office, actions: DoorActions) -> None:
        away: Any = _Away()
        it.control.journal._log = away
        with pytest.raises(Unavailable):
            await log_in(actions, "anna", PASSWORD)
        with pytest.raises(Unavailable):
            await log_in(actions, "anna", "wrong")

    desk(tmp_path, body)


def test_calls_are_done_for_who_makes_them(tmp_path: Path) -> None:
    async def body(it: Office, actions: DoorActions) -> None:
        caller = Principal("acme", "anna", frozenset(ROLES["admin"]), token="0a")
        await actions.control(caller).log_out("acme", "0a")
        last = (await audits(it.log))[-1]
        assert (last.subject, last.via, last.action, last.outcome) == (
            "anna",
            "http",
            "log_out",
            "done",
        )
        assert [user.id for user in actions.users("acme")] == ["anna"]
        assert actions.users("beta") == [] and actions.keys("beta") == []

    desk(tmp_path, body)
