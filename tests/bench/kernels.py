"""Values per second that one core judges: `python tests/bench/kernels.py`. Numbers, no assertions.

10,000 series in blocks of 4,096 rows, deadband off. "in order": every value is newer than its
series' last. "late": 30 % late, 20 % repetitions. Memory is forgotten as the store catches up.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from schemas.blocks import BLOCK_ROWS_MAX, Block
from schemas.envelope import Position
from schemas.points import PointPolicy
from services.domain.memory import Lane

SERIES = 10_000
BLOCKS = 500
STORED_BEHIND = 4


def columns(rows: int, late: float, repeated: float) -> tuple[np.ndarray, ...]:
    """Series, times and values of a stream in which each series ticks once a second."""
    random = np.random.default_rng(7)
    ids = random.integers(0, 2**63, SERIES, dtype=np.uint64)
    number = np.arange(rows)
    series, ts = ids[number % SERIES], 1_700_000_000_000 + number // SERIES * 1000
    is_late = random.random(rows) < late
    ts = np.where(is_late, ts - random.integers(1, 5000, rows), ts)
    values = random.random(rows)
    repeats = np.flatnonzero(random.random(rows) < repeated)
    repeats = repeats[repeats > 2 * SERIES]
    source = repeats - random.integers(1, 2 * SERIES, repeats.size)
    for column in (series, ts, values):
        column[repeats] = column[source]
    return series, ts.astype(np.int64), values


def blocks(late: float, repeated: float) -> list[Block]:
    """The stream as blocks."""
    series, ts, values = columns(BLOCKS * BLOCK_ROWS_MAX, late, repeated)
    made = []
    for start in range(0, len(series), BLOCK_ROWS_MAX):
        block = Block([PointPolicy("bench")])
        stop = start + BLOCK_ROWS_MAX
        block.series.frombytes(series[start:stop].tobytes())
        block.ts_ms.frombytes(ts[start:stop].tobytes())
        block.bits.frombytes(values[start:stop].tobytes())
        block.kind.frombytes(bytes(BLOCK_ROWS_MAX))
        block.quality.frombytes(np.full(BLOCK_ROWS_MAX, -(2**31), np.int32).tobytes())
        block.rule.frombytes(bytes(BLOCK_ROWS_MAX))
        block.policy.frombytes(bytes(2 * BLOCK_ROWS_MAX))
        made.append(block)
    return made


def run(name: str, late: float, repeated: float) -> None:
    """One case, three times; prints the best."""
    stream, best, asked = blocks(late, repeated), 0.0, 0
    for _ in range(3):
        lane = Lane(whole=True)
        seconds, asked = 0.0, 0
        for offset, block in enumerate(stream):
            start = time.perf_counter()
            lane.forget(offset - STORED_BEHIND)
            asked += len(lane.questions(block)[1])
            lane.judge(block, Position(1, offset))
            seconds += time.perf_counter() - start
        best = max(best, BLOCKS * BLOCK_ROWS_MAX / seconds)
    packed = lane.pack()
    start = time.perf_counter()
    lane.pack()
    pack_ms = (time.perf_counter() - start) * 1000
    sys.stdout.write(
        f"{name:10} {best / 1e6:6.1f} M values/s   asked {asked / BLOCKS / BLOCK_ROWS_MAX:.2%}   "
        f"packed {len(packed) / 1024:.0f} KiB in {pack_ms:.0f} ms\n"
    )


def main() -> None:
    """Both cases."""
    run("in order", 0.0, 0.0)
    run("late", 0.3, 0.2)


if __name__ == "__main__":
    main()
