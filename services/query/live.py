"""The live view: follows the accepted samples, so that latest values come from memory and ranges
see what the store does not have yet.

Nothing may fall between store and tail. So at the start the sink's committed offsets are read
first, then the newest sample of every series from the store, then the log from those offsets on:
whatever was committed is in the store's answer, whatever was not is followed. From then on a mark
of the sink (`lanes.stored`) is what takes blocks out of the tail. A sink that ends between commit
and mark leaves none, and an idle lane gets no other; so while there is a tail, what is committed is
also looked at now and then.

All of it is of one life of the topics. Where one was made anew, the log says so (Broken), and the
process ends and starts anew, as those of the agents and sinks do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from schemas.blocks import Block
from schemas.envelope import Envelope, Logged, Mark, Tick
from schemas.points import lane_of
from schemas.queries import LatestQuery, RangeQuery
from schemas.topics import (
    CATALOGUE_CHANGED,
    LANES_STORED,
    SAMPLES_ACCEPTED,
    SAMPLES_RECEIVED,
    SINK_GROUP,
)
from services.errors import Unavailable
from services.eventlog import Batch, EventLog, Reader, Span
from services.metrics import LATEST_SERIES, TAIL_ROWS
from services.query._fence import Fence
from services.query._latest import Latest
from services.query._tail import Tail, merge
from services.settings import Settings
from services.store import Store

_RECORDS_MAX = 64
_REST_ROWS = 4_096
"""After so many rows the event loop's other tasks get their turn."""
_COMMITTED_SECONDS, _COMMITTED_WAIT_SECONDS = 2, 0.5
_BACK_OFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_KEPT_FAILURES = 10
"""After so many in a row, more than half a minute, the reader makes place for a new one."""

_logger = logging.getLogger(__name__)

Passed = Callable[[int, Logged], None]
"""Told of a lane's record of `samples.accepted` that the view has taken."""


class _Gap(Exception):
    """Records are gone that were never read: what is in memory may be wrong, start anew."""


