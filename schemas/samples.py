"""The canonical sample, its kinds of value, and the verdicts a sample can get."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

TS_MS_MAX = 9_214_646_400_000
"""First millisecond of 2262: times from 1970 up to here (exclusive) can be stored."""

NO_QUALITY = -(2**31)
"""Stands for "no quality came" in an integer column."""


class Kind(IntEnum):
    """The type of a value. The numbers are on disk: never renumber."""

    DOUBLE = 0
    LONG = 1
    BOOL = 2
    STRING = 3
    JSON = 4
    DATE = 5
    """A point in time as a value: UTC milliseconds."""


class Conflict(IntEnum):
    """What the sender's contract says when the millisecond is already taken by another value."""

    FIRST = 0
    """The first value wins; the later one is dropped."""
    LAST = 1
    """The last value wins; the later one replaces."""
    RENEW = 2
    """What held the millisecond has expired: whatever it was, this value is the first, and counts
    above what is still there of it.
    """


class Verdict(IntEnum):
    """What the judge decided for one sample. The six counters add up to the received one."""

    KEPT = 0
    DUPLICATE = 1
    """Same series, same millisecond, same value and quality: nothing to store."""
    CONFLICT = 2
    """Same series and millisecond, another value, first wins: dropped."""
    OVERWRITE = 3
    """Same series and millisecond, another value, last wins: stored, replaces."""
    SUPPRESSED = 4
    """Too small a change, or none (deadband, `PointPolicy.on_change`): dropped on purpose."""
    REFUSED = 5
    """Not of the series' declared type: goes to the dead letters."""


_VERDICTS = {verdict.value: verdict for verdict in Verdict}


def verdicts_of(numbers: bytes) -> list[Verdict]:
    """The verdicts behind their bytes, as receipts hold them; an Enum's call takes ten times as
    long.
    """
    return list(map(_VERDICTS.__getitem__, numbers))


STORED = frozenset({Verdict.KEPT, Verdict.OVERWRITE})
"""Verdicts whose samples go on to the store."""

Value = float | int | bool | str


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a series at one millisecond: the readable form of one row of a `Block`.

    `value` is a float (DOUBLE), an int within 64 bits (LONG, DATE), a bool, or text (STRING, JSON).
    """

    series: int
    ts_ms: int
    kind: Kind
    value: Value
    quality: int | None = None
    rule: Conflict = Conflict.FIRST
