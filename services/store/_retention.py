"""A changed period in ClickHouse's SQL: the column `expires` of what is stored is rewritten.

A mutation is the only way that leaves no copy of a row with the old moment behind. It reads the
named series by the table's order and rewrites the parts that hold one of their rows as a whole, in
the background; so one mutation takes many series, and nothing is begun where nothing differs.
Before it the newest row of a series that had rows for ever goes to `latest`: those did not get
there when they were inserted, and may be gone as soon as they are rewritten. What comes in between
and is newer is left as it is, for the next time.
https://clickhouse.com/docs/sql-reference/statements/alter/update
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.rows import KEEP_MS_MAX, NEVER_EXPIRES
from services.store._port import RETAINED_MAX, Owned
from services.store._sql import WARM_SECONDS_MAX, Statement, newest

# As `Block.stored` makes it.
_KEEP_MS = "transform(series, {series:Array(UInt64)}, {keep_ms:Array(Int64)}, toInt64(0))"
_EXPIRES = (
    f"toDateTime(least({NEVER_EXPIRES},"
    f" intDiv(toUnixTimestamp64Milli(ts) + {_KEEP_MS}, 1000) + 1), 'UTC')"
)
_OWNED = (
    "tenant IN {tenants:Array(String)} AND series IN {series:Array(UInt64)} AND"
    " transform(series, {series:Array(UInt64)}, {owners:Array(String)}, '') = tenant"
)
_DIFFERENT = f"{_OWNED} AND expires != {_EXPIRES}"
_SEEN = (
    "toUnixTimestamp64Milli(ts)"
    " <= transform(series, {series:Array(UInt64)}, {seen_ms:Array(Int64)}, toInt64(0))"
)
_SETTINGS = f"SETTINGS max_execution_time = {WARM_SECONDS_MAX}"

OPEN = (
    "SELECT count(), max(latest_fail_reason) FROM system.mutations"
    " WHERE database = currentDatabase() AND table = 'samples' AND NOT is_done"
    " AND command LIKE '%UPDATE expires = %'"
)
"""One row: how many rewrites are not over, and why one does not get on (or an empty text)."""
RETAINED = "SELECT tenant, series FROM latest FINAL"
"""Every series with rows that expire."""


def different(periods: Mapping[Owned, int]) -> Statement:
    """Rows (tenant, series, count, newest in ms, whether one was to be kept for ever) of the series
    that have rows with another moment.
    """
    return Statement(
        "SELECT tenant, series, count(), toUnixTimestamp64Milli(max(ts)),"
        f" max(toUnixTimestamp(expires)) = {NEVER_EXPIRES} FROM samples WHERE {_DIFFERENT}"
        f" GROUP BY tenant, series {_SETTINGS}",
        _bound(periods),
    )


def outliving(periods: Mapping[Owned, int]) -> Statement:
    """Puts the newest sample of each series where it outlives its row."""
    bound = _bound(periods)
    del bound["keep_ms"]
    return Statement(
        "INSERT INTO latest (tenant, series, ts, kind, double, long, text, quality, version)"
        f" {newest(_OWNED)} {_SETTINGS}, do_not_merge_across_partitions_select_final = 1",
        bound,
    )


def rewriting(periods: Mapping[Owned, int], seen_ms: Mapping[Owned, int]) -> Statement:
    """Begins the mutation of what is not newer than `seen_ms` (of each of the series)."""
    return Statement(
        f"ALTER TABLE samples UPDATE expires = {_EXPIRES} WHERE {_DIFFERENT} AND {_SEEN}"
        " SETTINGS mutations_sync = 0",
        _bound(periods) | {"seen_ms": [seen_ms[owned] for owned in periods]},
    )


def _bound(periods: Mapping[Owned, int]) -> dict[str, Any]:
    assert len(periods) <= RETAINED_MAX, f"{len(periods)} series in one statement"
    return {
        "tenants": sorted({tenant for tenant, _ in periods}),
        "owners": [tenant for tenant, _ in periods],
        "series": [series for _, series in periods],
        "keep_ms": [min(keep_ms or KEEP_MS_MAX, KEEP_MS_MAX) for keep_ms in periods.values()],
    }
