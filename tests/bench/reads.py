"""How fast the live view is: rows per second followed, and milliseconds of a read from memory.

`.venv/bin/python -m tests.bench.reads` prints the numbers; it asserts nothing.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from functools import partial

from schemas.blocks import BLOCK_ROWS_MAX
from schemas.points import lane_of
from schemas.queries import RangeQuery
from services.query._latest import Latest
from services.query._tail import Tail, merge
from tests.support.stores import Row, a_block

LANES, SERIES, TAIL_ROWS = 16, 1_000, 2_000_000
START_MS = 1_700_000_000_000


def main() -> None:
    """Print every number."""
    chance = random.Random(1)
    series = [
        (lane + LANES * device) << 48 | chance.getrandbits(48)
        for lane in range(LANES)
        for device in range(10)
        for _ in range(100)
    ]
    hot = [one for one in series if lane_of(one, LANES) == 0]
    for name, version in (("first wins", falling), ("last wins", rising), ("mixed", mixed)):
        follow(name, rows(hot, 0, version))
    follow("late rows", sorted(rows(hot, 0, falling), key=lambda row: chance.random()))
    read_latest(series)
    read_tail(series)


def falling(index: int) -> int:
    """Versions of rows of which the first wins."""
    return (1 << 63) - 1 - index


def rising(index: int) -> int:
    """Versions of rows of which the last wins."""
    return (1 << 63) + index


def mixed(index: int) -> int:
    """Both."""
    return rising(index) if index % 3 else falling(index)


def rows(series: list[int], start: int, version: Callable[[int], int]) -> list[Row]:
    """A full block: the series in turn, each row a tick later than the series' last."""
    return [
        (series[n % len(series)], START_MS + (start + n) // len(series) * 100, version(start + n))
        for n in range(BLOCK_ROWS_MAX)
    ]


def follow(name: str, found: list[Row]) -> None:
    """Rows per second of the latest values."""
    block, latest = a_block(found), Latest()
    seconds = timed(lambda: latest.apply(block))
    say(f"latest follows, {len(set(block.series))} series a block, {name}", len(block) / seconds)


def read_latest(series: list[int]) -> None:
    """Milliseconds of a latest read."""
    latest = Latest()
    for start in range(0, len(series), SERIES):
        latest.apply(a_block(rows(series[start : start + SERIES], 0, falling)))
    for count in (1, 100, 4_000):
        asked = series[:count]
        say(f"latest of {count} series, ms", timed(partial(latest.select, "acme", asked)) * 1e3)


def read_tail(series: list[int]) -> None:
    """Milliseconds of the tail's part in a range read."""
    tail = Tail(LANES, 2 * TAIL_ROWS)
    by_lane = [[one for one in series if lane_of(one, LANES) == lane] for lane in range(LANES)]
    for number in range(TAIL_ROWS // BLOCK_ROWS_MAX):
        lane = number % LANES
        tail.add(lane, number, a_block(rows(by_lane[lane], number * BLOCK_ROWS_MAX, falling)))
    say("rows in the tail", tail.rows)
    whole = (START_MS, START_MS + 10**9)
    for count, step in ((1, 1), (100, 1), (100, 157)):
        asked = tuple(series[: count * step : step])
        query = RangeQuery("acme", asked, *whole, 100_000)
        lanes = len({lane_of(one, LANES) for one in asked})
        found = tail.select(query)
        label = f"{count} series of {lanes} lanes, {len(found)} rows"
        say(f"tail: {label}, ms", timed(partial(tail.select, query)) * 1e3)
        stored = a_block(sorted((one, START_MS - n, 1) for one in asked for n in range(1, 900)))
        label = f"{len(found)} rows into {len(stored)} stored ones"
        say(f"merge: {label}, ms", timed(partial(merge, query, stored, found)) * 1e3)


def timed(work: Callable[[], object], seconds: float = 0.3) -> float:
    """Seconds of one run, the median of many."""
    work()
    took: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) < 3:
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2]


def say(name: str, number: float) -> None:
    """One line."""
    sys.stdout.write(f"{name:72s} {number:14,.2f}\n")


if __name__ == "__main__":
    main()
