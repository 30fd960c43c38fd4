"""What the judge remembers of a lane, as columns that grow, forget and become bytes.

The compiled rules are in `services.domain.kernels`; here is what surrounds them for each record:
questions to the store, answers learned, rows judged, stored rows forgotten.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

import numpy as np

from schemas.blocks import Block, bytes_of, double_of
from schemas.envelope import Position
from schemas.points import PointPolicy
from schemas.samples import Kind, Verdict
from services.domain import deadband, kernels
from services.domain.deadband import Base
from services.domain.kernels import ANY, NEVER, UNDECIDED, Column, Memory, Rows
from services.domain.lattice import is_earlier, record_of

ROWS_MAX = 65_536
"""Times that a lane remembers although the store has them."""

FORMAT = 2
_HEAD = Struct("<BBII")
_PACKED = ("names", "series", "bands", "floors", "suppressed", "rows")
_TEXT_KINDS = (Kind.STRING, Kind.JSON)


@dataclass(slots=True)
class Judgement:
    """One verdict (`Verdict`) and one version (uint64, 0 where the row is not stored) a row."""

    verdicts: bytearray
    versions: Column

    @property
    def counts(self) -> list[int]:
        """How many rows got each verdict, in the order of their numbers."""
        verdicts = np.frombuffer(self.verdicts, np.uint8)
        counts: list[int] = np.bincount(verdicts, minlength=len(Verdict)).tolist()
        return counts

    def stored(self, block: Block) -> Block:
        """The rows of the judged block that go on to the store, with versions, as a new block."""
        verdicts = np.frombuffer(self.verdicts, np.uint8)
        rows = np.flatnonzero((verdicts == Verdict.KEPT) | (verdicts == Verdict.OVERWRITE))
        whole = len(rows) == len(block)
        taken = Block(policies=list(block.policies))
        for name in ("series", "ts_ms", "kind", "bits", "quality", "rule", "policy"):
            column = getattr(block, name)
            if whole:
                setattr(taken, name, column[:])
            else:
                picked = np.frombuffer(column, column.typecode)[rows]
                setattr(taken, name, array(column.typecode, picked.tobytes()))
        taken.version = array("Q", self.versions[rows].tobytes())
        if block.texts:
            texts = ((new, block.texts.get(old)) for new, old in enumerate(rows.tolist()))
            taken.texts = {row: text for row, text in texts if text is not None}
            taken.text_bytes = sum(map(bytes_of, taken.texts.values()))
        return taken


class Lane:
    """A lane's memory. `whole` says that what it does not know does not exist; `rows_max` times are
    remembered although the store has them.
    """

    def __init__(self, *, whole: bool, rows_max: int = ROWS_MAX) -> None:
        self.whole, self.rows_max = whole, rows_max
        self.decided = 0
        """How many rows were left to the specification: numbers of more than 15 digits that lie at
        the border of a deadband.
        """
        self._floor_ts = NEVER
        """The highest of all floors: nothing above it needs to be asked."""
        self._memory = Memory(
            names=np.zeros(0, np.int64),
            series=np.zeros((0, 8), np.int64),
            bands=np.zeros((0, 3)),
            floors=np.zeros(0, np.int64),
            suppressed=np.zeros((0, 5), np.int64),
            slots=np.full(2, -1, np.int32),
            rows=np.zeros((1, 4), np.int64),
            by_time=np.full(2, -1, np.int32),
            counts=np.zeros(6, np.int64),
        )

    @property
    def any_series(self) -> int | None:
        """Some series of the lane, if it has seen one."""
        m = self._memory
        return int(m.names[:1].view(np.uint64)[0]) if m.counts[kernels.USED] else None

    @property
    def indexed(self) -> int:
        """How many remembered times the index has been given; 0 while all comes in order."""
        return int(self._memory.counts[kernels.INDEXED])

    @property
    def untold(self) -> int:
        """How many series have suppressed samples of which no row has told."""
        return int(self._memory.counts[kernels.UNTOLD])

    # -- the way of a record

    def questions(self, block: Block) -> tuple[list[int], list[tuple[int, int]]]:
        """What the store must answer before the block can be judged: series of which nothing is
        known, and (series, ts_ms) pairs that the lane may have forgotten.
        """
        if not len(block):
            return [], []
        ts = np.frombuffer(block.ts_ms, np.int64)
        if self.whole and int(ts.min()) > self._floor_ts:
            return [], []
        self._index_room(0)
        asked = np.zeros(len(block), np.uint8)
        series = np.frombuffer(block.series, np.int64)
        if not kernels.question(series, ts, self._memory, self.whole, asked):
            return [], []
        pairs = dict.fromkeys(
            (block.series[row], block.ts_ms[row]) for row in np.flatnonzero(asked).tolist()
        )
        unknown = dict.fromkeys(
            block.series[row] for row in np.flatnonzero(asked == kernels.SERIES_UNKNOWN).tolist()
        )
        return list(unknown), list(pairs)

    def learn(self, rows: Block, position: Position, unknown: Sequence[int] = ()) -> None:
        """Take rows that the store answered. Those before `position` are remembered as if seen;
        later ones are not in the past of the record that is judged there.

        `unknown` are the series whose newest rows these are, as far as they have any: what is not
        newer than these must be asked of the store from now on.
        """
        before = [row for row, version in enumerate(rows.version) if is_earlier(version, position)]
        earlier = rows.take(before)
        self._run(earlier, [(0, len(earlier))], position, learning=True)
        newest = dict(zip(rows.series, rows.ts_ms, strict=True)) if unknown else {}
        for series in unknown:
            self._room(series=1)
            m = self._memory
            slot = kernels.slot_of(m.slots, m.names, m.counts, _signed(series))
            m.floors[slot] = max(int(m.floors[slot]), newest.get(series, NEVER))
            self._floor_ts = max(self._floor_ts, int(m.floors[slot]))

    def judge(
        self, block: Block, position: Position, spans: Sequence[tuple[int, int]] | None = None
    ) -> Judgement:
        """Judge the rows of `spans` (all, where None) in order; the others are DUPLICATE."""
        return self._run(block, [(0, len(block))] if spans is None else spans, position)

    def _run(
        self,
        block: Block,
        spans: Sequence[tuple[int, int]],
        position: Position,
        learning: bool = False,
    ) -> Judgement:
        size = len(block)
        verdicts, versions = bytearray([Verdict.DUPLICATE]) * size, np.zeros(size, np.int64)
        judgement = Judgement(verdicts, versions.view(np.uint64))
        if not size:
            return judgement
        columns, judged = _columns(block), np.frombuffer(verdicts, np.uint8)
        record = record_of(position.epoch, position.offset)
        # What is learned is in the store already, so it may be forgotten in its turn.
        offset = -1 if learning else position.offset
        self._room(series=size, rows=size)
        for first, stop in spans:
            told = UNDECIDED
            while first < stop:
                m = self._memory
                first = kernels.judge(
                    first, stop, columns, m, record, offset, learning, told, judged, versions
                )
                told = UNDECIDED
                if first < stop and judged[first] == UNDECIDED:
                    told = self._decide(block, first)
                elif first < stop:
                    self._index_room(stop - first)
        return judgement

    def _decide(self, block: Block, row: int) -> Verdict:
        """What the specification's deadband says of a row that the kernel leaves to it."""
        self.decided += 1
        m = self._memory
        slot = kernels.slot_of(m.slots, m.names, m.counts, _signed(block.series[row]))
        known, (band, percent, heartbeat_ms) = m.series[slot], m.bands[slot]
        kind, bits = Kind(int(known[kernels.BASE_KIND])), int(known[kernels.BASE_BITS])
        value = double_of(bits) if kind == Kind.DOUBLE else bits
        base = Base(int(known[kernels.BASE_TS]), kind, bits, value)
        policy = PointPolicy(
            "", band=float(band), band_percent=float(percent), heartbeat_ms=int(heartbeat_ms)
        )
        return deadband.step(base, block.sample(row), policy)[1]

    def suppressed(self, block: Block, verdicts: bytearray) -> Block:
        """Count the suppressed rows of the judged block: what is to be put out of them, the counts
        as `version` (see `services.domain.suppressed`). To be asked once for a block.
        """
        counts = self._memory.counts
        if Verdict.SUPPRESSED not in verdicts and not counts[kernels.UNTOLD]:
            return Block()
        out = np.empty((2 * len(block), 5), np.int64)
        judged = np.frombuffer(verdicts, np.uint8)
        out = out[: kernels.count(_columns(block), self._memory, judged, out)]
        return _told(block, out) if len(out) else Block()

    def forget(self, offset: int) -> None:
        """The store has every row up to `offset`: let the oldest go beyond `rows_max`; what is not
        newer than these is asked of the store from now on.
        """
        counts = self._memory.counts
        surplus = int(counts[kernels.END] - counts[kernels.BEGIN]) - self.rows_max
        if surplus > 0:
            self._floor_ts = max(self._floor_ts, kernels.forget(self._memory, surplus, offset))

    # -- room: the kernels add, they do not grow

    def _room(self, *, series: int = 0, rows: int = 0) -> None:
        """Room for so many series and rows more."""
        m = self._memory
        used, begin, end = (int(m.counts[at]) for at in (kernels.USED, kernels.BEGIN, kernels.END))
        if used + series > len(m.names):
            size = _power(2 * (used + series))
            self._memory = m = m._replace(
                names=_grown(m.names, size, 0),
                series=_grown(m.series, size, _BLANK),
                bands=_grown(m.bands, size, 0),
                floors=_grown(m.floors, size, NEVER),
                suppressed=_grown(m.suppressed, size, 0),
                slots=np.full(2 * size, -1, np.int32),
            )
            kernels.fill(m.slots, m.names, used)
        if end - begin + rows > len(m.rows):
            ring = np.zeros((_power(2 * (end - begin + rows)), 4), np.int64)
            numbers = np.arange(begin, end)
            ring[numbers & (len(ring) - 1)] = m.rows[numbers & (len(m.rows) - 1)]
            # The index names places in the ring: it has to be made anew.
            m.counts[kernels.INDEXED] = m.counts[kernels.FILLED] = 0
            self._memory = m._replace(rows=ring, by_time=np.full(2, -1, np.int32))

    def _index_room(self, rows: int) -> None:
        """Room in the index for every row it lacks and so many more, half of it staying free.
        Making it anew also drops what was forgotten.
        """
        m = self._memory
        begin, end, indexed, filled, _ = (int(count) for count in m.counts[kernels.BEGIN :])
        if 2 * (filled + end - max(indexed, begin) + rows) > len(m.by_time):
            size = _power(4 * (end - begin + rows))
            self._memory = m._replace(by_time=np.full(max(2, size), -1, np.int32))
            m.counts[kernels.INDEXED], m.counts[kernels.FILLED] = begin, 0

    # -- bytes

    def pack(self) -> bytes:
        """The memory as bytes, from which `unpack` makes one that judges on identically."""
        m = self._memory
        used, begin, end = (int(m.counts[at]) for at in (kernels.USED, kernels.BEGIN, kernels.END))
        rows = m.rows[np.arange(begin, end) & (len(m.rows) - 1)]
        tables = [*(getattr(m, name)[:used] for name in _PACKED[:-1]), rows]
        # Column by column: what is alike lies together.
        body = zlib.compress(b"".join(table.T.tobytes() for table in tables), 1)
        return _HEAD.pack(FORMAT, self.whole, used, len(rows)) + body

    @classmethod
    def unpack(cls, data: bytes, *, rows_max: int = ROWS_MAX) -> Lane:
        """The inverse of `pack`. Raises ValueError where the bytes are of another format."""
        form, whole, used, held = _HEAD.unpack_from(data)
        if form != FORMAT:
            raise ValueError(f"a lane's memory of format {form}; this is {FORMAT}")
        lane = cls(whole=bool(whole), rows_max=rows_max)
        lane._room(series=used, rows=held)
        m, body, at = lane._memory, zlib.decompress(data[_HEAD.size :]), 0
        m.counts[kernels.USED], m.counts[kernels.END] = used, held
        for name in _PACKED:
            table = getattr(m, name)[: held if name == "rows" else used]
            table.T[...] = np.frombuffer(body, table.dtype, table.size, at).reshape(table.T.shape)
            at += table.nbytes
        kernels.fill(m.slots, m.names, used)
        told = m.suppressed[:used]
        m.counts[kernels.UNTOLD] = (told[:, kernels.COUNT] != told[:, kernels.TOLD]).sum()
        lane._floor_ts = int(m.floors.max(initial=NEVER))
        return lane


