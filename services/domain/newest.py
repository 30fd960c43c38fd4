"""Which row of each series is the newest of a block, compiled."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from schemas.blocks import Block
from schemas.samples import Kind

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def newest_rows(block: Block) -> list[int]:
    """The row with the highest (time, version) of every series of a block with versions, in the
    order in which the series first come.
    """
    rows = np.empty(len(block), np.int64)
    table = np.full(1 << (2 * len(block)).bit_length(), -1, np.int64)
    count = _newest(
        np.frombuffer(block.series, np.int64),
        np.frombuffer(block.ts_ms, np.int64),
        np.frombuffer(block.version, np.uint64),
        table,
        rows,
    )
    found: list[int] = rows[:count].tolist()
    return found


@lru_cache(maxsize=1)
def warm() -> None:
    """Have it compiled, or loaded."""
    block = Block()
    block.add(1, 1, Kind.DOUBLE, 0.0, policy=0)
    block.version.append(1)
    newest_rows(block)


@njit(cache=True)
def _newest(series: Any, ts: Any, version: Any, table: Any, rows: Any) -> int:
    """How many series there are; their rows stand in `rows`. `table` is an open-addressing table
    from series to its place there, -1 where free.
    """
    mask, count = table.size - 1, 0
    for row in range(series.size):
        at = ((series[row] * _GOLDEN) >> 32) & mask
        while table[at] >= 0 and series[rows[table[at]]] != series[row]:
            at = (at + 1) & mask
        if table[at] < 0:
            table[at], rows[count] = count, row
            count += 1
            continue
        held = rows[table[at]]
        if ts[row] > ts[held] or (ts[row] == ts[held] and version[row] > version[held]):
            rows[table[at]] = row
    return count
