"""The judge on columns: the rules of `admission` for a whole block at once, compiled.

`admission` is the specification; a property test holds both equal. Traffic in order pays for one
look at its series' record (a cache line) and one appended row of memory. The index over remembered
times is built only when a late sample asks, and caught up from where it ended. What the arrays mean
is said at `Memory`; `services.domain.memory` owns them and makes room: nothing here grows.

Everything is int64 or float64, as mixed signs would make doubles of integers: ids and versions
(uint64) are seen as the int64 of the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from schemas.samples import Conflict, Kind, Verdict
from services.domain.lattice import ROW_BITS
from services.domain.suppressed import MINUTE_MS

Column = np.ndarray[Any, Any]

NEVER = -(2**63)
"""A time before all times: nothing seen, no base, no floor."""
ANY = -1
"""The locked kind of a series whose samples bring their own."""

MAX_TS, NEWEST, BASE_TS, BASE_BITS, BASE_KIND, KIND, REVISION, BANDED = range(8)
"""Columns of `Memory.series`."""
BY_BAND, BY_EQUALITY = 1, 2
"""Bits of the column BANDED: what may suppress a sample, a band or `on_change`; 0 is nothing."""
BAND, PERCENT, HEARTBEAT = range(3)
"""Columns of `Memory.bands`."""
TS, MARK, OFFSET, SLOT = range(4)
"""Columns of `Memory.rows`."""
COUNT, TOLD, LAST_TS, LAST_BITS, LAST_WHAT = range(5)
"""Columns of `Memory.suppressed`; `LAST_WHAT` is quality * 8 + kind."""
ROW = 1
"""In what `count` puts out this column is the row that had it put out, the others are as above."""
USED, BEGIN, END, INDEXED, FILLED, UNTOLD = range(6)
"""Places in `Memory.counts`."""
KNOWN, TIME_UNKNOWN, SERIES_UNKNOWN = range(3)
"""What `question` finds of a row."""
UNDECIDED = 255
"""Stands for the verdict of a row at which `judge` stops because only the specification can tell
whether the deadband drops it.
"""

_DOUBLE, _LONG = int(Kind.DOUBLE), int(Kind.LONG)
_FIRST, _LAST, _RENEW = (int(rule) for rule in Conflict)
_KEPT, _DUPLICATE, _CONFLICT, _OVERWRITE, _SUPPRESSED, _REFUSED = (int(v) for v in Verdict)
_MARGIN = 8 * float(np.finfo(np.float64).eps)
_SMALL, _PERCENT_MAX = 1e-290, 1e30
_TENS = np.array([float(10**power) for power in range(16)])
_DIGITS_MAX, _WHOLE_MAX, _PRODUCT_MAX = 1e15, float(2**53), 9e18
_GOLDEN, _SPREAD = 0x9E3779B97F4A7C15 - 2**64, 0xD6E8FEB86659FD93 - 2**64


class Memory(NamedTuple):
    """A lane's memory.

    A series has a place ("slot") in the columns `names` (its id), `series`, `bands`, `floors` and
    `suppressed` (what `suppressed.Count` is); `slots` is an open-addressing table from id to slot,
    -1 where free. `rows` is a ring of the remembered times in the order they were stored; a row is
    named by a running number, so that forgetting the oldest moves nothing. `by_time` is an
    open-addressing table from (series, time) to the number of its newest row, -1 where free.
    `counts`: series in use, first row, the one behind the last row, the one behind the last row in
    `by_time`, places of `by_time` in use, series with suppressed samples of which no row has told.
    """

    names: Column
    series: Column
    bands: Column
    floors: Column
    suppressed: Column
    slots: Column
    rows: Column
    by_time: Column
    counts: Column


class Rows(NamedTuple):
    """A block's columns, one element a row; `doubles` are the same bits as `bits`. `policies` has
    the columns revision, locked kind and `on_change`, `policy_bands` those of `Memory.bands`.
    """

    series: Column
    ts: Column
    kind: Column
    bits: Column
    doubles: Column
    quality: Column
    rule: Column
    policy: Column
    policies: Column
    policy_bands: Column


@njit(cache=True)
def find(slots: Any, names: Any, name: int) -> Any:
    """The place in `slots` where the series is, or would be."""
    mask = slots.size - 1
    at = ((name * _GOLDEN) >> 32) & mask
    while slots[at] >= 0 and names[slots[at]] != name:
        at = (at + 1) & mask
    return at


@njit(cache=True)
def fill(slots: Any, names: Any, used: int) -> None:
    """Enter the first `used` series into an empty table."""
    for slot in range(used):
        slots[find(slots, names, names[slot])] = slot


@njit(cache=True)
def _enter(slots: Any, names: Any, counts: Any, name: int, at: int) -> Any:
    slot = counts[USED]
    counts[USED] += 1
    slots[at] = slot
    names[slot] = name
    return slot


@njit(cache=True)
def slot_of(slots: Any, names: Any, counts: Any, name: int) -> Any:
    """The slot of the series, a new one if it was never seen."""
    at = find(slots, names, name)
    slot = np.int64(slots[at])
    return slot if slot >= 0 else _enter(slots, names, counts, name, at)


@njit(cache=True)
def _look(by_time: Any, rows: Any, counts: Any, slot: int, ts: int) -> Any:
    """The place in the index of the newest row for (slot, ts), or the free one where it would be.

    The place of a row that was forgotten matches nothing, and is passed over.
    """
    mask, ring, begin, held = (
        by_time.size - 1,
        len(rows) - 1,
        counts[BEGIN],
        counts[END] - counts[BEGIN],
    )
    at = ((ts * _GOLDEN + slot * _SPREAD) >> 32) & mask
    while by_time[at] >= 0:
        row = by_time[at]
        if rows[row, TS] == ts and rows[row, SLOT] == slot and ((row - begin) & ring) < held:
            break
        at = (at + 1) & mask
    return at


@njit(cache=True)
def _catch_up(by_time: Any, rows: Any, counts: Any) -> None:
    """Enter the rows that the index does not have yet; a time's newest row takes its place."""
    ring = len(rows) - 1
    for number in range(max(counts[INDEXED], counts[BEGIN]), counts[END]):
        row = number & ring
        at = _look(by_time, rows, counts, rows[row, SLOT], rows[row, TS])
        if by_time[at] < 0:
            counts[FILLED] += 1
        by_time[at] = row
    counts[INDEXED] = counts[END]


