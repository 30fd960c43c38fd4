"""What can be asked of the store and of the live view. The answer to all of them is a `Block` with
versions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RangeQuery:
    """Samples of some series (uint64 ids) of one tenant with start_ms <= time < end_ms, at most
    `limit` of each series.

    Ordered by series, then time (`descending`: newest first), one row per series and millisecond.
    """

    tenant: str
    series: tuple[int, ...]
    start_ms: int
    end_ms: int
    limit: int
    descending: bool = False


@dataclass(frozen=True, slots=True)
class LatestQuery:
    """The newest sample of each series; of all series of all tenants where `series` is None (the
    live view warms itself).
    """

    tenant: str | None = None
    series: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TakenQuery:
    """The samples that stand at exactly these places: `series[i]` at `ts_ms[i]`, of any tenant;
    absent ones have no row.
    """

    series: tuple[int, ...]
    ts_ms: tuple[int, ...]
