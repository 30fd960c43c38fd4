"""Every sink there is, from a SQLite log into chDB: records become the rows that tables promise."""

from __future__ import annotations

import asyncio
import json
import re
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas.blocks import Block
from schemas.catalogue import Device, Point, Tenant
from schemas.envelope import (
    Audit,
    Change,
    Envelope,
    Letter,
    Logged,
    Mark,
    Position,
    Tick,
    Undecodable,
)
from schemas.queries import RangeQuery
from schemas.rows import sample_rows
from schemas.samples import TS_MS_MAX, Kind
from schemas.tables import AUDIT, COMMANDS, DEVICES, POINTS, REFUSED, SAMPLES, SUPPRESSED, TABLES
from schemas.topics import (
    CALLS_AUDITED,
    CATALOGUE_CHANGED,
    COMMANDS_CHANGED,
    LANES_STORED,
    SAMPLES_ACCEPTED,
    SAMPLES_RECEIVED,
    SINK_GROUP,
    TOPICS,
)
from services.agents.samples import AGENT
from services.clock import SystemClock
from services.domain.commands import DELIVERY_MS
from services.errors import Malformed
from services.eventlog import EventLog, open_eventlog
from services.settings import Settings
from services.sinks import SinkWorker, all_sinks
from services.sinks.clickhouse import MONTHS_MAX
from services.store import Store, open_store
from tests.support.builders import NOW_MS, a_block, a_command, a_policy, a_sample
from tests.support.processes import ROOT
from tests.support.stores import MemoryStore, rows_of
from tests.support.stores import a_block as judged

SOON_S = 30
ANALYSING = ROOT / "docs" / "analysing.md"


@asynccontextmanager
async def parts(folder: Path) -> AsyncIterator[tuple[EventLog, Store]]:
    """An embedded log and store, empty where the folder is."""
    async with (
        open_eventlog(f"sqlite:///{folder / 'log.sqlite'}", lanes=4) as log,
        open_store(f"chdb:///{folder / 'store'}") as store,
    ):
        await log.create(TOPICS)
        await store.migrate()
        yield log, store


@asynccontextmanager
async def running(log: EventLog, store: Store) -> AsyncIterator[None]:
    """All sinks, as the service runs them."""
    stop = asyncio.Event()
    given = Settings(sink_wait_ms=10)
    async with asyncio.TaskGroup() as group:
        for sink in all_sinks():
            worker = SinkWorker(sink, log, store, SystemClock(), given)
            group.create_task(worker.run(stop))
        yield
        stop.set()


async def until_empty(log: EventLog) -> None:
    """Wait until every sink has committed everything."""
    async with asyncio.timeout(SOON_S):
        for sink in all_sinks():
            while True:
                spans = await log.spans(sink.source)
                committed = await log.committed(f"sinks.{sink.name}", sink.source)
                if all(committed.get(lane, 0) >= span.end for lane, span in spans.items()):
                    break
                await asyncio.sleep(0.01)


def test_there_is_a_sink_for_every_table_under_its_name() -> None:
    assert [(sink.name, sink.source) for sink in all_sinks()] == [
        (table.name, table.topic) for table in TABLES
    ]


def test_the_group_that_others_look_at_is_the_sink_of_the_accepted_samples() -> None:
    of_samples = [f"sinks.{sink.name}" for sink in all_sinks() if sink.source is SAMPLES_ACCEPTED]
    assert of_samples == [SINK_GROUP]
    assert {table.name for table in TABLES} == {
        *("samples", "suppressed", "refused", "points", "devices", "audit", "commands")
    }