@njit(cache=True)
def _digits(number: Any, power: int) -> Any:
    """The whole number that is `number` * 10^`power` as decimals, NaN where there is none.

    It has at most 15 digits, and two decimals of so few never share a double: so where it gives the
    double back it is the shortest notation.
    """
    whole = np.rint(number * _TENS[power])
    if abs(whole) < _DIGITS_MAX and whole / _TENS[power] == number:
        return whole
    return np.nan


@njit(cache=True)
def _compare(change: Any, limit: Any, scale: Any) -> Any:
    """Whether a change is below the limit by more than doubles can be wrong about it.

    The difference of two doubles, a limit of two factors and the decimals that all of them stand
    for are off by less than six units in the last place of the largest, `_SMALL` is far above what
    the smallest doubles lose.
    """
    error = _MARGIN * max(scale, change, limit) + _SMALL
    if change + error < limit:
        return _SUPPRESSED
    return _KEPT if change - error >= limit else UNDECIDED


@njit(cache=True)
def _compare_band(kind: int, double: Any, base: Any, change: Any, band: Any) -> Any:
    """Whether the change is below the band, in whole numbers, where few digits make all of it."""
    for power in range(16):
        limit = _digits(band, power)
        if kind == _DOUBLE:
            difference = abs(_digits(double, power) - _digits(base, power))
        else:
            difference = change * _TENS[power]
        if difference < _WHOLE_MAX and not np.isnan(limit):
            return _SUPPRESSED if difference < limit else _KEPT
    return UNDECIDED