@lru_cache(maxsize=1)
def warm() -> None:
    """Have the kernels compiled, or loaded: a process that judges pays for it when it begins, not
    its first record.
    """
    block, position = Block(), Position(0, 0)
    policy = block.policy_index(PointPolicy("", on_change=True))
    for ts_ms in (1, 2):
        block.add(1, ts_ms, Kind.DOUBLE, 0.0, policy=policy)
    lane = Lane(whole=False, rows_max=0)
    lane.questions(block)
    lane.learn(Block(), position, [1])
    lane.suppressed(block, lane.judge(block, position).verdicts)
    lane.forget(0)


_BLANK = np.zeros(8, np.int64)
_BLANK[[kernels.MAX_TS, kernels.BASE_TS, kernels.REVISION]] = NEVER
_BLANK[kernels.KIND] = ANY


def _signed(series: int) -> int:
    """The int64 of the same bits as a series id."""
    return series - (1 << 64) if series >> 63 else series


def _power(size: int) -> int:
    """The power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()


def _grown(column: Column, size: int, blank: Column | int) -> Column:
    """The column with `size` rows, the new ones `blank`."""
    grown = np.empty((size, *column.shape[1:]), column.dtype)
    grown[: len(column)] = column
    grown[len(column) :] = blank
    return grown


def _columns(block: Block) -> Rows:
    """The block's columns as the kernels take them; no copies."""
    bits = np.frombuffer(block.bits, np.int64)
    policies, bands = _policies(tuple(block.policies))
    return Rows(
        series=np.frombuffer(block.series, np.int64),
        ts=np.frombuffer(block.ts_ms, np.int64),
        kind=np.frombuffer(block.kind, np.uint8),
        bits=bits,
        doubles=bits.view(np.float64),
        quality=np.frombuffer(block.quality, np.int32),
        rule=np.frombuffer(block.rule, np.uint8),
        policy=np.frombuffer(block.policy, np.uint16),
        policies=policies,
        policy_bands=bands,
    )


