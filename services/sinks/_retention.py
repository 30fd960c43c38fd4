"""Follows the periods for which points are kept, and has what is stored expire by them.

A row is written with the moment that its policy made of its time. When the period of a point
changes, its stored rows are brought to the new one: soon after the change, and whenever rows have
been stored that were stamped with another period, because they were on their way or are replayed.
What was rewritten is looked at again a while later, because another process may know the old period
for longer; and after the start and once an hour all points are gone through, so that what a kill or
an outage left undone is done. Asking again is cheap, and two processes that do the same do no harm:
where nothing differs nothing is rewritten, and a rewrite waits until no other one is open.

What is shown does not wait for this: reads are narrowed to the period itself (`query.answer`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.blocks import Block
from schemas.catalogue import Point
from schemas.envelope import Change, Logged
from schemas.points import PointPolicy
from services.catalogue import View
from services.clock import Clock, pause
from services.errors import Malformed, Unavailable
from services.metrics import RETENTION_OPEN, RETENTION_ROWS, RETENTION_SERIES
from services.sinks._contract import Write
from services.store import RETAINED_MAX, Store

logger = logging.getLogger(__name__)

_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Pace:
    """When what is done; milliseconds."""

    tick_ms: int = 500
    """Between two looks at what is due. Changes of one tick go into one rewrite."""
    again_ms: int = 60_000
    """After a change or a rewrite its series are looked at again."""
    all_ms: int = 3_600_000
    backoff_ms: tuple[int, int] = (500, 30_000)
    """The first and the longest pause while the store is away."""


class Retention:
    """Rewrites one batch of series at a time; everything that is due waits in memory."""

    def __init__(self, view: View, store: Store, clock: Clock, pace: Pace | None = None) -> None:
        self._view, self._store, self._clock = view, store, clock
        self._pace = pace or Pace()
        self._kept = {point.series: point.keep_minutes for point in view.retained()}
        self._due: dict[int, float] = {}
        self._fresh: set[int] = set()
        self._round: list[int] = []
        self._all_due = float("-inf")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; waits with back-off for ever while the store is away."""
        unsubscribe = self._view.on_change(self._take)
        failures = 0
        try:
            while not stop.is_set():
                pause_ms = self._pace.tick_ms
                try:
                    await self._turn(stop)
                    failures = 0
                except (Unavailable, Malformed) as error:
                    first_ms, longest_ms = self._pace.backoff_ms
                    pause_ms = min(first_ms << min(failures, 16), longest_ms)
                    failures += 1
                    logger.warning("retention goes on in %d ms: %s", pause_ms, error)
                RETENTION_SERIES.set(len(self._due))
                await pause(stop, pause_ms)
        finally:
            unsubscribe()

    def noting(self, write: Write) -> Write:
        """The writer of samples, extended by noting what was stored with another period."""

        async def written(store: Store, records: Sequence[Logged]) -> None:
            await write(store, records)
            for logged in records:
                block = getattr(logged.envelope, "record", None)
                if isinstance(block, Block):
                    self._note(self._stale(block), self._clock.monotonic_ms())

        return written

    def _stale(self, block: Block) -> set[int]:
        # What was stamped in the catalogue's present state need not be looked at row by row.
        if all(map(self._present, block.policies)):
            return set()
        keeps_ms = [policy.keep_ms for policy in block.policies]
        return {
            series
            for series, policy in set(zip(block.series, block.policy, strict=True))
            if keeps_ms[policy] != self._view.kept_minutes(series) * _MINUTE_MS
        }

    def _present(self, policy: PointPolicy) -> bool:
        return policy.revision == self._view.free_policy(policy.tenant).revision

    # -- what is due -------------------------------------------------------------------------------

    def _take(self, change: Change) -> None:
        """Note the point of a change if it is kept for another period than before."""
        thing = self._view.thing(Point.KIND, change.id) if change.kind == Point.KIND else None
        if not isinstance(thing, Point):
            # The rows of a point that was deleted go when they would have gone.
            return
        minutes = self._view.kept_minutes(thing.series)
        if minutes != self._kept.get(thing.series, 0):
            self._kept[thing.series] = minutes
            self._due[thing.series] = self._clock.monotonic_ms()
            self._fresh.add(thing.series)

    async def _turn(self, stop: asyncio.Event) -> None:
        now_ms = self._clock.monotonic_ms()
        due = [series for series, due_ms in self._due.items() if due_ms <= now_ms]
        for at in range(0, len(due), RETAINED_MAX):
            await self._check(due[at : at + RETAINED_MAX], stop)
        if now_ms >= self._all_due:
            self._round = await self._all()
            self._all_due = now_ms + self._pace.all_ms
        if self._round:
            # One cut a turn, so that a change does not wait for all of them.
            await self._check(self._round[:RETAINED_MAX], stop)
            del self._round[:RETAINED_MAX]

    async def _all(self) -> list[int]:
        """Every series that has a period, or has rows that expire although it has none now."""
        kept = {point.series for point in self._view.retained()}
        return sorted(kept.union(series for _, series in await self._store.retained()))

    # -- doing it ----------------------------------------------------------------------------------

    async def _check(self, cut: Sequence[int], stop: asyncio.Event) -> None:
        """Bring the rows of some series to their periods, as far as they differ."""
        if not await self._room(stop):
            return
        # Taken out before the store is asked: what changes meanwhile is noted anew.
        fresh = self._fresh.intersection(cut)
        self._fresh -= fresh
        noted = {series for series in cut if self._due.pop(series, None) is not None}
        points = [point for point in map(self._view.point_of, cut) if point is not None]
        periods = {(each.tenant, each.series): each.keep_minutes * _MINUTE_MS for each in points}
        try:
            rewritten = await self._store.retain(periods)
        except BaseException:
            self._fresh |= fresh
            self._note(noted, self._clock.monotonic_ms())
            raise
        if rewritten:
            rows = sum(rewritten.values())
            RETENTION_ROWS.inc(rows)
            RETENTION_OPEN.set(1)
            logger.info("retention: %d rows of %d series follow their period", rows, len(rewritten))
        again = fresh.union(series for _, series in rewritten)
        self._note(again, self._clock.monotonic_ms() + self._pace.again_ms)

    def _note(self, series: Iterable[int], due_ms: float) -> None:
        for one in series:
            self._due[one] = min(due_ms, self._due.get(one, due_ms))

    async def _room(self, stop: asyncio.Event) -> bool:
        """Wait until no rewrite is open, of whichever process; False where `stop` comes first."""
        while not stop.is_set():
            open_rewrites = await self._store.retaining()
            RETENTION_OPEN.set(open_rewrites)
            if not open_rewrites:
                return True
            await pause(stop, self._pace.tick_ms)
        return False