class LiveView:
    """Latest values and the live tail. `run` follows for ever; the rest answers from memory and
    does not wait.
    """

    def __init__(self, log: EventLog, store: Store, settings: Settings) -> None:
        self._log, self._store = log, store
        self._rows_max = settings.tail_rows_max
        self._latest = Latest()
        self._tail = Tail(log.lanes, self._rows_max)
        self._fence = Fence(partial(log.spans, SAMPLES_RECEIVED))
        self._offsets: dict[int, int] = {}
        self._stored: Mapping[int, int] = {}
        self._marks_offset = 0
        self._life = ""
        self._goal: Mapping[int, int] = {}
        self._failures = 0
        self._warm = False
        self._ready = False
        self._passed: list[Passed] = []

    def on_record(self, passed: Passed) -> None:
        """Have `passed` called after each record; it must be quick and must not raise. After a gap
        the view goes on elsewhere, before or behind what it has read.
        """
        self._passed.append(passed)

    def ready(self) -> bool:
        """Whether everything has been read that was on the log when the view started."""
        return self._ready

    @property
    def offsets(self) -> Mapping[int, int]:
        """The next offset of `samples.accepted` that will be read in each lane."""
        return self._offsets

    @property
    def marks_offset(self) -> int:
        """The next offset of `lanes.stored` that will be read."""
        return self._marks_offset

    @property
    def tail_rows(self) -> int:
        """Samples in memory that are not known to be stored."""
        return self._tail.rows

    # -- answers -----------------------------------------------------------------------------------

    def latest(self, query: LatestQuery) -> Block:
        """The newest samples as a block with versions, in the order asked for. Raises
        Unavailable.
        """
        self._check_ready()
        return self._latest.select(query.tenant, query.series)

    def tail(self, query: RangeQuery) -> Block:
        """What the query asks for and the store may not have yet; to be taken before the store is
        asked, and given to `merge` with its answer. Raises Unavailable.
        """
        self._check_ready()
        return self._tail.select(query)

    async def passed(self, series: Iterable[int], *, seconds: float) -> None:
        """Wait until the view has everything of these series that was acknowledged before. Raises
        Unavailable.
        """
        self._check_ready()
        lanes = {lane_of(one, self._log.lanes) for one in series}
        await self._fence.passed(lanes, seconds=seconds)

    async def catalogue_end(self) -> int:
        """Where the catalogue's log ends now. Raises Unavailable."""
        return (await self._log.spans(CATALOGUE_CHANGED))[0].end

    @staticmethod
    def merge(query: RangeQuery, stored: Block, tail: Block) -> Block:
        """The store's answer and the tail that was taken before, as one answer."""
        return merge(query, stored, tail)

    def _check_ready(self) -> None:
        if not self._ready:
            raise Unavailable("the live view is still reading the log")

    # -- following ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the log until cancelled; waits with back-off for ever while log or store are
        away.
        """
        while True:
            try:
                if not self._warm:
                    await self._start()
                await self._follow()
            except (Unavailable, _Gap) as error:
                if isinstance(error, _Gap):
                    self._warm = self._ready = False
                await self._rest(error)

    async def _rest(self, error: Exception) -> None:
        seconds = _BACK_OFF_SECONDS[min(self._failures, len(_BACK_OFF_SECONDS) - 1)]
        self._failures += 1
        _logger.warning("live view goes on in %.1f s: %s", seconds, error)
        await asyncio.sleep(seconds)

    async def _start(self) -> None:
        self._life = await self._log.incarnation(SAMPLES_ACCEPTED)
        # Marks before this end are older than the commits that are read next, and say nothing new.
        marks = await self._log.spans(LANES_STORED)
        committed = await self._log.committed(SINK_GROUP, SAMPLES_ACCEPTED)
        spans = await self._log.spans(SAMPLES_ACCEPTED)
        await self._apply(await self._store.fetch(LatestQuery()))
        self._marks_offset = marks[0].end
        self._tail = Tail(self._log.lanes, self._rows_max)
        self._offsets = {lane: _first(committed.get(lane), span) for lane, span in spans.items()}
        self._goal = {lane: span.end for lane, span in spans.items()}
        self._stored = {lane: at for lane, at in committed.items() if at <= spans[lane].end}
        for lane, offset in self._stored.items():
            self._tail.stored(lane, offset)
        self._warm = True
        self._check_goal()

    async def _follow(self) -> None:
        async with self._log.reader([SAMPLES_ACCEPTED, LANES_STORED]) as reader:
            self._place(reader)
            looked = asyncio.get_running_loop().time()
            while True:
                try:
                    if batch := await reader.batch(records_max=_RECORDS_MAX):
                        await self._take(batch)
                except Unavailable as error:
                    # It finds its way back by itself, and sooner than a new one does.
                    if self._failures >= _KEPT_FAILURES:
                        raise
                    await self._rest(error)
                    self._place(reader)
                now = asyncio.get_running_loop().time()
                if self._tail.waits and now - looked > _COMMITTED_SECONDS:
                    looked = now
                    await self._take_committed()

    def _place(self, reader: Reader) -> None:
        for lane, offset in self._offsets.items():
            reader.seek(SAMPLES_ACCEPTED, lane, offset)
        reader.seek(LANES_STORED, 0, self._marks_offset)

    async def _take_committed(self) -> None:
        """Free what is stored, as far as the log tells in time: nobody who reads waits for that."""
        try:
            async with asyncio.timeout(_COMMITTED_WAIT_SECONDS):
                committed = await self._log.committed(SINK_GROUP, SAMPLES_ACCEPTED)
        except (TimeoutError, Unavailable) as error:
            _logger.info("live view: commits are looked at again later: %r", error)
            return
        for lane, offset in committed.items():
            # What was not read yet is passed over, as at the start.
            if offset <= self._offsets.get(lane, -1):
                self._tail.stored(lane, offset)

    async def _take(self, batch: Batch) -> None:
        if batch.topic == LANES_STORED:
            for logged in batch.records:
                self._take_mark(logged)
            self._marks_offset = batch.next_offset
        else:
            rows = 0
            for logged in batch.records:
                rows += self._take_block(batch.lane, logged)
                if rows >= _REST_ROWS:
                    rows = 0
                    await asyncio.sleep(0)
            if not self._ready:
                self._check_goal()
        self._failures = 0
        TAIL_ROWS.set(self._tail.rows)
        LATEST_SERIES.set(len(self._latest))

    def _take_mark(self, logged: Logged) -> None:
        mark = getattr(logged.envelope, "record", None)
        if not isinstance(mark, Mark) or mark.topic != SAMPLES_RECEIVED.name:
            return
        # A sink that has not noticed yet that the topic was made anew speaks of other offsets.
        if mark.life == self._life:
            self._tail.stored(mark.lane, mark.next_offset)

    def _take_block(self, lane: int, logged: Logged) -> int:
        """Let one record of `samples.accepted` count; returns how many rows it had."""
        expected = self._offsets[lane]
        if logged.offset < expected:
            return 0
        # What the store had when the view began may go at any time.
        if logged.offset > max(expected, self._stored.get(lane, 0)):
            raise _Gap(f"lane {lane} goes on at {logged.offset} instead of {expected}")
        self._offsets[lane] = logged.offset + 1
        for passed in self._passed:
            passed(lane, logged)
        envelope = logged.envelope
        block = getattr(envelope, "record", None)
        if isinstance(envelope, Envelope) and isinstance(block, Tick):
            self._fence.judged(lane, envelope.received)
            return 0
        judged = isinstance(block, Block) and len(block.version) == len(block)
        if not isinstance(envelope, Envelope) or not isinstance(block, Block) or not judged:
            # The sink sets such a record aside; here it is only passed over.
            _logger.warning("live view: no judged block in lane %d at %d", lane, logged.offset)
            return 0
        self._tail.add(lane, logged.offset, block)
        self._latest.apply(block)
        self._fence.judged(lane, envelope.received)
        return len(block)

    async def _apply(self, newest: Block) -> None:
        for start in range(0, len(newest), _REST_ROWS):
            self._latest.apply(newest.slice(start, start + _REST_ROWS))
            await asyncio.sleep(0)

    def _check_goal(self) -> None:
        self._ready = all(self._offsets[lane] >= end for lane, end in self._goal.items())


def _first(committed: int | None, span: Span) -> int:
    """Where to begin in a lane: at the last record that is stored, which says how far the lane is
    judged. A commit beyond the end belongs to an earlier life of the log.
    """
    if committed is None or committed > span.end:
        return span.begin
    return max(committed - 1, span.begin)
