"""What an insert promises: durable when it returns, the same row once, the highest version, and
whose fault an error is.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from schemas.blocks import Block
from schemas.envelope import Position
from schemas.queries import RangeQuery
from schemas.rows import concat, month_batches, sample_rows, suppressed_rows
from schemas.samples import TS_MS_MAX, Conflict, Kind, Sample
from services.domain.lattice import Place as LogPlace
from services.domain.lattice import version_of
from services.errors import Malformed, Unavailable
from services.store import Store
from tests.contract.store._places import Place, opened
from tests.support.builders import NOW_MS, a_block, a_policy, a_sample

EVERYTHING = RangeQuery("acme", (1,), 0, TS_MS_MAX, 1_000_000)


def stored(*samples: Sample, versions: Sequence[int] = (), tenant: str = "acme") -> Block:
    """A judged block; the versions count down from the middle where none are given."""
    block = a_block(*samples, policy=a_policy(tenant=tenant))
    block.version = array("Q", versions or [(1 << 63) - 1 - row for row in range(len(block))])
    return block


def version(offset: int, rule: Conflict) -> int:
    """The version of the first row at an offset of the first epoch."""
    return version_of(LogPlace(*Position(1, offset), 0, rule))


async def put(store: Store, block: Block) -> None:
    """Insert a judged block."""
    await store.insert("samples", sample_rows(block))


async def raw_rows(store: Store) -> int:
    """How many rows the table has, replaced ones included."""
    [[count]] = await store.rows("SELECT count() FROM samples")
    return int(count)


def test_the_same_row_written_twice_is_one(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, stored(a_sample(1.5)))
            await put(store, stored(a_sample(1.5)))
            assert [s.value for s in (await store.fetch(EVERYTHING)).samples()] == [1.5]

    asyncio.run(body())


@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        ([(1.0, 7, Conflict.FIRST), (2.0, 8, Conflict.FIRST)], 1.0),
        ([(1.0, 7, Conflict.LAST), (2.0, 8, Conflict.LAST)], 2.0),
        ([(1.0, 7, Conflict.LAST), (2.0, 8, Conflict.FIRST), (3.0, 5, Conflict.FIRST)], 1.0),
    ],
)
def test_the_highest_version_wins_in_any_order_merged_or_not(
    place: Place, rows: list[tuple[float, int, Conflict]], winner: float
) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await store.rows("SYSTEM STOP MERGES samples")
            orders = list(itertools.permutations(rows))
            for moment, order in enumerate(orders):
                for value, offset, rule in (*order, order[0]):
                    sample = a_sample(value, NOW_MS + moment)
                    await put(store, stored(sample, versions=[version(offset, rule)]))
            for merged in (False, True):
                if merged:
                    await store.rows("SYSTEM START MERGES samples")
                    await store.rows("OPTIMIZE TABLE samples FINAL")
                    assert await raw_rows(store) == len(orders)
                else:
                    assert await raw_rows(store) > len(orders)
                found = await store.fetch(EVERYTHING)
                assert [s.value for s in found.samples()] == [winner] * len(orders)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.DOUBLE, 0.1),
        (Kind.DOUBLE, -0.0),
        (Kind.DOUBLE, 5e-324),
        (Kind.DOUBLE, -1.7976931348623157e308),
        (Kind.LONG, 2**63 - 1),
        (Kind.LONG, -(2**63)),
        (Kind.LONG, 2**53 + 1),
        (Kind.BOOL, True),
        (Kind.BOOL, False),
        (Kind.STRING, "Grüße 🏭 '\"\\;--\t\n\r\x00"),
        (Kind.STRING, ""),
        (Kind.STRING, "\\N"),
        (Kind.STRING, "x" * 100_000),
        (Kind.JSON, '{"a":[1,null,"ü"]}'),
        (Kind.DATE, 1_700_000_000_123),
    ],
)
def test_a_value_of_any_kind_comes_back_as_it_was(
    place: Place, kind: Kind, value: float | int | bool | str
) -> None:
    async def body() -> None:
        given = stored(a_sample(value, kind=kind, quality=-5))
        async with opened(place) as store:
            await put(store, given)
            found = await store.fetch(EVERYTHING)
        # As bits, because -0.0 equals 0.0.
        assert (found.bits, found.texts, found.kind) == (given.bits, given.texts, given.kind)
        assert (found.quality, found.version) == (given.quality, given.version)

    asyncio.run(body())


def test_a_sample_without_a_quality_has_none(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, stored(a_sample(), a_sample(ts_ms=NOW_MS + 1, quality=0)))
            found = await store.fetch(EVERYTHING)
            assert [s.quality for s in found.samples()] == [None, 0]

    asyncio.run(body())


def test_times_from_1970_to_2261_are_kept_to_the_millisecond(place: Place) -> None:
    times = [0, 1, 951_782_400_000, NOW_MS, *range(NOW_MS + 1, TS_MS_MAX, 900 * 86_400_000)]
    times.append(TS_MS_MAX - 1)
    rows = sample_rows(stored(*(a_sample(float(t), t) for t in times)))

    async def body() -> None:
        async with opened(place) as store:
            for piece in month_batches(rows, 64):
                await store.insert("samples", piece)
            found = await store.fetch(EVERYTHING)
            assert list(found.ts_ms) == times
            assert [s.value for s in found.samples()] == [float(t) for t in times]

    asyncio.run(body())


def test_no_rows_are_no_insert(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await store.insert("samples", sample_rows(stored(a_sample())).slice(0, 0))
            assert await raw_rows(store) == 0

    asyncio.run(body())


def test_rows_of_tenants_with_several_policies_go_in_together(place: Place) -> None:
    policies = [a_policy(), a_policy(revision=2), a_policy(tenant="other"), a_policy(revision=3)]
    samples = [a_sample(float(row), NOW_MS + row) for row in range(4)]

    async def body() -> None:
        async with opened(place) as store:
            block = a_block(*samples, policies=policies)
            block.version = array("Q", [1, 2, 3, 4])
            await put(store, block)
            await store.insert("samples", concat([sample_rows(block), sample_rows(block)]))
            for tenant, expected in (("acme", [0.0, 1.0, 3.0]), ("other", [2.0])):
                found = await store.fetch(replace(EVERYTHING, tenant=tenant))
                assert [s.value for s in found.samples()] == expected

    asyncio.run(body())


def counted(*rows: tuple[Sample, int]) -> Any:
    """Rows of the table `suppressed`: samples with the counts of their minutes."""
    return suppressed_rows(stored(*(s for s, _ in rows), versions=[count for _, count in rows]))


def test_of_the_counts_of_a_minute_the_highest_stays_however_often_it_comes(place: Place) -> None:
    now_ms = int(time.time()) // 60 * 60_000
    text = a_sample("on", now_ms + 60_001, kind=Kind.STRING, quality=-5)
    rows = [(a_sample(float(n), now_ms + n), n) for n in (1, 4, 2, 3)] + [(text, 1)]
    far = a_sample(7, TS_MS_MAX - 1, kind=Kind.LONG)

    async def body() -> None:
        async with opened(place) as store:
            for batch in (rows[:2], rows[1:], [*rows, (far, 1)]):
                await store.insert("suppressed", counted(*batch))
            await store.rows("OPTIMIZE TABLE suppressed FINAL")
            found = await store.rows(
                "SELECT tenant, series, toUnixTimestamp(minute) * 1000,"
                " toUnixTimestamp64Milli(last_ts), kind, double, long, text, quality, count"
                " FROM suppressed FINAL WHERE minute < '2100-01-01' ORDER BY minute"
            )
            assert [tuple(row) for row in found] == [
                ("acme", 1, now_ms, now_ms + 4, "double", 4.0, 0, "", None, 4),
                ("acme", 1, now_ms + 60_000, now_ms + 60_001, "string", 0.0, 0, "on", -5, 1),
            ]
            minutes = "SELECT max(minute) FROM suppressed FINAL"
            [[last]] = await store.rows(minutes)
            assert (last.year, last.minute, last.second) == (2261, 59, 0)

    asyncio.run(body())


def test_a_count_goes_after_400_days(place: Place) -> None:
    day_ms, now_ms = 86_400_000, int(time.time() * 1000)
    rows = [(a_sample(1.0, now_ms - days * day_ms), 1) for days in (402, 398, 0)]

    async def body() -> None:
        async with opened(place) as store:
            await store.insert("suppressed", counted(*rows))
            await store.rows("OPTIMIZE TABLE suppressed FINAL")
            [[count]] = await store.rows("SELECT count() FROM suppressed")
            assert count == 2

    asyncio.run(body())


@pytest.mark.parametrize("ts_ms", [-1, TS_MS_MAX])
def test_a_count_at_a_time_that_cannot_be_shown_is_malformed(place: Place, ts_ms: int) -> None:
    async def body() -> None:
        async with opened(place) as store:
            with pytest.raises(Malformed):
                await store.insert("suppressed", counted((a_sample(1.0, ts_ms), 1)))

    asyncio.run(body())


def changed(column: str, values: Any) -> Any:
    """Two good rows with another column in the place of a good one."""
    rows = sample_rows(stored(a_sample(), a_sample(ts_ms=NOW_MS + 1)))
    return rows.set_column(rows.column_names.index(column), column, values)


@pytest.mark.parametrize(
    "rows",
    [
        changed("double", pa.array(["1.0", "one"])),
        changed("version", pa.array([1, None], pa.uint64())),
        changed("version", pa.array([1, 0], pa.uint64())),
        changed("series", pa.array([1, None], pa.uint64())),
        changed("kind", pa.array([0, 6], pa.int8())),
        changed("kind", pa.array([0, -1], pa.int8())),
        changed("ts", pa.array([0, TS_MS_MAX]).view(pa.timestamp("ms", "UTC"))),
        changed("ts", pa.array([0, -1]).view(pa.timestamp("ms", "UTC"))),
        changed("ts", pa.array([0, 2**62]).view(pa.timestamp("ms", "UTC"))),
        changed("series", pa.array([[1], [2]])),
    ],
    ids=[
        "a word for a number",
        "no version",
        "version zero",
        "no series",
        "an unknown kind",
        "a negative kind",
        "a time after 2261",
        "a time before 1970",
        "a time beyond all",
        "a list for a number",
    ],
)
def test_rows_that_can_never_go_in_are_malformed_and_none_of_them_goes_in(
    place: Place, rows: Any
) -> None:
    async def body() -> None:
        async with opened(place) as store:
            with pytest.raises(Malformed):
                await store.insert("samples", rows)
            assert await raw_rows(store) == 0

    asyncio.run(body())


def test_rows_of_too_many_months_are_the_writers_fault(place: Place) -> None:
    month_ms = 31 * 86_400_000
    rows = sample_rows(stored(*(a_sample(1.0, month * month_ms) for month in range(150))))

    async def body() -> None:
        async with opened(place) as store:
            with pytest.raises(Malformed):
                await store.insert("samples", rows)

    asyncio.run(body())


def test_a_table_or_a_column_that_is_not_there_yet_is_not_the_rows_fault(place: Place) -> None:
    rows = sample_rows(stored(a_sample()))

    async def body() -> None:
        async with opened(place) as store:
            with pytest.raises(Unavailable):
                await store.insert("samples_of_tomorrow", rows)
            with pytest.raises(Unavailable):
                await store.insert("samples", rows.append_column("tomorrow", pa.array([1])))

    asyncio.run(body())


def test_several_tasks_insert_and_fetch_at_a_time(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:

            async def work(task: int) -> int:
                for row in range(5):
                    await put(store, stored(a_sample(1.0, NOW_MS + 10 * task + row)))
                start_ms = NOW_MS + 10 * task
                query = replace(EVERYTHING, start_ms=start_ms, end_ms=start_ms + 10)
                return len(await store.fetch(query))

            assert await asyncio.gather(*map(work, range(8))) == [5] * 8

    asyncio.run(body())
