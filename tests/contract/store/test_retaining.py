"""What a store keeps for how long: rows go when their period is over, the newest sample stays, and
a changed period holds for what is stored.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from schemas.blocks import Block
from schemas.queries import LatestQuery, RangeQuery
from schemas.rows import sample_rows
from schemas.samples import TS_MS_MAX, Kind
from services.clock import SystemClock
from services.errors import Unavailable
from services.store import RETAINED_MAX, Owned, Store, open_store
from tests.contract.store._places import Front, Place, opened
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.stores import Row, rows_of, value_of

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NOW_MS = SystemClock().now_ms()
OLD_MS = NOW_MS - DAY_MS
FOR_EVER = 0


def kept(keep_ms: int, *rows: Row, tenant: str = "acme") -> Block:
    """A judged block of rows (series, ts_ms, version) that are kept for so long."""
    samples = (a_sample(value_of(v), t, series=s, kind=Kind.LONG) for s, t, v in rows)
    block = a_block(*samples, policy=a_policy(tenant=tenant, keep_ms=keep_ms))
    block.version = array("Q", [version for _, _, version in rows])
    return block


async def put(store: Store, *blocks: Block) -> None:
    """Insert judged blocks, one after the other."""
    for block in blocks:
        await store.insert("samples", sample_rows(block))


async def left(store: Store) -> list[tuple[int, int]]:
    """(series, ts_ms) of every row that is physically there after everything has been merged."""
    await store.rows("OPTIMIZE TABLE samples FINAL")
    rows = await store.rows(
        "SELECT series, toUnixTimestamp64Milli(ts) FROM samples ORDER BY series, ts"
    )
    return [(int(series), int(ts_ms)) for series, ts_ms in rows]


async def newest(store: Store, *series: int) -> list[Row]:
    """The latest values, asked for by id and all at once."""
    by_id = rows_of(await store.fetch(LatestQuery("acme", series)))
    everybody = await store.fetch(LatestQuery())
    owners = [everybody.policies[index].tenant for index in everybody.policy]
    rows = zip(rows_of(everybody), owners, strict=True)
    assert [row for row, tenant in rows if tenant == "acme" and row[0] in series] == by_id
    return by_id


async def settled(store: Store) -> None:
    """Wait until every rewrite is over."""
    async with asyncio.timeout(30):
        while await store.retaining():
            await asyncio.sleep(0.01)


async def retain(store: Store, periods: Mapping[Owned, int]) -> dict[Owned, int]:
    """Have the periods hold; returns when they do."""
    rewritten = await store.retain(periods)
    await settled(store)
    return rewritten


# -- a period


def test_what_has_expired_is_gone_with_the_next_merge_and_nothing_else(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await store.rows("SYSTEM STOP MERGES samples")
            await put(
                store,
                kept(HOUR_MS, (1, NOW_MS - 2 * HOUR_MS, 1), (1, NOW_MS - HOUR_MS // 2, 2)),
                kept(2 * DAY_MS, (2, OLD_MS, 3)),
                kept(FOR_EVER, (3, 0, 4), (3, OLD_MS, 5), (3, TS_MS_MAX - 1, 6)),
                kept(HOUR_MS, (4, NOW_MS - 2 * HOUR_MS, 7), (4, TS_MS_MAX - 1, 8)),
            )
            await store.rows("SYSTEM START MERGES samples")
            assert await left(store) == [
                (1, NOW_MS - HOUR_MS // 2),
                (2, OLD_MS),
                *((3, ts_ms) for ts_ms in (0, OLD_MS, TS_MS_MAX - 1)),
                (4, TS_MS_MAX - 1),
            ]

    asyncio.run(body())


def test_a_row_is_there_until_the_second_in_which_it_is_hidden(place: Place) -> None:
    """It may go once now, cut to the second, is later than its time and its period."""

    async def body() -> None:
        async with opened(place) as store:
            block = kept(5_000, (1, 999, 1), (1, 1_000, 2), (1, 1_999, 3), (1, 2_000, 4))
            await store.rows("SYSTEM STOP MERGES samples")
            await put(store, block)
            rows = await store.rows("SELECT toUnixTimestamp(expires) FROM samples ORDER BY ts")
            assert [int(expires) for [expires] in rows] == [6, 7, 7, 8]

    asyncio.run(body())


@pytest.mark.parametrize("keep_ms", [HOUR_MS, 500 * 365 * DAY_MS, 2**62, 2**70])
def test_a_period_that_no_moment_can_be_found_for_is_one_without_end(
    place: Place, keep_ms: int
) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, kept(keep_ms, (1, TS_MS_MAX - 1, 1)))
            assert await left(store) == [(1, TS_MS_MAX - 1)]
            assert await store.retain({("acme", 1): keep_ms}) == {}

    asyncio.run(body())


def test_a_version_from_before_there_were_periods_writes_what_is_kept_for_ever(
    place: Place,
) -> None:
    async def body() -> None:
        async with opened(place) as store:
            rows = sample_rows(kept(HOUR_MS, (1, OLD_MS, 1))).drop_columns(["expires"])
            await store.insert("samples", rows)
            assert await left(store) == [(1, OLD_MS)]

    asyncio.run(body())


def test_the_view_telemetry_does_not_show_what_has_expired(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await store.rows("SYSTEM STOP MERGES samples")
            await put(store, kept(HOUR_MS, (1, OLD_MS, 1), (1, NOW_MS, 2)))
            await put(store, kept(FOR_EVER, (2, OLD_MS, 3)))
            shown = await store.rows("SELECT series, value FROM telemetry ORDER BY series")
            assert [tuple(row) for row in shown] == [(1, "2"), (2, "3")]

    asyncio.run(body())


# -- the latest value


def test_the_newest_sample_outlives_its_period_whatever_it_is(place: Place) -> None:
    samples = [
        a_sample(-0.5, OLD_MS, series=1),
        a_sample(2**63 - 1, OLD_MS, series=2, kind=Kind.LONG, quality=-7),
        a_sample(True, OLD_MS, series=3, kind=Kind.BOOL, quality=0),
        a_sample("Grüße 🏭", OLD_MS, series=4, kind=Kind.STRING),
        a_sample("", OLD_MS, series=5, kind=Kind.JSON),
        a_sample(OLD_MS, OLD_MS, series=6, kind=Kind.DATE),
    ]

    async def body() -> None:
        async with opened(place) as store:
            block = a_block(*samples, policy=a_policy(keep_ms=HOUR_MS))
            block.version = array("Q", range(1, 7))
            older = kept(HOUR_MS, *((series, OLD_MS - 1, 2**63) for series in range(1, 7)))
            await put(store, block, older)
            assert await left(store) == []
            found = await store.fetch(LatestQuery("acme", tuple(range(1, 7))))
            assert (found.bits, found.texts, found.kind) == (block.bits, block.texts, block.kind)
            assert (found.quality, found.version) == (block.quality, block.version)
            assert len(await store.fetch(RangeQuery("acme", (1,), 0, TS_MS_MAX, 10))) == 0

    asyncio.run(body())


def test_the_newest_is_of_the_latest_time_and_then_of_the_highest_version(place: Place) -> None:
    steps: list[tuple[Block, Row]] = [
        (kept(HOUR_MS, (1, OLD_MS, 7)), (1, OLD_MS, 7)),
        (kept(HOUR_MS, (1, OLD_MS - 9, 2**64 - 1)), (1, OLD_MS, 7)),
        (kept(HOUR_MS, (1, OLD_MS, 6), (1, OLD_MS, 2**63)), (1, OLD_MS, 2**63)),
        (kept(HOUR_MS, (1, OLD_MS, 7)), (1, OLD_MS, 2**63)),
        (kept(HOUR_MS, (1, OLD_MS + 1, 3), (1, OLD_MS - 1, 9)), (1, OLD_MS + 1, 3)),
        (kept(FOR_EVER, (1, OLD_MS + 5, 1)), (1, OLD_MS + 5, 1)),
        (kept(HOUR_MS, (1, OLD_MS + 4, 2)), (1, OLD_MS + 5, 1)),
    ]

    async def body() -> None:
        async with opened(place) as store:
            for block, expected in steps:
                await put(store, block, block)
                assert await newest(store, 1) == [expected]
                await left(store)
                await store.rows("OPTIMIZE TABLE latest FINAL")
                assert await newest(store, 1) == [expected]

    asyncio.run(body())


def test_the_newest_of_one_tenant_is_not_anothers(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, kept(HOUR_MS, (1, OLD_MS, 1)))
            await put(store, kept(HOUR_MS, (1, OLD_MS + 1, 2), tenant="other"))
            assert await left(store) == []
            assert await newest(store, 1) == [(1, OLD_MS, 1)]
            everybody = rows_of(await store.fetch(LatestQuery()))
            assert sorted(everybody) == [(1, OLD_MS, 1), (1, OLD_MS + 1, 2)]

    asyncio.run(body())


def test_a_newest_sample_that_was_deleted_is_not_the_newest_any_more(place: Place) -> None:
    def deletion(row: Row) -> Any:
        rows = sample_rows(kept(FOR_EVER, row))
        return rows.append_column("is_deleted", pa.array([1], pa.uint8()))

    async def body() -> None:
        async with opened(place) as store:
            await put(store, kept(DAY_MS, (1, NOW_MS - 2, 1), (1, NOW_MS - 1, 2)))
            await put(store, kept(FOR_EVER, (2, NOW_MS - 2, 1), (2, NOW_MS - 1, 2)))
            for series in (1, 2):
                await store.insert("samples", deletion((series, NOW_MS - 2, 2**63)))
                assert await newest(store, series) == [(series, NOW_MS - 1, 2)]
                await store.insert("samples", deletion((series, NOW_MS - 1, 2**63)))
                assert await newest(store, series) == []

    asyncio.run(body())


# -- a changed period


def test_a_shorter_period_lets_rows_go_and_a_longer_one_keeps_them(place: Place) -> None:
    times = [NOW_MS - hours * HOUR_MS for hours in (20, 10, 1)]

    def of(series: int, *chosen: int) -> list[tuple[int, int]]:
        return [(series, ts_ms) for ts_ms in chosen]

    async def body() -> None:
        async with opened(place) as store:
            for series in (1, 2, 3, 4):
                await put(store, kept(DAY_MS, *((series, t, t) for t in times)))
            rewritten = await retain(
                store, {("acme", 1): 5 * HOUR_MS, ("acme", 2): 15 * HOUR_MS, ("acme", 3): DAY_MS}
            )
            assert rewritten == {("acme", 1): 3, ("acme", 2): 3}
            stays = [*of(2, *times[1:]), *of(3, *times), *of(4, *times)]
            assert await left(store) == [*of(1, times[2]), *stays]
            # What is gone does not come back, what is there is kept by the new period.
            await retain(store, {("acme", 1): FOR_EVER})
            assert await left(store) == [*of(1, times[2]), *stays]
            rows = await store.rows(
                "SELECT max(expires) > '2100-01-01' FROM samples GROUP BY series"
            )
            assert sum(bool(there) for [there] in rows) == 1

    asyncio.run(body())


def test_rows_that_had_all_expired_come_back_as_long_as_they_are_there(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await store.rows("SYSTEM STOP TTL MERGES samples")
            rows = [(1, OLD_MS + n, n + 1) for n in range(3)]
            await put(store, kept(HOUR_MS, *rows, *((2, t, v) for _, t, v in rows)))
            assert await retain(store, {("acme", 1): 30 * DAY_MS}) == {("acme", 1): 3}
            await store.rows("SYSTEM START TTL MERGES samples")
            assert await left(store) == [(1, ts_ms) for _, ts_ms, _ in rows]
            query = RangeQuery("acme", (1, 2), 0, TS_MS_MAX, 10)
            assert rows_of(await store.fetch(query)) == rows

    asyncio.run(body())


def test_a_first_period_leaves_the_newest_sample(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, kept(FOR_EVER, (1, OLD_MS, 1), (1, OLD_MS + 1, 2), (2, OLD_MS, 3)))
            assert await store.retained() == []
            assert await retain(store, {("acme", 1): HOUR_MS}) == {("acme", 1): 2}
            assert await store.retained() == [("acme", 1)]
            assert await left(store) == [(2, OLD_MS)]
            assert await newest(store, 1, 2) == [(1, OLD_MS + 1, 2), (2, OLD_MS, 3)]
            # So does one after a time without.
            await put(store, kept(FOR_EVER, (1, OLD_MS + 2, 4)))
            await retain(store, {("acme", 1): HOUR_MS})
            assert await left(store) == [(2, OLD_MS)]
            assert await newest(store, 1) == [(1, OLD_MS + 2, 4)]

    asyncio.run(body())


def test_where_nothing_differs_nothing_is_rewritten(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, kept(DAY_MS, (1, NOW_MS, 1)), kept(FOR_EVER, (2, NOW_MS, 1)))
            periods = {("acme", 1): DAY_MS, ("acme", 2): FOR_EVER, ("acme", 3): HOUR_MS}
            assert await store.retain(periods) == {}
            assert await store.retain({}) == {}
            [[mutations]] = await store.rows("SELECT count() FROM system.mutations")
            before = int(mutations)
            assert await retain(store, periods | {("acme", 1): HOUR_MS}) == {("acme", 1): 1}
            assert await store.retain(periods | {("acme", 1): HOUR_MS}) == {}
            [[mutations]] = await store.rows("SELECT count() FROM system.mutations")
            assert int(mutations) == before + 1

    asyncio.run(body())


def test_the_rows_of_another_tenant_and_of_other_series_stay_as_they_are(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await put(store, kept(FOR_EVER, (1, OLD_MS, 1), (2, OLD_MS, 1)))
            for tenant in ("other", "a'b\\", "Ü"):
                rows = [(series, OLD_MS, 1) for series in (1, 2, 3)]
                await put(store, kept(FOR_EVER, *rows, tenant=tenant))
            await retain(
                store, {("other", 3): HOUR_MS, ("acme", 1): HOUR_MS, ("a'b\\", 2): HOUR_MS}
            )
            await left(store)
            rows = await store.rows(
                "SELECT tenant, groupArray(series) FROM samples GROUP BY tenant"
            )
            assert {tenant: sorted(series) for tenant, series in rows} == {
                "acme": [2],
                "other": [1, 2],
                "a'b\\": [1, 3],
                "Ü": [1, 2, 3],
            }

    asyncio.run(body())


def test_as_many_series_as_may_be_named_at_once_are_rewritten(place: Place) -> None:
    ids = [2**64 - 1 - n for n in range(RETAINED_MAX)]
    tenants = [f"tenant-with-a-long-name-{n % 50}" for n in range(RETAINED_MAX)]

    async def body() -> None:
        async with opened(place) as store:
            for tenant in dict.fromkeys(tenants):
                owned = [s for s, owner in zip(ids, tenants, strict=True) if owner == tenant]
                rows = [(series, OLD_MS, 1) for series in owned]
                await put(store, kept(FOR_EVER, *rows, tenant=tenant))
            periods = {
                owned: HOUR_MS if row % 2 else 2**40 + row
                for row, owned in enumerate(zip(tenants, ids, strict=True))
            }
            assert await retain(store, periods) == dict.fromkeys(periods, 1)
            assert await left(store) == sorted((series, OLD_MS) for series in ids[::2])

    asyncio.run(body())


def test_what_comes_in_while_a_period_changes_is_left_for_the_next_time(place: Place) -> None:
    """However it falls: no newest sample is lost, and in the end every row follows the period."""

    async def body() -> None:
        async with opened(place) as store:
            await put(store, kept(FOR_EVER, (1, OLD_MS, 1)))

            async def come_in() -> None:
                for n in range(1, 25):
                    await put(store, kept(FOR_EVER, (1, OLD_MS + n, n + 1)))

            coming = asyncio.create_task(come_in())
            while not coming.done():
                await store.retain({("acme", 1): HOUR_MS})
            await coming
            await settled(store)
            await retain(store, {("acme", 1): HOUR_MS})
            assert await left(store) == []
            assert await newest(store, 1) == [(1, OLD_MS + 24, 25)]

    asyncio.run(body())


# -- processes


def test_a_rewrite_that_was_begun_is_finished_after_kill_9(place: Place) -> None:
    front = place.engine
    if not isinstance(front, Front):
        pytest.skip("only the front can be killed and started again here")

    async def body() -> None:
        async with opened(place) as store:
            rows: Sequence[Row] = [(1, OLD_MS + n, n + 1) for n in range(5)]
            await put(store, kept(FOR_EVER, *rows))
            # Merges and rewrites share their threads: it is begun and cannot get on.
            await store.rows("SYSTEM STOP MERGES samples")
            assert await store.retain({("acme", 1): HOUR_MS}) == {("acme", 1): 5}
            assert await store.retaining() == 1
            front.kill()
            with pytest.raises(Unavailable):
                await store.retaining()
            with pytest.raises(Unavailable):
                await store.retain({("acme", 1): HOUR_MS})
            with pytest.raises(Unavailable):
                await store.retained()
            front.start()
        async with open_store(place.url) as store:
            await settled(store)
            assert await store.retain({("acme", 1): HOUR_MS}) == {}
            assert await left(store) == []
            assert await newest(store, 1) == [rows[-1]]

    asyncio.run(body())