def test_what_is_on_the_log_comes_to_stand_in_the_tables(tmp_path: Path) -> None:
    good = judged([(1, NOW_MS + n, n + 1) for n in range(100)])
    # A time that no door lets in, and that the log does not mind.
    mixed = judged([(1, NOW_MS + 200, 7), (1, TS_MS_MAX + 5, 8), (1, 12, 9)])
    point = Point(
        "p1", tenant="acme", device="d1", key="temp", series=1, kind=Kind.DOUBLE, unit="K"
    )
    device = Device("d1", tenant="acme", name="Press 7", type="press")

    async def body() -> None:
        async with parts(tmp_path) as (log, store), running(log, store):
            await log.append(
                [
                    (SAMPLES_ACCEPTED, 0, Envelope(good, received=30, epoch=1)),
                    (SAMPLES_ACCEPTED, 2, Envelope(mixed, received=31, epoch=1)),
                    (CATALOGUE_CHANGED, 0, Envelope(Change("tenant", "acme", {"id": "acme"}))),
                    (CATALOGUE_CHANGED, 0, Envelope(Change("device", "d1", device.body(), True))),
                    (CATALOGUE_CHANGED, 0, Envelope(Change("point", "p1", point.body(), True))),
                ]
            )
            await until_empty(log)
            found = await store.fetch(RangeQuery("acme", (1,), 0, TS_MS_MAX, 1000))
            assert rows_of(found) == [(1, 12, 9), *rows_of(good), (1, NOW_MS + 200, 7)]
            letters = await store.rows(
                "SELECT reason, source, tenant, topic, lane, offset, row, body FROM refused FINAL"
            )
            [(*place, text)] = [tuple(row) for row in letters]
            source = ("sinks.samples", "acme", SAMPLES_ACCEPTED.name, 2, 0, 1)
            assert tuple(place) == ("VIOLATED_CONSTRAINT", *source)
            assert json.loads(text)["ts_ms"] == TS_MS_MAX + 5
            assert await store.stored_marks(SAMPLES_RECEIVED.name, 1) == {0: 30, 2: 31}
            named = await store.rows("SELECT device_name, key, count() FROM telemetry GROUP BY ALL")
            assert [tuple(row) for row in named] == [("Press 7", "temp", 102)]
            assert [tuple(row) for row in await store.rows("SELECT type FROM devices")] == [
                ("press",)
            ]
            async with log.reader([LANES_STORED]) as reader:
                batch = await reader.batch()
                assert batch is not None
                marks = [
                    r.envelope.record for r in batch.records if isinstance(r.envelope, Envelope)
                ]
            life = await log.incarnation(SAMPLES_ACCEPTED)
            assert Mark(SAMPLES_RECEIVED.name, 0, 30, 1, life) in marks
            assert Mark(SAMPLES_RECEIVED.name, 2, 31, 1, life) in marks

    asyncio.run(body())


def test_counts_of_suppressed_samples_tell_nothing_changed_from_nothing_came(
    tmp_path: Path,
) -> None:
    """The query of docs/analysing.md, over what the judge puts out."""
    [query] = re.findall(r"(-- Nothing changed.*?;)", ANALYSING.read_text(), re.DOTALL)
    now_ms = int(time.time()) // 60 * 60_000
    quiet = [a_sample(20.0, now_ms - 300_000 + n * 1_000, series=1) for n in range(240)]
    gone = [a_sample(20.0, now_ms - 300_000, series=2)]
    block = a_block(*quiet, *gone, policy=a_policy(band=0.5))
    outcome = AGENT.step(AGENT.fresh(True), Position(1, 0), Envelope(block), [], 4)
    devices = [Change("device", "d", Device("d", tenant="acme", name="Press 7").body(), True)]
    points = [
        Change("point", key, Point(key, tenant="acme", device="d", key=key, series=n).body(), True)
        for n, key in ((1, "quiet"), (2, "gone"), (3, "never"))
    ]

    async def body() -> None:
        async with parts(tmp_path) as (log, store), running(log, store):
            await log.append(outcome.out)
            await log.append([(CATALOGUE_CHANGED, 0, Envelope(c)) for c in devices + points])
            await until_empty(log)
            counts = await store.rows("SELECT count FROM suppressed FINAL ORDER BY minute")
            # The last minute has not ended: of its 60 samples 32 are told.
            assert [count for (count,) in counts] == [59, 60, 60, 32]
            found = await store.rows(query)
            assert [tuple(row) for row in found] == [
                ("gone", datetime.fromtimestamp(now_ms / 1000 - 300, UTC).replace(tzinfo=None), 0),
                ("never", datetime(1970, 1, 1), 0),
                (
                    "quiet",
                    datetime.fromtimestamp(now_ms / 1000 - 89, UTC).replace(tzinfo=None),
                    211,
                ),
            ]

    asyncio.run(body())


