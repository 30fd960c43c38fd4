"""Changes as they are accepted, to all who follow.

The hub hears of every record that the live view takes. As long as nobody follows a device, it notes
how far the lane is, and no more. Else the records wait in a short queue, are rendered once, and lie
in the device's ring; whoever has been sent what was there before is woken, and takes all that is
there. After an idle time a change goes out at once; what comes during the rest behind it, and
during a send, goes out together.

A reader is held to its position, never to a queue of its own. One that comes with a position is
served from the ring or from the log, one that is further behind than the ring reaches is cut off.
Where the hub has missed something, its rings begin anew and their readers read on from the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from schemas.envelope import Change as Configured
from schemas.envelope import Envelope, Logged
from schemas.points import LANE_SHIFT, lane_of
from schemas.topics import SAMPLES_ACCEPTED
from services import metrics
from services.clock import Clock
from services.dialects import Follow, Inbound, Lookup
from services.errors import Refused, Unavailable
from services.eventlog import EventLog
from services.query._changes import (
    NOTHING,
    Event,
    Position,
    Subject,
    block_of,
    end_of,
    mark_of,
    place_of,
    position_of,
)
from services.query._reader import AWAY, EXPIRED, GONE, REVOKED, SLOW, STOPPED, Ending, Reader
from services.query._replay import NO_SUCH, Rendering, passed_before, replay
from services.query._ring import Ring, cut
from services.query._wire import NOT_TAKEN, Wire
from services.query.live import LiveView
from services.settings import Settings

_QUEUED_ROWS_MAX = 200_000
_REST_ROWS = 500
"""After so many rows the readers get their turn."""
_SLOW_MS = 1_000
"""Who is behind the ring, and has taken nothing for so long, is slow. Who took what it was given
was outrun by a burst, and reads on from the log.
"""
_ROUND_SECONDS, _ROUND_SECONDS_MAX = 0.00004, 0.02
"""For so long a round rests for each reader that it had: what comes meanwhile shares the next."""
_REPLAYS_MAX = 8
"""Readers of a tenant that read the log by themselves at a time."""
_HOUSE_SECONDS = 1.0
_IDLE_MS = 60_000
"""For so long a ring without readers is kept."""
_LAST_SECONDS = 5.0
"""For so long an ending stream may take to send what is under way, and its reason."""
_HANG_UP_SECONDS = 3.0
_CREDENTIALS = frozenset({"key", "user", "tenant", "device", "revocation"})
"""Kinds of configured things that decide whether a credential is good."""


@dataclass(slots=True)
class _Lane:
    """A lane of `samples.accepted`: `next_offset` comes next (-1: not known), everything up to
    `seen` went by.

    What lay before `first`, the first record that was heard of, counts only once it is `learned`.
    """

    first: int = -1
    next_offset: int = -1
    seen: Position = NOTHING
    learned: bool = False
    rings: list[Ring] = field(default_factory=list)


class Hub:
    """All streams of this process. `run` renders and keeps house for ever; `open` and `serve` are
    the doors'.
    """

    def __init__(
        self,
        live: LiveView,
        log: EventLog,
        catalogue: Lookup,
        *,
        clock: Clock,
        settings: Settings,
        queued_rows_max: int = _QUEUED_ROWS_MAX,
    ) -> None:
        self._live, self._log, self._catalogue = live, log, catalogue
        self._clock, self._settings = clock, settings
        self._rendering = Rendering(catalogue)
        self._lanes = [_Lane() for _ in range(log.lanes)]
        self._rings: dict[tuple[str, str, Event], Ring] = {}
        self._idle_since_ms: dict[tuple[str, str, Event], float] = {}
        self._queue: deque[tuple[int, Logged]] = deque()
        self._queued_rows, self._queued_rows_max = 0, queued_rows_max
        self._stirred: set[Ring] = set()
        self._awake = asyncio.Event()
        self._places = 0
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._replays: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By tenant: nobody waits for another one's slow readers."""
        self._doubt = self._closing = False
        live.on_record(self._hear)

    # -- what is accepted --------------------------------------------------------------------------

    def _hear(self, lane: int, logged: Logged) -> None:
        """A record that the live view has taken."""
        state = self._lanes[lane]
        if not state.rings:
            self._note(state, logged)
        elif self._queued_rows > self._queued_rows_max:
            self._skip(state, logged)
        else:
            self._queue.append((lane, logged))
            self._queued_rows += _rows(logged)
            self._awake.set()

    def _note(self, state: _Lane, logged: Logged) -> None:
        """Let a record count as gone by. One that the view reads again is known."""
        if logged.offset < state.next_offset:
            return
        if state.first < 0:
            state.first = logged.offset
        state.next_offset = logged.offset + 1
        block = block_of(logged)
        if block is not None and (end := end_of(logged, block)).place > state.seen.place:
            state.seen = end

    def _skip(self, state: _Lane, logged: Logged) -> None:
        """Too much waits: what is there and this record will be read from the log."""
        self._note(state, logged)
        for ring in state.rings:
            ring.restart(state.seen)
            self._stirred.add(ring)
        self._awake.set()

    async def run(self) -> None:
        """Render what comes, for ever."""
        house = asyncio.create_task(self._keep_house(), name="streams: keep house")
        try:
            while True:
                await self._awake.wait()
                self._awake.clear()
                rows = 0
                while self._queue:
                    lane, logged = self._queue.popleft()
                    self._queued_rows -= _rows(logged)
                    rows += _rows(logged)
                    await self._publish(self._lanes[lane], logged)
                    if rows >= _REST_ROWS:
                        rows = 0
                        self._wake()
                        await asyncio.sleep(self._places * _ROUND_SECONDS)
                self._wake()
                await asyncio.sleep(min(self._places * _ROUND_SECONDS, _ROUND_SECONDS_MAX))
        finally:
            house.cancel()

    async def _publish(self, state: _Lane, logged: Logged) -> None:
        """Give a record's changes to the rings of its lane."""
        block = block_of(logged)
        if logged.offset < state.next_offset:
            return
        jumped = logged.offset > state.next_offset
        if block is None:
            if not jumped:
                self._note(state, logged)
            return
        if jumped:
            # Of the records in between nothing is known: this one's rows are the first again.
            place = max(place_of(block.version[0]) - 1, state.seen.place)
            for ring in state.rings:
                ring.restart(Position(logged.offset - 1, place))
        after = state.seen.place
        for ring in tuple(state.rings):
            life = ring.life
            changes = await self._rendering.changes(ring.subject, logged, block, after)
            if ring.life == life:
                ring.add(changes, max(end_of(logged, block), ring.head, key=lambda p: p.place))
            self._stirred.add(ring)
        self._note(state, logged)

    def _wake(self) -> None:
        """Have the readers of the rings in which something is new look at them."""
        while self._stirred:
            for reader in self._stirred.pop().readers:
                reader.wake()

    # -- who follows -------------------------------------------------------------------------------

    async def open(self, door: Follow, inbound: Inbound, valid: Callable[[], float]) -> Reader:
        """A place for a reader, at its position; to be given to `serve`, or to `leave`. Raises
        Refused, Unavailable.
        """
        if self._closing:
            raise Unavailable("the server stops")
        if not self._live.ready():
            raise Unavailable("the live view is still reading the log")
        if self._places >= self._settings.stream_readers_max:
            raise Unavailable("too many streams", retry_after_ms=5_000)
        following = door.parse(inbound, self._catalogue)
        self._places += 1
        self._all_gone.clear()
        try:
            ring = await self._ring(door, inbound.caller.tenant, following.device)
            since = following.since
            position = await self._position(ring, since) if since else ring.head
        except BaseException:
            self._left()
            raise
        expires_ms = inbound.caller.expires_ms
        reader = Reader(ring, following.series, expires_ms=expires_ms, valid=valid)
        if position is None:
            reader.gap = NO_SUCH
        reader.stand(position or NOTHING)
        reader.sent_ms = self._clock.monotonic_ms()
        ring.readers.add(reader)
        metrics.STREAM_READERS.inc()
        return reader

    async def _ring(self, door: Follow, tenant: str, device: str) -> Ring:
        key = (tenant, device, door.event)
        self._idle_since_ms[key] = self._clock.monotonic_ms()
        if (found := self._rings.get(key)) is not None:
            return found
        series = self._catalogue.series(tenant, device, "")
        lane = lane_of(series, self._log.lanes)
        life = await self._log.incarnation(SAMPLES_ACCEPTED)
        state = self._lanes[lane]
        await self._learn(lane, state)
        if (found := self._rings.get(key)) is not None:
            return found
        subject = Subject(
            tenant, device, lane, series >> LANE_SHIFT, mark_of(life, lane), door.event
        )
        ring = self._rings[key] = Ring(
            subject,
            state.seen,
            changes_max=self._settings.stream_changes_max,
            bytes_max=self._settings.stream_bytes_max,
        )
        state.rings.append(ring)
        return ring

    async def _position(self, ring: Ring, since: str) -> Position | None:
        """The position behind an id; None where the log has never had it. Raises Unavailable."""
        position, lane = position_of(ring.subject.mark, since), ring.subject.lane
        if position is not None and position.place > ring.head.place:
            end = (await self._log.spans(SAMPLES_ACCEPTED))[lane].end
            return position if position.offset < end else None
        return position

    async def _learn(self, lane: int, state: _Lane) -> None:
        """Find out what went by before the first record that was heard of."""
        if state.learned:
            return
        first = state.first if state.first >= 0 else self._live.offsets[lane]
        before = await passed_before(self._log, lane, first)
        state.learned = True
        state.first = first
        state.next_offset = max(state.next_offset, first)
        state.seen = max(before, state.seen, key=lambda position: position.place)

    async def serve(self, reader: Reader, wire: Wire) -> None:
        """Send the reader what comes, until it goes away or has to go; gives up its place."""
        pump = asyncio.create_task(self._pump(reader, wire))
        gone = asyncio.create_task(wire.gone())
        ended = asyncio.create_task(reader.ended.wait())
        tasks: set[asyncio.Task[Any]] = {pump, gone, ended}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                text = "" if gone.exception() else gone.result()
                reader.end(Ending("refused", NOT_TAKEN, text) if text else GONE)
            # What is under way goes first, so that the reason can follow it.
            await asyncio.wait({pump}, timeout=0 if reader.ending is GONE else _LAST_SECONDS)
            if pump.done():
                pump.result()
            if pump.done() and reader.ending not in (None, GONE):
                assert reader.ending is not None
                # Granian's WebSocket does not close while somebody waits for a message.
                gone.cancel()
                with suppress(TimeoutError, RuntimeError):
                    async with asyncio.timeout(_LAST_SECONDS):
                        await wire.close(reader.ending.code, reader.ending.reason)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.leave(reader)

    def leave(self, reader: Reader) -> None:
        """Give up the reader's place."""
        ring = reader.ring
        if reader not in ring.readers:
            return
        ring.readers.discard(reader)
        if not ring.readers:
            subject = ring.subject
            key = (subject.tenant, subject.device, subject.event)
            self._idle_since_ms[key] = self._clock.monotonic_ms()
        metrics.STREAM_READERS.dec()
        metrics.STREAM_ENDS.labels((reader.ending or GONE).name).inc()
        self._left()

    def _left(self) -> None:
        self._places -= 1
        if not self._places:
            self._all_gone.set()

    async def _pump(self, reader: Reader, wire: Wire) -> None:
        """Send until the reader has to go."""
        try:
            await self._send(reader, wire.open(reader.at))
            while reader.ending is None:
                await self._say_gap(reader, wire)
                if reader.behind and reader.sent_in_ms >= _SLOW_MS:
                    reader.end(SLOW)
                elif not reader.joined:
                    await self._replay(reader, wire)
                elif (found := reader.take(wire.frame)) is None:
                    await self._rest(reader, wire)
                elif found[1]:
                    await self._send(reader, wire.send(found[0]), found[1])
        except Unavailable:
            reader.end(AWAY)
        except RuntimeError:
            # Granian's word for a connection that is gone.
            reader.end(GONE)

    async def _replay(self, reader: Reader, wire: Wire) -> None:
        """Send what is on the log until the ring has what comes next."""
        metrics.STREAM_REPLAYS.inc()
        tenant = reader.ring.subject.tenant
        turn = self._replays.setdefault(tenant, asyncio.Semaphore(_REPLAYS_MAX))
        async with (
            turn,
            aclosing(replay(self._log, self._rendering, reader)) as found,
        ):
            async for changes in found:
                await self._say_gap(reader, wire)
                while changes and reader.ending is None:
                    batch = cut(changes)
                    await self._send(reader, wire.send(wire.frame(batch)), len(batch))
                    changes = changes[len(batch) :]
                if reader.beat_due:
                    await self._beat(reader, wire)
                if reader.ending is not None:
                    return

    async def _say_gap(self, reader: Reader, wire: Wire) -> None:
        if reader.gap:
            reason, reader.gap = reader.gap, ""
            metrics.STREAM_GAPS.inc()
            await self._send(reader, wire.gap(reason))

    async def _rest(self, reader: Reader, wire: Wire) -> None:
        """There is nothing to send."""
        if reader.beat_due:
            await self._beat(reader, wire)
        else:
            await reader.wait()

    async def _beat(self, reader: Reader, wire: Wire) -> None:
        reader.beat_due = False
        await self._send(reader, wire.beat(reader.at))

    async def _send(self, reader: Reader, sending: Awaitable[None], changes: int = 0) -> None:
        """Let a send take its time; how long it does is looked at by `tidy`."""
        began_ms = reader.sending_since_ms = self._clock.monotonic_ms()
        await sending
        reader.sending_since_ms = None
        reader.sent_ms = self._clock.monotonic_ms()
        reader.sent_in_ms = reader.sent_ms - began_ms
        if changes:
            metrics.STREAM_CHANGES.inc(changes)

    # -- keeping house -----------------------------------------------------------------------------

    def configured(self, change: Configured) -> None:
        """Something was configured that may make a credential good for nothing."""
        if change.kind in _CREDENTIALS:
            self._doubt = True

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSE_SECONDS)
            self.tidy()

    def tidy(self) -> None:
        """Once in a while: end whom the credential, or the time for a send, has run out; have
        heartbeats sent; let go of rings that nobody follows.
        """
        doubt, self._doubt = self._doubt, False
        for key, ring in tuple(self._rings.items()):
            for reader in tuple(ring.readers):
                self._look_at(reader, doubt=doubt)
            idle_ms = self._clock.monotonic_ms() - self._idle_since_ms.get(key, 0.0)
            if not ring.readers and idle_ms > _IDLE_MS:
                del self._rings[key]
                self._idle_since_ms.pop(key, None)
                self._lanes[ring.subject.lane].rings.remove(ring)

    def _look_at(self, reader: Reader, *, doubt: bool) -> None:
        now_ms, settings = self._clock.monotonic_ms(), self._settings
        since_ms = reader.sending_since_ms
        if since_ms is not None:
            stalled_ms = _SLOW_MS if reader.behind else settings.stream_stalled_seconds * 1000
            if now_ms - since_ms >= stalled_ms:
                reader.end(SLOW)
        if reader.expires_ms <= self._clock.now_ms():
            reader.end(EXPIRED)
        if doubt:
            try:
                reader.expires_ms = reader.valid()
            except Refused:
                reader.end(REVOKED)
        if since_ms is None and now_ms - reader.sent_ms > settings.stream_heartbeat_seconds * 1000:
            reader.beat_due = True
            reader.wake()

    async def hang_up(self) -> None:
        """End every stream, and take no more: the server stops. Returns when they are gone, or
        will not go by themselves.
        """
        self._closing = True
        for ring in self._rings.values():
            for reader in tuple(ring.readers):
                reader.end(STOPPED)
        with suppress(TimeoutError):
            async with asyncio.timeout(_HANG_UP_SECONDS):
                await self._all_gone.wait()


def _rows(logged: Logged) -> int:
    envelope = logged.envelope
    return envelope.rows if isinstance(envelope, Envelope) else 1
