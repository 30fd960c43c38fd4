"""The outbox of the alerts on a real log, with a receiver that fails, is slow, or is gone, and with
ends in any place: every alert is told, and none that is done with is told again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Trigger
from schemas.envelope import Alert, Change, Envelope, Letter, Tick
from schemas.samples import Kind
from schemas.topics import ALERTS_RAISED, CATALOGUE_CHANGED, RECORDS_REFUSED
from services.catalogue import View, first, new_point, webhook_secret
from services.clock import SystemClock
from services.eventlog import EventLog
from services.settings import Settings
from services.sinks import all_outboxes, webhooks
from services.sinks.webhooks import WebhookWorker
from tests.support.catalogue import SECRET, a_view, put
from tests.support.receiver import Receiver, receiving
from tests.support.rounds import rounds, seed
from tests.support.stores import MemoryStore
from tests.unit.agents.test_lanes import a_log

POINT = new_point("acme", "d1", "temperature", id="p1")
TS_MS = 1_700_000_000_123


class Rows(MemoryStore):
    """A store with the table `webhooks`."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[dict[str, Any]] = []

    def outcomes(self) -> dict[str, str]:
        """Alert to what became of it; each once."""
        assert len({row["id"] for row in self.ended}) == len(self.ended)
        return {row["id"]: row["outcome"] for row in self.ended}

    async def insert(self, table: str, rows: Any) -> None:
        """See the port."""
        self._check()
        assert table == "webhooks"
        await asyncio.sleep(0.001)
        self.ended += rows.to_pylist()

    async def rows(
        self, sql: str, parameters: dict[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """The known ones of the ids that are asked for."""
        await asyncio.sleep(0.001)
        self._check()
        assert "FROM webhooks" in sql and parameters
        asked = set(parameters["ids"])
        return [(row["id"],) for row in self.ended if row["id"] in asked]


def a_trigger(receiver: Receiver, id: str = "t1", *, path: str = "/hook", **given: Any) -> Trigger:
    """A trigger on the point, with a webhook at the receiver."""
    url = receiver.url + path
    return Trigger(id, **{"tenant": "acme", "point": "p1", "name": "Hot", "url": url} | given)


def an_alert(number: int, rule: str = "t1", **given: Any) -> Alert:
    """An alert of a trigger; the id has its number."""
    plain = Alert(
        f"samples.accepted/0/1.{number}.0/{rule}", "acme", rule, 1, True, TS_MS, TS_MS, 9.5
    )
    return replace(plain, **given)


async def raised(log: EventLog, *alerts: Alert) -> None:
    """Put alerts on their topic."""
    await log.append([(ALERTS_RAISED, 0, Envelope(alert)) for alert in alerts])


async def letters_of(log: EventLog) -> list[Letter]:
    """The dead letters."""
    found = []
    async with log.reader([RECORDS_REFUSED]) as reader:
        while batch := await reader.batch(wait_ms=0):
            found += [logged.envelope.record for logged in batch.records]  # type: ignore[union-attr]
    return found  # type: ignore[return-value]


async def until(check: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.002)


async def until_committed(log: EventLog, end: int) -> None:
    """Wait until the group has committed so far."""
    async with asyncio.timeout(10):
        while (await log.committed("sinks.webhooks", ALERTS_RAISED)).get(0, 0) < end:
            await asyncio.sleep(0.005)


def a_worker(
    log: EventLog,
    store: Rows,
    view: View,
    *,
    backoff_ms: tuple[float, float] = (5, 20),
    **given: Any,
) -> WebhookWorker:
    """A worker that may call this machine and tries again soon."""
    settings = Settings(**{"webhook_private": True, "webhook_seconds_max": 5.0} | given)
    return WebhookWorker(log, store, view, SystemClock(), settings, SECRET, backoff_ms=backoff_ms)


@asynccontextmanager
async def running(worker: WebhookWorker, *, kill: bool = False) -> AsyncIterator[None]:
    """One life of the worker; with `kill` it gets no time to end."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    try:
        yield
        assert not task.done(), task.result()
    finally:
        stop.set()
        if kill:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not kill:
        task.result()


Body = Callable[[EventLog, Rows, Receiver], Any]


def play(folder: Path, body: Body) -> None:
    """A test's body with a log, a store and a receiver."""

    async def played() -> None:
        async with a_log(folder) as log:
            with receiving() as receiver:
                await body(log, Rows(), receiver)

    asyncio.run(played())


# -- what is told


def test_an_alert_is_told_once_signed_and_with_names(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        view = a_view(POINT, a_trigger(receiver))
        alert = an_alert(7)
        async with running(a_worker(log, store, view)):
            await raised(log, alert, an_alert(8, raised=False, value=True))
            await until_committed(log, 2)
        one, other = receiver.calls
        assert one.told == {
            "id": alert.id,
            "trigger": {"id": "t1", "name": "Hot"},
            "tenant": "acme",
            "parameter": {"id": "p1", "key": "temperature"},
            "state": "raised",
            "ts": "2023-11-14T22:13:20.123Z",
            "value": 9.5,
        }
        assert (other.told["state"], other.told["value"]) == ("cleared", True)
        assert one.id == alert.id and one.is_signed_with(webhook_secret(SECRET, "t1"))
        now_ms = SystemClock().now_ms()
        assert abs(int(one.headers["webhook-timestamp"]) - now_ms / 1000) < 60
        [row, _] = store.ended
        assert (row["tenant"], row["trigger"], row["attempts"]) == ("acme", "t1", 1)
        assert set(store.outcomes().values()) == {"delivered"}

    play(tmp_path, body)


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        (TS_MS, Kind.DATE, "2023-11-14T22:13:20.123Z"),
        (TS_MS, None, TS_MS),
        ("on", None, "on"),
        (float("inf"), None, "inf"),
    ],
)
def test_values_are_told_as_json(tmp_path: Path, value: Any, kind: Kind | None, told: Any) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        view = a_view(replace(POINT, kind=kind), a_trigger(receiver))
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1, value=value))
            await until(lambda: receiver.calls)
        assert receiver.calls[0].told["value"] == told

    play(tmp_path, body)


