"""Who asks for what was acknowledged before waits until it is judged, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from services.errors import Unavailable
from services.eventlog import Span
from services.query._fence import Fence


class Log:
    """Two lanes; looking takes until `let` is called, where `held` is set."""

    def __init__(self) -> None:
        self.spans = {0: Span(0, 5), 1: Span(0, 0)}
        self.looks = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def look(self) -> Mapping[int, Span]:
        """The spans as they are when looking begins."""
        self.looks += 1
        spans = dict(self.spans)
        await self.gate.wait()
        return spans


def test_what_is_judged_is_passed_at_once() -> None:
    async def test() -> None:
        log = Log()
        fence = Fence(log.look)
        fence.judged(0, 4)
        await fence.passed([0, 1], seconds=1)

    asyncio.run(test())


def test_a_lane_that_is_behind_is_waited_for() -> None:
    async def test() -> None:
        log = Log()
        fence = Fence(log.look)
        fence.judged(0, 2)
        waiting = asyncio.create_task(fence.passed([0], seconds=5))
        await asyncio.sleep(0.01)
        fence.judged(0, 3)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        fence.judged(0, 4)
        await waiting

    asyncio.run(test())


def test_what_comes_after_the_question_is_not_waited_for() -> None:
    async def test() -> None:
        log = Log()
        fence = Fence(log.look)
        waiting = asyncio.create_task(fence.passed([0], seconds=5))
        await asyncio.sleep(0.01)
        log.spans[0] = Span(0, 50)
        fence.judged(0, 4)
        await waiting

    asyncio.run(test())


def test_a_judge_that_is_away_is_said_and_leaves_nothing_behind() -> None:
    async def test() -> None:
        log = Log()
        fence = Fence(log.look)
        with pytest.raises(Unavailable, match="not judged yet"):
            await fence.passed([0], seconds=0.05)
        fence.judged(0, 4)
        await fence.passed([0], seconds=0.05)

    asyncio.run(test())


def test_a_lane_whose_records_went_by_retention_is_not_waited_for() -> None:
    async def test() -> None:
        log = Log()
        log.spans[0] = Span(9, 9)
        await Fence(log.look).passed([0], seconds=0.05)

    asyncio.run(test())


def test_a_question_never_gets_the_answer_of_a_look_that_began_before_it() -> None:
    async def test() -> None:
        log = Log()
        log.gate.clear()
        fence = Fence(log.look)
        fence.judged(0, 4)
        early = asyncio.create_task(fence.passed([0], seconds=5))
        await asyncio.sleep(0.01)
        log.spans[0] = Span(0, 6)
        late = [asyncio.create_task(fence.passed([0], seconds=5)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert log.looks == 1
        log.gate.set()
        await early
        await asyncio.sleep(0.01)
        assert log.looks == 2, "the three share one look"
        assert not any(task.done() for task in late)
        fence.judged(0, 5)
        await asyncio.gather(*late)

    asyncio.run(test())


def test_a_look_that_fails_fails_those_who_waited_for_it_alone() -> None:
    async def test() -> None:
        fails = [True]

        async def look() -> Mapping[int, Span]:
            if fails.pop():
                raise Unavailable("the log is away")
            return {0: Span(0, 0)}

        fence = Fence(look)
        with pytest.raises(Unavailable, match="the log is away"):
            await fence.passed([0], seconds=1)
        fails.append(False)
        await fence.passed([0], seconds=1)

    asyncio.run(test())