@njit(cache=True)
def _compare_percent(kind: int, double: Any, base: Any, change: Any, percent: Any) -> Any:
    """Whether the change is below so many percent of the base, likewise."""
    difference, amount = change, abs(base)
    for power in range(16):
        if kind == _DOUBLE:
            amount = abs(_digits(base, power))
            difference = abs(_digits(double, power) - _digits(base, power))
        if difference < _WHOLE_MAX and amount < _WHOLE_MAX:
            break
    for power in range(16):
        factor = _digits(percent, power)
        # Both products are whole, and as int64 exact.
        left, right = difference * 100.0 * _TENS[power], amount * factor
        whole = difference < _WHOLE_MAX and amount < _WHOLE_MAX
        if whole and left < _PRODUCT_MAX and right < _PRODUCT_MAX:
            hundreds = np.int64(100) * np.int64(_TENS[power])
            less = np.int64(difference) * hundreds < np.int64(amount) * np.int64(factor)
            return _SUPPRESSED if less else _KEPT
    return UNDECIDED


@njit(cache=True)
def _within(
    kind: int, bits: int, base_bits: int, double: Any, base: Any, band: Any, percent: Any
) -> Any:
    """Whether a number is within a band around the base, as decimals: most by doubles, those near
    the border by whole numbers, the rest is UNDECIDED.
    """
    if kind == _LONG:
        high, low = max(bits, base_bits), min(bits, base_bits)
        change, base = np.float64(np.uint64(high) - np.uint64(low)), np.float64(base_bits)
        scale = 0.0
    else:
        change, scale = abs(double - base), max(abs(double), abs(base))
        if not np.isfinite(scale):
            return _KEPT
    banded, relative = band > 0.0, percent > 0.0 and base != 0.0
    if change == 0.0:
        return _SUPPRESSED if banded or relative else _KEPT
    if not np.isfinite(change):
        return UNDECIDED
    by_band, by_percent = _KEPT, _KEPT
    if banded:
        by_band = _compare(change, band, scale)
    if relative:
        by_percent = UNDECIDED
        if percent < _PERCENT_MAX:
            by_percent = _compare(change, percent * abs(base) / 100.0, scale)
    if by_band == UNDECIDED and by_percent != _SUPPRESSED:
        by_band = _compare_band(kind, double, base, change, band)
    if by_percent == UNDECIDED and by_band != _SUPPRESSED:
        by_percent = _compare_percent(kind, double, base, change, percent)
    if by_band == _SUPPRESSED or by_percent == _SUPPRESSED:
        return _SUPPRESSED
    return UNDECIDED if by_band == UNDECIDED or by_percent == UNDECIDED else _KEPT


@njit(cache=True)
def _weigh(
    series: Any, bands: Any, slot: int, ts: int, kind: int, bits: int, double: Any, base: Any
) -> Any:
    """KEPT, SUPPRESSED or UNDECIDED; `deadband.step` is the specification."""
    base_ts, base_bits = series[slot, BASE_TS], series[slot, BASE_BITS]
    if base_ts == NEVER or kind != series[slot, BASE_KIND]:
        return _KEPT
    if bands[slot, HEARTBEAT] != 0.0 and ts - base_ts >= bands[slot, HEARTBEAT]:
        return _KEPT
    if series[slot, BANDED] & BY_EQUALITY and bits == base_bits:
        return _SUPPRESSED
    if series[slot, BANDED] & BY_BAND == 0 or kind > _LONG:
        return _KEPT
    band, percent = bands[slot, BAND], bands[slot, PERCENT]
    return _within(kind, bits, base_bits, double, base, band, percent)