def _told(block: Block, out: Column) -> Block:
    """What `kernels.count` put out of a block, as a block: series, tenant and, where it is the same
    one, text are those of the row that had it put out.
    """
    counts, rows, times, bits, what = np.ascontiguousarray(out.T)
    told = Block(policies=list(block.policies))
    told.series = array("Q", np.frombuffer(block.series, np.uint64)[rows].tobytes())
    told.ts_ms = array("q", times.tobytes())
    told.kind = array("B", (what & 7).astype(np.uint8).tobytes())
    told.bits = array("q", bits.tobytes())
    told.quality = array("i", (what >> 3).astype(np.int32).tobytes())
    told.rule = array("B", bytes(len(out)))
    told.policy = array("H", np.frombuffer(block.policy, np.uint16)[rows].tobytes())
    told.version = array("Q", counts.tobytes())
    if any(map(told.kind.count, _TEXT_KINDS)):
        for at, kind in enumerate(told.kind):
            if kind in _TEXT_KINDS:
                row = int(rows[at])
                same = (block.kind[row], block.bits[row]) == (kind, told.bits[at])
                told.texts[at] = block.texts[row] if same else ""
        told.text_bytes = sum(map(bytes_of, told.texts.values()))
    return told


@lru_cache(maxsize=64)
def _policies(policies: tuple[PointPolicy, ...]) -> tuple[Column, Column]:
    """The columns `policies` and `policy_bands` of `Rows`."""
    locks = [(p.revision, ANY if p.kind is None else int(p.kind), p.on_change) for p in policies]
    bands = [(p.band, p.band_percent, float(p.heartbeat_ms)) for p in policies]
    return np.array(locks, np.int64), np.array(bands, np.float64)
