"""What a store keeps: its tables, the epochs and the marks, and all that it has acknowledged, also
when its process is killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Device, Point
from schemas.envelope import Change, Envelope, Logged
from schemas.queries import LatestQuery, RangeQuery
from schemas.rows import arrow_rows, sample_rows
from schemas.samples import TS_MS_MAX, Kind
from schemas.tables import DEVICES, POINTS, SAMPLES
from services.errors import Broken, Unavailable
from services.store import Store, open_store
from services.store.clickhouse import _OURS_AT_FAULT, _ROWS_AT_FAULT
from services.store.migrate import migrations
from tests.contract.store._places import Embedded, Front, Place, opened
from tests.support.builders import NOW_MS, a_block, a_policy, a_sample
from tests.support.processes import started, wait_for
from tests.support.stores import a_block as judged
from tests.support.stores import rows_of

ALL_TIMES = RangeQuery("acme", (1,), 0, TS_MS_MAX, 1_000_000)


# -- migrations


def test_migrations_are_applied_once(place: Place) -> None:
    async def body() -> None:
        async with open_store(place.url) as store:
            assert await store.migrate() == list(migrations())
            await store.insert("samples", sample_rows(judged([(1, 10, 1)])))
            assert await store.migrate() == []
        async with open_store(place.url) as store:
            assert await store.migrate() == []
            assert rows_of(await store.fetch(ALL_TIMES)) == [(1, 10, 1)]

    asyncio.run(body())


def test_a_month_is_not_written_again_for_a_few_small_inserts(place: Place) -> None:
    of_its_own = (
        "CREATE TABLE eager AS samples ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(ts)"
    )
    parts = "SELECT countIf(table = 'samples'), countIf(table = 'eager') FROM system.parts"
    parts += " WHERE active AND database = currentDatabase()"

    async def body() -> None:
        async with opened(place) as store:
            await store.rows(f"{of_its_own} ORDER BY (tenant, series, ts)")
            for number in range(7):
                rows = sample_rows(judged([(1, 10 + number, 1)]))
                await store.insert("samples", rows)
                await store.insert("eager", rows)
            async with asyncio.timeout(60):
                while (counts := (await store.rows(parts))[0])[1] == 7:
                    # What the engine does of itself, it has done by now: five are enough for it.
                    await asyncio.sleep(0.05)
            assert counts[0] == 7

    asyncio.run(body())


def test_a_migration_that_was_changed_afterwards_stops_the_start(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            [name, *_] = migrations()
            await store.rows(
                "INSERT INTO migrations (name, checksum) SELECT {name:String}, 'another'",
                {"name": name},
            )
            with pytest.raises(Broken, match=name):
                await store.migrate()

    asyncio.run(body())


def test_what_a_newer_version_has_applied_is_passed_over(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await store.rows(
                "INSERT INTO migrations (name, checksum) SELECT '9999_tomorrow.sql', 'another'"
            )
            assert await store.migrate() == []

    asyncio.run(body())


# -- small tables


def test_each_life_of_a_log_has_an_epoch_that_is_higher_than_those_before(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            lives = ["life '1'", "life 2", "life '1'", "life 3", "life 2"]
            assert [await store.register_epoch("t", life) for life in lives] == [1, 2, 1, 3, 2]
            assert await store.register_epoch("another", "life 3") == 1
        async with open_store(place.url) as store:
            assert await store.register_epoch("t", "life 3") == 3

    asyncio.run(body())


def test_a_version_has_no_room_for_more_lives_than_254(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            await store.rows(
                "INSERT INTO log_epochs (topic, incarnation, epoch) SELECT 't', 'a', 254"
            )
            assert await store.register_epoch("t", "a") == 254
            with pytest.raises(Broken):
                await store.register_epoch("t", "b")

    asyncio.run(body())


def test_the_highest_mark_of_each_lane_is_kept_per_epoch(place: Place) -> None:
    columns = {"topic": "string", "lane": "uint16", "epoch": "uint8", "received": "uint64"}

    async def body() -> None:
        async with opened(place) as store:
            for lane, epoch, received in ((0, 1, 7), (3, 1, 2**43), (0, 1, 5), (0, 2, 1)):
                mark = {"topic": "t", "lane": lane, "epoch": epoch, "received": received}
                await store.insert("lane_marks", arrow_rows(columns, [mark]))
            assert await store.stored_marks("t", 1) == {0: 7, 3: 2**43}
            assert await store.stored_marks("t", 2) == {0: 1}
            assert await store.stored_marks("another", 1) == {}

    asyncio.run(body())


def logged(offset: int, thing: Point | Device, *, first: bool, deleted: bool = False) -> Logged:
    """A change of the catalogue as a sink reads it."""
    change = Change(thing.KIND, thing.id, None if deleted else thing.body(), first)
    return Logged(offset, Envelope(change))


def test_the_view_telemetry_shows_names_units_and_values(place: Place) -> None:
    press = Device("d1", tenant="acme", name="Press 7")
    point = Point("p1", tenant="acme", device="d1", key="temp", series=1, unit="°C")
    samples = [
        a_sample(1.5, 10),
        a_sample(7, 11, kind=Kind.LONG),
        a_sample(True, 12, kind=Kind.BOOL),
        a_sample("hot", 13, kind=Kind.STRING, quality=192),
        a_sample(0, 14, kind=Kind.DATE),
        a_sample(2.5, 15, series=2),
    ]
    block = a_block(*samples, policy=a_policy())
    block.version.extend(range(1, 7))

    async def body() -> None:
        async with opened(place) as store:
            changes = [logged(3, press, first=True), logged(4, point, first=True)]
            await store.insert("devices", DEVICES.rows(changes))
            await store.insert("points", POINTS.rows(changes))
            await store.insert("samples", SAMPLES.rows([Logged(0, Envelope(block))]))
            rows = await store.rows(
                "SELECT device_name, point_name, unit, number, value, quality FROM telemetry"
                " WHERE tenant = 'acme' ORDER BY ts"
            )
            named = ("Press 7", "temp", "°C")
            assert [tuple(row) for row in rows] == [
                (*named, 1.5, "1.5", None),
                (*named, 7.0, "7", None),
                (*named, 1.0, "true", None),
                (*named, None, "hot", 192),
                (*named, None, "1970-01-01 00:00:00.000", None),
                ("", "", "", 2.5, "2.5", None),
            ]

    asyncio.run(body())


def test_of_claims_the_first_counts_then_what_was_said_last_until_it_is_deleted(
    place: Place,
) -> None:
    def named(name: str) -> Device:
        return Device("d1", tenant="acme", name=name)

    steps: list[tuple[Logged, list[str]]] = [
        (logged(8, named("second claim"), first=True), ["second claim"]),
        (logged(7, named("first claim"), first=True), ["first claim"]),
        (logged(9, named("update"), first=False), ["update"]),
        (logged(12, named("claim"), first=True), ["update"]),
        (logged(11, named("last update"), first=False), ["last update"]),
        (logged(10, named("update before"), first=False), ["last update"]),
        (logged(13, named(""), first=False, deleted=True), []),
        (logged(14, named("again"), first=False), ["again"]),
    ]

    async def body() -> None:
        async with opened(place) as store:
            for change, names in steps:
                await store.insert("devices", DEVICES.rows([change]))
                rows = await store.rows("SELECT name FROM devices FINAL")
                assert [name for [name] in rows] == names

    asyncio.run(body())


# -- errors and outages


def test_the_codes_that_are_told_apart_are_the_engines(place: Place) -> None:
    async def body() -> None:
        async with open_store(place.url) as store:
            await store.migrate()
            for code, name in (_ROWS_AT_FAULT | _OURS_AT_FAULT).items():
                [[known]] = await store.rows(
                    "SELECT errorCodeToName({code:UInt32})", {"code": code}
                )
                assert known == name

    asyncio.run(body())


def test_a_wrong_statement_is_our_fault(place: Place) -> None:
    async def body() -> None:
        async with opened(place) as store:
            with pytest.raises(Broken):
                await store.rows("SELEKT 1")

    asyncio.run(body())


def everything(store: Store) -> dict[str, Callable[[], Awaitable[Any]]]:
    """One call of each kind."""
    return {
        "insert": lambda: store.insert("samples", sample_rows(judged([(1, 10, 1)]))),
        "fetch": lambda: store.fetch(LatestQuery()),
        "migrate": store.migrate,
        "register_epoch": lambda: store.register_epoch("t", "life"),
        "stored_marks": lambda: store.stored_marks("t", 1),
        "rows": lambda: store.rows("SELECT 1"),
    }


def test_while_the_server_is_away_everything_is_unavailable_and_then_goes_on(place: Place) -> None:
    front = place.engine
    if not isinstance(front, Front):
        pytest.skip("only the front can be killed and started again here")

    async def body() -> None:
        async with opened(place) as store, open_store(place.url) as fresh:
            for call in everything(store).values():
                await call()
            front.kill()
            for opened_before in (store, fresh):
                for call in everything(opened_before).values():
                    with pytest.raises(Unavailable):
                        await call()
            front.start()
            for opened_before in (store, fresh):
                for call in everything(opened_before).values():
                    await call()
            assert rows_of(await store.fetch(ALL_TIMES)) == [(1, 10, 1)]

    asyncio.run(body())


def test_a_wrong_password_is_unavailable_because_it_can_be_put_right(place: Place) -> None:
    if isinstance(place.engine, Embedded):
        pytest.skip("the embedded engine has no passwords")

    async def body() -> None:
        async with open_store(place.url.replace("p%40ss", "wrong")) as store:
            with pytest.raises(Unavailable):
                await store.rows("SELECT 1")

    asyncio.run(body())


# -- processes


_WRITER = """
import asyncio, sys
from schemas.rows import sample_rows
from services.store import open_store
from tests.support.stores import a_block

