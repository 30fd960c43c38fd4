"""The lane keeper: holds one lane's state and position for one agent, whatever drives it.

**The lane's position is the only truth.** A runner hands over records in any order, again, or not
at all; the keeper applies exactly the record behind its position, passes over what is at or below
it, and has the lane sought back when one is missing. So nothing that a runner loses, repeats,
reorders or commits too early can change a result.

Order of effects: outputs are durable, then the checkpoint (state and position together) is. A crash
in between repeats the outputs with the same versions. A checkpoint is cut into pieces below a
record's size limit; two generations of slots are used in turn, so that a crash between the pieces
leaves the older generation whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Any, Protocol

from schemas.blocks import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block
from schemas.envelope import (
    Envelope,
    Letter,
    Logged,
    Outgoing,
    Position,
    Tick,
    Undecodable,
    join,
    joinable,
)
from services import metrics
from services.agents._contract import OWN_LANE, Agent, Outcome
from services.agents._guard import until_available
from services.clock import Clock
from services.errors import Broken
from services.eventlog import EventLog
from services.settings import Settings
from services.store import Query, Store

PIECE_BYTES_MAX = 900 * 1024
GENERATION_SLOTS = 1024
_PIECE = Struct("<HHII")
"""Pieces of the checkpoint, this one's number, the packed state's length and CRC-32."""

_QUEUE_PAUSE, _QUEUE_RESUME, _QUEUE_MAX = 64, 16, 1024
_TURN_BYTES_MAX = 256 * 1024
_SMALL_STATE_BYTES = 1 << 20
_BIG_STATE_SECONDS = 600
_NEVER_MS = 3_600_000.0
_SEEK_AGAIN_MS = 500
TICK_AGAIN_MS = 3_000
"""A tick that has not come back by then is appended again. A lane that was just loaded waits as
long for the first one: it may lie on the log already.
"""
_LOOK_MS = 1_000
"""The wall clock may jump: a lane that waits for a moment looks at it so often."""

_logger = logging.getLogger(__name__)


class Drive(Protocol):
    """What the keeper asks of the runner that drives its lane. None of it has to work: the keeper
    asks again.
    """

    def seek(self, lane: int, offset: int) -> None:
        """Deliver from `offset` on."""
        ...

    def pause(self, lane: int) -> None:
        """Deliver nothing until `resume`."""
        ...

    def resume(self, lane: int) -> None:
        """Deliver again."""
        ...

    async def commit(self, lane: int, next_offset: int) -> None:
        """Tell the log how far the lane is checkpointed (for retention and lag; it carries no
        meaning here).
        """
        ...


@dataclass(slots=True)
class Readiness:
    """Why an agent's lanes in this process are not judged yet; None: they are."""

    why_not: str | None = "no lanes were given yet"


@dataclass(frozen=True, slots=True)
class Parts:
    """What all lanes of an agent share."""

    agent: Agent
    log: EventLog
    store: Store
    clock: Clock
    settings: Settings
    epoch: int
    readiness: Readiness = field(default_factory=Readiness)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A lane's packed state, the last offset it covers, and the generation of slots it lies in."""

    state: bytes
    offset: int
    generation: int