# -- what goes wrong


def test_what_fails_is_tried_again_in_its_order(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.answer = lambda call: 204 if len(receiver.calls) > 3 else 503
        view = a_view(POINT, a_trigger(receiver))
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1), an_alert(2))
            await until_committed(log, 2)
        assert [call.id[-6] for call in receiver.calls] == ["1", "1", "1", "1", "2"]
        assert [row["attempts"] for row in store.ended] == [4, 1]
        assert await letters_of(log) == []

    play(tmp_path, body)


def test_the_pause_doubles_up_to_its_limit(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        worker = a_worker(log, store, a_view(), backoff_ms=(1_000, 300_000))
        pauses = [worker._pause_ms(number) for number in range(1, 13)]
        assert pauses[:4] == [1_000, 2_000, 4_000, 8_000]
        assert pauses[8:] == [256_000, 300_000, 300_000, 300_000]
        assert worker._pause_ms(10_000) == 300_000

    play(tmp_path, body)


def test_what_never_succeeds_becomes_a_dead_letter_and_the_next_is_told(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.answer = lambda call: 500 if call.told["value"] == 9.5 else 200
        view = a_view(POINT, a_trigger(receiver))
        async with running(a_worker(log, store, view, webhook_attempts_max=3)):
            await raised(log, an_alert(1), an_alert(2, value=1.0))
            await until_committed(log, 2)
        assert len(receiver.calls) == 4
        assert list(store.outcomes().values()) == ["dead", "delivered"]
        [letter] = await letters_of(log)
        assert (letter.reason, letter.detail) == ("webhook", "answered with status 500")
        assert (letter.source, letter.tenant) == ("sinks.webhooks", "acme")
        assert (letter.topic, letter.lane, letter.offset) == ("alerts.raised", 0, 0)
        assert letter.body == receiver.calls[0].body

    play(tmp_path, body)


def test_those_that_waited_behind_a_dead_one_for_so_long_are_tried_once(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.answer = lambda call: 500
        view = a_view(POINT, a_trigger(receiver))
        worker = a_worker(log, store, view, backoff_ms=(40, 40), webhook_attempts_max=4)
        worker._waited_ms_max = 60
        async with running(worker):
            await raised(log, *(an_alert(number) for number in range(1, 5)))
            await until_committed(log, 4)
        # Four calls for the first, one for each that waited behind it.
        assert len(receiver.calls) == 7
        assert set(store.outcomes().values()) == {"dead"}

    play(tmp_path, body)


@pytest.mark.parametrize(
    ("status", "url", "private", "detail"),
    [
        (410, "", True, "answered with status 410"),
        (200, "", False, "refused: 127.0.0.1 is at 127.0.0.1, no public address"),
        (200, "http://[::ffff:127.0.0.1]/", False, "no public address"),
        (200, "ftp://example.com/", True, "refused: the URL's scheme is 'ftp'"),
        (200, "http://u:p@example.com/", True, "refused: the URL has a user name"),
    ],
)
def test_what_will_never_succeed_is_a_dead_letter_at_once(
    tmp_path: Path, status: int, url: str, private: bool, detail: str
) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.answer = lambda call: status
        trigger = a_trigger(receiver)
        view = a_view(POINT, replace(trigger, url=url or trigger.url))
        async with running(a_worker(log, store, view, webhook_private=private)):
            await raised(log, an_alert(1))
            await until_committed(log, 1)
        assert len(receiver.calls) == (status == 410)
        [letter] = await letters_of(log)
        assert detail in letter.detail and b'"state":"raised"' in letter.body
        assert store.ended[0]["attempts"] == 1

    play(tmp_path, body)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.answer = lambda call: 307 if len(receiver.calls) == 1 else 200
        view = a_view(POINT, a_trigger(receiver))
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1))
            await until_committed(log, 1)
        assert [call.path for call in receiver.calls] == ["/hook", "/hook"]

    play(tmp_path, body)


def test_alerts_of_triggers_that_are_gone_or_off_are_skipped(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        off = a_trigger(receiver, "off", disabled=True)
        foreign = a_trigger(receiver, "foreign", tenant="other")
        async with running(a_worker(log, store, a_view(POINT, off, foreign))):
            await raised(log, an_alert(1, "gone"), an_alert(2, "off"), an_alert(3, "foreign"))
            await until_committed(log, 3)
        assert receiver.calls == [] and set(store.outcomes().values()) == {"skipped"}

    play(tmp_path, body)


def test_a_view_that_is_behind_is_waited_for(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        trigger, view, stop = a_trigger(receiver), View(), asyncio.Event()
        change = first(trigger)
        await log.append([(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key))])
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1))
            await asyncio.sleep(0.2)
            assert store.ended == []
            following = asyncio.create_task(view.follow(log, stop))
            await until_committed(log, 1)
            stop.set()
            await following
        assert store.outcomes() == {an_alert(1).id: "delivered"}

    play(tmp_path, body)