async def body():
    async with open_store(sys.argv[1]) as store:
        await store.migrate()
        for number in range(1, 1_000_000):
            await store.insert("samples", sample_rows(a_block([(1, number, number)])))
            sys.stdout.write(f"stored {number}\\n")
            sys.stdout.flush()

asyncio.run(body())
"""
_READER = """
import asyncio, sys
from schemas.queries import RangeQuery
from services.store import open_store

async def body():
    async with open_store(sys.argv[1]) as store:
        await store.migrate()
        found = await store.fetch(RangeQuery("acme", (1,), 0, 10**9, 10**6))
        sys.stdout.write(f"found {list(found.ts_ms)}\\n")

asyncio.run(body())
"""


def test_what_an_insert_has_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """On chDB in processes of their own; the front dies in the test of outages above."""
    url = f"chdb:///{tmp_path / 'store'}"
    with started([sys.executable, "-c", _WRITER, url], output=tmp_path / "writer") as writer:
        wait_for(lambda: writer.output().count("stored") > 20, what="twenty inserts", seconds=60)
        writer.kill()
        acknowledged = int(writer.output().rpartition("stored ")[2].partition("\n")[0])
    with started([sys.executable, "-c", _READER, url], output=tmp_path / "reader") as reader:
        assert reader.wait(seconds=60) == 0, reader.output()
        found = reader.output()
    numbers = [int(n) for n in found[found.index("[") + 1 : found.index("]")].split(",")]
    # One more may be there: written, and killed before it could say so.
    assert numbers in ([*range(1, acknowledged + 1)], [*range(1, acknowledged + 2)])


def test_a_second_process_on_the_same_folder_is_told_so_and_harms_nothing(tmp_path: Path) -> None:
    url = f"chdb:///{tmp_path / 'store'}"
    with started([sys.executable, "-c", _WRITER, url], output=tmp_path / "writer") as writer:
        writer.wait_output("stored", seconds=60)
        # Stands for an insert of the first that is under way while the second begins.
        handed_over = tmp_path / "store-inserts" / "tmpabc.raw"
        handed_over.write_bytes(b"rows")
        with started([sys.executable, "-c", _READER, url], output=tmp_path / "reader") as reader:
            code = reader.wait(seconds=60)
            assert writer.returncode is None, writer.output()[-2000:]
            assert code != 0, reader.output()
            assert "Broken" in reader.output() and "lock" in reader.output().lower()
        assert handed_over.exists()


def test_what_a_killed_process_left_of_its_inserts_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "store-inserts" / "tmpabc.raw"
    left.parent.mkdir()
    left.write_bytes(b"half of an insert")

    async def body() -> None:
        async with open_store(f"chdb:///{tmp_path / 'store'}"):
            assert not left.exists()

    asyncio.run(body())


def test_nothing_that_was_asked_for_now_is_older(place: Place) -> None:
    """An insert that has returned is seen by the next fetch, whichever thread serves it."""

    async def body() -> None:
        async with opened(place) as store:
            for number in range(1, 30):
                await store.insert("samples", sample_rows(judged([(1, NOW_MS + number, number)])))
                answers = await asyncio.gather(*(store.fetch(ALL_TIMES) for _ in range(3)))
                assert [len(answer) for answer in answers] == [number] * 3

    asyncio.run(body())
