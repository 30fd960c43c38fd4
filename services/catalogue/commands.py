"""Values that shall be written to points, in memory, following `commands.changed`.

Every process holds the newest commands: a door that takes them in, one that shows them, and the one
that has the device's connection and delivers them (`advance`). They meet in the log, none knows the
others. What is held is bounded by what the lanes' own order says, never by a clock, so that all
processes hold the same; what is older stays in the store's table. What waits is never forgotten:
where nothing else is held, a further request is not taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from schemas.commands import Command, State
from schemas.envelope import Envelope, Logged
from schemas.points import lane_of
from schemas.topics import COMMANDS_CHANGED
from services import metrics
from services.clock import pause
from services.domain import commands as rules
from services.errors import Refused, Taken, Unavailable, Unknown
from services.eventlog import EventLog

_log = logging.getLogger(__name__)

K = TypeVar("K")

POINT_COMMANDS_MAX = 100
"""Newest commands of a point that are held; a device's that may wait are no more than that."""
LANE_COMMANDS_MAX = 2_000
"""Newest commands of a lane that are held."""
LANE_OPEN_MAX = LANE_COMMANDS_MAX // 2
"""Commands of a lane that a process lets wait for delivery: far from what is held, so that what
other processes take in at the same moment finds room.
"""
_BATCH_WAIT_MS = 500
_SECONDS_MAX = 10


class _Lane:
    """One lane's commands by id, in the order in which they were asked for, and for each the
    offsets of the records that counted. `now_ms` is the newest moment that a record tells.
    """

    def __init__(self) -> None:
        self.commands: dict[str, Command] = {}
        self.counted: dict[str, tuple[int, ...]] = {}
        self.next_offset = 0
        self.now_ms = 0


