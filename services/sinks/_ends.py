"""How alerts that are done with become durable, and how an outbox waits for what is away.

First the dead letters are on the log, then the rows are in the table, then it may be committed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from schemas.envelope import Envelope, Letter
from schemas.rows import arrow_rows
from schemas.topics import RECORDS_REFUSED
from services.errors import Unavailable
from services.eventlog import EventLog
from services.metrics import DEAD_LETTERS, WEBHOOKS
from services.store import Store

T = TypeVar("T")
TABLE = "webhooks"
COLUMNS = {
    "id": "string",
    "tenant": "string",
    "trigger": "string",
    "at": "ms",
    "attempts": "uint32",
    "outcome": "string",
}
_KNOWN = f"SELECT DISTINCT id FROM {TABLE} WHERE id IN {{ids:Array(String)}}"
_AWAY_SECONDS = (0.1, 5.0)

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The worker is to stop; what is open stays uncommitted."""


@dataclass(slots=True, eq=False)
class Place:
    """A record that was read; it can be committed when all before it are `done`, too."""

    offset: int
    done: bool = False


@dataclass(slots=True)
class End:
    """What is to be made durable of an alert (or of a record that is none), which `places` brought.
    `row` has COLUMNS.
    """

    places: list[Place]
    row: dict[str, Any] | None = None
    letter: Letter | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Patience:
    """Waits for what is away, and not beyond `stop`."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop

    async def until_available(self, action: Callable[[], Awaitable[T]], *, what: str) -> T:
        """The action's result; Unavailable is waited out. Raises Stopped."""
        seconds, longest = _AWAY_SECONDS
        while True:
            try:
                return await action()
            except Unavailable as error:
                logger.warning("%s is away, trying again: %s", what, error)
            await self.rest(seconds)
            seconds = min(2 * seconds, longest)

    async def rest(self, seconds: float) -> None:
        """Wait, with jitter, so that what failed together does not come back together. Raises
        Stopped.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds * random.uniform(0.5, 1))
        if self.stop.is_set():
            raise Stopped


class Ends:
    """Takes what is done with and makes it durable, several at a time. `kept` is told each row's
    id.
    """

    def __init__(
        self,
        log: EventLog,
        store: Store,
        patience: Patience,
        *,
        group: str,
        kept: Callable[[str], None],
    ) -> None:
        self._log, self._store, self._patience = log, store, patience
        self._group, self._on_kept = group, kept
        self._waiting: list[End] = []
        self._some = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many are not durable yet."""
        return len(self._waiting)

    def add(self, end: End) -> None:
        """Take one more."""
        self._waiting.append(end)
        self._some.set()

    async def known(self, ids: Sequence[str]) -> set[str]:
        """Those of the alerts that were done with before. Raises Stopped."""
        if not ids:
            return set()
        rows = await self._patience.until_available(
            lambda: self._store.rows(_KNOWN, {"ids": list(ids)}), what="the store"
        )
        return {str(id_) for (id_,) in rows}

    async def run(self) -> None:
        """Make durable what comes, until the log or the store is away and the worker is to stop."""
        with suppress(Stopped):
            while True:
                await self._some.wait()
                self._some.clear()
                await self._keep(tuple(self._waiting))

    async def _keep(self, ends: Sequence[End]) -> None:
        patience = self._patience
        letters = [(RECORDS_REFUSED, 0, Envelope(end.letter)) for end in ends if end.letter]
        if letters:
            await patience.until_available(lambda: self._log.append(letters), what="the event log")
        if rows := [end.row for end in ends if end.row]:
            table = arrow_rows(COLUMNS, rows)
            await patience.until_available(
                lambda: self._store.insert(TABLE, table), what="the store"
            )
        del self._waiting[: len(ends)]
        for end in ends:
            self._tell(end)

    def _tell(self, end: End) -> None:
        for place in end.places:
            place.done = True
        if end.row is not None:
            self._on_kept(end.row["id"])
            WEBHOOKS.labels(end.row["outcome"]).inc()
        if (note := end.letter) is not None:
            DEAD_LETTERS.labels(self._group, note.reason).inc()
            logger.error(
                "%s: set aside %s/%d offset %d: %s: %s",
                *(self._group, note.topic, note.lane, note.offset, note.reason, note.detail),
            )
        end.done.set()