@njit(cache=True)
def _adopt(series: Any, bands: Any, slot: int, policies: Any, policy_bands: Any, row: int) -> None:
    """From here on the series is judged by this policy."""
    series[slot, REVISION], series[slot, KIND] = policies[row, 0], policies[row, 1]
    for at in range(3):
        bands[slot, at] = policy_bands[row, at]
    banded = bands[slot, BAND] > 0.0 or bands[slot, PERCENT] > 0.0
    series[slot, BANDED] = BY_BAND * banded + BY_EQUALITY * policies[row, 2]


@njit(cache=True)
def _remember(rows: Any, counts: Any, slot: int, ts: int, mark: int, offset: int) -> None:
    at = counts[END] & (len(rows) - 1)
    rows[at, TS], rows[at, MARK], rows[at, OFFSET], rows[at, SLOT] = ts, mark, offset, slot
    counts[END] += 1


@njit(cache=True)
def judge(
    first: int,
    stop: int,
    b: Rows,
    m: Memory,
    record: int,
    offset: int,
    learning: bool,
    told: int,
    verdicts: Any,
    versions: Any,
) -> int:
    """Judge rows `first` to `stop` of a block; returns the row before which it stopped, or `stop`.

    It stops where `by_time` needs room, or where only the specification can tell what the deadband
    says: then the row's verdict is UNDECIDED, and the next call begins there with `told`, KEPT or
    SUPPRESSED. `record` is the block's place among all records (`lattice.record_of`). `learning`
    takes rows that the store answered: they are what they are, so neither type nor deadband is
    asked, nothing is overwritten or renewed, and they bring no policy.
    """
    names, series, bands, _, _, slots, rows, by_time, counts = m
    ids, times, kinds, all_bits, doubles, qualities, rules, policy, policies, policy_bands = b
    bases = series.view(np.float64)
    start = record << ROW_BITS
    for i in range(first, stop):
        slot = slot_of(slots, names, counts, ids[i])
        ts, kind, bits = times[i], np.int64(kinds[i]), all_bits[i]
        if not learning:
            if policies[policy[i], 0] > series[slot, REVISION]:
                _adopt(series, bands, slot, policies, policy_bands, policy[i])
            if series[slot, KIND] != ANY and series[slot, KIND] != kind:
                verdicts[i] = _REFUSED
                continue
        mark = bits ^ ((np.int64(qualities[i]) * 8 + kind) * _SPREAD)
        verdict = _KEPT
        moves = ts > series[slot, MAX_TS]
        if rules[i] == _RENEW and not learning:
            moves = ts >= series[slot, MAX_TS] or ts == series[slot, BASE_TS]
            if ts >= series[slot, MAX_TS]:
                series[slot, MAX_TS], series[slot, NEWEST] = ts, mark
        elif moves:
            change = _KEPT
            if series[slot, BANDED] != 0 and not learning:
                change = told
                if i > first or told == UNDECIDED:
                    base = bases[slot, BASE_BITS]
                    change = _weigh(series, bands, slot, ts, kind, bits, doubles[i], base)
                if change == UNDECIDED:
                    verdicts[i] = UNDECIDED
                    return i
            series[slot, MAX_TS], series[slot, NEWEST] = ts, mark
            if change == _SUPPRESSED:
                verdicts[i] = _SUPPRESSED
                continue
        else:
            taken, known = ts == series[slot, MAX_TS] and not learning, series[slot, NEWEST]
            if not taken:
                missing = counts[END] - max(counts[INDEXED], counts[BEGIN])
                if 2 * (counts[FILLED] + missing + stop - i) > by_time.size:
                    return i
                _catch_up(by_time, rows, counts)
                row = by_time[_look(by_time, rows, counts, slot, ts)]
                taken, known = row >= 0, rows[row, MARK]
            if taken:
                if known == mark:
                    verdicts[i] = _DUPLICATE
                    continue
                if rules[i] != _LAST or learning:
                    verdicts[i] = _CONFLICT
                    continue
                verdict = _OVERWRITE
                if ts == series[slot, MAX_TS]:
                    series[slot, NEWEST] = mark
                moves = ts == series[slot, MAX_TS] or ts == series[slot, BASE_TS]
        if moves:
            series[slot, BASE_TS], series[slot, BASE_BITS] = ts, bits
            series[slot, BASE_KIND] = kind
        elif ts > series[slot, BASE_TS] and not learning:
            # Stored behind the base: readers see it as newest, so the next sample has to count.
            series[slot, BASE_TS] = NEVER
        _remember(rows, counts, slot, ts, mark, offset)
        verdicts[i] = verdict
        # 2^63 + pos and 2^63 - 1 - pos, as int64 of the same bits.
        place = start | i
        versions[i] = NEVER + place if rules[i] != _FIRST else -1 - (NEVER + place)
    return stop


