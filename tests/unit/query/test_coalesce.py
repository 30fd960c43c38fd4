"""Reads of one shape that wait together cost one query, and each gets its own answer."""

from __future__ import annotations

import asyncio

import pytest

from schemas.queries import RangeQuery
from services.errors import Unavailable
from services.query.coalesce import Coalescer
from tests.support.stores import MemoryStore, a_block, rows_of

SERIES = tuple(range(1, 9))


def a_store() -> MemoryStore:
    """Three samples of each series."""
    store = MemoryStore()
    store.put(a_block([(series, ts, series * 10 + ts) for series in SERIES for ts in range(3)]))
    return store


def ask(*series: int, end_ms: int = 100, limit: int = 10) -> RangeQuery:
    return RangeQuery("acme", series, 0, end_ms, limit)


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_waits_together_is_asked_together() -> None:
    async def flow() -> None:
        store = a_store()
        ranges = Coalescer(store, rows_max=1_000, queries_max=1)
        store.hold()
        first = asyncio.create_task(ranges.fetch(ask(1)))
        await settle()
        rest = [asyncio.create_task(ranges.fetch(ask(*series))) for series in ((3, 2), (3,), (4,))]
        other = asyncio.create_task(ranges.fetch(ask(5, end_ms=1)))
        await settle()
        store.release()
        answers = await asyncio.gather(first, *rest, other)
        assert store.asked == [ask(1), ask(2, 3, 4), ask(5, end_ms=1)]
        found = [rows_of(answer) for answer in answers]
        assert found == [
            rows_of(store.select(query))
            for query in (ask(1), ask(3, 2), ask(3), ask(4), ask(5, end_ms=1))
        ]

    asyncio.run(flow())


def test_a_question_never_joins_a_query_that_is_under_way() -> None:
    async def flow() -> None:
        store = a_store()
        ranges = Coalescer(store, rows_max=1_000)
        store.hold()
        first = asyncio.create_task(ranges.fetch(ask(1)))
        await settle()
        second = asyncio.create_task(ranges.fetch(ask(1)))
        await settle()
        assert store.asked == [ask(1), ask(1)]
        store.release()
        await asyncio.gather(first, second)

    asyncio.run(flow())


def test_a_group_asks_for_a_bounded_number_of_rows() -> None:
    async def flow() -> None:
        store = a_store()
        ranges = Coalescer(store, rows_max=20, queries_max=1)
        store.hold()
        tasks = [asyncio.create_task(ranges.fetch(ask(series))) for series in (1, 2, 3, 4)]
        await settle()
        store.release()
        await asyncio.gather(*tasks)
        assert store.asked == [ask(1), ask(2, 3), ask(4)]

    asyncio.run(flow())


def test_a_full_queue_is_unavailable_and_empties_again() -> None:
    async def flow() -> None:
        store = a_store()
        ranges = Coalescer(store, rows_max=1_000, queries_max=1, queue_max=2)
        store.hold()
        tasks = [
            asyncio.create_task(ranges.fetch(ask(1, end_ms=end_ms))) for end_ms in (50, 51, 52)
        ]
        await settle()
        with pytest.raises(Unavailable):
            await ranges.fetch(ask(1, end_ms=53))
        store.release()
        await asyncio.gather(*tasks)
        assert len(await ranges.fetch(ask(1, end_ms=53))) == 3

    asyncio.run(flow())


def test_a_store_that_is_away_fails_those_who_asked_and_nobody_later() -> None:
    async def flow() -> None:
        store = a_store()
        ranges = Coalescer(store, rows_max=1_000, queries_max=1)
        store.hold()
        tasks = [asyncio.create_task(ranges.fetch(ask(series))) for series in (1, 2, 3)]
        await settle()
        store.away = True
        store.release()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable] * 3
        store.away = False
        assert len(await ranges.fetch(ask(1))) == 3

    asyncio.run(flow())


def test_a_reader_that_gives_up_takes_nothing_from_the_others() -> None:
    async def flow() -> None:
        store = a_store()
        ranges = Coalescer(store, rows_max=1_000, queries_max=1)
        store.hold()
        first = asyncio.create_task(ranges.fetch(ask(1)))
        await settle()
        leaves, stays = (asyncio.create_task(ranges.fetch(ask(series))) for series in (2, 3))
        alone = asyncio.create_task(ranges.fetch(ask(4, end_ms=5)))
        await settle()
        leaves.cancel()
        alone.cancel()
        await settle()
        store.release()
        await first
        assert rows_of(await stays) == rows_of(store.select(ask(3)))
        await settle()
        assert store.asked == [ask(1), ask(2, 3)]

    asyncio.run(flow())


def test_closing_answers_unavailable_to_whoever_still_waits() -> None:
    async def flow() -> None:
        store = a_store()
        ranges = Coalescer(store, rows_max=1_000, queries_max=1)
        store.hold()
        tasks = [asyncio.create_task(ranges.fetch(ask(series))) for series in (1, 2)]
        await settle()
        await ranges.close()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable] * 2
        with pytest.raises(Unavailable):
            await ranges.fetch(ask(3))
        assert store.asked == [ask(1)]

    asyncio.run(flow())
