"""One who follows: where it stands, what it is sent next, and why it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from services.query import _wire
from services.query._changes import Change, Position, id_of
from services.query._ring import Ring

Frame = Callable[[list[Change]], bytes | str]


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a stream ends: the name in the metrics, WebSocket's close code, and the reader's text."""

    name: str
    code: int
    reason: str


GONE = Ending("gone", _wire.GOING_AWAY, "")
SLOW = Ending("slow", _wire.TRY_AGAIN, "the reader is too slow; come again with the last event id")
EXPIRED = Ending("credential", _wire.POLICY, "the credential has expired")
REVOKED = Ending("credential", _wire.POLICY, "the credential is not valid any more")
STOPPED = Ending("stopped", _wire.GOING_AWAY, "the server stops; come again")
AWAY = Ending("away", _wire.TRY_AGAIN, "the event log is away; come again")


class Reader:
    """A reader of one ring. `series` are those that it wants (None: all).

    It is joined while `number` is the ring's next change for it; else the log has to be read from
    `position`, up to which it has everything. `valid` tells until when its credential is good (UTC
    ms), and raises Refused where that is over.
    """

    def __init__(
        self,
        ring: Ring,
        series: frozenset[int] | None,
        *,
        expires_ms: float = inf,
        valid: Callable[[], float] = lambda: inf,
    ) -> None:
        self.ring, self.series = ring, series
        self.position: Position = ring.head
        self.gap = ""
        """What is to be said before the next change: changes are missing here."""
        self.expires_ms, self.valid = expires_ms, valid
        self.ending: Ending | None = None
        self.ended = asyncio.Event()
        self.beat_due = False
        self.sending_since_ms: float | None = None
        self.sent_ms = self.sent_in_ms = 0.0
        """When the last send was done, and how long it took."""
        self._number, self._life = ring.end, ring.life
        self._waiter: asyncio.Future[None] | None = None

    @property
    def at(self) -> str:
        """The id of where it stands."""
        return id_of(self.ring.subject.mark, self.position)

    @property
    def joined(self) -> bool:
        """Whether the ring has what comes next."""
        return self._life == self.ring.life and self._number >= self.ring.first

    @property
    def behind(self) -> bool:
        """Whether the ring had what comes next, and has let it go: it waits for more than the ring
        may hold.
        """
        return self._life == self.ring.life and self._number < self.ring.first

    def stand(self, position: Position) -> None:
        """Everything up to the position is there; what follows is in the ring or still to be
        read.
        """
        self.position = position
        number = self.ring.number_after(position)
        self._life = self.ring.life if number is not None else -1
        self._number = number or 0

    def take(self, frame: Frame) -> tuple[bytes | str, int] | None:
        """What a joined reader is sent next, and how many changes that is, perhaps none; None:
        there is nothing.
        """
        number, ring = self._number, self.ring
        batch = ring.batch(number)
        if not batch:
            if ring.head.place > self.position.place:
                self.position = ring.head
            return None
        self._number += len(batch)
        wanted = self.wanted(batch)
        if batch[-1].position.place > self.position.place:
            self.position = batch[-1].position
        if len(wanted) == len(batch):
            return ring.framed(number, frame, batch), len(batch)
        return (frame(wanted) if wanted else b""), len(wanted)

    def wanted(self, changes: list[Change]) -> list[Change]:
        """Those that this reader wants and does not have yet."""
        if changes and changes[0].position.place <= self.position.place:
            # This process has read less of the log than the reader has seen elsewhere.
            place = self.position.place
            changes = [change for change in changes if change.position.place > place]
        if self.series is None:
            return changes
        return [change for change in changes if change.series in self.series]

    def end(self, ending: Ending) -> None:
        """End the stream, for the first reason that is given."""
        if self.ending is None:
            self.ending = ending
            self.ended.set()
            self.wake()

    # -- waiting -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something is to be done."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until `wake`."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
