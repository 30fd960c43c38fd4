"""The writing thread of the embedded log: group commit, one transaction a turn.

A turn takes everything that was handed over since the last one (records of all lanes, commits of
groups, checkpoints, deletions), makes bytes of it here, away from the loop, commits once, and tells
the loop once. Then it looks again; it sleeps only when nothing is there.

The interpreter's lock is not fair: whoever waits for it asks for it only after the switch interval,
and the question is forgotten each time the holder lets go for a moment, as a loop does when it
polls. Beside a loop that never rests this thread waited up to 34 seconds for one turn (measured).
So the interval is made short, and the loop's thread gives way when a turn takes long.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from asyncio import AbstractEventLoop
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from schemas.blocks import Block
from schemas.envelope import Envelope, Receipts, Undecodable, decode
from services.clock import Clock
from services.errors import Unavailable
from services.eventlog._coalesce import Coalescer, Encoded, Gathered, LaneKey, encoded
from services.eventlog._port import Span
from services.eventlog._sqlite_file import LogFile, Row, Statement, base_of, pack_headers

_TURN_BYTES_MAX = 8 * 1024 * 1024
_LANE_RECORDS_MAX = 256
_SWITCH_SECONDS = 0.0002
_PATIENCE_SECONDS = 0.005
_AGAIN_SECONDS = 0.001
_REST_SECONDS = 0.0001
_log = logging.getLogger(__name__)


Answer = tuple[Callable[[Exception | None, Any], None], Exception | None, Any]
"""A callback, the error or None, and the offset or what a job touched."""


@dataclass(frozen=True, slots=True)
class Job:
    """Statements for one transaction; `done` is called in the loop's thread with an error or with
    the number of rows that each statement touched.
    """

    statements: Sequence[Statement]
    done: Callable[[Exception | None, Sequence[int]], None]


@dataclass(slots=True)
class Turn:
    """What became of one turn, for the loop's thread.

    `landed` holds the records with their offsets, `failed` records with the reason, `jobs` the jobs
    with what they touched. `bytes` are those of the landed values, by topic.
    """

    landed: list[tuple[Gathered, Envelope | Undecodable, int]] = field(default_factory=list)
    failed: list[tuple[Gathered, Exception]] = field(default_factory=list)
    jobs: list[tuple[Job, Sequence[int]]] = field(default_factory=list)
    jobs_failed: list[tuple[Job, Exception]] = field(default_factory=list)
    bytes: Counter[str] = field(default_factory=Counter)

    def answers(self) -> Iterator[Answer]:
        """Every callback of the turn with what to tell it."""
        for gathered, _, offset in self.landed:
            for part in gathered.parts:
                yield part.done, None, offset
        for gathered, error in self.failed:
            for part in gathered.parts:
                yield part.done, error, -1
        for job, touched in self.jobs:
            yield job.done, None, touched
        for job, error in self.jobs_failed:
            yield job.done, error, ()


class Writer(threading.Thread):
    """`add`, `nudge`, `stop`, `abandon` belong to the loop's thread, the rest to this one."""

    def __init__(
        self,
        file: LogFile,
        coalescer: Coalescer,
        *,
        loop: AbstractEventLoop,
        clock: Clock,
        ends: Mapping[LaneKey, int],
        told: Callable[[Turn], None],
        found: Callable[[Mapping[LaneKey, Span]], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        super().__init__(name="eventlog-writer", daemon=True)
        self._file, self._coalescer, self._loop, self._clock = file, coalescer, loop, clock
        self._next = dict(ends)
        self._told, self._found, self._ended = told, found, ended
        self._jobs: deque[Job] = deque()
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._stopping = False
        self._abandoned = False
        self._watched = False
        self._turns = 0
        self._in_hand: deque[tuple[Sequence[Gathered], Sequence[Job]]] = deque()

    # -- the loop's side ---------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Hand a job over; it runs behind the records that were put before it."""
        self._jobs.append(job)
        self.nudge()

    def nudge(self) -> None:
        """Something was handed over. A sleeping thread is woken at the loop's next turn, so that
        what one turn of the loop brings becomes one transaction.
        """
        if self._idle:
            self._idle = False
            self._loop.call_soon(self._tokens.put, None)
        if not self._watched:
            self._watched = True
            self._loop.call_later(_PATIENCE_SECONDS, self._watch, self._turns)

    def _watch(self, turns: int) -> None:
        """While something waits and no turn comes back, rest now and then: a sleep of this thread
        is what surely lets the other one run.
        """
        if self._abandoned or not (self._coalescer.queued_bytes or self._jobs or self._in_hand):
            self._watched = False
            return
        stuck = turns == self._turns
        if stuck:
            time.sleep(_REST_SECONDS)
        wait = _AGAIN_SECONDS if stuck else _PATIENCE_SECONDS
        self._loop.call_later(wait, self._watch, self._turns)

    def stop(self) -> None:
        """Write what is there, then end."""
        self._stopping = True
        self._tokens.put(None)

    def abandon(self) -> Turn:
        """End without writing what is there: it comes back as failed, with what is being written
        at the moment.
        """
        self._abandoned = True
        error = Unavailable("the event log was closed before this was durable")
        self._in_hand.append(
            (self._coalescer.take(bytes_max=1 << 60, each_max=1 << 30), self._jobs)
        )
        return Turn(
            failed=[(gathered, error) for taken, _ in self._in_hand for gathered in taken],
            jobs_failed=[(job, error) for _, jobs in self._in_hand for job in jobs],
        )

    def _tell(self, turn: Turn) -> None:
        if not self._abandoned:
            self._in_hand.popleft()
            self._turns += 1
            self._told(turn)

    # -- the thread's side -------------------------------------------------------------------------

    def run(self) -> None:
        """Turn after turn until `stop`."""
        failure: Exception | None = None
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        try:
            while self._wait():
                self._turn()
                self._file.tidy()
        except Exception as error:
            _log.exception("the event log's writer ends")
            failure = error
        try:
            self._file.close()
        finally:
            self._post(self._ended, failure)

    def _wait(self) -> bool:
        """Sleep until something is there; False if nothing is and nothing shall come."""
        if self._abandoned:
            return False
        if self._coalescer.waits or self._jobs:
            return True
        if self._stopping:
            return False
        # First the flag, then a second look: whoever hands over looks at the flag afterwards.
        self._idle = True
        if not (self._coalescer.waits or self._jobs):
            self._tokens.get()
        self._idle = False
        return True

    def _turn(self) -> None:
        # Jobs first: what they count on was handed over before them, so the records are taken too.
        jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
        taken = self._coalescer.take(bytes_max=_TURN_BYTES_MAX, each_max=_LANE_RECORDS_MAX)
        if not (jobs or taken):
            return
        self._in_hand.append((taken, jobs))
        turn = Turn()
        ready, turn.failed = encoded(taken)
        try:
            if not self._file.writable:
                self._reopen()
            rows, nexts = self._placed(ready, turn)
            statements = [statement for job in jobs for statement in job.statements]
            touched = iter(self._file.write(rows, statements))
        except Unavailable as error:
            turn.landed, turn.bytes = [], Counter()
            turn.failed += [(record.gathered, error) for record in ready]
            turn.jobs_failed = [(job, error) for job in jobs]
        else:
            self._next.update(nexts)
            turn.jobs = [(job, [next(touched) for _ in job.statements]) for job in jobs]
        self._post(self._tell, turn)

    def _reopen(self) -> None:
        """After a failure: what the file holds now counts, even what was told to have failed."""
        self._file.reopen()
        spans = self._file.spans()
        self._next.update({key: span.end for key, span in spans.items()})
        self._post(self._found, spans)

    def _placed(self, ready: Sequence[Encoded], turn: Turn) -> tuple[list[Row], dict[LaneKey, int]]:
        """The rows to insert, and the lanes' next offsets once they are in."""
        at_ms = self._clock.now_ms()
        nexts: dict[LaneKey, int] = {}
        rows = []
        for record in ready:
            gathered, envelope, value, headers = record
            key = (gathered.topic.name, gathered.lane)
            offset = nexts.get(key)
            if offset is None:
                offset = self._next.get(key, 0)
            nexts[key] = offset + 1
            number, _ = self._file.topics[key[0]]
            place = base_of(number, key[1]) + offset
            rows.append(Row(place, at_ms, envelope.key, pack_headers(headers), value))
            turn.landed.append((gathered, _readable(record), offset))
            turn.bytes[key[0]] += len(value)
        return rows, nexts

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The loop is closed: nobody is left who could be told.
            self._stopping = True


def _readable(record: Encoded) -> Envelope | Undecodable:
    """The record as a reader of the file would get it. Columns come back as they went in; what
    lies there as JSON may not (a tuple becomes a list), and is small.
    """
    if isinstance(record.envelope.record, Block | Receipts):
        return record.envelope
    envelope = decode(record.value, record.headers)
    if isinstance(envelope, Envelope):
        envelope.key = record.envelope.key
    return envelope
