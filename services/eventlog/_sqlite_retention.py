"""What the embedded log deletes: records that are old and read, and records that a newer one of
their key replaces.

Deletions go through the writing thread in small transactions, between the turns of whoever appends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.eventlog._sqlite_file import (
    DELETE,
    DELETE_ONE,
    FLOOR,
    SINCE,
    SUPERSEDED,
    Statement,
)
from services.eventlog._sqlite_reader import Lane

_CHUNK_RECORDS = 128

Ask = Callable[[str, Sequence[Any]], Awaitable[list[tuple[Any, ...]]]]
"""A query on the file, answered by a reading thread."""
Do = Callable[[Sequence[Statement]], Awaitable[Sequence[int]]]
"""Statements of one transaction; how many rows each touched."""


async def drop_old(lane: Lane, *, before_ms: int, unread: int, ask: Ask, do: Do) -> int:
    """Delete the lane's records from its beginning up to the first that was appended at `before_ms`
    or later, or that stands at `unread` or behind; returns how many.
    """
    end = min(lane.end, unread)
    base, removed = lane.base, 0
    [(place,)] = await ask(SINCE, (base + lane.begin, base + end, before_ms))
    cut = end if place is None else place - base
    while lane.begin < cut:
        upto = min(lane.begin + _CHUNK_RECORDS, cut)
        gone, _ = await do([(DELETE, (base + lane.begin, base + upto)), (FLOOR, (base, upto))])
        lane.begin = upto
        removed += gone
    return removed


async def drop_replaced(lane: Lane, *, ask: Ask, do: Do) -> int:
    """Delete the lane's records that a newer one of the same key replaces; returns how many."""
    span = (lane.base, lane.base + lane.end)
    places = [place for (place,) in await ask(SUPERSEDED, span + span)]
    removed = 0
    for start in range(0, len(places), _CHUNK_RECORDS):
        some = places[start : start + _CHUNK_RECORDS]
        removed += sum(await do([(DELETE_ONE, (place,)) for place in some]))
    return removed
