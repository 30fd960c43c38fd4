"""What a fetch promises: one row a series and millisecond, in order, of the tenant that asks."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from schemas.blocks import Block
from schemas.queries import LatestQuery, RangeQuery, TakenQuery
from schemas.rows import sample_rows
from schemas.samples import TS_MS_MAX, Kind
from services.store import Query, Store
from services.store._sql import statements
from tests.contract.store._places import Place, opened
from tests.support.builders import NOW_MS, a_block, a_policy, a_sample
from tests.support.rounds import seed
from tests.support.stores import MemoryStore, Row, rows_of
from tests.support.stores import a_block as judged

MIDDLE = 1 << 63
ALL_TIMES = RangeQuery("acme", (1,), 0, TS_MS_MAX, 1_000_000)


async def put(store: Store, *rows: Row, tenant: str = "acme") -> None:
    """Insert judged rows (series, ts_ms, version)."""
    await store.insert("samples", sample_rows(judged(rows, tenant)))


async def found(store: Store, query: Query) -> list[Row]:
    """The rows of an answer."""
    return rows_of(await store.fetch(query))


@pytest.mark.parametrize(
    ("query", "times"),
    [
        ({"start_ms": 10, "end_ms": 12}, [10, 11]),
        ({"start_ms": 10, "end_ms": 10}, []),
        ({"start_ms": 12, "end_ms": 10}, []),
        ({"start_ms": -5, "end_ms": 2**62}, [10, 11, 12, 13]),
        ({"start_ms": 11, "end_ms": 2**62, "limit": 2}, [11, 12]),
        ({"end_ms": 13, "limit": 2, "descending": True}, [12, 11]),
        ({"limit": 0}, []),
    ],
)
def test_a_range_is_half_open_and_limited_from_its_beginning(
    place: Place, query: dict[str, Any], times: list[int]
) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, *((1, t, t) for t in (12, 10, 13, 11)))
            rows = await found(store, replace(ALL_TIMES, **query))
            assert [ts_ms for _, ts_ms, _ in rows] == times

    asyncio.run(body())


@pytest.mark.parametrize(("descending", "times"), [(False, [10, 11]), (True, [12, 11])])
def test_the_limit_is_of_each_series_and_series_stand_one_behind_the_other(
    place: Place, descending: bool, times: list[int]
) -> None:
    series = (2**64 - 1, 1, 2**63)

    async def body() -> None:
        async with opened(place) as store:
            await put(store, *((s, t, t) for t in (10, 11, 12) for s in (*series, 5)))
            query = replace(ALL_TIMES, series=series, limit=2, descending=descending)
            rows = await found(store, query)
            assert [row[:2] for row in rows] == [(s, t) for s in sorted(series) for t in times]

    asyncio.run(body())


def test_what_was_never_written_is_no_row(place: Place) -> None:
    queries: list[Query] = [
        replace(ALL_TIMES, series=()),
        ALL_TIMES,
        LatestQuery(),
        LatestQuery("acme", (1, 2)),
        LatestQuery("acme", ()),
        TakenQuery((), ()),
        TakenQuery((1,), (NOW_MS,)),
    ]

    async def body() -> None:
        async with opened(place) as store:
            for query in queries:
                assert len(await store.fetch(query)) == 0

    asyncio.run(body())


def test_a_tenant_does_not_see_what_another_wrote_to_the_same_series(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, (1, 10, 1))
            await put(store, (1, 10, 2), (1, 11, 3), tenant="other")
            assert await found(store, ALL_TIMES) == [(1, 10, 1)]
            assert await found(store, LatestQuery("acme", (1,))) == [(1, 10, 1)]
            assert await found(store, LatestQuery("acme")) == [(1, 10, 1)]
            everybody = await store.fetch(LatestQuery())
            tenants = [everybody.policies[index].tenant for index in everybody.policy]
            assert sorted(zip(tenants, everybody.ts_ms, strict=True)) == [
                ("acme", 10),
                ("other", 11),
            ]
            assert len(await store.fetch(TakenQuery((1,), (10,)))) == 2

    asyncio.run(body())


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE samples; --",
        "acme' OR '1'='1",
        "\\' OR 1=1 --",
        "{tenant:String}",
        "%(tenant)s",
        "\t\n\\N\\",
        "\x00",
        "Ü🏭",
        "",
    ],
)
def test_what_looks_like_sql_is_a_text_like_any_other(place: Place, text: str) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, (1, 10, 1))
            block = a_block(
                a_sample(text, 10, kind=Kind.STRING), policy=a_policy(tenant=text or "none")
            )
            block.version = array("Q", [7])
            await store.insert("samples", sample_rows(block))
            answer = await store.fetch(replace(ALL_TIMES, tenant=text or "none"))
            assert [policy.tenant for policy in answer.policies] == [text or "none"]
            assert [s.value for s in answer.samples()] == [text]
            assert await found(store, ALL_TIMES) == [(1, 10, 1)]

    asyncio.run(body())


def test_the_newest_sample_is_the_one_of_the_latest_time_with_its_highest_version(
    place: Place,
) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, (1, 20, 5), (2, 7, 1))
            await put(store, (1, 10, MIDDLE), (1, 20, 9), (1, 20, 8), (2, TS_MS_MAX - 1, 3))
            newest = [(1, 20, 9), (2, TS_MS_MAX - 1, 3)]
            assert await found(store, LatestQuery()) == newest
            assert await found(store, LatestQuery("acme", (2, 1))) == newest
            assert await found(store, LatestQuery(None, (1, 3))) == newest[:1]

    asyncio.run(body())


def test_the_places_that_are_taken_are_found_exactly(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, (1, 10, 1), (1, 11, 1), (2, 10, 1), (2, 20, MIDDLE), (2, 20, 4))
            asked = TakenQuery((2, 1, 1, 2, 2, 1), (20, 10, 10, 11, 0, TS_MS_MAX - 1))
            assert await found(store, asked) == [(1, 10, 1), (2, 20, MIDDLE)]

    asyncio.run(body())


def test_only_the_months_of_the_places_are_read(place: Place) -> None:
    year = [month * 31 * 86_400_000 for month in range(12)]

    async def body() -> None:
        async with opened(place) as store:
            for ts_ms in year:
                await put(store, (1, ts_ms, 1))
            [asked] = statements(TakenQuery((1, 1), (year[3], year[4])))
            read = await store.rows(f"EXPLAIN ESTIMATE {asked.sql}", asked.parameters)
            # Database, table, parts, rows, marks.
            assert [tuple(row)[1:4] for row in read] == [("samples", 2, 2)]

    asyncio.run(body())


def test_more_series_and_places_than_one_statement_names_are_found(place: Place) -> None:
    high = 2**64 - 10_000

    async def body() -> None:
        async with opened(place) as store:
            await put(store, *((high + n, NOW_MS + n, n + 1) for n in range(0, 9_000, 2)))
            series = tuple(high + n for n in reversed(range(9_000)))
            times = tuple(NOW_MS + n for n in reversed(range(9_000)))
            expected = [(high + n, NOW_MS + n, n + 1) for n in range(0, 9_000, 2)]
            assert await found(store, replace(ALL_TIMES, series=series)) == expected
            assert await found(store, LatestQuery("acme", series)) == expected
            assert await found(store, TakenQuery(series, times)) == expected

    asyncio.run(body())


def test_a_deleted_sample_is_not_there_and_may_be_written_again(place: Place) -> None:
    def marked(row: Row, deleted: int) -> Any:
        rows = sample_rows(judged([row]))
        return rows.append_column("is_deleted", pa.array([deleted], pa.uint8()))

    async def body() -> None:
        async with opened(place) as store:
            await put(store, (1, 10, 5), (1, 9, 5))
            await store.insert("samples", marked((1, 10, MIDDLE), 1))
            for query in (ALL_TIMES, LatestQuery(), TakenQuery((1, 1), (9, 10))):
                assert await found(store, query) == [(1, 9, 5)]
            await store.insert("samples", marked((1, 10, MIDDLE + 1), 0))
            assert await found(store, LatestQuery()) == [(1, 10, MIDDLE + 1)]

    asyncio.run(body())


def test_any_history_reads_as_a_dictionary_of_highest_versions_does(place: Place) -> None:
    chance = random.Random(seed())
    months_ms = [month * 40 * 86_400_000 for month in range(3)]

    def some_rows() -> list[Row]:
        return [
            (
                chance.randrange(4),
                chance.choice(months_ms) + chance.randrange(6),
                chance.getrandbits(64) | 1,
            )
            for _ in range(chance.randrange(1, 20))
        ]

    def some_query() -> Query:
        series = tuple(chance.sample(range(5), 3))
        start_ms = chance.choice(months_ms) + chance.randrange(-2, 6)
        end_ms = chance.choice(months_ms) + chance.randrange(-2, 9)
        limit, descending = chance.choice([1, 3, 100]), chance.random() < 0.5
        kinds: Sequence[Query] = (
            RangeQuery("acme", series, start_ms, end_ms, limit, descending),
            RangeQuery("acme", series[:1], start_ms, end_ms, limit, descending),
            LatestQuery("acme", series),
            LatestQuery(),
            TakenQuery(
                series, tuple(chance.choice(months_ms) + chance.randrange(6) for _ in series)
            ),
        )
        return chance.choice(kinds)

    async def body() -> None:
        reference = MemoryStore()
        async with opened(place) as store:
            for _ in range(15):
                block: Block = judged(some_rows())
                reference.put(block)
                await store.insert("samples", sample_rows(block))
                for _ in range(4):
                    query = some_query()
                    expected = rows_of(reference.select(query))
                    assert await found(store, query) == expected, query

    asyncio.run(body())