def test_a_command_is_one_row_with_its_furthest_state(tmp_path: Path) -> None:
    now_ms = int(time.time()) * 1000
    waiting = a_command("c1", at_ms=now_ms, value=-1e-7)
    delivered = replace(waiting, state="delivered", changed_ms=now_ms + 5)
    again = replace(delivered, changed_ms=now_ms + 6)
    confirmed = replace(waiting, state="confirmed", changed_ms=now_ms + 9)
    old = a_command("c2", kind=Kind.STRING, value="zu heiß 😀")
    late = replace(old, state="delivered", changed_ms=old.expires_ms)
    device = a_command("c3", at_ms=now_ms, kind=Kind.LONG, value=-(2**63))

    async def body() -> None:
        async with parts(tmp_path) as (log, store), running(log, store):
            for each in (waiting, delivered, again, confirmed, delivered, old, late, device):
                await log.append([(COMMANDS_CHANGED, 1, Envelope(each))])
            await until_empty(log)
            found = await store.rows(
                "SELECT command, kind, value, state, outcome, toUnixTimestamp64Milli(changed) "
                "FROM commands FINAL ORDER BY command"
            )
            assert [tuple(row) for row in found] == [
                ("c1", "double", "-1e-07", "confirmed", "confirmed", now_ms + 9),
                ("c2", "string", "zu heiß 😀", "queued", "expired", old.at_ms),
                ("c3", "long", str(-(2**63)), "queued", "queued", now_ms),
            ]
            # Not before an outcome can be on its way no more, as a point's commands say it.
            [[said]] = await store.rows(
                "SELECT default_expression FROM system.columns "
                "WHERE table = 'commands' AND name = 'outcome'"
            )
            assert said.count("now64(3)") == 1
            for late_ms, outcome in ((DELIVERY_MS - 1, "queued"), (DELIVERY_MS, "expired")):
                moment = f"(expires + toIntervalMillisecond({late_ms}))"
                at = said.replace("now64(3)", moment)
                sql = f"SELECT {at} FROM commands FINAL WHERE command = 'c2'"
                assert await store.rows(sql) == [(outcome,)]

    asyncio.run(body())


def test_of_two_deliveries_the_first_is_the_row() -> None:
    queued = a_command()
    records = [
        queued,
        replace(queued, state="delivered", changed_ms=NOW_MS + 1),
        replace(queued, state="delivered", changed_ms=NOW_MS + 2),
    ]
    rows = COMMANDS.rows([Logged(n, Envelope(each)) for n, each in enumerate(records)])
    first, second, third = rows.column("version").to_pylist()
    assert first < third < second


def test_a_call_is_one_row_that_says_how_it_ended_however_often_it_is_written(
    tmp_path: Path,
) -> None:
    def a_call(call: str, outcome: str, **members: Any) -> Audit:
        given = {"name": "Kessel \ud800", "scopes": ["read"]}
        who = {"tenant": "acme", "subject": "anna", "via": "http", "action": "add_key"}
        return Audit(call, NOW_MS, **who, target="", arguments=given, outcome=outcome, **members)

    records = [
        a_call("c1", "unknown"),
        a_call("c2", "unknown"),
        a_call("c1", "refused", detail="no"),
    ]

    async def body() -> None:
        async with parts(tmp_path) as (log, store):
            for _ in range(2):
                rows = AUDIT.rows([Logged(n, Envelope(each)) for n, each in enumerate(records)])
                await store.insert("audit", rows)
            async with running(log, store):
                await log.append([(CALLS_AUDITED, 0, Envelope(a_call("c3", "done")))])
                await until_empty(log)
            found = await store.rows(
                "SELECT call, at, tenant, subject, via, action, outcome, detail, arguments"
                " FROM audit FINAL ORDER BY call"
            )
            assert [(row[0], row[6], row[7]) for row in found] == [
                ("c1", "refused", "no"),
                ("c2", "unknown", ""),
                ("c3", "done", ""),
            ]
            _, at, *who = found[0][:6]
            assert who == ["acme", "anna", "http", "add_key"]
            assert at.timestamp() * 1000 == NOW_MS
            assert json.loads(found[0][8]) == {"name": "Kessel \ud800", "scopes": ["read"]}

    asyncio.run(body())


