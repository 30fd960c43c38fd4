"""The live tail: accepted blocks that the store does not have yet, and how they join its answer.

A row leaves the tail only when the sink's mark says that it is stored. A reader takes the tail's
rows before it asks the store, so that a row on its way from one to the other is seen at least once;
the highest version of each millisecond then makes it once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import compress
from operator import neg
from struct import Struct

from schemas.blocks import Block
from schemas.points import PointPolicy, lane_of
from schemas.queries import RangeQuery
from services.errors import Unavailable

_SCANS_MAX = 8
"""Up to so many series are searched for one by one as bytes; more in one pass over the column."""

_series_bytes = Struct("=Q").pack


@dataclass(slots=True)
class _Lane:
    """One lane of the tail. What lies below `stored` is in the store; below `dropped` it is not
    held here any more, stored or not.
    """

    records: deque[tuple[int, Block]] = field(default_factory=deque)
    rows: int = 0
    stored: int = 0
    dropped: int = 0


class Tail:
    """Blocks by lane, in the order of their offsets in `samples.accepted`; at most `rows_max` rows
    in all.

    Above the bound the fullest lane loses its oldest blocks; until the store has what was dropped,
    reads that touch the lane are answered Unavailable.
    """

    def __init__(self, lanes: int, rows_max: int) -> None:
        self.rows = 0
        self._lanes = [_Lane() for _ in range(lanes)]
        self._rows_max = rows_max

    @property
    def waits(self) -> bool:
        """Whether anything is held, or was dropped, that the store is not known to have."""
        return self.rows > 0 or any(held.dropped > held.stored for held in self._lanes)

    def add(self, lane: int, offset: int, block: Block) -> None:
        """Hold the accepted block at this offset of the lane."""
        held = self._lanes[lane]
        if offset < held.stored or not len(block):
            return
        held.records.append((offset, block))
        held.rows += len(block)
        self.rows += len(block)
        while self.rows > self._rows_max:
            fullest = max(self._lanes, key=lambda one: one.rows)
            fullest.dropped = self._release(fullest) + 1

    def stored(self, lane: int, next_offset: int) -> None:
        """The store has everything of the lane before `next_offset`."""
        held = self._lanes[lane]
        held.stored = max(held.stored, next_offset)
        while held.records and held.records[0][0] < held.stored:
            self._release(held)

    def _release(self, held: _Lane) -> int:
        offset, block = held.records.popleft()
        held.rows -= len(block)
        self.rows -= len(block)
        return offset

    def select(self, query: RangeQuery) -> Block:
        """The tail's rows that the query asks for, in no order, versions not yet compared. Raises
        Unavailable.
        """
        wanted: dict[int, set[int]] = {}
        for series in query.series:
            wanted.setdefault(lane_of(series, len(self._lanes)), set()).add(series)
        found = []
        for lane, members in wanted.items():
            held = self._lanes[lane]
            if held.dropped > held.stored:
                raise Unavailable("too much is waiting for the store", retry_after_ms=5_000)
            for _, block in held.records:
                if rows := _rows(block, members, query):
                    found.append(block.take(rows))
        return Block.join(found)


def _rows(block: Block, wanted: Collection[int], query: RangeQuery) -> list[int]:
    """The rows of `wanted` series, of the query's tenant and time."""
    rows: Iterable[int]
    if len(wanted) <= _SCANS_MAX:
        column = block.series.tobytes()
        rows = [row for series in wanted for row in _find(column, _series_bytes(series))]
    else:
        rows = compress(range(len(block)), map(wanted.__contains__, block.series))
    start, end, tenant = query.start_ms, query.end_ms, query.tenant
    times, policy, policies = block.ts_ms, block.policy, block.policies
    return [
        row for row in rows if start <= times[row] < end and policies[policy[row]].tenant == tenant
    ]


def _find(column: bytes, series: bytes) -> list[int]:
    """The rows at which the eight bytes of a series stand in the column."""
    rows, at = [], column.find(series)
    while at >= 0:
        row, shift = divmod(at, 8)
        if shift:
            # The bytes match across two rows.
            at = column.find(series, at + 1)
        else:
            rows.append(row)
            at = column.find(series, at + 8)
    return rows


def merge(query: RangeQuery, stored: Block, tail: Block) -> Block:
    """The store's answer and the tail's rows as one answer: ordered by series and time as the query
    says, one row per series and millisecond (the highest version), `limit` of each series.

    Right although the store's answer is limited: what belongs into the first `limit` of the union
    is in the tail or among the store's own first `limit`.
    """
    if not len(tail):
        return stored
    policies = stored.policies or [PointPolicy(query.tenant)]
    tail = _under(policies, tail)
    rows_by_series: dict[int, list[int]] = {}
    for row, series in enumerate(tail.series):
        rows_by_series.setdefault(series, []).append(row)
    pieces, done = [], 0
    for series in sorted(rows_by_series):
        start = bisect_left(stored.series, series)
        stop = bisect_right(stored.series, series, start)
        pieces.append(stored.slice(done, start))
        pieces.append(_merge_one(query, stored.slice(start, stop), tail, rows_by_series[series]))
        done = stop
    pieces.append(stored.slice(done, len(stored)))
    return Block.join(pieces)


def _merge_one(query: RangeQuery, stored: Block, tail: Block, rows: list[int]) -> Block:
    """One series: stored rows before the tail's first are copied as they are, the rest compared."""
    rows.sort(key=tail.version.__getitem__)
    row_by_ts = {tail.ts_ms[row]: row for row in rows}
    times = sorted(row_by_ts, reverse=query.descending)
    newest, oldest = max(times[0], times[-1]), min(times[0], times[-1])
    if query.descending:
        start = bisect_left(stored.ts_ms, -newest, key=neg)
        stop = bisect_right(stored.ts_ms, -oldest, key=neg)
    else:
        start, stop = bisect_left(stored.ts_ms, oldest), bisect_right(stored.ts_ms, newest)
    middle = Block.join((stored.slice(start, stop), tail.take([row_by_ts[ts] for ts in times])))
    if stop > start:
        version = middle.version.__getitem__
        best: dict[int, int] = {}
        for row, ts in enumerate(middle.ts_ms):
            if ts not in best or version(row) > version(best[ts]):
                best[ts] = row
        middle = middle.take([best[ts] for ts in sorted(best, reverse=query.descending)])
    merged = Block.join((stored.slice(0, start), middle, stored.slice(stop, len(stored))))
    return merged if len(merged) <= query.limit else merged.slice(0, query.limit)


def _under(policies: list[PointPolicy], block: Block) -> Block:
    """The rows under other policies (the first of them), so that joining need not rename any."""
    renamed = block.slice(0, len(block))
    renamed.policies = list(policies)
    renamed.policy = array("H", bytes(2 * len(block)))
    return renamed