class Commands:
    """The commands of this process; a fold over the log. Used in the loop's thread.

    `kept_ms` is how long the log keeps records: older commands are not shown, because a process
    that starts now does not know them.
    """

    def __init__(self, *, kept_ms: int = COMMANDS_CHANGED.retention_ms) -> None:
        self._kept_ms = kept_ms
        self._lanes: defaultdict[int, _Lane] = defaultdict(_Lane)
        self._lane_of_command: dict[str, int] = {}
        self._of_series: dict[int, dict[str, None]] = {}
        self._of_device: dict[tuple[str, str], dict[str, None]] = {}
        self._log: EventLog | None = None
        self._ends: Mapping[int, int] | None = None
        self._moved = asyncio.Event()

    # -- the fold ----------------------------------------------------------------------------------

    def apply(self, lane: int, offset: int, command: Command) -> None:
        """Take in the record at `offset` of a lane; one that was taken in already changes nothing,
        and so does a request for which there is no room.
        """
        held_lane = self._lanes[lane]
        if offset < held_lane.next_offset:
            return
        held_lane.next_offset = offset + 1
        held_lane.now_ms = max(held_lane.now_ms, command.changed_ms)
        held = held_lane.commands.get(command.id)
        now = rules.step(held, command)
        if now is None or now is held or (held is None and not self._room(held_lane, now)):
            return
        held_lane.commands[now.id] = now
        held_lane.counted[now.id] = (*held_lane.counted.get(now.id, ()), offset)
        if held is None:
            self._lane_of_command[command.id] = lane
            of_series = self._of_series.setdefault(command.series, {})
            of_device = self._of_device.setdefault((command.tenant, command.device), {})
            of_series[command.id] = of_device[command.id] = None
            self._forget(held_lane, of_series, POINT_COMMANDS_MAX)
            self._forget(held_lane, held_lane.commands, LANE_COMMANDS_MAX)

    def _room(self, lane: _Lane, command: Command) -> bool:
        """Whether a new command finds room beside those that wait."""

        def room(ids: Collection[str], held_max: int) -> bool:
            held = (lane.commands[id] for id in ids)
            return len(ids) < held_max or not all(rules.waiting(it, lane.now_ms) for it in held)

        of_series = self._of_series.get(command.series, {})
        return room(of_series, POINT_COMMANDS_MAX) and room(lane.commands, LANE_COMMANDS_MAX)

    def _forget(self, lane: _Lane, ids: Collection[str], held_max: int) -> None:
        """Let go of one of these where they are too many: of the oldest that nothing is expected of
        any more, else of the oldest that was delivered (`_room` saw to it that there is one).
        """
        if len(ids) <= held_max:
            return
        commands, now_ms = lane.commands, lane.now_ms
        settled = (id for id in ids if not rules.pending(commands[id], now_ms))
        delivered = (id for id in ids if not rules.waiting(commands[id], now_ms))
        gone = commands[next(chain(settled, delivered))]
        del commands[gone.id], lane.counted[gone.id], self._lane_of_command[gone.id]
        _remove(self._of_series, gone.series, gone.id)
        _remove(self._of_device, (gone.tenant, gone.device), gone.id)

    # -- following the log -------------------------------------------------------------------------

    async def follow(self, log: EventLog, stop: asyncio.Event) -> None:
        """Read the topic from its beginning and go on for ever, until `stop` is set."""
        self._log = log
        while not stop.is_set():
            try:
                if self._ends is None:
                    spans = await log.spans(COMMANDS_CHANGED)
                    for lane, span in spans.items():
                        self._pass(lane, span.begin)
                    self._ends = {lane: span.end for lane, span in spans.items()}
                    self._wake()
                await self._read(log, stop)
            except Unavailable as error:
                _log.warning("the commands cannot be followed: %s", error.message)
                await pause(stop, error.retry_after_ms)

    async def _read(self, log: EventLog, stop: asyncio.Event) -> None:
        start = {lane: held.next_offset for lane, held in self._lanes.items()}
        async with log.reader([COMMANDS_CHANGED], start=start) as reader:
            while not stop.is_set():
                if batch := await reader.batch(wait_ms=_BATCH_WAIT_MS):
                    for record in batch.records:
                        self._take(batch.lane, record)
                    self._wake()

    def _take(self, lane: int, record: Logged) -> None:
        envelope = record.envelope
        if isinstance(envelope, Envelope) and isinstance(envelope.record, Command):
            self.apply(lane, record.offset, envelope.record)
            return
        metrics.CATALOGUE_SKIPPED.labels("command").inc()
        self._pass(lane, record.offset + 1)
        _log.error("record %d in lane %d of the commands is none", record.offset, lane)

    def _pass(self, lane: int, next_offset: int) -> None:
        held = self._lanes[lane]
        held.next_offset = max(held.next_offset, next_offset)

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def ready(self) -> None:
        """Wait until everything is in that lay on the log when following began."""
        while self._ends is None or not self._has(self._ends):
            await self._moved.wait()

    async def caught_up(self, lane: int, offset: int) -> None:
        """Wait until the record at `offset` of a lane is in; the caller sets the limit of time."""
        while not self._has({lane: offset + 1}):
            await self._moved.wait()

    async def current(self) -> None:
        """Wait until everything is in that is on the log now: what another process has answered
        for, too. Raises Unavailable.
        """
        if self._log is None:
            raise Unavailable("the commands are not read yet")
        try:
            async with asyncio.timeout(_SECONDS_MAX):
                spans = await self._log.spans(COMMANDS_CHANGED)
                ends = {lane: at.end for lane, at in spans.items() if at.begin < at.end}
                while not self._has(ends):
                    await self._moved.wait()
        except TimeoutError:
            raise Unavailable("the commands are not read that far yet") from None

    def _has(self, ends: Mapping[int, int]) -> bool:
        return all(self._lanes[lane].next_offset >= end for lane, end in ends.items())

    # -- questions ---------------------------------------------------------------------------------

    def of(self, series: int, now_ms: int) -> Sequence[Command]:
        """The commands of a series as they are at a moment, the newest first."""
        return [rules.seen_at(each, now_ms) for each in self._newest_first(series, now_ms)]

    def target(self, series: int, now_ms: int) -> Command | None:
        """The newest command of a series of which something is still expected."""
        # Whole lists of points are asked for: no command is looked at behind the one that counts.
        found = self._newest_first(series, now_ms)
        return next((each for each in found if rules.pending(each, now_ms)), None)

    def _newest_first(self, series: int, now_ms: int) -> Iterator[Command]:
        found = map(self._held, reversed(self._of_series.get(series, {})))
        return (each for each in found if self._shown(each, now_ms))

    def deliverable(self, tenant: str, device: str, now_ms: int) -> Sequence[Command]:
        """What is to be delivered to a device, the oldest first."""
        found = map(self._held, self._of_device.get((tenant, device), {}))
        return [each for each in found if rules.deliverable(each, now_ms)]

    def open(self, lane: int, now_ms: int) -> int:
        """How many commands of a lane may still be delivered."""
        held = self._lanes[lane].commands.values()
        return sum(rules.deliverable(each, now_ms) for each in held)

    def one(self, id: str) -> Command | None:
        """The command with this id, as its records say."""
        return self._held(id) if id in self._lane_of_command else None

    def counted(self, id: str, offset: int) -> bool:
        """Whether the record at `offset` of its lane changed the command, which is held."""
        return offset in self._lanes[self._lane_of_command[id]].counted[id]

    def _held(self, id: str) -> Command:
        return self._lanes[self._lane_of_command[id]].commands[id]

    def _shown(self, command: Command, now_ms: int) -> bool:
        return command.at_ms > now_ms - self._kept_ms


async def append(log: EventLog, commands: Commands, command: Command, *, seconds: float) -> int:
    """Have a record of a command on the log, and in `commands`; its offset. Raises Unavailable:
    nobody knows.
    """
    lane = lane_of(command.series, log.lanes)
    try:
        async with asyncio.timeout(seconds):
            [offset] = await log.append([(COMMANDS_CHANGED, lane, Envelope(command))])
            await commands.caught_up(lane, offset)
            return offset
    except TimeoutError:
        raise Unavailable("the command is not on the log yet; look at the point's") from None


async def advance(
    log: EventLog, commands: Commands, id: str, state: State, now_ms: int, *, seconds: float = 10
) -> Command:
    """Record that a command was delivered, or confirmed; the command as it is then. Any process
    may, whoever delivers.

    Raises Unknown, Refused where it is in no state for that, Taken where another process was there
    first, Unavailable where nobody knows.
    """
    if (held := commands.one(id)) is None:
        raise Unknown(f"no command {id!r}", where="id")
    asked = replace(held, state=state, changed_ms=now_ms)
    if rules.step(held, asked) == held:
        is_ = rules.seen_at(held, now_ms).state
        raise Refused(f"the command is {is_}: it cannot become {state}", where="id")
    offset = await append(log, commands, asked, seconds=seconds)
    if (now := commands.one(id)) is None:
        raise Unavailable("so many came behind the command that it is not held any more")
    if not commands.counted(id, offset):
        raise Taken(f"another one has told of the command {id!r} before", where="id")
    return now


def _remove(index: dict[K, dict[str, None]], key: K, id: str) -> None:
    del index[key][id]
    if not index[key]:
        del index[key]
