"""Between readers and the store: reads of one shape that arrive while the store is busy become one
query.

A dashboard asks for many series over one and the same time; each question alone costs the engine
its floor of a millisecond or more, together they cost it once. A question joins a query that has
not been asked yet, never one that is under way: an answer must be younger than its question.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial

from schemas.blocks import Block
from schemas.queries import RangeQuery
from services.errors import Unavailable
from services.store import Store


@dataclass(slots=True, eq=False)
class _Group:
    """Questions of one shape that wait for, or have, one query."""

    query: RangeQuery
    answer: asyncio.Future[Block]
    series: set[int] = field(default_factory=set)
    readers: int = 0

    def fail(self, error: BaseException) -> None:
        """Tell those who still wait. An error that nobody fetches is not kept: it would be reported
        as forgotten.
        """
        if self.readers:
            self.answer.set_exception(error)


class Coalescer:
    """Asks the store for ranges: at most `queries_max` queries at a time, at most `queue_max`
    groups waiting, at most `rows_max` rows (series x limit) asked for by several questions at once.
    """

    def __init__(
        self, store: Store, *, rows_max: int, queries_max: int = 4, queue_max: int = 256
    ) -> None:
        self._store = store
        self._rows_max, self._queries_max, self._queue_max = rows_max, queries_max, queue_max
        self._waiting: deque[_Group] = deque()
        self._open: dict[RangeQuery, _Group] = {}
        self._running: set[asyncio.Task[Block]] = set()
        self._closed = False

    async def fetch(self, query: RangeQuery) -> Block:
        """The store's answer to the query, ordered by series. Raises Unavailable (also where the
        queue is full).
        """
        group = self._group(query)
        group.series.update(query.series)
        group.readers += 1
        self._start()
        try:
            # Shielded: a reader that gives up must not take the answer from the others.
            answer = await asyncio.shield(group.answer)
        finally:
            group.readers -= 1
        if len(group.series) == len(query.series):
            return answer
        return _part(answer, query.series)

    async def close(self) -> None:
        """Give up the queries under way; who waits for one gets Unavailable."""
        self._closed = True
        for group in self._waiting:
            group.fail(_closing())
        self._waiting.clear()
        self._open.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _group(self, query: RangeQuery) -> _Group:
        shape = replace(query, series=())
        if self._closed:
            raise _closing()
        group = self._open.get(shape)
        if group is not None and self._fits(group, query):
            return group
        if len(self._waiting) >= self._queue_max:
            raise Unavailable("too many reads wait for the store")
        group = _Group(shape, asyncio.get_running_loop().create_future())
        self._open[shape] = group
        self._waiting.append(group)
        return group

    def _fits(self, group: _Group, query: RangeQuery) -> bool:
        return len(group.series.union(query.series)) * query.limit <= self._rows_max

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._queries_max:
            group = self._waiting.popleft()
            if self._open.get(group.query) is group:
                del self._open[group.query]
            if not group.readers:
                # Everybody who asked has given up while it waited.
                continue
            query = replace(group.query, series=tuple(sorted(group.series)))
            task = asyncio.create_task(self._store.fetch(query))
            self._running.add(task)
            task.add_done_callback(partial(self._done, group))

    def _done(self, group: _Group, task: asyncio.Task[Block]) -> None:
        self._running.discard(task)
        if task.cancelled():
            group.fail(_closing())
        elif (error := task.exception()) is None:
            group.answer.set_result(task.result())
        else:
            group.fail(error)
        self._start()


def _closing() -> Unavailable:
    return Unavailable("the service is closing")


def _part(answer: Block, series: tuple[int, ...]) -> Block:
    """Of a group's answer the rows of one question."""
    pieces = []
    for one in sorted(set(series)):
        start = bisect_left(answer.series, one)
        pieces.append(answer.slice(start, bisect_right(answer.series, one, start)))
    return Block.join(pieces)
