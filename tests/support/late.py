"""The late path: many stored values, then batches of times a year back, half of which are taken.

The lane's memory does not reach there, so the judge asks the store; what is told must be exact.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.blocks import BLOCK_ROWS_MAX, Block
from schemas.envelope import Envelope
from schemas.points import lane_of
from schemas.samples import NO_QUALITY, Conflict, Kind
from schemas.topics import SAMPLES_RECEIVED
from services.runtime import Runtime, open_runtime
from services.settings import Settings
from tests.support.plant import Client, Plant, moment
from tests.support.processes import wait_for

TENANT = "demo"
YEAR_MS = 365 * 86_400_000
BATCH = 100
_APPENDS = 16
"""Records that are appended at a time."""
_VALUE_BITS = array("q", array("d", [1.5]).tobytes())[0]


@dataclass(frozen=True)
class Past:
    """What is stored: `rows` values of the points together, evenly over a year that ends now."""

    points: Sequence[str]
    rows: int
    end_ms: int

    @property
    def each(self) -> int:
        """Values of one point."""
        return self.rows // len(self.points)

    @property
    def step_ms(self) -> int:
        """Between two values of a point."""
        return YEAR_MS // self.each

    def time(self, index: int) -> int:
        """The time of a point's value with this number."""
        return self.end_ms - YEAR_MS + index * self.step_ms

    def batch(self, chance: random.Random, turn: int, *, spread: bool) -> list[tuple[int, bool]]:
        """(time, whether it is taken) of a batch for one point, in any order; what is not taken is
        another one in each turn. Only of the older half: what is newer a lane may remember.
        """
        half = self.each // 2
        if spread:
            taken = [self.time(at) for at in chance.sample(range(half), BATCH // 2)]
            between = chance.sample(range(half), BATCH // 2)
        else:
            first = chance.randrange(half - BATCH)
            taken = [self.time(first + at) for at in range(BATCH // 2)]
            between = range(first, first + BATCH // 2)
        # Each kind of batch has milliseconds of its own between two values.
        off = 1 + 2 * turn + spread
        assert off < self.step_ms, "no room for so many batches"
        rows = [(ts_ms, True) for ts_ms in taken]
        rows += [(self.time(at) + off, False) for at in between]
        chance.shuffle(rows)
        return rows


def fill(plant: Plant, points: Sequence[str], rows: int) -> Past:
    """Put the values onto the log of a plant that stands still, as a door would have; start it, and
    wait until they are stored.
    """
    past = Past(points, rows, time.time_ns() // 10**6 - 3_600_000)

    async def body() -> None:
        settings, stop = Settings(data_dir=str(plant.data_dir)), asyncio.Event()
        async with open_runtime(settings, stop) as runtime:
            for point in points:
                await _append(runtime, point, past)

    plant.stop()
    asyncio.run(body())
    plant.start()
    stored = past.each * len(points)
    wait_for(
        lambda: plant.metric('sink_rows_total{sink="samples"}') >= stored,
        seconds=60 + rows / 20_000,
        what=f"{stored} stored rows",
    )
    return past


async def _append(runtime: Runtime, point_id: str, past: Past) -> None:
    point = runtime.view.point(TENANT, point_id)
    assert point is not None
    policy, lane = runtime.view.policy(point), lane_of(point.series, runtime.log.lanes)
    turns = asyncio.Semaphore(_APPENDS)

    async def one(start: int) -> None:
        count = min(BLOCK_ROWS_MAX, past.each - start)
        block = Block(
            policies=[policy],
            series=array("Q", (point.series,)) * count,
            ts_ms=array("q", map(past.time, range(start, start + count))),
            kind=array("B", (Kind.DOUBLE,)) * count,
            bits=array("q", (_VALUE_BITS,)) * count,
            quality=array("i", (NO_QUALITY,)) * count,
            rule=array("B", (Conflict.FIRST,)) * count,
            policy=array("H", (0,)) * count,
            texts={},
            text_bytes=0,
        )
        async with turns:
            await runtime.log.append([(SAMPLES_RECEIVED, lane, Envelope(block))])

    await asyncio.gather(*(one(at) for at in range(0, past.each, BLOCK_ROWS_MAX)))


def batches(plant: Plant, past: Past, *, count: int, seed: int, spread: bool) -> list[float]:
    """Post batches of old times, half of which are taken; the seconds that each took. Fails where
    the dropped indices are not exactly those.

    A batch fills up a stretch of the past, as who was away for a while does; or, with `spread`, its
    times lie anywhere in half a year, which is the worst that can be asked of the store.
    """
    chance, client, took = random.Random(seed), Client(plant.facts), []
    client.token()
    for number in range(count):
        point = past.points[number % len(past.points)]
        rows = past.batch(chance, number // len(past.points), spread=spread)
        taken = [at for at, (_, there) in enumerate(rows) if there]
        began = time.perf_counter()
        answer = client.post([(moment(ts_ms), "2.5") for ts_ms, _ in rows], point=point)
        took.append(time.perf_counter() - began)
        assert answer == (202, taken), f"batch {number}: told {answer}, right is {taken}"
    return took