@njit(cache=True)
def count(b: Rows, m: Memory, verdicts: Any, out: Any) -> int:
    """Count the suppressed rows of a judged block; writes what is to be put out into the rows of
    `out` (room for two a row of the block) and returns how many. `suppressed.step` is the
    specification.
    """
    state, counts, written = m.suppressed, m.counts, 0
    for i in range(verdicts.size):
        suppressed = verdicts[i] == _SUPPRESSED
        stored = verdicts[i] == _KEPT or verdicts[i] == _OVERWRITE
        if not suppressed and (not stored or counts[UNTOLD] == 0):
            continue
        slot = np.int64(m.slots[find(m.slots, m.names, b.series[i])])
        minute_ends = state[slot, LAST_TS] // MINUTE_MS != b.ts[i] // MINUTE_MS
        if state[slot, TOLD] != state[slot, COUNT] and (stored or minute_ends):
            out[written] = state[slot]
            out[written, ROW] = i
            written += 1
            counts[UNTOLD] -= 1
            state[slot, TOLD] = state[slot, COUNT]
        if not suppressed:
            continue
        if minute_ends:
            state[slot, COUNT] = state[slot, TOLD] = 0
        untold = state[slot, TOLD] != state[slot, COUNT]
        state[slot, COUNT] += 1
        state[slot, LAST_TS], state[slot, LAST_BITS] = b.ts[i], b.bits[i]
        state[slot, LAST_WHAT] = np.int64(b.quality[i]) * 8 + b.kind[i]
        if state[slot, COUNT] & (state[slot, COUNT] - 1) == 0:
            out[written] = state[slot]
            out[written, ROW] = i
            written += 1
            counts[UNTOLD] -= untold
            state[slot, TOLD] = state[slot, COUNT]
        else:
            counts[UNTOLD] += not untold
    return written


@njit(cache=True)
def question(series: Any, ts: Any, m: Memory, whole: bool, asked: Any) -> int:
    """Write for each row what the lane does not know (KNOWN, TIME_UNKNOWN, SERIES_UNKNOWN);
    returns how many are not known.
    """
    _catch_up(m.by_time, m.rows, m.counts)
    count = 0
    for i in range(series.size):
        slot = np.int64(m.slots[find(m.slots, m.names, series[i])])
        asked[i] = KNOWN
        if slot < 0:
            if not whole:
                asked[i] = SERIES_UNKNOWN
        elif ts[i] <= m.floors[slot]:
            # Also the newest time: within the block another may become the newest.
            at = _look(m.by_time, m.rows, m.counts, slot, ts[i])
            if m.by_time[at] < 0:
                asked[i] = TIME_UNKNOWN
        if asked[i] != KNOWN:
            count += 1
    return count


@njit(cache=True)
def forget(m: Memory, surplus: int, offset: int) -> int:
    """Let up to `surplus` of the oldest rows go, as far as their record is not behind `offset`;
    returns the newest time that went.
    """
    newest, ring = NEVER, len(m.rows) - 1
    for _ in range(surplus):
        row = m.rows[m.counts[BEGIN] & ring]
        if row[OFFSET] > offset:
            break
        m.floors[row[SLOT]] = max(m.floors[row[SLOT]], row[TS])
        newest = max(newest, row[TS])
        m.counts[BEGIN] += 1
    return newest
