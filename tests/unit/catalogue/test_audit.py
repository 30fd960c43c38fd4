"""Who had what done: every action is written down before and after, whoever asks, and nothing is
done that cannot be.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import ROLES
from schemas.envelope import Audit, Envelope, decode, encode
from schemas.topics import CALLS_AUDITED, CATALOGUE_CHANGED
from services.catalogue import Caller, Control
from services.catalogue.audit import Ration
from services.clock import ManualClock
from services.errors import Forbidden, Refused, Unavailable
from services.eventlog import EventLog
from tests.support.catalogue import Office, a_control, audits, offices

ANNA = Caller("anna", "http", "acme", frozenset(ROLES["admin"]))


def office(folder: Path, body: Callable[[Office], Awaitable[Any]]) -> None:
    """Run `body` with one process that configures, with a tenant and nothing else."""

    async def run() -> None:
        async with offices(folder) as [one]:
            await one.control.add_tenant("acme", "Acme Ltd")
            await asyncio.wait_for(body(one), 30)

    asyncio.run(run())


def ends(records: Sequence[Audit]) -> list[tuple[str, str, str, str]]:
    """(subject, action, target, outcome) of each call, as the table shows it: its last record."""
    last = {record.call: record for record in records}
    return [(r.subject, r.action, r.target, r.outcome) for r in last.values()]


def test_no_action_of_control_is_left_out() -> None:
    actions = {
        name
        for name, member in inspect.getmembers(Control, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert {"add_tenant", "add_key", "change_user", "change_point", "add_trigger"} <= actions
    assert [name for name in actions if not hasattr(getattr(Control, name), "__wrapped__")] == []


def test_a_call_is_written_before_and_after_with_who_and_what(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        device = await it.control.by(ANNA).add_device("acme", "Boiler")

        _, _, before, after = await audits(it.log)
        assert before.outcome == "unknown" and after.outcome == "done"
        assert (before.call, before.at_ms) == (after.call, after.at_ms)
        assert after == Audit(
            call=before.call,
            at_ms=it.clock.now_ms(),
            tenant="acme",
            subject="anna",
            via="http",
            action="add_device",
            target=f"device/{device.id}",
            arguments={"tenant": "acme", "name": "Boiler"},
            outcome="done",
        )
        assert decode(*encode(Envelope(after))) == Envelope(after)

    office(tmp_path, body)


def test_what_a_process_does_by_itself_and_what_is_refused_is_written_too(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        with pytest.raises(Refused):
            await it.control.add_tenant("acme", "again")
        assert ends(await audits(it.log)) == [
            ("lineshaft", "add_tenant", "tenant/acme", "done"),
            ("lineshaft", "add_tenant", "acme", "refused"),
        ]
        assert "already" in (await audits(it.log))[-1].detail

    office(tmp_path, body)


def test_no_secret_and_no_long_text_gets_onto_the_log(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        control = it.control
        _, drawn = await control.add_user("bob", {"acme": ("read",)}, password="pass of bob")
        await control.set_password("bob", "another of bob")
        await control.change_user("acme", "bob", password="third of bob")
        with pytest.raises(Refused):
            await control.add_device("acme", "n" * 100_000)
        point = await control.add_point("acme", it.view.api_server("acme").id, "heat", kind=0)
        for url in ("https://u:p@hooks.example/path-secret?q=secret", "https://[", "not a url"):
            with pytest.raises(Refused):
                await control.add_trigger("acme", point.id, when="!", bound=1, url=url)
        _, secret = await control.add_key("acme", use="api", name="k")

        records = await audits(it.log)
        text = json.dumps([[r.arguments, r.detail, r.target] for r in records])
        for plain in (drawn, "pass of bob", "another of", "third of", "path-secret", "u:p", secret):
            assert plain not in text
        assert "https://hooks.example/" in text and '"***"' in text
        assert max(len(json.dumps(r.arguments)) for r in records) < 2_000

    office(tmp_path, body)


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.add_device("beta", "x"),
        lambda c: c.add_tenant("gamma", "x"),
        lambda c: c.add_user("eve", {"acme": ("read",), "beta": ("read",)}),
        lambda c: c.set_password("bob", "12345678"),
        lambda c: c.disable_user("bob"),
        lambda c: c.revoke_key("k"),
        lambda c: c.rotate_key("k"),
    ],
)
def test_who_belongs_to_a_tenant_does_nothing_outside_of_it(
    ask: Callable[[Control], Awaitable[Any]], tmp_path: Path
) -> None:
    async def body(it: Office) -> None:
        await it.control.add_tenant("beta", "Beta")
        await it.control.add_user("bob", {"beta": ("read",)})
        await it.control.add_key("beta", use="api", name="k", id="k")
        before = it.view.revision
        with pytest.raises(Forbidden):
            await ask(it.control.by(ANNA))
        assert it.view.revision == before
        last = (await audits(it.log))[-1]
        assert (last.subject, last.tenant, last.outcome) == ("anna", "acme", "refused")

    office(tmp_path, body)


class _Deaf:
    """A log that takes no audit records from the `deaf_from`th on."""

    def __init__(self, log: EventLog, deaf_from: int) -> None:
        self._log, self._left = log, deaf_from

    async def append(self, out: Any) -> list[int]:
        """Refuse audit records."""
        if any(topic is CALLS_AUDITED for topic, _, _ in out):
            if not self._left:
                raise Unavailable("the log is away")
            self._left -= 1
        return await self._log.append(out)


@pytest.mark.parametrize(("deaf_from", "done"), [(0, False), (1, True)])
def test_nothing_is_done_that_cannot_be_written_down(
    deaf_from: int, done: bool, tmp_path: Path
) -> None:
    async def body(it: Office) -> None:
        deaf: Any = _Deaf(it.log, deaf_from)
        control = a_control(deaf, it.view, it.clock)
        with pytest.raises(Unavailable):
            await control.add_tenant("beta", "Beta")
        assert (it.view.tenant("beta") is not None) == done
        if done:
            # Nobody was told the end: neither is who reads the table.
            assert ends(await audits(it.log))[-1][3] == "unknown"

    office(tmp_path, body)


class _Slow:
    """A log whose appends to the catalogue wait for `go`."""

    def __init__(self, log: EventLog) -> None:
        self._log, self.asked, self.go = log, asyncio.Event(), asyncio.Event()

    async def append(self, out: Any) -> list[int]:
        """Wait, then append."""
        if out[0][0] is CATALOGUE_CHANGED:
            self.asked.set()
            await self.go.wait()
        return await self._log.append(out)


def test_a_call_goes_on_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        slow: Any = _Slow(it.log)
        asking = asyncio.create_task(a_control(slow, it.view, it.clock).add_tenant("beta", "Beta"))
        await slow.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        slow.go.set()
        while len(records := await audits(it.log)) < 4:
            await asyncio.sleep(0.01)
        assert ends(records)[-1] == ("lineshaft", "add_tenant", "tenant/beta", "done")

    office(tmp_path, body)


def test_a_burst_of_strangers_is_counted_and_not_written() -> None:
    clock = ManualClock()
    ration = Ration(clock, burst=3, every_ms=1_000)
    assert [ration.take() for _ in range(6)] == [0, 0, 0, None, None, None]
    clock.advance(999)
    assert ration.take() is None
    clock.advance(1)
    assert [ration.take(), ration.take()] == [4, None]
    clock.advance(3_600_000)
    assert [ration.take() for _ in range(4)] == [1, 0, 0, None]


def test_callers_that_act_at_once_are_told_apart(tmp_path: Path) -> None:
    async def body(it: Office) -> None:
        both = it.control.by(ANNA), it.control.by(Caller("bob", "socket"))
        await asyncio.gather(
            both[0].add_device("acme", "one"), *(both[1].add_device("acme", "o") for _ in range(9))
        )
        found = ends(await audits(it.log))
        assert [subject for subject, *_ in found].count("bob") == 9
        assert {outcome for *_, outcome in found} == {"done"}
        assert len(it.view.devices("acme")) == 11

    office(tmp_path, body)
