"""Where samples rest: what a store promises.

*Insert.* The rows of a pyarrow.Table (columns as in `schemas/migrations`) are durable when `insert`
returns. The same row written twice is one row: tables replace by key and version. `Unavailable`
means try the same again, for ever (the server is away, the disk is full); `Malformed` means that
these rows will never go in: whoever writes looks for the one that is bad.

*Fetch.* Answers have one row per series and millisecond, the one with the highest version, merged
or not. Raises Unavailable. The newest sample of a series whose samples expire is there for ever.

*Retain.* A row of `samples` carries the moment from which it may go (`expires`, made of its policy
when it was written). The engine deletes it with a merge after that; a fetch does not ask, so
whoever may not see expired samples narrows the query.

Methods are coroutines; a store may be used by several tasks at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from schemas.blocks import Block
from schemas.queries import LatestQuery, RangeQuery, TakenQuery

Query = RangeQuery | LatestQuery | TakenQuery
Owned = tuple[str, int]
"""A series with whom it belongs to: (tenant, series id)."""

RETAINED_MAX = 500
"""Series that one `retain` may name."""


class Store(Protocol):
    """See the module's text. An async context manager."""

    async def insert(self, table: str, rows: Any) -> None:
        """Write a pyarrow.Table; durable when it returns. Raises Unavailable or Malformed."""
        ...

    async def fetch(self, query: Query) -> Block:
        """The answer as a block with versions, ordered by series and time as the query says. Raises
        Unavailable.
        """
        ...

    async def migrate(self) -> list[str]:
        """Apply the migrations that are missing, in order; returns their names. Raises Unavailable,
        Broken.
        """
        ...

    async def register_epoch(self, topic: str, incarnation: str) -> int:
        """The epoch (1 to 255) of this life of the topic; a new one, higher than all, if it was
        never seen.
        """
        ...

    async def stored_marks(self, topic: str, epoch: int) -> dict[int, int]:
        """Highest stored offset of each lane of the judged topic in this epoch."""
        ...

    async def retain(self, periods: Mapping[Owned, int]) -> dict[Owned, int]:
        """Have the stored rows of each series expire so many ms after their time (0: never),
        whatever they were written with; how many rows of which series are rewritten for it.

        It is begun when this returns, and goes on in the engine, also after a kill; until it is
        over, another call may find the same rows. Names at most RETAINED_MAX series. Rows that are
        inserted meanwhile are not covered. Raises Unavailable.
        """
        ...

    async def retaining(self) -> int:
        """How many rewrites that `retain` began are not over. Raises Unavailable, also where the
        engine cannot get on with one.
        """
        ...

    async def retained(self) -> list[Owned]:
        """Every series that has, or once had, rows that expire. Raises Unavailable."""
        ...

    async def rows(
        self, sql: str, parameters: dict[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """Rows of any query of ours, with bound parameters; for checks, tests and small control
        tables.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...
