"""The lanes that this process was given for one agent: loads them, keeps them moving, gives them
up.

Between a runner, which delivers records somehow, and the keepers, which decide what counts. Also
follows how far the store is and watches that no lane stands still while it has data.

A lane that has no memory of what was judged before (no checkpoint, and a log without its beginning)
will ask the store for it, so it waits until the sinks have stored all of that; unless its agent
never asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from schemas.envelope import Envelope, Logged, Mark
from schemas.topics import LANES_STORED, SAMPLES_ACCEPTED, SINK_GROUP
from services import metrics
from services.agents._guard import guarded, until_available
from services.agents._lane import Checkpoint, Drive, LaneKeeper, Parts, newest
from services.errors import Broken, Unavailable

STILL_SECONDS_MAX = 5
"""A lane with data that does not move for so long is sought again."""
STUCK_SECONDS_MAX = 60
"""After so long without an effect the process ends, to start anew from its checkpoints."""
_LOOK_SECONDS = 0.5
_AWAY_SECONDS = 3
_CLOSE_SECONDS_MAX = 2
"""For the last checkpoints of all lanes together; without them more is replayed."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """A lane that is held: its keeper, its task, and since when it stands still."""

    keeper: LaneKeeper
    task: asyncio.Task[None]
    expected: int = -1
    still_since_ms: float = 0.0
    within_ms: float = 0.0
    """When the position was last seen within the log."""


class Lanes:
    """The lanes of one agent in this process. Runners call `assign`, `revoke` and `offer`; all
    three return at once.
    """

    keeper_class = LaneKeeper

    def __init__(self, parts: Parts, drive: Drive) -> None:
        self.parts, self._drive = parts, drive
        self._held: dict[int, _Held] = {}
        self._wanted: set[int] = set()
        self._loading: asyncio.Task[None] | None = None
        self._stored: dict[int, int] = {}

    @property
    def held(self) -> dict[int, LaneKeeper]:
        """The keepers of the lanes that are loaded."""
        return {lane: held.keeper for lane, held in self._held.items()}

    def offer(self, lane: int, logged: Logged) -> None:
        """A record of a lane, in whatever order; one of a lane that is not loaded (yet) is passed
        over.
        """
        if held := self._held.get(lane):
            held.keeper.offer(logged)

    def assign(self, lanes: Sequence[int]) -> None:
        """These lanes are ours from here on."""
        self._wanted |= set(lanes)
        self.parts.readiness.why_not = "lanes are loading"
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._guarded_load(), name="load lanes")

    def revoke(self, lanes: Sequence[int]) -> None:
        """These lanes are somebody else's: their state is dropped; what the next owner loads is at
        worst older.
        """
        self._wanted -= set(lanes)
        for lane in lanes:
            if held := self._held.pop(lane, None):
                held.task.cancel()

    async def close(self) -> None:
        """Checkpoint what is held, as far as it goes quickly, and end."""
        if self._loading:
            self._loading.cancel()
        held, self._held, self._wanted = list(self._held.values()), {}, set()
        for lane in held:
            lane.task.cancel()
        await asyncio.gather(*(lane.task for lane in held), return_exceptions=True)
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(_CLOSE_SECONDS_MAX):
                for lane in held:
                    await lane.keeper.checkpoint_if_clean()

    def seek_again(self) -> None:
        """The runner has sought its lanes somewhere by itself: have each delivered from where it
        is.
        """
        for held in self._held.values():
            held.keeper.seek_back(again=True)

    # -- loading

    async def _guarded_load(self) -> None:
        await guarded(self._load, what=f"loading lanes of {self.parts.agent.name}")

    async def _load(self) -> None:
        agent, log, store = self.parts.agent, self.parts.log, self.parts.store
        while lanes := sorted(self._wanted - self._held.keys()):
            # The spans come last: whatever was checkpointed or stored before lies within them.
            found, marks, spans = (
                await until_available(
                    partial(log.checkpoints, agent.name, lanes), what="the event log"
                ),
                await until_available(
                    lambda: store.stored_marks(agent.source.name, self.parts.epoch),
                    what="the store",
                ),
                await until_available(lambda: log.spans(agent.source), what="the event log"),
            )
            checkpoints: dict[int, Checkpoint | None] = {}
            for lane in lanes:
                slots = {slot: kept for (of, slot), kept in found.items() if of == lane}
                checkpoint = checkpoints[lane] = newest(slots, self.parts.epoch)
                judged = max(marks.get(lane, -1), checkpoint.offset if checkpoint else -1)
                if lane in self._wanted and judged >= spans[lane].end:
                    raise Broken(
                        f"{agent.source.name} lane {lane} ends at {spans[lane].end}, but offset "
                        f"{judged} of the same epoch was judged: the log is an older copy"
                    )
            bare = [lane for lane in lanes if self._bare(spans[lane].begin, checkpoints[lane])]
            behind = await self._behind(bare)
            for lane in lanes:
                if lane in self._wanted and lane not in behind:
                    self._hold(lane, spans[lane].begin, checkpoints[lane])
            _logger.info("agent %s holds lanes %s", agent.name, sorted(self._held))
            if behind:
                await self._until_stored(behind)
        self.parts.readiness.why_not = None

    def _whole(self, begin: int) -> bool:
        """Whether a log that begins there holds everything that was ever judged."""
        return begin == 0 and self.parts.epoch == 1

    def _bare(self, begin: int, checkpoint: Checkpoint | None) -> bool:
        """Whether the lane begins with nothing but what the store will answer: it has no checkpoint
        and not the whole log either, or what followed its checkpoint is gone, judged or not.
        """
        if self.parts.agent.ask is None:
            return False
        if checkpoint is None:
            return not self._whole(begin)
        return checkpoint.offset + 1 < begin

    async def _behind(self, lanes: Sequence[int]) -> Sequence[int]:
        """Those of the lanes of which the log has accepted samples that the store may not have.

        What the sinks have committed says so, and not their marks, which lag behind it.
        """
        if not lanes:
            return ()
        log, what = self.parts.log, "the event log"
        committed = await until_available(
            lambda: log.committed(SINK_GROUP, SAMPLES_ACCEPTED), what=what
        )
        spans = await until_available(lambda: log.spans(SAMPLES_ACCEPTED), what=what)
        return [
            lane
            for lane in lanes
            if max(committed.get(lane, 0), spans[lane].begin) < spans[lane].end
        ]

    async def _until_stored(self, lanes: Sequence[int]) -> None:
        """Wait until the sinks have stored what was accepted of one of the lanes, however long that
        takes, or until other lanes are wanted.

        A judge that asked the store before would not see what is on its way there: it would call a
        repetition new, and measure a deadband against a value that is not the last one.
        """
        named = f"lane{'s' if len(lanes) > 1 else ''} {', '.join(map(str, lanes))}"
        self.parts.readiness.why_not = f"waiting for the sinks of {named}"
        _logger.warning("agent %s is %s", self.parts.agent.name, self.parts.readiness.why_not)
        wanted = set(self._wanted)
        while wanted == self._wanted and len(await self._behind(lanes)) == len(lanes):
            await asyncio.sleep(_LOOK_SECONDS)

    def _hold(self, lane: int, begin: int, checkpoint: Checkpoint | None) -> None:
        keeper = self.keeper_class(
            self.parts,
            lane,
            self._drive,
            begin=begin,
            whole=self._whole(begin),
            checkpoint=checkpoint,
        )
        if keeper.expected < begin:
            keeper.jump(begin, afresh=True)
        if lane in self._stored:
            keeper.stored(self._stored[lane])
        name = f"lane {lane} of {self.parts.agent.name}"
        task = asyncio.create_task(guarded(keeper.run, what=name), name=name)
        now_ms = self.parts.clock.monotonic_ms()
        self._held[lane] = _Held(keeper, task, still_since_ms=now_ms, within_ms=now_ms)
        keeper.seek_back(again=True)
        _logger.debug("%s: from offset %d", name, keeper.expected)

    # -- beside the lanes

    async def follow_stored(self) -> None:
        """Tell the keepers how far the store is, for ever."""
        await until_available(self._follow_stored, what="the event log")

    async def _follow_stored(self) -> None:
        async with self.parts.log.reader([LANES_STORED]) as reader:
            while True:
                batch = await until_available(reader.batch, what="the event log")
                for logged in batch.records if batch else ():
                    if isinstance(logged.envelope, Envelope):
                        self._note_mark(logged.envelope)

    def _note_mark(self, envelope: Envelope) -> None:
        mark = envelope.record
        current = envelope.epoch == self.parts.epoch
        if isinstance(mark, Mark) and mark.topic == self.parts.agent.source.name and current:
            self._stored[mark.lane] = mark.received
            if held := self._held.get(mark.lane):
                held.keeper.stored(mark.received)

    async def watch(self) -> None:
        """See to it that every lane with data moves and that the log is still the same one (it
        says so itself), for ever. Raises Broken where a new start is needed.
        """
        clock = self.parts.clock
        while True:
            asked_ms = clock.monotonic_ms()
            positions = {lane: held.keeper.position for lane, held in self._held.items()}
            spans = await until_available(
                lambda: self.parts.log.spans(self.parts.agent.source), what="the event log"
            )
            now_ms = clock.monotonic_ms()
            for lane, held in list(self._held.items()):
                if lane not in spans:
                    continue
                if now_ms - asked_ms > _AWAY_SECONDS * 1000:
                    # The log was away: what stood still with it did so for a reason.
                    held.still_since_ms = held.within_ms = now_ms
                begin, end = spans[lane].begin, spans[lane].end
                metrics.LANE_LAG.labels(self.parts.agent.name, str(lane)).set(
                    max(0, end - held.keeper.position - 1)
                )
                self._watch_end(held, positions.get(lane, -1), end, now_ms)
                self._watch_lane(held, begin, end, now_ms)
            await asyncio.sleep(1)

    def _watch_end(self, held: _Held, position: int, end: int, now_ms: float) -> None:
        """A log that ends before what was judged (for longer than a change of leaders takes) has
        lost records.
        """
        if position < end:
            held.within_ms = now_ms
        elif now_ms - held.within_ms > STILL_SECONDS_MAX * 1000:
            raise Broken(
                f"{self.parts.agent.source.name} lane {held.keeper.lane} ends at {end}, but "
                f"offset {position} was judged: the log has lost records"
            )

    def _watch_lane(self, held: _Held, begin: int, end: int, now_ms: float) -> None:
        keeper = held.keeper
        moves = keeper.expected != held.expected or keeper.waiting or keeper.expected >= end
        if moves or keeper.queued:
            held.expected, held.still_since_ms = keeper.expected, now_ms
            return
        still_seconds = (now_ms - held.still_since_ms) / 1000
        if keeper.expected < begin:
            keeper.jump(begin)
        elif still_seconds >= STUCK_SECONDS_MAX:
            raise Broken(f"lane {keeper.lane} has stood still for {still_seconds:.0f} s")
        elif still_seconds >= STILL_SECONDS_MAX:
            keeper.seek_back(again=True)