class LaneKeeper:
    """One lane of one agent. `offer` is called by the runner, `run` is the lane's own task."""

    def __init__(
        self,
        parts: Parts,
        lane: int,
        drive: Drive,
        *,
        begin: int,
        whole: bool,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        agent = parts.agent
        self.parts, self.lane, self._drive = parts, lane, drive
        self.state: Any = agent.unpack(checkpoint.state) if checkpoint else agent.fresh(whole)
        self.position = checkpoint.offset if checkpoint else begin - 1
        """Offset of the last record applied."""
        self.waiting = False
        """Whether the lane waits for the log or the store: then it does not move, and nobody is to
        blame.
        """
        self._generation = checkpoint.generation if checkpoint else 1
        self._packed_bytes = len(checkpoint.state) if checkpoint else 0
        self._bytes_read = 0
        self._checkpointed = self.position
        self._checkpointed_ms = parts.clock.monotonic_ms()
        self._queue: deque[Logged] = deque()
        self._awake = asyncio.Event()
        self._seeking = self._paused = False
        self._gap = False
        """Whether records came that lie beyond the expected one."""
        self._sought_ms = 0.0
        self._open = False
        """Whether records are applied whose outputs are not durable yet."""
        self._stored = -1
        self._ticked_ms: float | None = parts.clock.monotonic_ms()
        """When a tick was appended that has not been read yet."""
        self._refusals = _Refusals(parts.settings)

    # -- the runner's side

    @property
    def expected(self) -> int:
        """The next offset that the lane will take."""
        return self._queue[-1].offset + 1 if self._queue else self.position + 1

    @property
    def queued(self) -> int:
        """Records taken and not yet applied."""
        return len(self._queue)

    def offer(self, logged: Logged) -> None:
        """Take a record if it is the expected one. May be called with any record, any number of
        times.
        """
        place = self._place(logged.offset)
        if place < 0:
            metrics.LANE_SKIPPED.inc()
            return
        if place > 0 or len(self._queue) >= _QUEUE_MAX:
            self._gap = True
            self.seek_back()
            return
        self._seeking = self._gap = False
        self._queue.append(logged)
        self._awake.set()
        if len(self._queue) >= _QUEUE_PAUSE and not self._paused:
            self._paused = True
            self._drive.pause(self.lane)

    def _place(self, offset: int) -> int:
        """Where a record stands: negative is done already, 0 is the expected one, positive leaves
        some out.
        """
        return offset - self.expected

    def seek_back(self, *, again: bool = False) -> None:
        """Have the lane delivered from the expected record on; once in a while until that comes,
        at once with `again`.
        """
        now_ms = self.parts.clock.monotonic_ms()
        if self._seeking and not again and now_ms - self._sought_ms < _SEEK_AGAIN_MS:
            return
        self._seeking, self._sought_ms = True, now_ms
        metrics.LANE_GAPS.inc()
        self._drive.seek(self.lane, self.expected)

    def stored(self, offset: int) -> None:
        """The store has everything of the lane up to and including `offset`."""
        self._stored = max(self._stored, offset)

    def jump(self, begin: int, *, afresh: bool = False) -> None:
        """Go on at `begin`: what the lane expected is no longer on the log.

        Nobody has judged it where this lane was the one to do so. With `afresh` somebody may have:
        the state is a checkpoint's, and counts as lost like it.
        """
        lost = begin - self.expected
        metrics.LANE_MISSING.inc(lost)
        _logger.error(
            "lane %d of %s: %d records from offset %d on went by retention before it read them",
            self.lane,
            self.parts.agent.source.name,
            lost,
            self.expected,
        )
        self._queue.clear()
        if afresh:
            self.state = self.parts.agent.fresh(False)
        self.position = begin - 1
        self._drive.seek(self.lane, begin)

    # -- the lane's task

    async def run(self) -> None:
        """Apply what was offered, for ever: outputs, then (when due) the checkpoint. Ends by being
        cancelled.
        """
        while True:
            if not self._queue:
                self._awake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rest_ms() / 1000):
                        await self._awake.wait()
                if self._gap and not self._queue:
                    self.seek_back()
            if self._queue:
                await self._turn()
            if self._tick_in_ms() <= 0:
                await self._tick()
            if self._checkpoint_in_ms() <= 0:
                await self.checkpoint()

    def _rest_ms(self) -> float:
        """How long the lane may rest where nothing comes."""
        due_ms = min(self._checkpoint_in_ms(), self._tick_in_ms())
        return max(0.0, min(due_ms, _SEEK_AGAIN_MS) if self._gap else due_ms)

    async def _turn(self) -> None:
        """Apply what waits, within a bound, and make its outputs durable as few records."""
        self.parts.agent.stored(self.state, self._stored)
        out: list[Outgoing] = []
        tally: Counter[str] = Counter()
        turn_bytes = 0
        self._open = True
        while self._queue and turn_bytes < _TURN_BYTES_MAX:
            logged = self._queue[0]
            outcome = await self._apply(logged)
            out += _placed(outcome, self.lane)
            tally.update(outcome.tally)
            turn_bytes += _bytes_of(logged)
        self._bytes_read += turn_bytes
        if self._paused and len(self._queue) <= _QUEUE_RESUME:
            self._paused = False
            self._drive.resume(self.lane)
        if out:
            joined = _joined(out)
            self.waiting = True
            await until_available(lambda: self.parts.log.append(joined), what="the event log")
            self.waiting = False
        self._open = False
        metrics.count(tally)
        metrics.LANE_POSITION.labels(self.parts.agent.name, str(self.lane)).set(self.position + 1)

    async def _apply(self, logged: Logged) -> Outcome:
        """One record. It stays at the head of the queue until it is applied, so that it cannot be
        taken twice.
        """
        agent, envelope = self.parts.agent, logged.envelope
        position = Position(self.parts.epoch, logged.offset)
        answers: list[Block] = []
        if isinstance(envelope, Undecodable):
            self._refusals.note(bad=True)
        else:
            self._refusals.note(bad=False)
            for query in agent.ask(self.state, position, envelope) if agent.ask else ():
                metrics.STORE_QUESTIONS.inc()
                answers.append(await self._asked(query))
        outcome = agent.step(self.state, position, envelope, answers, self.parts.log.lanes)
        record = envelope.record if isinstance(envelope, Envelope) else None
        if isinstance(record, Tick) and record.key == agent.name:
            self._ticked_ms = None
        self.position = logged.offset
        self._queue.popleft()
        return outcome

    async def _asked(self, query: Query) -> Block:
        self.waiting = True
        answer = await until_available(lambda: self.parts.store.fetch(query), what="the store")
        self.waiting = False
        return answer

    # -- ticks

    def _tick_in_ms(self) -> float:
        """Milliseconds until the lane is to be told the time, or until that is to be looked at
        again; 0 or less: now.
        """
        parts = self.parts
        due_ms = parts.agent.due(self.state) if parts.agent.due else None
        if due_ms is None:
            return _NEVER_MS
        wait_ms = float(due_ms - parts.clock.now_ms())
        if self._ticked_ms is not None:
            wait_ms = max(wait_ms, self._ticked_ms + TICK_AGAIN_MS - parts.clock.monotonic_ms())
        return min(wait_ms, _LOOK_MS)

    async def _tick(self) -> None:
        """Have the log say the time to the lane: behind all that lies there already, and to every
        later reading of it.
        """
        parts = self.parts
        self._ticked_ms = parts.clock.monotonic_ms()
        assert parts.agent.tick is not None, f"{parts.agent.name} is due and has no tick"
        tick = parts.agent.tick(self.state, parts.clock.now_ms())
        self.waiting = True
        await until_available(
            lambda: parts.log.append([(parts.agent.source, self.lane, tick)]), what="the event log"
        )
        self.waiting = False

    # -- checkpoints

    def _checkpoint_in_ms(self) -> float:
        """Milliseconds until a checkpoint is due; 0 or less: now. A lane that has not moved needs
        none.
        """
        if self.position == self._checkpointed:
            return _NEVER_MS
        if self._bytes_read > 4 * max(self._packed_bytes, _TURN_BYTES_MAX):
            return 0
        small = self._packed_bytes < _SMALL_STATE_BYTES
        seconds = self.parts.settings.checkpoint_seconds if small else _BIG_STATE_SECONDS
        elapsed_ms = self.parts.clock.monotonic_ms() - self._checkpointed_ms
        return max(0.0, seconds * 1000 - elapsed_ms)

    async def checkpoint(self) -> None:
        """Make state and position durable. Every output up to the position is durable already."""
        packed, offset = self.parts.agent.pack(self.state), self.position
        # The turn passes only when all pieces are there: what is cut short, and then tried again on
        # the way out, must not begin to replace the generation that is whole.
        generation = 1 - self._generation
        for slot, piece in cut(packed, generation):
            await self._keep(slot, piece, offset)
        self._generation = generation
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_BYTES.inc(len(packed))
        self._packed_bytes, self._bytes_read = len(packed), 0
        self._checkpointed, self._checkpointed_ms = offset, self.parts.clock.monotonic_ms()
        await self._drive.commit(self.lane, offset + 1)

    async def checkpoint_if_clean(self) -> None:
        """On the way out: keep what is known to be put out; after a turn that was cut short there
        is nothing to keep.
        """
        if not self._open and self.position != self._checkpointed:
            await self.checkpoint()

    async def _keep(self, slot: int, piece: bytes, offset: int) -> None:
        log, name, epoch = self.parts.log, self.parts.agent.name, self.parts.epoch
        await until_available(
            lambda: log.checkpoint(name, self.lane, slot, piece, offset, epoch),
            what="the event log",
        )