def test_a_trigger_that_changes_while_it_is_tried_counts_as_it_is_then(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.answer = lambda call: 200 if call.path == "/new" else 500
        old, view = a_trigger(receiver), a_view(POINT, a_trigger(receiver))
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1), an_alert(2))
            await until(lambda: len(receiver.calls) > 2)
            put(view, replace(old, url=receiver.url + "/new"))
            await until_committed(log, 1)
            view.apply(Change("trigger", "t1", None), view.revision + 1)
            await raised(log, an_alert(3))
            await until_committed(log, 3)
        assert store.outcomes()[an_alert(1).id] == "delivered"
        assert store.outcomes()[an_alert(3).id] == "skipped"

    play(tmp_path, body)


def test_what_is_no_alert_is_set_aside(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        async with running(a_worker(log, store, a_view(POINT, a_trigger(receiver)))):
            await log.append([(ALERTS_RAISED, 0, Envelope(Tick(1)))])
            await raised(log, an_alert(1))
            await until_committed(log, 2)
        assert [letter.detail for letter in await letters_of(log)] == ["no alert"]
        assert len(receiver.calls) == 1

    play(tmp_path, body)


# -- beside one another


def test_a_slow_endpoint_holds_up_nobody_else_and_gets_one_call_at_a_time(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        with receiving() as slow:
            slow.gate.clear()
            triggers = [a_trigger(slow, "slow"), a_trigger(slow, "slow too")]
            view = a_view(POINT, a_trigger(receiver), *triggers)
            async with running(a_worker(log, store, view)):
                await raised(log, *(an_alert(n, "slow") for n in range(5)))
                await raised(log, *(an_alert(n, "slow too") for n in range(5, 10)))
                await raised(log, *(an_alert(n) for n in range(10, 30)))
                await until(lambda: len(receiver.calls) == 20)
                assert len(slow.calls) == 1
                # Nothing is committed beyond the first that is open.
                assert await log.committed("sinks.webhooks", ALERTS_RAISED) == {}
                slow.gate.set()
                await until_committed(log, 30)
            assert slow.most == receiver.most == {"/hook": 1}
            assert receiver.ids() == [an_alert(n).id for n in range(10, 30)]
            own = [one for one in slow.ids() if one.endswith("/slow")]
            assert own == [an_alert(n, "slow").id for n in range(5)]

    play(tmp_path, body)


def test_calls_at_a_time_are_bounded(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.gate.clear()
        names = [f"t{number}" for number in range(6)]
        triggers = [a_trigger(receiver, name, path=f"/{name}") for name in names]
        async with running(a_worker(log, store, a_view(POINT, *triggers), webhook_calls_max=2)):
            await raised(log, *(an_alert(n, name) for n, name in enumerate(names)))
            await until(lambda: len(receiver.calls) == 2)
            await asyncio.sleep(0.1)
            assert len(receiver.calls) == 2
            receiver.gate.set()
            await until_committed(log, 6)

    play(tmp_path, body)


def test_more_alerts_of_a_trigger_than_may_wait_become_dead_letters(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.gate.clear()
        view = a_view(POINT, a_trigger(receiver))
        async with running(a_worker(log, store, view, webhook_waiting_max=2)):
            await raised(log, *(an_alert(n) for n in range(4)))
            await until(lambda: len(store.ended) == 2)
            receiver.gate.set()
            await until_committed(log, 4)
        assert [store.outcomes()[an_alert(n).id] for n in range(4)] == [
            *("delivered", "delivered", "dead", "dead")
        ]
        details = {letter.detail for letter in await letters_of(log)}
        assert details == {"2 alerts of the trigger wait already"}

    play(tmp_path, body)


def test_a_full_outbox_reads_no_more_until_there_is_room(
    tmp_path: Path,
) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.gate.clear()
        view = a_view(POINT, a_trigger(receiver))
        worker = a_worker(log, store, view)
        worker._open_max = 300
        async with running(worker):
            await raised(log, *(an_alert(n) for n in range(1_000)))
            await until(lambda: len(worker._open) >= 300)
            await asyncio.sleep(0.2)
            assert len(worker._open) < 300 + webhooks._RECORDS_MAX
            receiver.gate.set()
            await until_committed(log, 1_000)
        assert len(receiver.calls) == 1_000

    play(tmp_path, body)


# -- again and again


def test_an_alert_that_was_logged_twice_is_told_once(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        view = a_view(POINT, a_trigger(receiver))
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1), an_alert(1), an_alert(2))
            await until_committed(log, 3)
            await raised(log, an_alert(2), an_alert(1))
            await until_committed(log, 5)
        assert receiver.ids() == [an_alert(1).id, an_alert(2).id]

    play(tmp_path, body)


def test_one_that_ends_while_the_store_is_asked_for_it_is_not_told_again(tmp_path: Path) -> None:
    class Late(Rows):
        """Answers with what it knew a moment ago."""

        async def rows(self, *given: Any) -> Sequence[Sequence[Any]]:
            """The answer, held back."""
            known = await super().rows(*given)
            await asyncio.sleep(0.15)
            return known

    async def body(log: EventLog, _: Rows, receiver: Receiver) -> None:
        store, view = Late(), a_view(POINT, a_trigger(receiver))
        receiver.gate.clear()
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1))
            await until(lambda: receiver.calls)
            await raised(log, an_alert(1))
            await asyncio.sleep(0.1)
            receiver.gate.set()
            await until_committed(log, 2)
        assert len(receiver.calls) == 1

    play(tmp_path, body)


def test_a_start_calls_only_what_was_not_done_with(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        with receiving() as slow:
            view = a_view(POINT, a_trigger(receiver), a_trigger(slow, "slow"))
            slow.answer = lambda call: 503
            async with running(a_worker(log, store, view), kill=True):
                await raised(log, an_alert(0, "slow"), *(an_alert(n) for n in range(1, 6)))
                await until(lambda: len(store.ended) == 5)
            assert await log.committed("sinks.webhooks", ALERTS_RAISED) == {}
            slow.answer = lambda call: 200
            async with running(a_worker(log, store, view)):
                await until_committed(log, 6)
            assert receiver.ids() == [an_alert(n).id for n in range(1, 6)]
            assert store.outcomes()[an_alert(0, "slow").id] == "delivered"

    play(tmp_path, body)


def test_an_orderly_stop_lets_the_call_under_way_end_and_keeps_that(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.gate.clear()
        view = a_view(POINT, a_trigger(receiver))
        async with running(a_worker(log, store, view)):
            await raised(log, an_alert(1), an_alert(2))
            await until(lambda: receiver.calls)
            asyncio.get_running_loop().call_later(0.2, receiver.gate.set)
        assert store.outcomes() == {an_alert(1).id: "delivered"}
        assert await log.committed("sinks.webhooks", ALERTS_RAISED) == {0: 1}
        async with running(a_worker(log, store, view)):
            await until_committed(log, 2)
        assert receiver.ids() == [an_alert(1).id, an_alert(2).id]

    play(tmp_path, body)


def test_while_the_store_is_away_each_trigger_is_told_of_one_alert_at_most(tmp_path: Path) -> None:
    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        view = a_view(POINT, a_trigger(receiver))
        receiver.gate.clear()
        async with running(a_worker(log, store, view)):
            await raised(log, *(an_alert(n) for n in range(3)))
            await until(lambda: receiver.calls)
            store.away = True
            receiver.gate.set()
            await asyncio.sleep(0.3)
            assert len(receiver.calls) == 1
            assert await log.committed("sinks.webhooks", ALERTS_RAISED) == {}
            store.away = False
            await until_committed(log, 3)
        assert receiver.ids() == [an_alert(n).id for n in range(3)]

    play(tmp_path, body)


@pytest.mark.parametrize("round_", range(rounds(3)))
def test_kills_at_random_moments_repeat_only_what_had_no_row_yet(
    tmp_path: Path, round_: int
) -> None:
    chance = random.Random(f"{seed()}/webhooks/{round_}")

    async def body(log: EventLog, store: Rows, receiver: Receiver) -> None:
        receiver.answer = lambda call: chance.choice((200, 200, 500))
        names = ["t1", "t2", "t3"]
        triggers = [a_trigger(receiver, name, path=f"/{name}") for name in names]
        view, fed, kills = a_view(POINT, *triggers), 0, 0
        for _ in range(12):
            kill = chance.random() < 0.6
            kills += kill
            worker = a_worker(log, store, view, webhook_attempts_max=50)
            async with running(worker, kill=kill):
                for _ in range(chance.randrange(6)):
                    fed += 1
                    alert = an_alert(fed, chance.choice(names))
                    # A judge that was killed itself says it again.
                    await raised(log, alert, *[alert] * chance.choice((0, 0, 1)))
                await asyncio.sleep(chance.uniform(0, 0.05))
            done = len(store.ended)
            before = [call.id for call in receiver.calls if call.id in store.outcomes()]
            receiver.calls[:] = [call for call in receiver.calls if call.id not in before]
            assert done == len(store.outcomes())
            ended = set(store.outcomes())
            again = a_worker(log, store, view, webhook_attempts_max=50)
            async with running(again, kill=True):
                await asyncio.sleep(0.02)
            # What had a row before this life was not called in it.
            assert not ended & {call.id for call in receiver.calls}
        async with running(a_worker(log, store, view, webhook_attempts_max=50)):
            await until_committed(log, (await log.spans(ALERTS_RAISED))[0].end)
        assert set(store.outcomes().values()) <= {"delivered"}
        assert len(store.outcomes()) == fed

    play(tmp_path, body)


def test_the_outbox_is_a_plug_in_under_its_group() -> None:
    [outbox] = all_outboxes()
    assert (outbox.name, outbox.source) == ("webhooks", ALERTS_RAISED)
    assert WebhookWorker.group == "sinks.webhooks"
