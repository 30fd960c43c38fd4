"""Requests whose samples hang on what they make: made first, decoded anew, and claimed again where
that failed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from schemas.catalogue import Point, Tenant
from schemas.envelope import Change, Envelope
from schemas.samples import Kind
from schemas.topics import CATALOGUE_CHANGED, SAMPLES_RECEIVED, Topic
from services.catalogue import View, new_point
from services.clock import ManualClock
from services.dialects import Inbound, Principal, Reply
from services.dialects.next_plus.push import PUSH
from services.errors import Unavailable
from services.ingress.accept import Intaker
from services.ingress.promises import Promises
from services.ingress.receipts import ReceiptDesk
from services.settings import Settings
from tests.support.catalogue import a_view, put

CALLER = Principal("acme", "line", frozenset({"ingest"}))


class Log:
    """A log that the view follows, unless it is told to fail or to keep still."""

    lanes = 4

    def __init__(self, view: View) -> None:
        self.out: list[tuple[Topic, int, Envelope]] = []
        self.view = view
        self.fails = self.is_silent = self.is_not_read = False
        self.rivals = 0
        """How many claims another tenant is ahead of, with the same id."""

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        """Offsets in the catalogue, where a change is among them."""
        if self.fails:
            raise Unavailable("the log is away")
        if self.is_silent:
            await asyncio.Event().wait()
        self.out += out
        offset = self.view.revision
        for topic, _, envelope in out:
            if topic is CATALOGUE_CHANGED and isinstance(envelope.record, Change):
                if self.rivals:
                    self.rivals -= 1
                    put(self.view, rival(envelope.record.id))
                    offset += 1
                offset += 1
                if not self.is_not_read:
                    self.view.apply(envelope.record, offset)
        return [offset]


def rival(id: str) -> Point:
    """Another tenant's point with this id."""
    return new_point("globex", "d", f"of {id}", id=id)


class Bench:
    """An intaker over the log."""

    def __init__(self) -> None:
        self.view = a_view(Tenant("acme"))
        self.log = Log(self.view)
        clock, settings = ManualClock(), Settings(append_wait_ms=200)
        self._intaker = Intaker(
            log=self.log,  # type: ignore[arg-type]
            view=self.view,
            desk=ReceiptDesk(self.log),  # type: ignore[arg-type]
            clock=clock,
            settings=settings,
            promises=Promises(self.log, clock, settings, bytes(32)),  # type: ignore[arg-type]
        )

    async def push(self, key: str, value: object, headers: dict[str, str] | None = None) -> Reply:
        """Push one value."""
        body = json.dumps({"key": key, "value": value}).encode()
        inbound = Inbound(body, 1_700_000_000_000, CALLER, headers=headers or {})
        return await self._intaker.accept("next_plus", PUSH, inbound)

    def topics(self) -> list[str]:
        """Where something was appended, in order."""
        return [topic.name for topic, _, _ in self.log.out]


def test_a_new_key_is_made_before_its_value_is_appended() -> None:
    async def test() -> None:
        bench = Bench()
        assert (await bench.push("speed", 1.5)).status == 200
        assert (await bench.push("speed", 2.5)).status == 200
        assert bench.topics() == [
            CATALOGUE_CHANGED.name,
            SAMPLES_RECEIVED.name,
            SAMPLES_RECEIVED.name,
        ]
        block = bench.log.out[1][2].record
        assert block.policies[0].kind is Kind.DOUBLE  # type: ignore[union-attr]

    asyncio.run(test())


def test_a_burst_with_one_new_key_makes_it_once() -> None:
    async def test() -> None:
        bench = Bench()
        replies = await asyncio.gather(*(bench.push("speed", number) for number in range(20)))
        assert [reply.status for reply in replies] == [200] * 20
        assert bench.topics().count(CATALOGUE_CHANGED.name) == 1
        assert bench.topics().count(SAMPLES_RECEIVED.name) == 20

    asyncio.run(test())


def test_what_could_not_be_made_is_made_by_the_next_push() -> None:
    async def test() -> None:
        bench = Bench()
        bench.log.fails = True
        reply = await bench.push("speed", 1.5)
        assert (reply.status, dict(reply.headers)["Retry-After"]) == (503, "1")
        bench.log.fails, bench.log.is_silent = False, True
        assert (await bench.push("speed", 1.5)).status == 503
        bench.log.is_silent = False
        assert (await bench.push("speed", 1.5)).status == 200

    asyncio.run(test())


def test_a_push_that_never_got_its_turn_leaves_its_key_to_the_next() -> None:
    async def test() -> None:
        bench = Bench()
        bench.log.is_silent = True
        # The first holds the turn until its time is over; so the second's ends in the queue.
        replies = await asyncio.gather(bench.push("speed", 1.5), bench.push("level", 1.5))
        assert [reply.status for reply in replies] == [503, 503]
        bench.log.is_silent = False
        assert (await bench.push("level", 1.5)).status == 200

    asyncio.run(test())


def test_a_catalogue_that_is_not_read_back_in_time_is_said() -> None:
    async def test() -> None:
        bench = Bench()
        bench.log.is_not_read = True
        assert (await bench.push("speed", 1.5)).status == 503
        assert SAMPLES_RECEIVED.name not in bench.topics(), "a value without its type"

    asyncio.run(test())


def test_an_idempotency_key_that_is_too_long_makes_nothing() -> None:
    async def test() -> None:
        bench = Bench()
        reply = await bench.push("speed", 1.5, {"idempotency-key": "k" * 256})
        assert reply.status == 400
        assert bench.topics() == []
        assert (await bench.push("speed", 1.5)).status == 200

    asyncio.run(test())


def test_an_id_that_another_tenant_has_keeps_no_key_from_being_made() -> None:
    async def test() -> None:
        bench = Bench()
        server = bench.view.api_server("acme").id
        held = new_point("acme", server, "speed").id
        put(bench.view, rival(held))
        assert (await bench.push("speed", 1.5)).status == 200
        made = bench.view.known("acme", server, "speed")
        assert made is not None and made.id != held
        assert bench.view.series("acme", server, "speed") == made.series
        assert bench.view.point("globex", held) == rival(held)

    asyncio.run(test())


def test_a_claim_that_was_lost_is_made_by_another_id_at_once() -> None:
    async def test() -> None:
        bench = Bench()
        bench.log.rivals = 2
        assert (await bench.push("speed", 1.5)).status == 200
        assert bench.topics().count(CATALOGUE_CHANGED.name) == 3

        bench.log.rivals = 100
        reply = await bench.push("level", 1.5)
        assert reply.status == 503 and b"took" in reply.body, "not looped to the end of its time"
        bench.log.rivals = 0
        assert (await bench.push("level", 1.5)).status == 200

    asyncio.run(test())
