"""The lattice on the real engine: whatever batches, repetitions and merges it sees, its three ways
of reading give the sequential result.

The engine is opened in a process of its own, as one process can have one chDB path open at a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

from schemas.blocks import Block
from schemas.envelope import Position
from schemas.queries import LatestQuery, TakenQuery
from schemas.rows import sample_rows
from schemas.samples import Conflict, Sample
from services.domain.memory import Lane
from services.store import Store, open_store
from tests.support.builders import NOW_MS, a_block, a_policy, a_sample
from tests.support.reference import sequential
from tests.support.rounds import rounds, seed

ROOT = Path(__file__).parents[3]
MONTH_MS = 31 * 86_400_000
WAYS = (
    "SELECT series, toUnixTimestamp64Milli(ts), double FROM samples FINAL"
    " WHERE tenant = {tenant:String}"
    " SETTINGS do_not_merge_across_partitions_select_final = 1",
    "SELECT series, toUnixTimestamp64Milli(ts), argMax(double, version) FROM samples"
    " WHERE tenant = {tenant:String} GROUP BY series, ts",
    "SELECT series, toUnixTimestamp64Milli(ts), double FROM samples"
    " WHERE tenant = {tenant:String} ORDER BY series, ts, version DESC LIMIT 1 BY series, ts",
)


def test_the_engine_merges_to_the_sequential_result(tmp_path: Path) -> None:
    given = [str(tmp_path / "store"), str(seed()), str(rounds(6))]
    done = subprocess.run(
        [sys.executable, __file__, *given],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60 + 10 * rounds(6),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def check(path: str, chance: random.Random, count: int) -> None:
    """So many histories, each of a tenant of its own."""
    async with open_store(f"chdb:///{path}") as store:
        await store.migrate()
        for number in range(count):
            tenant = f"tenant {number}"
            history = [
                [a_random_sample(number, chance) for _ in range(chance.randrange(1, 20))]
                for _ in range(chance.randrange(1, 30))
            ]
            await fill(store, tenant, history, chance)
            for way in WAYS:
                found = await store.rows(way, {"tenant": tenant})
                places = {(series, ts): value for series, ts, value in found}
                assert len(places) == len(found), f"two rows at one place: {way}"
                expected = sequential(sample for record in history for sample in record)
                assert places.keys() == expected.keys(), (number, way)
                assert all(
                    a_block(a_sample(value)).bits[0] == expected[place].bits
                    for place, value in places.items()
                ), (number, way)


def a_random_sample(number: int, chance: random.Random) -> Sample:
    """Few series and times, so that they meet; the times lie in three months."""
    return a_sample(
        float(chance.randrange(4)),
        NOW_MS + chance.randrange(3) * MONTH_MS + chance.randrange(8),
        series=number * 2**40 + chance.randrange(3),
        rule=Conflict(chance.randrange(3)),
    )


async def fill(
    store: Store, tenant: str, history: list[list[Sample]], chance: random.Random
) -> None:
    """Judge the history and insert what is to be stored: later, again, in other batches. Half way
    the log is made anew, and the lane's memory is lost.
    """
    waiting: list[Block] = []
    inserted: list[Block] = []

    async def insert() -> None:
        again = chance.choices(inserted, k=min(2, len(inserted)))
        batch = [row for block in waiting + again for row in pieces(block)]
        chance.shuffle(batch)
        inserted.extend(waiting)
        waiting.clear()
        cut = chance.randrange(len(batch) + 1)
        for rows in (batch[:cut], batch[cut:]):
            if rows:
                await store.insert("samples", sample_rows(Block.join(rows)))
        if chance.random() < 0.3:
            await store.rows("OPTIMIZE TABLE samples" + chance.choice(["", " FINAL"]))

    lane, epoch, begin = Lane(whole=True, rows_max=30), 1, 0
    for at, record in enumerate(history):
        if at == len(history) // 2:
            await insert()
            lane, epoch, begin = Lane(whole=False, rows_max=30), 2, at
        position = Position(epoch, at - begin)
        block = a_block(*record, policy=a_policy(tenant=tenant))
        unknown, times = lane.questions(block)
        if unknown:
            answer = await store.fetch(LatestQuery(series=tuple(unknown)))
            lane.learn(answer, position, unknown)
        if times:
            lane.learn(await store.fetch(TakenQuery(*zip(*times, strict=True))), position)
        waiting.append(lane.judge(block, position).stored(block))
        if chance.random() < 0.3:
            await insert()
            lane.forget(position.offset)
    await insert()


def pieces(block: Block) -> list[Block]:
    """The block row by row."""
    return [block.slice(row, row + 1) for row in range(len(block))]


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1], random.Random(int(sys.argv[2])), int(sys.argv[3])))
