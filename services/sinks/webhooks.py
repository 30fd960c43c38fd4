"""The outbox of the alerts: alerts.raised -> webhooks of triggers, signed, at least once.

An alert is done with when its webhook took it (2xx), when it was given up (then it is a dead
letter), or when its trigger is gone or switched off. That is a row of the table `webhooks` before
anything follows from it, and what is committed ends below the first alert that is not done with. So
a start reads the open ones again and calls only those that have no row; what repeats a call is a
crash between the answer and the row, and the receiver knows it by its id.

Alerts of one trigger are told in their order, one after the other; one that fails is tried again
with growing pauses while the later ones wait. A URL gets one call at a time, and calls to others go
on beside it. Alerts that waited behind one that was given up, for as long as its attempts took, are
tried once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from schemas.catalogue import Point, Trigger
from schemas.envelope import Alert, Envelope, Letter, Logged, Undecodable
from schemas.topics import ALERTS_RAISED, CATALOGUE_CHANGED, Topic
from services.auth import installation_secret
from services.catalogue import View, webhook_secret
from services.clock import Clock
from services.errors import Malformed, Unavailable
from services.eventlog import Batch, EventLog, Reader
from services.metrics import WEBHOOK_FAILURES, WEBHOOKS_OPEN
from services.runtime import Runtime
from services.settings import Settings
from services.sinks._aside import Placed, letter
from services.sinks._calls import Answer, Caller
from services.sinks._contract import Outbox
from services.sinks._ends import COLUMNS, End, Ends, Patience, Place, Stopped
from services.sinks._message import body_of, signed
from services.store import Store

OPEN_MAX, PLACES_MAX = 10_000, 100_000
"""Alerts in memory, and records behind the first that is not done with: then nothing is read."""
_RECORDS_MAX = 256
_POLL_MS, _IDLE_MS = 20, 500
_CATALOGUE_SECONDS_MAX = 5
_END_SECONDS_MAX = 2
"""For the calls that are under way when the process stops."""
_DETAIL_CHARS_MAX = 1_000

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Open:
    """An alert that is not done with, and the records that brought it. `last` says that it has
    waited too long to be tried more than once.
    """

    alert: Alert
    places: list[Place]
    since_ms: float
    attempts: int = 0
    last: bool = False
    body: bytes = b""


class WebhookWorker:
    """Reads the alerts and has their webhooks called. `backoff_ms` holds the first and the longest
    pause between two attempts.
    """

    group = "sinks.webhooks"

    def __init__(
        self,
        log: EventLog,
        store: Store,
        view: View,
        clock: Clock,
        settings: Settings,
        secret: bytes,
        *,
        caller: Caller | None = None,
        backoff_ms: tuple[float, float] = (1_000, 300_000),
    ) -> None:
        self._log, self._store, self._view, self._clock = log, store, view, clock
        self._secret, self._backoff_ms = secret, backoff_ms
        self._attempts_max = settings.webhook_attempts_max
        self._waiting_max = settings.webhook_waiting_max
        self._caller = caller or Caller(
            seconds_max=settings.webhook_seconds_max,
            private=settings.webhook_private,
            threads=settings.webhook_calls_max,
        )
        self._waited_ms_max = sum(map(self._pause_ms, range(1, self._attempts_max)))
        self._patience = Patience(asyncio.Event())
        self._ends = Ends(log, store, self._patience, group=self.group, kept=self._kept)
        self._slots = asyncio.Semaphore(settings.webhook_calls_max)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By URL: held while it is called."""
        self._lane: int | None = None
        self._given = 0
        """Grows when the lane comes or goes."""
        self._places: deque[Place] = deque()
        self._open: dict[str, _Open] = {}
        self._waiting: dict[str, deque[_Open]] = {}
        """By trigger: what is to be told, in order; the first is being told."""
        self._telling: set[asyncio.Task[None]] = set()
        self._committed: int | None = None
        self._open_max = OPEN_MAX
        self._paused = False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set."""
        self._patience.stop = stop
        reader = self._log.reader(
            [ALERTS_RAISED],
            group=self.group,
            on_assigned=self._assigned,
            on_revoked=self._revoked,
        )
        try:
            async with reader, asyncio.TaskGroup() as group:
                self._tasks = group
                keeping = group.create_task(self._ends.run(), name=self.group)
                with suppress(Stopped):
                    while not stop.is_set():
                        await self._turn_patiently(reader)
                await self._finish(reader)
                keeping.cancel()
        finally:
            self._caller.close()
            WEBHOOKS_OPEN.set(0)

    # -- reading -----------------------------------------------------------------------------------

    async def _turn_patiently(self, reader: Reader) -> None:
        try:
            await self._commit(reader)
            self._pause_if_full(reader)
            wait_ms = _POLL_MS if self._places else _IDLE_MS
            batch = await reader.batch(records_max=_RECORDS_MAX, wait_ms=wait_ms)
            if batch is not None:
                await self._take(batch)
        except Unavailable as error:
            logger.warning("%s: the log is away: %s", self.group, error)
            await self._patience.rest(error.retry_after_ms / 1000)

    def _assigned(self, topic: Topic, lanes: Sequence[int]) -> None:
        self._lane = lanes[0] if lanes else self._lane
        self._given += 1

    def _revoked(self, topic: Topic, lanes: Sequence[int]) -> None:
        """Another process goes on from what was committed; a call under way is let end."""
        self._lane, self._committed, self._paused = None, None, False
        self._given += 1
        self._places.clear()
        self._open.clear()
        for waiting in self._waiting.values():
            waiting.clear()
        self._waiting = {}

    async def _commit(self, reader: Reader) -> None:
        next_offset = None
        while self._places and self._places[0].done:
            next_offset = self._places.popleft().offset + 1
        self._committed = next_offset or self._committed
        if self._committed is not None and self._lane is not None:
            await reader.commit(ALERTS_RAISED, self._lane, self._committed)
            self._committed = None

    def _pause_if_full(self, reader: Reader) -> None:
        if self._lane is None:
            return
        full = len(self._open) >= self._open_max or len(self._places) >= PLACES_MAX
        if full and not self._paused:
            self._paused = True
            logger.warning("%s: %d alerts are open, no more are read", self.group, len(self._open))
            reader.pause(ALERTS_RAISED, self._lane)
        elif self._paused and not full:
            self._paused = False
            reader.resume(ALERTS_RAISED, self._lane)

    async def _take(self, batch: Batch) -> None:
        """Open the alerts of a batch, but for those that are done with or open already."""
        given = self._given
        ids = [alert.id for logged in batch.records if (alert := _alert_of(logged))]
        # What ends while the store is asked was open before, and stands nowhere in the answer.
        open_before = self._open.keys() & ids
        ended = await self._ends.known(ids)
        if given != self._given:
            return
        for logged in batch.records:
            place = Place(logged.offset)
            self._places.append(place)
            alert = _alert_of(logged)
            if alert is None:
                self._ends.add(End([place], letter=self._stray(batch.lane, logged)))
            elif (known := self._open.get(alert.id)) is not None:
                known.places.append(place)
            elif alert.id in ended or alert.id in open_before:
                place.done = True
            else:
                self._begin(alert, place)
        WEBHOOKS_OPEN.set(len(self._open))

    def _begin(self, alert: Alert, place: Place) -> None:
        item = _Open(alert, [place], self._clock.monotonic_ms())
        self._open[alert.id] = item
        waiting = self._waiting.setdefault(alert.rule, deque())
        if len(waiting) >= self._waiting_max:
            item.body = self._body(alert, self._active(alert))
            self._ends.add(self._dead(item, f"{len(waiting)} alerts of the trigger wait already"))
            return
        waiting.append(item)
        if len(waiting) == 1:
            telling = self._tasks.create_task(self._tell(alert.rule, waiting), name=self.group)
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    # -- telling -----------------------------------------------------------------------------------

    async def _tell(self, trigger: str, waiting: deque[_Open]) -> None:
        """Tell a trigger's alerts, until none waits."""
        with suppress(Stopped):
            while waiting:
                item = waiting[0]
                end = await self._told(item, waiting)
                if end is not None:
                    self._ends.add(end)
                    await end.done.wait()
                if waiting and waiting[0] is item:
                    waiting.popleft()
            if self._waiting.get(trigger) is waiting:
                del self._waiting[trigger]

    async def _told(self, item: _Open, waiting: deque[_Open]) -> End | None:
        """Call until it is done with; None where it is another process's in the meantime."""
        while waiting and waiting[0] is item:
            trigger = await self._trigger_of(item.alert)
            if trigger is None:
                return self._end(item, "skipped")
            waited_ms = self._clock.monotonic_ms() - item.since_ms
            answer = await self._call(item, trigger)
            if answer is None:
                continue
            item.attempts += 1
            if item.attempts == 1:
                item.last = waited_ms >= self._waited_ms_max > 0
            if not answer.problem:
                return self._end(item, "delivered")
            WEBHOOK_FAILURES.inc()
            logger.info("%s: %s: %s", self.group, item.alert.id, answer.problem)
            if answer.final or item.last or item.attempts >= self._attempts_max:
                return self._dead(item, answer.problem)
            await self._patience.rest(self._pause_ms(item.attempts) / 1000)
        return None

    async def _call(self, item: _Open, trigger: Trigger) -> Answer | None:
        """Call the trigger's webhook when it is its turn; None where the trigger is another one by
        then.
        """
        turn = self._turns.get(trigger.url) or asyncio.Lock()
        self._turns[trigger.url] = turn
        async with turn, self._slots:
            if self._patience.stop.is_set():
                raise Stopped
            if self._active(item.alert) != trigger:
                return None
            item.body = self._body(item.alert, trigger)
            key = webhook_secret(self._secret, trigger.id)
            headers = signed(key, item.alert.id, self._clock.now_ms() // 1000, item.body)
            return await self._caller.post(trigger.url, headers, item.body)

    async def _trigger_of(self, alert: Alert) -> Trigger | None:
        """The trigger as it is now; None where it is gone or off. The view may be behind the one
        that had the rule travel, so before it says no it reads all that there is.
        """
        if (found := self._active(alert)) is None:
            await self._patience.until_available(self._catch_up, what="the catalogue")
            found = self._active(alert)
        return found

    def _active(self, alert: Alert) -> Trigger | None:
        found = self._view.thing(Trigger.KIND, alert.rule)
        own = isinstance(found, Trigger) and found.tenant == alert.tenant and not found.disabled
        return found if own and isinstance(found, Trigger) else None

    async def _catch_up(self) -> None:
        end = (await self._log.spans(CATALOGUE_CHANGED))[0].end
        try:
            async with asyncio.timeout(_CATALOGUE_SECONDS_MAX):
                await self._view.caught_up(end - 1)
        except TimeoutError:
            raise Unavailable("the catalogue is behind") from None

    def _body(self, alert: Alert, trigger: Trigger | None) -> bytes:
        point = self._view.thing(Point.KIND, trigger.point) if trigger else None
        return body_of(alert, trigger, point if isinstance(point, Point) else None)

    def _pause_ms(self, attempts: int) -> float:
        """The pause after so many attempts, at its longest."""
        first_ms, longest_ms = self._backoff_ms
        return float(min(first_ms * 2.0 ** min(attempts - 1, 60), longest_ms))

    # -- what is done with -------------------------------------------------------------------------

    def _end(self, item: _Open, outcome: str) -> End:
        alert = item.alert
        values = (alert.id, alert.tenant, alert.rule, self._clock.now_ms(), item.attempts, outcome)
        return End(item.places, dict(zip(COLUMNS, values, strict=True)))

    def _dead(self, item: _Open, problem: str) -> End:
        end = self._end(item, "dead")
        end.letter = Letter(
            reason="webhook",
            detail=problem[:_DETAIL_CHARS_MAX],
            source=self.group,
            tenant=item.alert.tenant,
            topic=ALERTS_RAISED.name,
            lane=0 if self._lane is None else self._lane,
            offset=item.places[0].offset,
            body=item.body[: Letter.BODY_BYTES_MAX],
            ts_ms=self._clock.now_ms(),
        )
        return end

    def _stray(self, lane: int, logged: Logged) -> Letter:
        why = None if isinstance(logged.envelope, Undecodable) else Malformed("no alert")
        now_ms = self._clock.now_ms()
        placed = Placed(lane, logged)
        return letter(placed, why, topic=ALERTS_RAISED, source=self.group, ts_ms=now_ms)

    def _kept(self, id: str) -> None:
        self._open.pop(id, None)
        WEBHOOKS_OPEN.set(len(self._open))

    async def _finish(self, reader: Reader) -> None:
        """On the way out: let the calls under way end, keep and commit what was done with, each as
        far as it goes quickly.
        """
        if self._telling:
            await asyncio.wait(set(self._telling), timeout=_END_SECONDS_MAX)
        for telling in self._telling:
            telling.cancel()
        with suppress(TimeoutError, Unavailable, Stopped):
            async with asyncio.timeout(_END_SECONDS_MAX):
                while self._ends.waiting:
                    await asyncio.sleep(0.01)
                await self._commit(reader)


def _alert_of(logged: Logged) -> Alert | None:
    envelope = logged.envelope
    record = envelope.record if isinstance(envelope, Envelope) else None
    return record if isinstance(record, Alert) else None


def _open(runtime: Runtime) -> WebhookWorker:
    return WebhookWorker(
        runtime.log,
        runtime.store,
        runtime.view,
        runtime.clock,
        runtime.settings,
        installation_secret(runtime.settings),
    )


SINKS = (Outbox("webhooks", ALERTS_RAISED, _open),)
