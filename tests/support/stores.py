"""A store in a dictionary: keeps what the port promises of samples, and can be made slow, or away.

For tests of whoever asks a store; the drivers have their own suite in `tests/contract/store`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Self

import pyarrow as pa

from schemas.blocks import Block
from schemas.points import PointPolicy
from schemas.queries import LatestQuery, RangeQuery, TakenQuery
from schemas.rows import block_of_rows
from schemas.samples import Kind, Value
from services.errors import Unavailable
from services.store import Owned, Query

Row = tuple[int, int, int]
"""(series, ts_ms, version) of a sample whose value follows from its version."""


def a_block(rows: Iterable[Row], tenant: str = "acme", kind: Kind = Kind.LONG) -> Block:
    """An accepted block. The value of a row is its version (its lower 62 bits)."""
    block = Block()
    policy = block.policy_index(PointPolicy(tenant))
    for series, ts_ms, version in rows:
        block.add(series, ts_ms, kind, value_of(version, kind), policy=policy, rule=version >> 63)
        block.version.append(version)
    return block


def value_of(version: int, kind: Kind = Kind.LONG) -> Value:
    """The value that `a_block` gives to a row with this version."""
    number = version & (1 << 62) - 1
    if kind is Kind.DOUBLE:
        return float(number)
    if kind is Kind.BOOL:
        return bool(number % 2)
    return str(number) if kind in (Kind.STRING, Kind.JSON) else number


def rows_of(block: Block) -> list[Row]:
    """The rows of a block as `a_block` takes them."""
    return list(zip(block.series, block.ts_ms, block.version, strict=True))


class MemoryStore:
    """`Store` over samples alone. `asked` lists the queries in the order of their asking.

    While `away` is set everything raises Unavailable. Between `hold` and `release` questions wait,
    and look at the rows when they are let go, or have looked before.
    """

    def __init__(self) -> None:
        self.asked: list[Query] = []
        self.away = False
        self._rows: dict[tuple[str, int, int], tuple[int, Block]] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._looks_first = False

    def hold(self, *, looks_first: bool = False) -> None:
        """Let questions wait: before they look at the rows, or with their answers in hand."""
        self._looks_first = looks_first
        self._open.clear()

    def release(self) -> None:
        """Let them go on."""
        self._open.set()

    def put(self, block: Block) -> None:
        """Store the rows of an accepted block; the highest version of a place stays."""
        for row in range(len(block)):
            place = (block.policies[block.policy[row]].tenant, block.series[row], block.ts_ms[row])
            held = self._rows.get(place)
            if held is None or block.version[row] >= held[0]:
                self._rows[place] = (block.version[row], block.take([row]))

    def select(self, query: Query) -> Block:
        """What `fetch` answers, at once."""
        if isinstance(query, RangeQuery):
            return self._block(self._range(query))
        if isinstance(query, TakenQuery):
            wanted = set(zip(query.series, query.ts_ms, strict=True))
            return self._block(place for place in sorted(self._rows) if place[1:] in wanted)
        return self._block(self._latest(query))

    def _range(self, query: RangeQuery) -> Iterable[tuple[str, int, int]]:
        found = sorted(
            place
            for place in self._rows
            if place[0] == query.tenant
            and place[1] in query.series
            and query.start_ms <= place[2] < query.end_ms
        )
        for _, places in groupby(found, key=lambda place: place[1]):
            ordered = sorted(places, reverse=query.descending)
            yield from ordered[: query.limit]

    def _latest(self, query: LatestQuery) -> Iterable[tuple[str, int, int]]:
        newest = {
            (tenant, series): (tenant, series, ts_ms)
            for tenant, series, ts_ms in sorted(self._rows)
            if query.tenant in (None, tenant) and (query.series is None or series in query.series)
        }
        return sorted(newest.values(), key=lambda place: place[1])

    def _block(self, places: Iterable[tuple[str, int, int]]) -> Block:
        return Block.join(self._rows[place][1] for place in places)

    # -- the port ----------------------------------------------------------------------------------

    async def insert(self, table: str, rows: Any) -> None:
        """Store the rows of `samples`; other tables are taken and forgotten."""
        self._check()
        if table == "samples":
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
            self.put(block_of_rows(sink.getvalue().to_pybytes()))

    async def fetch(self, query: Query) -> Block:
        """The rows, once nothing holds the question."""
        self.asked.append(query)
        self._check()
        seen = self.select(query) if self._looks_first else None
        await self._open.wait()
        self._check()
        return self.select(query) if seen is None else seen

    async def migrate(self) -> list[str]:
        """There is nothing to migrate."""
        return []

    async def register_epoch(self, topic: str, incarnation: str) -> int:
        """Every life is the first."""
        return 1

    async def stored_marks(self, topic: str, epoch: int) -> dict[int, int]:
        """No marks are kept."""
        return {}

    async def retain(self, periods: Mapping[Owned, int]) -> dict[Owned, int]:
        """A dictionary keeps everything."""
        self._check()
        return {}

    async def retaining(self) -> int:
        """Nothing is ever rewritten."""
        self._check()
        return 0

    async def retained(self) -> list[Owned]:
        """Nothing expires."""
        self._check()
        return []

    async def rows(
        self, sql: str, parameters: dict[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """A dictionary speaks no SQL."""
        raise AssertionError(f"asked of a dictionary: {sql}")

    def _check(self) -> None:
        if self.away:
            raise Unavailable("the store is away")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None
