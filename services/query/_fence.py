"""Read your own writes: how far each lane is judged, and a wait until it is as far as the log was.

A push is acknowledged when the log has it; its values are readable when the judge has decided and
the view has followed. Who must see everything that was acknowledged before the question asks where
the lane of received records ends now, and waits until what was accepted covers that. An idle lane
costs one look; while one look at the log is under way, all later questions share the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from services.errors import Unavailable
from services.eventlog import Span

Spans = Callable[[], Awaitable[Mapping[int, Span]]]


class Fence:
    """`spans` tells what the lanes of received records hold; `judged` is called as the view follows
    what was accepted.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._judged: dict[int, int] = {}
        self._waiting: dict[int, list[tuple[int, asyncio.Future[None]]]] = {}
        self._looking: asyncio.Task[Mapping[int, Span]] | None = None
        self._next: asyncio.Task[Mapping[int, Span]] | None = None

    def judged(self, lane: int, received: int) -> None:
        """Everything of the lane up to the offset `received` is judged, and read back."""
        if received <= self._judged.get(lane, -1):
            return
        self._judged[lane] = received
        if waiting := self._waiting.get(lane):
            for until, future in waiting:
                if until <= received and not future.done():
                    future.set_result(None)
            self._waiting[lane] = [pair for pair in waiting if pair[0] > received]

    async def passed(self, lanes: Collection[int], *, seconds: float) -> None:
        """Wait until everything is judged that lay in these lanes when this was called. Raises
        Unavailable.
        """
        try:
            async with asyncio.timeout(seconds):
                spans = await self._look()
                for lane in lanes:
                    span = spans[lane]
                    if span.begin < span.end and self._judged.get(lane, -1) < span.end - 1:
                        await self._until(lane, span.end - 1)
        except TimeoutError:
            raise Unavailable("what was sent before is not judged yet") from None

    async def _until(self, lane: int, received: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (received, future)
        self._waiting.setdefault(lane, []).append(entry)
        try:
            await future
        finally:
            if entry in self._waiting[lane]:
                self._waiting[lane].remove(entry)

    async def _look(self) -> Mapping[int, Span]:
        """The lanes' spans, by a look that began after this was called."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(_done(self._spans()))
            return await asyncio.shield(self._looking)
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._look_after(self._looking))
        return await asyncio.shield(self._next)

    async def _look_after(self, looking: asyncio.Task[Mapping[int, Span]]) -> Mapping[int, Span]:
        await asyncio.wait({looking})
        self._looking, self._next = self._next, None
        return await self._spans()


async def _done(spans: Awaitable[Mapping[int, Span]]) -> Mapping[int, Span]:
    return await spans
