"""The one path that every read takes: parse, clamp, ask the live view and the store, render.

Latest values come from memory alone, and outlive their period. A range is the tail's rows, taken
first, and the store's answer. What is older than its point's period is not asked for, whether or
not it is still there; the border is a whole second, so that questions of one second can share a
query. A range is never cut without saying so: where a question could ask for more than
`range_rows_max` samples, each series gets an equal share, and if that share is not enough the
question is refused, so that nobody mistakes a part for the whole.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from schemas.blocks import Block
from schemas.queries import LatestQuery, RangeQuery
from services.clock import Clock
from services.dialects import Inbound, Lookup, Page, Question, Read, Reply
from services.errors import Malformed, Unavailable, Unknown
from services.metrics import READ_SECONDS, READS
from services.presence import PresenceView
from services.query.coalesce import Coalescer
from services.query.live import LiveView
from services.settings import Settings


class Answer:
    """Answers questions from what is stored and what is on its way there."""

    def __init__(
        self,
        live: LiveView,
        ranges: Coalescer,
        lookup: Lookup,
        *,
        settings: Settings,
        clock: Clock,
        presence: PresenceView,
    ) -> None:
        self._presence = presence
        self._live, self._ranges, self._lookup, self._clock = live, ranges, lookup, clock
        self._rows_max = settings.range_rows_max
        self._wait_seconds = settings.read_wait_ms / 1000

    async def reply(self, read: Read, inbound: Inbound) -> Reply:
        """The door's answer. Raises Refused or Unavailable, which the door renders."""
        started_ms = self._clock.monotonic_ms()
        question = await self._question(read, inbound)
        if inbound.principal is not None:
            # Only the credential says whose samples may be read, whatever a dialect made of it.
            query = replace(question.query, tenant=inbound.principal.tenant)
            question = replace(question, query=query)
        asked = question.query.series or question.names
        if read.fresh and asked:
            await self._live.passed(asked, seconds=self._wait_seconds)
        reply = read.render(inbound, question, await self.page(question))
        kind = "latest" if isinstance(question.query, LatestQuery) else "range"
        READS.labels(kind).inc()
        READ_SECONDS.labels(kind).observe((self._clock.monotonic_ms() - started_ms) / 1000)
        return reply

    async def _question(self, read: Read, inbound: Inbound) -> Question:
        """What is asked. What this process does not know yet may have been made by another one."""
        try:
            return read.parse(inbound, self._lookup)
        except Unknown:
            if not read.fresh:
                raise
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._lookup.caught_up(await self._live.catalogue_end() - 1)
        except TimeoutError as error:
            raise Unavailable("the catalogue is not read that far yet") from error
        return read.parse(inbound, self._lookup)

    async def page(self, question: Question) -> Page:
        """What was found. Raises Malformed (more than one answer may hold) or Unavailable."""
        query = question.query
        if isinstance(query, LatestQuery):
            asked = tuple(question.names) if query.series is None else query.series
            connected = self._presence.connected(query.tenant or "", question.devices)
            return Page(self._live.latest(query), question.names, asked, connected)
        try:
            async with asyncio.timeout(self._wait_seconds):
                block = await self._range(query)
        except TimeoutError as error:
            raise Unavailable("the store did not answer in time") from error
        return Page(block, question.names, query.series)

    async def _range(self, query: RangeQuery) -> Block:
        series = tuple(sorted(set(query.series)))
        if not series or query.limit < 1 or query.start_ms >= query.end_ms:
            return Block()
        share = max(1, self._rows_max // len(series))
        # One more than the share shows whether there is more.
        limit = query.limit if query.limit <= share else share + 1
        kept = self._unexpired(replace(query, series=series, limit=limit))
        # The tail goes first: a row that is stored in between is then seen twice, never not at all.
        tails = [self._live.tail(part) for part in kept]
        stored = await asyncio.gather(*map(self._ranges.fetch, kept))
        block = _in_order(list(map(self._live.merge, kept, stored, tails)))
        if limit != query.limit and max(Counter(block.series).values(), default=0) > share:
            raise Malformed(
                f"more than {share} samples of a series; ask for less time or a lower limit",
                where="?limit",
            )
        return block

    def _unexpired(self, query: RangeQuery) -> list[RangeQuery]:
        """The query without what has expired: one for the series of each start."""
        now_ms = self._clock.now_ms() // 1000 * 1000
        by_start: dict[int, list[int]] = {}
        for series in query.series:
            kept_ms = self._lookup.kept_minutes(series) * 60_000
            start_ms = max(query.start_ms, now_ms - kept_ms) if kept_ms else query.start_ms
            if start_ms < query.end_ms:
                by_start.setdefault(start_ms, []).append(series)
        return [
            replace(query, series=tuple(series), start_ms=start_ms)
            for start_ms, series in by_start.items()
        ]


def _in_order(answers: Sequence[Block]) -> Block:
    """Answers of different series, each ordered by series, as one."""
    if len(answers) == 1:
        return answers[0]
    pieces: dict[int, Block] = {}
    for answer in answers:
        start = 0
        while start < len(answer):
            stop = bisect_right(answer.series, answer.series[start], start)
            pieces[answer.series[start]] = answer.slice(start, stop)
            start = stop
    return Block.join(pieces[series] for series in sorted(pieces))