def test_what_was_stored_and_not_committed_is_stored_again_and_is_still_one(tmp_path: Path) -> None:
    blocks = [judged([(1, NOW_MS + 10 * n + k, n + 1) for k in range(10)]) for n in range(20)]

    async def body() -> None:
        async with parts(tmp_path) as (log, store):
            await log.append([(SAMPLES_ACCEPTED, 1, Envelope(block)) for block in blocks])
            # As a crash leaves it: the rows are in, cut in another way, and nothing is committed.
            for block in blocks[::3]:
                await store.insert("samples", sample_rows(block))
            async with running(log, store):
                await until_empty(log)
            found = await store.fetch(RangeQuery("acme", (1,), 0, TS_MS_MAX, 1000))
            assert rows_of(found) == [row for block in blocks for row in rows_of(block)]

    asyncio.run(body())


class Counting(MemoryStore):
    """Counts the months of each insert."""

    def __init__(self) -> None:
        super().__init__()
        self.months: list[int] = []

    async def insert(self, table: str, rows: object) -> None:
        times = rows.column("ts").to_pylist()  # type: ignore[attr-defined]
        self.months.append(len({(ts.year, ts.month) for ts in times}))
        await super().insert(table, rows)


def test_samples_go_in_by_few_months_at_a_time_and_all_go_in() -> None:
    block = judged([(1, n * 40 * 86_400_000, n + 1) for n in range(300)])

    async def body() -> None:
        store = Counting()
        [write] = [sink.write for sink in all_sinks() if sink.name == "samples"]
        await write(store, [Logged(0, Envelope(block))])
        assert max(store.months) <= MONTHS_MAX
        found = store.select(RangeQuery("acme", (1,), 0, TS_MS_MAX, 1000))
        assert rows_of(found) == rows_of(block)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("samples", Envelope(a_block(a_sample()))),
        ("samples", Envelope(Letter("r", "d", "s"))),
        ("samples", Undecodable("no block", b"")),
        ("suppressed", Envelope(a_block(a_sample()))),
        ("suppressed", Envelope(Letter("r", "d", "s"))),
        ("refused", Envelope(judged([(1, 1, 1)]))),
        ("points", Envelope(Letter("r", "d", "s"))),
        ("points", Envelope(Change("point", "p", {"series": "no number"}))),
        ("points", Envelope(Change("point", "p", {"kind": 99}))),
        ("devices", Envelope(Change("device", "d", {"name": 5}))),
    ],
)
def test_a_record_that_is_none_of_the_tables_is_malformed(
    name: str, record: Envelope | Undecodable
) -> None:
    async def body() -> None:
        [write] = [sink.write for sink in all_sinks() if sink.name == name]
        with pytest.raises(Malformed):
            await write(MemoryStore(), [Logged(0, record)])

    asyncio.run(body())


def test_records_without_rows_are_no_rows(tmp_path: Path) -> None:
    rows = judged([(1, NOW_MS, 1), (1, NOW_MS + 1, 2)])
    empty, full = Logged(0, Envelope(Block())), Logged(1, Envelope(rows))
    for given, count in (([empty], 0), ([empty, full, empty], 2), ([full, empty, full], 4)):
        assert SAMPLES.rows(given).num_rows == SUPPRESSED.rows(given).num_rows == count

    async def body() -> None:
        async with parts(tmp_path) as (log, store), running(log, store):
            for blocks in ([Block()], [Block(), rows, Block()]):
                out = [(SAMPLES_ACCEPTED, 0, Envelope(b, received=9, epoch=1)) for b in blocks]
                await log.append(out)
                await until_empty(log)
            found = await store.fetch(RangeQuery("acme", (1,), 0, TS_MS_MAX, 1000))
            assert rows_of(found) == rows_of(rows)
            assert await store.stored_marks(SAMPLES_RECEIVED.name, 1) == {0: 9}

    asyncio.run(body())


