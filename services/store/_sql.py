"""From a canonical query to ClickHouse's SQL: every read of samples is written here and only here.

Rows of one series and millisecond lie side by side until a merge, so each read says FINAL. Parts of
different months are not compared (`do_not_merge_across_partitions_select_final`): the month is a
function of the time, which is in the key, so equal keys never lie in two of them.

Values are bound by the engine (`{name:Type}`), never written into the text. Pure.
https://clickhouse.com/docs/sql-reference/statements/select/from#final-modifier
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.queries import RangeQuery, TakenQuery
from schemas.samples import TS_MS_MAX
from services.store._port import Query

SERIES_MAX = 4096
"""Series (or places) that one statement names. ClickHouse takes form fields of up to 128 KiB, and
an id has up to 20 digits.
"""
READ_SECONDS_MAX = 30
WARM_SECONDS_MAX = 600
"""For the one read that goes over everything: the newest sample of every series."""
READ_BYTES_MAX = 4 << 30
"""Memory of one read, so that a large one fails alone."""

_NAMES = "tenant, series, ts, kind, double, long, text, quality, version"
_COLUMNS = f"SELECT {_NAMES} FROM samples FINAL"
_TIME = "fromUnixTimestamp64Milli({{{}:Int64}}, 'UTC')".format
_SERIES = "series IN {series:Array(UInt64)}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One SELECT with the values to bind. Its rows have the columns of `Block.stored`."""

    sql: str
    parameters: dict[str, Any]


def statements(query: Query) -> list[Statement]:
    """The statements whose answers, one behind the other, are the query's answer."""
    if isinstance(query, RangeQuery):
        return [_range(query, ids) for ids in _cut(sorted(set(query.series)))]
    if isinstance(query, TakenQuery):
        places = sorted(set(zip(query.series, query.ts_ms, strict=True)))
        return [_taken(cut) for cut in _cut(places)]
    if query.series is None:
        return [_latest(query.tenant, None)]
    return [_latest(query.tenant, ids) for ids in _cut(sorted(set(query.series)))]


def _range(query: RangeQuery, series: Sequence[int]) -> Statement:
    order = "ts DESC" if query.descending else "ts"
    # One series may stop at its limit while it is read in order; LIMIT BY has to see all rows.
    limit = "LIMIT {limit:UInt64}" + ("" if len(series) == 1 else " BY series")
    where = (
        f"tenant = {{tenant:String}} AND {_SERIES}"
        f" AND ts >= {_TIME('start_ms')} AND ts < {_TIME('end_ms')}"
    )
    return Statement(
        f"{_COLUMNS} WHERE {where} ORDER BY series, {order} {limit} {_settings(READ_SECONDS_MAX)}",
        {
            "tenant": query.tenant,
            "series": list(series),
            "start_ms": _within(query.start_ms),
            "end_ms": _within(query.end_ms),
            "limit": max(query.limit, 0),
        },
    )


def _latest(tenant: str | None, series: Sequence[int] | None) -> Statement:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    if tenant is not None:
        conditions.append("tenant = {tenant:String}")
        parameters["tenant"] = tenant
    if series is not None:
        conditions.append(_SERIES)
        parameters["series"] = list(series)
    where = " AND ".join(conditions) or "1"
    seconds = WARM_SECONDS_MAX if series is None else READ_SECONDS_MAX
    # What has expired may be gone from `samples`; what never expires was never in `latest`.
    return Statement(
        f"SELECT {_NAMES} FROM ({newest(where)} UNION ALL"
        f" SELECT {_NAMES} FROM latest FINAL WHERE {where})"
        " ORDER BY series, tenant, ts DESC, version DESC LIMIT 1 BY tenant, series"
        f" {_settings(seconds)}",
        parameters,
    )


def newest(where: str) -> str:
    """A SELECT of the newest stored row of every series among the rows that `where` names."""
    # The times alone are a thousandth of the bytes; the values are read only where they are newest.
    times = f"SELECT tenant, series, max(ts) FROM samples FINAL WHERE {where} GROUP BY ALL"
    return f"{_COLUMNS} WHERE {where} AND (tenant, series, ts) IN ({times})"


def _taken(places: Sequence[tuple[int, int]]) -> Statement:
    # Sent as two columns: an array of tuples would outgrow a form field. The set alone is PREWHERE:
    # it reads series and time, and the other columns only where a place is found, which is safe
    # before FINAL, for all rows of a key have the same place. The bounds of time leave out whole
    # months before anything is read. Beside the set they would be compared for each row that it
    # passes over, in a reading of their own: a tenth of the question's time.
    pairs = (
        "SELECT place.1, fromUnixTimestamp64Milli(place.2, 'UTC') FROM"
        " (SELECT arrayJoin(arrayZip({series:Array(UInt64)}, {ts_ms:Array(Int64)})) AS place)"
    )
    bounds = f"ts BETWEEN {_TIME('first_ms')} AND {_TIME('last_ms')}"
    times = [ts_ms for _, ts_ms in places]
    return Statement(
        f"{_COLUMNS} PREWHERE (series, ts) IN ({pairs}) WHERE {bounds}"
        f" ORDER BY series, ts {_settings(READ_SECONDS_MAX)}",
        {
            "series": [series for series, _ in places],
            "ts_ms": times,
            "first_ms": min(times),
            "last_ms": max(times),
        },
    )


def _cut(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + SERIES_MAX] for start in range(0, len(items), SERIES_MAX))


def _within(ts_ms: int) -> int:
    return min(max(ts_ms, 0), TS_MS_MAX)


def _settings(seconds_max: int) -> str:
    return (
        "SETTINGS do_not_merge_across_partitions_select_final = 1,"
        " output_format_arrow_low_cardinality_as_dictionary = 1,"
        f" max_execution_time = {seconds_max}, max_memory_usage = {READ_BYTES_MAX}"
    )
