"""From a reader's position to the ring: what is not held in memory any more is read from the log,
as fast as the one who follows takes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from schemas.blocks import Block
from schemas.envelope import Logged
from schemas.topics import SAMPLES_ACCEPTED
from services.dialects import Lookup
from services.eventlog import EventLog
from services.query._changes import (
    NOTHING,
    Change,
    Position,
    Subject,
    block_of,
    changes_of,
    end_of,
    revision_of,
)
from services.query._reader import Reader

NOT_KEPT = "changes after the last event id are not kept any more"
NO_SUCH = "the last event id is not of this log"
_RECORDS_MAX = 64
_LOOK_BACK = 64
"""Records before the first one: a judge that goes on after a crash has put out the newest of them
before.
"""
_CATALOGUE_SECONDS = 5

_logger = logging.getLogger(__name__)


class Rendering:
    """Blocks to changes, once the catalogue knows the points that they name."""

    def __init__(self, catalogue: Lookup) -> None:
        self._catalogue = catalogue
        self._given_up = -1

    async def changes(
        self, subject: Subject, logged: Logged, block: Block, after: int
    ) -> list[Change]:
        """The subject's changes in a record, behind the place `after`."""
        revision = revision_of(subject, self._catalogue, block)
        if revision > max(self._catalogue.revision, self._given_up):
            try:
                async with asyncio.timeout(_CATALOGUE_SECONDS):
                    await self._catalogue.caught_up(revision)
            except TimeoutError:
                self._given_up = revision
                _logger.warning("the catalogue is not at revision %d in time", revision)
        return changes_of(subject, self._catalogue, logged.offset, block, after)


async def replay(
    log: EventLog, rendering: Rendering, reader: Reader
) -> AsyncGenerator[list[Change], None]:
    """The changes behind the reader's position, until the ring has the next; the reader stands
    behind what was given. Where some are missing its `gap` is set. Raises Unavailable.
    """
    subject = reader.ring.subject
    span = (await log.spans(SAMPLES_ACCEPTED))[subject.lane]
    if reader.position.offset >= span.end:
        reader.gap, reader.position = NO_SUCH, NOTHING
    elif reader.position.offset < span.begin - 1 and not reader.gap:
        reader.gap = NOT_KEPT
    start = max(reader.position.offset, span.begin)
    async with aclosing(records(log, subject.lane, start)) as found:
        async for logged in found:
            if logged is None:
                # Nothing new on the log: perhaps the ring has begun anew.
                reader.stand(reader.position)
            elif logged.offset > start:
                reader.gap = NOT_KEPT
            if logged is not None:
                start = logged.offset + 1
                block = block_of(logged)
                if block is not None:
                    after = reader.position.place
                    changes = await rendering.changes(subject, logged, block, after)
                    changes = reader.wanted(changes)
                    end = end_of(logged, block)
                    reader.stand(Position(logged.offset, max(after, end.place)))
                    yield changes
            if reader.joined:
                return


async def records(log: EventLog, lane: int, start: int) -> AsyncGenerator[Logged | None, None]:
    """The lane's accepted records from an offset on, for ever; None where nothing came for a
    while.
    """
    async with log.reader([SAMPLES_ACCEPTED], start={lane: start}, lanes=[lane]) as reader:
        while True:
            batch = await reader.batch(records_max=_RECORDS_MAX)
            if batch is None:
                yield None
            else:
                for logged in batch.records:
                    yield logged


async def passed_before(log: EventLog, lane: int, offset: int) -> Position:
    """The highest place that lies in the records just before the offset. Raises Unavailable."""
    begin = (await log.spans(SAMPLES_ACCEPTED))[lane].begin
    position = Position(offset - 1, -1)
    start = max(begin, offset - _LOOK_BACK)
    if start >= offset:
        return position
    async with aclosing(records(log, lane, start)) as found:
        async for logged in found:
            if logged is None or logged.offset >= offset:
                break
            block = block_of(logged)
            if block is not None and (end := end_of(logged, block)).place > position.place:
                position = end
            if logged.offset == offset - 1:
                break
    return position