def test_a_letter_of_any_text_and_bytes_is_a_row() -> None:
    letter = Letter("r", "half a pair \ud800", "s", body=b"\x00\xff", row=3, ts_ms=NOW_MS)
    [row] = REFUSED.rows([Logged(9, Envelope(letter))]).to_pylist()
    assert (row["detail"], row["body"]) == ("half a pair \\ud800", "\x00\\xff")
    assert (row["row"], row["letter"], row["count"]) == (3, 9, 1)


def test_a_deletion_is_a_row_that_names_the_thing_alone() -> None:
    changes = [
        Logged(5, Envelope(Change("device", "d1", None))),
        Logged(6, Envelope(Change("point", "p1", None))),
        Logged(7, Envelope(Change("tenant", "acme", Tenant("acme").body()))),
    ]
    [device] = DEVICES.rows(changes).to_pylist()
    assert (device["device"], device["is_deleted"], device["version"]) == ("d1", 1, 2**63 + 5)
    [point] = POINTS.rows(changes).to_pylist()
    assert (point["point"], point["is_deleted"], point["version"]) == ("p1", 1, 2**63 + 6)


def test_the_first_claim_has_the_highest_version_of_claims_and_is_below_any_update() -> None:
    body = Device("d1", tenant="acme").body()
    changes = [Logged(n, Envelope(Change("device", "d1", body, n < 3))) for n in range(5)]
    versions = [row["version"] for row in DEVICES.rows(changes).to_pylist()]
    assert versions[0] > versions[1] > versions[2]
    assert versions[0] < versions[3] < versions[4]


def test_ticks_and_empty_blocks_among_the_samples_are_no_rows() -> None:
    tick = Envelope(Tick(NOW_MS, "triggers"))
    empty, full = Envelope(Block()), Envelope(judged([(1, NOW_MS, 7)]))
    [row] = SAMPLES.rows([Logged(n, one) for n, one in enumerate((tick, full, empty))]).to_pylist()
    assert (row["series"], row["version"]) == (1, 7)
    nothing = SAMPLES.rows([Logged(0, tick), Logged(1, empty)])
    assert nothing.num_rows == 0 and nothing.schema == SAMPLES.rows([Logged(0, full)]).schema


def test_samples_of_several_tenants_and_policies_become_rows_of_their_tenants() -> None:
    block = a_block(
        *(a_sample(float(n)) for n in range(3)),
        policies=[a_policy(revision=1), a_policy(tenant="other"), a_policy(revision=2)],
    )
    block.version = array("Q", [1, 2, 3])
    rows = SAMPLES.rows([Logged(0, Envelope(block)), Logged(1, Envelope(block))]).to_pylist()
    assert [row["tenant"] for row in rows] == ["acme", "other", "acme"] * 2


def test_a_trickle_of_small_blocks_becomes_the_same_rows_as_each_by_itself() -> None:
    blocks = [
        judged([(number % 7, 1_000 + number, 10 + number)], f"tenant {number % 400}", kind)
        for number in range(900)
        for kind in (Kind.LONG, Kind.STRING, Kind.DOUBLE)
    ]
    blocks.insert(100, judged([(9, number, number + 1) for number in range(4_096)]))
    logged = [Logged(offset, Envelope(block)) for offset, block in enumerate(blocks)]
    together = SAMPLES.rows(logged)
    apart = [row for one in logged for row in SAMPLES.rows([one]).to_pylist()]
    assert together.to_pylist() == apart


def test_a_trickle_costs_little_to_make_rows_of() -> None:
    def seconds(logged: list[Logged]) -> float:
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            SAMPLES.rows(logged)
            taken.append(time.perf_counter() - began)
        return min(taken)

    small = [Logged(n, Envelope(judged([(1, n, n + 1)]))) for n in range(200)]
    one = [Logged(0, Envelope(judged([(1, n, n + 1) for n in range(200)])))]
    assert seconds(small) < 20 * seconds(one)
