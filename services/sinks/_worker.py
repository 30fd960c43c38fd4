"""Empties one topic into one sink: collects, writes, and only then commits.

A batch grows while the one before it is written, so reading and writing overlap and never more than
two batches are held. What a crash repeats may be cut differently; sinks take that (`_contract`).

Errors: `Unavailable` is waited out, the same batch again and again, and nothing is committed; after
an outage writes begin at one a second and double, so that the engine's merges are not buried.
`Malformed` is halved down to the record and the row that cannot be stored, which goes to the dead
letters; the rest is stored. Beyond the limit of `_aside.Limit` the worker stops with Broken, and
where the log says that a topic was made anew.

The sink of `samples.accepted` also says how far each lane is stored: after the commit it appends a
`Mark` to `lanes.stored`, and once a second a row to the table `lane_marks`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from schemas.blocks import Block
from schemas.envelope import Envelope, Letter, Mark, Undecodable
from schemas.rows import arrow_rows
from schemas.topics import LANES_STORED, RECORDS_REFUSED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED, Topic
from services.clock import Clock
from services.errors import Malformed, Unavailable
from services.eventlog import Batch, EventLog, Reader
from services.metrics import DEAD_LETTERS, SINK_INSERTS, SINK_LAG, SINK_ROWS, SINK_SECONDS
from services.settings import Settings
from services.sinks._aside import Limit, Placed, letter
from services.sinks._contract import Sink
from services.store import Store

logger = logging.getLogger(__name__)

RECORDS_MAX = 64
"""Records of one read: at most 16 MiB."""
BATCH_BYTES_MAX = 32 << 20
"""Estimated bytes above which a batch is full, however few its rows (long texts)."""
FLIGHT_POLL_MS = 20
"""How long a read may wait while a batch is being written, so that its commit is not held up."""
MARKS_INTERVAL_MS = 1_000
LAG_INTERVAL_MS = 5_000
RESUME_PAUSE_MS = 1_000
"""Pause before the second write after an outage; halved with each that succeeds."""


class _Stopped(Exception):
    """The worker was told to stop while it waited for the sink; the batch stays uncommitted."""


@dataclass(slots=True)
class _Collected:
    """Records of some lanes that are written together."""

    since_ms: float = 0.0
    rows: int = 0
    size: int = 0
    lanes: dict[int, list[Placed]] = field(default_factory=dict)

    def add(self, batch: Batch, now_ms: float) -> None:
        if not self.lanes:
            self.since_ms = now_ms
        placed = [Placed(batch.lane, logged) for logged in batch.records]
        self.lanes.setdefault(batch.lane, []).extend(placed)
        self.rows += sum(item.rows for item in placed)
        self.size += sum(_bytes_of(item) for item in placed)

    def drop(self, lanes: Iterable[int]) -> None:
        for lane in lanes:
            for item in self.lanes.pop(lane, ()):
                self.rows -= item.rows
                self.size -= _bytes_of(item)


class SinkWorker:
    """Runs one sink. `backoff_ms` holds the first and the longest pause of an outage."""

    def __init__(
        self,
        sink: Sink,
        log: EventLog,
        store: Store,
        clock: Clock,
        settings: Settings,
        *,
        backoff_ms: tuple[float, float] = (100, 10_000),
    ) -> None:
        self.group = f"sinks.{sink.name}"
        self._sink, self._log, self._store = sink, log, store
        self._clock, self._settings = clock, settings
        self._backoff_ms, self._pause_ms = backoff_ms, 0.0
        self._stop = asyncio.Event()
        self._collected = _Collected()
        self._flight: asyncio.Task[_Collected] | None = None
        self._lost: set[int] = set()
        self._to_commit: dict[int, int] = {}
        self._to_append: dict[int, tuple[int, Mark]] = {}
        self._to_note: dict[int, tuple[int, int]] = {}
        self._limits: dict[int, Limit] = {}
        self._letters: list[Letter] = []
        self._noted_ms = self._measured_ms = float("-inf")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Raises Broken where going on would lose data."""
        self._stop = stop
        reader = self._log.reader(
            [self._sink.source],
            group=self.group,
            on_assigned=self._assigned,
            on_revoked=self._revoked,
        )
        async with reader:
            try:
                with suppress(_Stopped):
                    while not stop.is_set():
                        await self._turn_patiently(reader)
                    await self._land()
                    await self._settle(reader)
            except Unavailable as error:
                logger.warning("%s: stopped without its last commit: %s", self.group, error)
            finally:
                if self._flight is not None:
                    self._flight.cancel()
                    await asyncio.gather(self._flight, return_exceptions=True)

    # -- reading -----------------------------------------------------------------------------------

    async def _turn_patiently(self, reader: Reader) -> None:
        try:
            await self._turn(reader)
        except Unavailable as error:
            logger.warning("%s: the log is away: %s", self.group, error)
            await self._pause(self._backoff_ms[0])

    async def _turn(self, reader: Reader) -> None:
        collected, now_ms = self._collected, self._clock.monotonic_ms()
        full = collected.rows >= self._settings.sink_rows or collected.size >= BATCH_BYTES_MAX
        left_ms = float(self._settings.sink_wait_ms)
        if collected.lanes:
            left_ms = max(collected.since_ms + left_ms - now_ms, 0)
        # A full batch waits for the one that is being written; one that is due goes on growing.
        if self._flight is not None and (full or self._flight.done()):
            await self._land()
        await self._settle(reader)
        if self._flight is None and collected.lanes and (full or not left_ms):
            self._collected = _Collected()
            self._flight = asyncio.create_task(self._save(collected), name=self.group)
        await self._measure_lag()
        wait_ms = FLIGHT_POLL_MS if self._flight is not None else int(left_ms)
        batch = await reader.batch(records_max=RECORDS_MAX, wait_ms=wait_ms)
        if batch is not None:
            self._collected.add(batch, self._clock.monotonic_ms())

    async def _land(self) -> None:
        """Wait for the batch that is being written; then it is to be committed."""
        if self._flight is None:
            return
        # Shielded, so that a cancellation of this task ends the flight where `run` waits for it.
        saved = await asyncio.shield(self._flight)
        self._flight = None
        for lane, placed in saved.lanes.items():
            self._to_commit[lane] = placed[-1].logged.offset + 1
            self._mark(lane, placed)

    async def _settle(self, reader: Reader) -> None:
        """Commit what is durable and publish its marks; what fails stays for the next turn."""
        for lane, next_offset in list(self._to_commit.items()):
            # A lane that another worker has now is that worker's to commit; the rows do no harm.
            if lane not in self._lost:
                await reader.commit(self._sink.source, lane, next_offset)
            del self._to_commit[lane]
        await self._publish_marks()

    def _assigned(self, topic: Topic, lanes: Sequence[int]) -> None:
        self._lost.difference_update(lanes)

    def _revoked(self, topic: Topic, lanes: Sequence[int]) -> None:
        self._lost.update(lanes)
        self._collected.drop(lanes)

    # -- writing -----------------------------------------------------------------------------------

    async def _save(self, collected: _Collected) -> _Collected:
        """Make the batch durable, and the letters about what is not in it."""
        self._letters = []
        for cut in _cuts(collected, self._settings.sink_rows):
            sound = [item for item in cut if not isinstance(item.logged.envelope, Undecodable)]
            for item in cut:
                if isinstance(item.logged.envelope, Undecodable):
                    self._set_aside(item, None)
            if sound:
                await self._write(sound)
        if self._letters:
            await self._append_letters()
        return collected

    async def _write(self, placed: Sequence[Placed]) -> None:
        """Store the records; halve down to those that will never go in."""
        why = await self._write_patiently(placed)
        if why is None:
            for item in placed:
                self._limit(item.lane).good(item.rows)
            SINK_ROWS.labels(self._sink.name).inc(sum(item.rows for item in placed))
        elif len(placed) == 1 and placed[0].rows <= 1:
            self._set_aside(placed[0], why)
        else:
            halves = placed if len(placed) > 1 else placed[0].halves()
            middle = len(halves) // 2
            await self._write(halves[:middle])
            await self._write(halves[middle:])

    async def _write_patiently(self, placed: Sequence[Placed]) -> Malformed | None:
        """Try until it is stored (None), or until it is known never to be."""
        records, name = [item.logged for item in placed], self._sink.name
        first_ms, longest_ms = self._backoff_ms
        while True:
            await self._pause(self._pause_ms)
            try:
                with SINK_SECONDS.labels(name).time():
                    await self._sink.write(self._store, records)
            except Unavailable as error:
                SINK_INSERTS.labels(name, "unavailable").inc()
                logger.warning("%s: the store is away, trying again: %s", self.group, error)
                if self._stop.is_set():
                    raise _Stopped from error
                self._pause_ms = min(max(2 * self._pause_ms, first_ms), longest_ms)
                continue
            except Malformed as error:
                SINK_INSERTS.labels(name, "malformed").inc()
                return error
            SINK_INSERTS.labels(name, "stored").inc()
            self._pause_ms = min(self._pause_ms / 2, RESUME_PAUSE_MS)
            if self._pause_ms < first_ms:
                self._pause_ms = 0
            return None

    async def _pause(self, wait_ms: float) -> None:
        """Wait, with jitter, so that workers that failed together do not come back together."""
        if wait_ms > 0:
            with suppress(TimeoutError):
                wait_s = wait_ms / 1000 * random.uniform(0.5, 1)
                await asyncio.wait_for(self._stop.wait(), wait_s)

    # -- what cannot be stored ---------------------------------------------------------------------

    def _set_aside(self, item: Placed, why: Malformed | None) -> None:
        note = letter(
            item, why, topic=self._sink.source, source=self.group, ts_ms=self._clock.now_ms()
        )
        self._limit(item.lane).bad(note)
        DEAD_LETTERS.labels(self.group, note.reason).inc()
        logger.error(
            "%s: set aside %s/%d offset %d row %d: %s: %s",
            *(self.group, note.topic, note.lane, note.offset, note.row, note.reason, note.detail),
        )
        # A letter about a letter could be as bad as it; the first one stays on its topic.
        if self._sink.source is not RECORDS_REFUSED:
            self._letters.append(note)

    async def _append_letters(self) -> None:
        out = [(RECORDS_REFUSED, 0, Envelope(note)) for note in self._letters]
        pause_ms = self._backoff_ms[0]
        while True:
            try:
                await self._log.append(out)
            except Unavailable as error:
                logger.warning("%s: the log is away: %s", self.group, error)
                if self._stop.is_set():
                    raise _Stopped from error
                await self._pause(pause_ms)
                pause_ms = min(2 * pause_ms, self._backoff_ms[1])
                continue
            return

    def _limit(self, lane: int) -> Limit:
        if lane not in self._limits:
            self._limits[lane] = Limit(
                share_max=self._settings.refused_share_max, run_max=self._settings.refused_run_max
            )
        return self._limits[lane]

    # -- how far it is stored ----------------------------------------------------------------------

    def _mark(self, lane: int, placed: Sequence[Placed]) -> None:
        if self._sink.source is not SAMPLES_ACCEPTED:
            return
        envelopes = [e for item in placed if isinstance(e := item.logged.envelope, Envelope)]
        envelopes = [envelope for envelope in envelopes if isinstance(envelope.record, Block)]
        if not envelopes:
            return
        epoch = envelopes[-1].epoch
        received = max(envelope.received for envelope in envelopes if envelope.epoch == epoch)
        if received >= 0:
            next_offset = placed[-1].logged.offset + 1
            mark = Mark(SAMPLES_RECEIVED.name, lane, received, next_offset)
            self._to_append[lane] = (epoch, mark)
            self._to_note[lane] = (epoch, received)

    async def _publish_marks(self) -> None:
        if self._to_append:
            # Offsets mean nothing without the life they are of: who follows marks passes over those
            # of another one, the agents by the epoch, the live view by the life.
            life = await self._log.incarnation(self._sink.source)
            marks = [(epoch, replace(m, life=life)) for epoch, m in self._to_append.values()]
            await self._log.append(
                [(LANES_STORED, 0, Envelope(m, key=m.key, epoch=epoch)) for epoch, m in marks]
            )
            self._to_append.clear()
        now_ms = self._clock.monotonic_ms()
        if not self._to_note or now_ms < self._noted_ms + MARKS_INTERVAL_MS:
            return
        self._noted_ms = now_ms
        columns = {"topic": "string", "lane": "uint16", "epoch": "uint8", "received": "uint64"}
        rows = [
            dict(zip(columns, (SAMPLES_RECEIVED.name, lane, epoch, received), strict=True))
            for lane, (epoch, received) in self._to_note.items()
        ]
        try:
            await self._store.insert("lane_marks", arrow_rows(columns, rows))
        except Unavailable as error:
            logger.warning("%s: marks are noted later: %s", self.group, error)
            return
        self._to_note.clear()

    async def _measure_lag(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms < self._measured_ms + LAG_INTERVAL_MS:
            return
        self._measured_ms = now_ms
        spans = await self._log.spans(self._sink.source)
        committed = await self._log.committed(self.group, self._sink.source)
        lag = sum(
            span.end - max(committed.get(lane, span.begin), span.begin)
            for lane, span in spans.items()
        )
        SINK_LAG.labels(self._sink.name).set(lag)


def _cuts(collected: _Collected, rows_max: int) -> Iterable[list[Placed]]:
    """The records in lists of about `rows_max` rows, each lane's in order."""
    cut: list[Placed] = []
    rows = 0
    for placed in collected.lanes.values():
        for item in placed:
            if cut and rows + item.rows > rows_max:
                yield cut
                cut, rows = [], 0
            cut.append(item)
            rows += item.rows
    if cut:
        yield cut


def _bytes_of(item: Placed) -> int:
    envelope = item.logged.envelope
    return len(envelope.body) if isinstance(envelope, Undecodable) else envelope.bytes_estimate
