"""What MQTT messages bring on its way into the log: gathered over all connections, one record a
lane.

While a lane's last append of this door is open, the messages of all connections that arrive for the
lane are joined into one growing block; it goes to the log as soon as the append is done, or when it
is full. A message costs one small `Waiting`, no future and no task. A record that the log has no
room for is held back, and the listener stops reading; nothing is dropped.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Protocol

from schemas.blocks import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block
from schemas.envelope import Change, Envelope, Letter
from schemas.points import LANE_SHIFT, lane_of
from schemas.topics import CATALOGUE_CHANGED, RECORDS_REFUSED, SAMPLES_RECEIVED, Topic
from services import metrics
from services.errors import Broken, Unavailable
from services.eventlog import Done, EventLog

_LETTERS_PER_DEVICE = 32
_LETTERED_DEVICES = 1_024


class Answering(Protocol):
    """What a session is for the gathering."""

    def acknowledge(self) -> int:
        """Answer the messages at the head of the line that wait for nothing more; how many."""
        ...

    def fail(self) -> None:
        """The log does not have a message; never acknowledge it."""
        ...


class Waiting:
    """A message that waits for the log: the bytes that answer it, and how many records are
    missing.
    """

    __slots__ = ("answer", "outstanding", "session")

    def __init__(self, answer: bytes, session: Answering) -> None:
        self.answer, self.outstanding, self.session = answer, 1, session


@dataclass(slots=True)
class _Record:
    """One record in the making or on its way: who waits for it, and who only must hear of a
    failure (QoS 0).
    """

    block: Block = field(default_factory=Block)
    rows: int = 0
    size: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    silent: set[Answering] = field(default_factory=set)
    samples: dict[str, int] = field(default_factory=dict)
    """Dialect to number of samples."""

    def wait(self, session: Answering, waiting: Waiting | None) -> None:
        if waiting is None:
            self.silent.add(session)
        else:
            waiting.outstanding += 1
            self.waiting.append(waiting)


@dataclass(slots=True)
class _Lane:
    number: int
    open: int = 0
    """Appends of this door that are not done."""
    record: _Record | None = None
    """What grows meanwhile."""


class Lettered:
    """Remembers, in bounded memory, which payloads of a device are in the dead letters."""

    def __init__(self) -> None:
        self._digests: OrderedDict[tuple[str, str], deque[bytes]] = OrderedDict()

    @staticmethod
    def _digest(payload: bytes) -> bytes:
        return blake2b(payload, digest_size=16).digest()

    def has(self, device: tuple[str, str], payload: bytes) -> bool:
        """Whether the payload of the device was set aside before."""
        known = self._digests.get(device)
        return known is not None and self._digest(payload) in known

    def add(self, device: tuple[str, str], payload: bytes) -> None:
        """The payload of the device is in the dead letters."""
        known = self._digests.setdefault(device, deque(maxlen=_LETTERS_PER_DEVICE))
        known.append(self._digest(payload))
        self._digests.move_to_end(device)
        if len(self._digests) > _LETTERED_DEVICES:
            self._digests.popitem(last=False)


class Gather:
    """Between the sessions and the log. `schedule` has `flush` called once, soon; `moved` is called
    after the log has taken something or has failed to.
    """

    def __init__(
        self, log: EventLog, *, schedule: Callable[[], None], moved: Callable[[], None]
    ) -> None:
        self._log, self._schedule, self._moved = log, schedule, moved
        self._lanes = [_Lane(number) for number in range(log.lanes)]
        self._due: list[_Lane] = []
        self._held: deque[tuple[Topic, int, Envelope, Done, int]] = deque()
        self.lettered = Lettered()
        self.queued_bytes = 0
        """Estimated bytes that grow or are held here, not counting what the log has taken."""

    @property
    def held(self) -> bool:
        """Whether the log had no room for something."""
        return bool(self._held)

    @property
    def busy(self) -> bool:
        """Whether there is something that the log has not taken for good."""
        return self.held or any(lane.open or lane.record for lane in self._lanes)

    # -- in ----------------------------------------------------------------------------------------

    def add(self, block: Block, dialect: str, session: Answering, waiting: Waiting | None) -> None:
        """Take the samples of one message over; the block belongs to the gathering from here on."""
        series, lanes = block.series, self._lanes
        if not series:
            return
        # The series of one device share a lane: the usual message is one block of one record.
        if (
            min(series) >> LANE_SHIFT == max(series) >> LANE_SHIFT
            and len(series) <= BLOCK_ROWS_MAX
            and block.bytes_estimate <= BLOCK_BYTES_MAX
        ):
            lane = lanes[lane_of(series[0], len(lanes))]
            self._join(lane, block, dialect).wait(session, waiting)
            return
        for number, rows in block.by_lane(len(lanes)).items():
            for piece in rows.pieces():
                self._join(lanes[number], piece, dialect).wait(session, waiting)

    def _join(self, lane: _Lane, block: Block, dialect: str) -> _Record:
        rows, size, record = len(block.series), block.bytes_estimate, lane.record
        if (
            record is not None
            and record.rows + rows <= BLOCK_ROWS_MAX
            and record.size + size <= BLOCK_BYTES_MAX
        ):
            record.block.extend(block)
        else:
            if record is not None:
                self._send(lane)
            record = lane.record = _Record(block)
            if not lane.open:
                if not self._due:
                    self._schedule()
                self._due.append(lane)
        record.rows += rows
        record.size += size
        record.samples[dialect] = record.samples.get(dialect, 0) + rows
        self.queued_bytes += size
        return record

    def change(
        self,
        changes: Iterable[Change],
        session: Answering,
        waiting: Waiting | None,
        failed: Callable[[Change], None],
    ) -> None:
        """Append what the catalogue must hold for a message; `failed` hears of each change that the
        log does not have.
        """
        for change in changes:
            record = _Record()
            record.wait(session, waiting)
            done = partial(self._changed, record, change, failed)
            self._put(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key), done)

    def letter(
        self, letter: Letter, device: tuple[str, str], payload: bytes, waiting: Waiting
    ) -> None:
        """Set a payload aside; it is remembered once the log has it."""
        waiting.outstanding += 1
        done = partial(self._set_aside, letter, device, payload, waiting)
        self._put(RECORDS_REFUSED, 0, Envelope(letter), done)

    # -- out ---------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what grew on idle lanes."""
        due, self._due = self._due, []
        for lane in due:
            if lane.record is not None and not lane.open:
                self._send(lane)

    def retry(self) -> None:
        """Send what was held back, as far as the log has room."""
        while self._held:
            topic, lane, envelope, done, size = held = self._held.popleft()
            try:
                self._log.put(topic, lane, envelope, done)
            except Unavailable:
                self._held.appendleft(held)
                return
            except Broken as error:
                done(error, -1)
            self.queued_bytes -= size

    def _send(self, lane: _Lane) -> None:
        record, lane.record = lane.record, None
        assert record is not None
        lane.open += 1
        self.queued_bytes -= record.size
        done = partial(self._appended, lane, record)
        self._put(SAMPLES_RECEIVED, lane.number, Envelope(record.block), done)

    def _put(self, topic: Topic, lane: int, envelope: Envelope, done: Done) -> None:
        if not self._held:
            try:
                self._log.put(topic, lane, envelope, done)
                return
            except Unavailable:
                pass
            except Broken as error:
                done(error, -1)
                return
        # Behind what is held already, so that a lane keeps its order.
        size = envelope.bytes_estimate
        self._held.append((topic, lane, envelope, done, size))
        self.queued_bytes += size

    # -- done --------------------------------------------------------------------------------------

    def _appended(self, lane: _Lane, record: _Record, error: Exception | None, _: int) -> None:
        lane.open -= 1
        if error is None:
            for dialect, samples in record.samples.items():
                metrics.DOOR_SAMPLES.labels(dialect).inc(samples)
        if lane.record is not None and not lane.open:
            self._send(lane)
        self._settle(record, error)
        self._moved()

    def _changed(
        self,
        record: _Record,
        change: Change,
        failed: Callable[[Change], None],
        error: Exception | None,
        _: int,
    ) -> None:
        if error is not None:
            failed(change)
        self._settle(record, error)
        self._moved()

    def _set_aside(
        self,
        letter: Letter,
        device: tuple[str, str],
        payload: bytes,
        waiting: Waiting,
        error: Exception | None,
        _: int,
    ) -> None:
        if error is None:
            self.lettered.add(device, payload)
            metrics.DEAD_LETTERS.labels(letter.source, letter.reason).inc()
        self._settle(_Record(waiting=[waiting]), error)
        self._moved()

    def _settle(self, record: _Record, error: Exception | None) -> None:
        """Tell the sessions: those that wait when the record is on the log, all when it is not."""
        touched: dict[Answering, None] = {}
        if error is not None:
            touched = dict.fromkeys(waiting.session for waiting in record.waiting)
            for session in (*touched, *record.silent):
                session.fail()
            return
        for waiting in record.waiting:
            waiting.outstanding -= 1
            touched[waiting.session] = None
        answered = sum([session.acknowledge() for session in touched])
        if answered:
            _ACKNOWLEDGED.inc(answered)


_ACKNOWLEDGED = metrics.MQTT_PUBLISHES.labels("acknowledged")