def cut(packed: bytes, generation: int) -> Iterator[tuple[int, bytes]]:
    """(slot, piece) pairs of a packed state; the pieces say how many they are and what they add up
    to.
    """
    count = max(1, -(-len(packed) // PIECE_BYTES_MAX))
    total, crc = len(packed), zlib.crc32(packed)
    for number in range(count):
        piece = packed[number * PIECE_BYTES_MAX : (number + 1) * PIECE_BYTES_MAX]
        yield generation * GENERATION_SLOTS + number, _PIECE.pack(count, number, total, crc) + piece


def newest(slots: Mapping[int, tuple[bytes, int, int]], epoch: int) -> Checkpoint | None:
    """The checkpoint with the highest offset of which all pieces are there, from slot -> (piece,
    offset, epoch).

    One of another epoch counts as lost.
    """
    whole: list[Checkpoint] = []
    for generation in (0, 1):
        first = slots.get(generation * GENERATION_SLOTS)
        if first is None or first[2] != epoch:
            continue
        count, _, total, crc = _PIECE.unpack_from(first[0])
        pieces = [slots.get(generation * GENERATION_SLOTS + number) for number in range(count)]
        if any(piece is None or piece[1:] != first[1:] for piece in pieces):
            continue
        state = b"".join(piece[0][_PIECE.size :] for piece in pieces if piece is not None)
        if len(state) == total and zlib.crc32(state) == crc:
            whole.append(Checkpoint(state, first[1], generation))
    return max(whole, key=lambda checkpoint: checkpoint.offset, default=None)


class _Refusals:
    """The limit of dead letters: beyond it, it is our fault and not the data's, and the worker
    stops.
    """

    def __init__(self, settings: Settings) -> None:
        self._share_max, self._run_max = settings.refused_share_max, settings.refused_run_max
        self._recent: deque[bool] = deque(maxlen=10_000)
        self._bad = self._run = 0

    def note(self, *, bad: bool) -> None:
        """Count one record. Raises Broken beyond the limit."""
        if not bad and not self._bad:
            return
        if len(self._recent) == self._recent.maxlen:
            self._bad -= self._recent[0]
        self._recent.append(bad)
        self._bad += bad
        self._run = self._run + 1 if bad else 0
        share = self._bad / 10_000
        if self._run > self._run_max or share > self._share_max:
            raise Broken(
                f"{self._bad} of the last {len(self._recent)} records cannot be read, "
                f"{self._run} in a row"
            )


def _placed(outcome: Outcome, lane: int) -> Iterator[Outgoing]:
    """What a step puts out, with the lane where it could not know it: what cannot be read does not
    say whose it is.
    """
    for topic, to, envelope in outcome.out:
        letter = envelope.record
        if isinstance(letter, Letter) and letter.lane == OWN_LANE:
            envelope.record = replace(letter, lane=lane)
        yield topic, lane if to == OWN_LANE else to, envelope


def _bytes_of(logged: Logged) -> int:
    envelope = logged.envelope
    return len(envelope.body) if isinstance(envelope, Undecodable) else envelope.bytes_estimate


def _joined(out: list[Outgoing]) -> list[Outgoing]:
    """The same outputs as few records: neighbours of one topic and lane become one, within a
    record's limits.
    """
    joined: list[Outgoing] = []
    last: dict[tuple[str, int], Envelope] = {}
    for topic, lane, envelope in out:
        into = last.get((topic.name, lane))
        if (
            into is not None
            and joinable(envelope.record)
            and into.rows + envelope.rows <= BLOCK_ROWS_MAX
            and into.bytes_estimate + envelope.bytes_estimate <= BLOCK_BYTES_MAX
        ):
            join(into, envelope)
            continue
        joined.append((topic, lane, envelope))
        if joinable(envelope.record):
            last[topic.name, lane] = envelope
    return joined
