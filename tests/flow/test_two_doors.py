"""Two doors that make one parameter at the same moment, each with its own view of the catalogue, on
one log with a judge: the log decides on the type, and every value is kept or set aside with its
reason.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from schemas.blocks import Block
from schemas.catalogue import Tenant
from schemas.envelope import Envelope, Letter
from schemas.samples import Kind
from schemas.topics import (
    CATALOGUE_CHANGED,
    RECORDS_REFUSED,
    SAMPLES_ACCEPTED,
    SAMPLES_RECEIVED,
    TOPICS,
    Topic,
)
from services.agents import samples
from services.agents._lane import Parts
from services.agents._loop import run_loop
from services.catalogue import View, first
from services.clock import SystemClock
from services.dialects import Inbound, Principal
from services.dialects.next_plus.push import PUSH
from services.eventlog import EventLog, open_eventlog
from services.ingress.accept import Intaker
from services.ingress.promises import Promises
from services.ingress.receipts import ReceiptDesk
from services.settings import Settings
from tests.support.rounds import rounds, seed
from tests.support.stores import MemoryStore

CALLER = Principal("acme", "line", frozenset({"ingest"}))
VALUES: tuple[Any, ...] = (21.5, True, "warm")
KINDS = {21.5: Kind.DOUBLE, True: Kind.BOOL, "warm": Kind.STRING}
TS_MS = 1_700_000_000_000


class Door:
    """The push door of one process."""

    def __init__(self, log: EventLog) -> None:
        self.view, self._stop = View(), asyncio.Event()
        self._following = asyncio.create_task(self.view.follow(log, self._stop))
        clock, settings = SystemClock(), Settings()
        self._intaker = Intaker(
            log=log,
            view=self.view,
            desk=ReceiptDesk(log),
            clock=clock,
            settings=settings,
            promises=Promises(log, clock, settings, bytes(32)),
        )

    async def push(self, *items: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(status, answer) of a push, taken at TS_MS."""
        inbound = Inbound(json.dumps(items).encode(), TS_MS, CALLER)
        reply = await self._intaker.accept("next_plus", PUSH, inbound)
        return reply.status, json.loads(reply.body)

    async def close(self) -> None:
        """End following."""
        self._stop.set()
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)


async def everything(log: EventLog, topic: Topic) -> list[Any]:
    """The records that lie in all lanes of a topic."""
    found = []
    async with log.reader([topic]) as reader:
        while batch := await reader.batch(wait_ms=0):
            for logged in batch.records:
                assert isinstance(logged.envelope, Envelope)
                found.append(logged.envelope.record)
    return found


async def judged(log: EventLog, count: int) -> tuple[list[Block], list[Letter]]:
    """What becomes of `count` received values: the accepted blocks and the dead letters."""
    stop = asyncio.Event()
    parts = Parts(samples.agent(), log, MemoryStore(), SystemClock(), Settings(), 1)
    running = asyncio.create_task(run_loop(parts, stop))
    async with asyncio.timeout(60):
        while True:
            blocks = await everything(log, SAMPLES_ACCEPTED)
            letters = await everything(log, RECORDS_REFUSED)
            if sum(map(len, blocks)) + sum(letter.count for letter in letters) >= count:
                break
            await asyncio.sleep(0.05)
    stop.set()
    await running
    return blocks, letters


def test_two_doors_that_make_one_key_make_it_of_one_type(tmp_path: Path) -> None:
    chance = random.Random(seed())
    tries = rounds(1) * 300

    async def body() -> None:
        async with open_eventlog(f"sqlite:///{tmp_path / 'log.sqlite'}", lanes=2) as log:
            await log.create(TOPICS)
            tenant = first(Tenant("acme"))
            await log.append([(CATALOGUE_CHANGED, 0, Envelope(tenant, key=tenant.key))])
            doors = [Door(log), Door(log)]
            for door in doors:
                await door.view.ready()
            outcomes: Counter[tuple[int, int]] = Counter()
            for number in range(tries):
                key, pairs = f"k{number}", list(zip(doors, chance.sample(VALUES, 2), strict=True))
                turns = chance.sample(range(2), 2)
                answers = await asyncio.gather(
                    *(
                        pairs[at][0].push({"key": key, "value": pairs[at][1], "timestamp": TS_MS})
                        for at in turns
                    )
                )
                kind = kind_of(key, doors)
                statuses = [0, 0]
                for at, (status, answer) in zip(turns, answers, strict=True):
                    fits = kind in (KINDS[pairs[at][1]], Kind.STRING)
                    assert status == (200 if fits else 422), (kind, pairs[at][1], answer)
                    if not fits:
                        assert answer["error"]["code"] == "API_PUSH_VALUE_TYPE_MISMATCH"
                    statuses[at] = status
                outcomes[statuses[0], statuses[1]] += 1
            for door in doors:
                await door.close()
            # Either door wins now and then, and a text lets the other's value in.
            assert set(outcomes) == {(200, 422), (422, 200), (200, 200)}, outcomes
            taken = sum(pair.count(200) * times for pair, times in outcomes.items())
            received = await everything(log, SAMPLES_RECEIVED)
            assert sum(map(len, received)) == taken, "what was taken is on the log"
            blocks, letters = await judged(log, taken)
            assert sum(map(len, blocks)) + sum(letter.count for letter in letters) == taken
            assert all(letter.reason == "type" for letter in letters)
            assert not types_mixed(blocks)

    asyncio.run(body())


def kind_of(key: str, doors: list[Door]) -> Kind | None:
    """The type of the parameter, the same in both views."""
    device = doors[0].view.api_server("acme").id
    points = [door.view.known("acme", device, key) for door in doors]
    (kind,) = {point.declared for point in points if point is not None}
    return kind


def types_mixed(blocks: list[Block]) -> list[int]:
    """The series of a locked type with samples of several."""
    kinds: dict[int, set[int]] = {}
    for block in blocks:
        for series, kind, policy in zip(block.series, block.kind, block.policy, strict=True):
            if block.policies[policy].kind is not None:
                kinds.setdefault(series, set()).add(kind)
    return [series for series, found in kinds.items() if len(found) > 1]
