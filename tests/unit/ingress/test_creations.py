"""Points that are made by first use, at a log that fails: the next use makes them, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from schemas.blocks import Block
from schemas.envelope import Change, Envelope
from schemas.topics import CATALOGUE_CHANGED, SAMPLES_RECEIVED, Topic
from services.catalogue import View
from services.clock import ManualClock
from services.dialects import Answer, Auth, Inbound, Intake, Principal, Push, Reply
from services.dialects.opticloud.telemetry import TELEMETRY
from services.errors import Unavailable
from services.ingress.accept import Intaker
from services.ingress.mqtt import MqttListener
from services.ingress.promises import Promises
from services.ingress.receipts import ReceiptDesk
from services.settings import Settings
from tests.support.builders import a_block, a_sample
from tests.support.catalogue import a_view
from tests.support.mqtt import TOPIC, Desk, authenticate, puback, publish, run

MESSAGE = b'{"heat": 1}'


class Door(Desk):
    """A listener with optiCLOUD's door and a catalogue of its own."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.listener = MqttListener(
            log=self.log,  # type: ignore[arg-type]
            authenticate=authenticate,
            lookup=view,
            publishes={TOPIC.encode(): ("opticloud", TELEMETRY)},
            clock=self.clock,
            told=lambda *_: None,
            settings=Settings(),
        )

    def claims(self) -> list[Change]:
        """What is on its way to the catalogue."""
        records = [e.record for topic, _, e, _ in self.log.waiting if topic is CATALOGUE_CHANGED]
        return [record for record in records if isinstance(record, Change)]


def test_a_message_that_comes_again_after_a_failed_append_claims_its_keys_again() -> None:
    async def test() -> None:
        desk = Door(View())
        desk.client().send(publish(MESSAGE, 1))
        await desk.turn()
        (failing,) = desk.claims()
        desk.log.settle(lambda topic, _: topic is CATALOGUE_CHANGED, Unavailable("the log is away"))
        await desk.settle()

        desk.clock.advance(1)
        client = desk.client()
        client.send(publish(MESSAGE, 1))
        await desk.turn()
        (again,) = desk.claims()
        assert (again.id, again.first) == (failing.id, True)
        assert again.claim != failing.claim
        await desk.settle()
        assert client.taken() == puback(1)

    run(test)


def test_while_a_claim_is_on_its_way_or_not_read_back_yet_there_is_no_other() -> None:
    async def test() -> None:
        desk = Door(View())
        client = desk.client()
        for packet_id in (1, 2):
            client.send(publish(MESSAGE, packet_id))
            await desk.turn()
            assert len(desk.claims()) == 1
        await desk.settle()
        client.send(publish(MESSAGE, 3))
        await desk.turn()
        assert desk.claims() == []

    run(test)


def test_samples_that_fail_beside_a_claim_that_does_not_claim_nothing_again() -> None:
    async def test() -> None:
        desk = Door(View())
        desk.client().send(publish(MESSAGE, 1))
        await desk.turn()
        desk.log.settle(lambda topic, _: topic is SAMPLES_RECEIVED, Unavailable("the log is away"))
        await desk.settle()
        desk.client().send(publish(MESSAGE, 1))
        await desk.turn()
        assert desk.claims() == []

    run(test)


def test_a_message_that_is_refused_for_one_key_has_claimed_none_of_the_others() -> None:
    async def test() -> None:
        desk = Door(a_view(keys_per_device_max=1))
        desk.client().send(publish(b'{"heat": 1, "speed": 2}', 1))
        await desk.settle()
        assert [letter.reason for letter in desk.log.letters()] == ["malformed"]
        desk.client().send(publish(MESSAGE, 1))
        await desk.turn()
        (claim,) = desk.claims()
        assert claim.body is not None and claim.body["key"] == "heat"

    run(test)


class FailingLog:
    """Fails the first append, then keeps what comes; an append may also never end."""

    lanes = 1

    def __init__(self, *, stalls: bool) -> None:
        self.out: list[tuple[Topic, int, Envelope]] = []
        self._stalls, self._failed = stalls, False

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        if not self._failed:
            self._failed = True
            if self._stalls:
                await asyncio.Event().wait()
            raise Unavailable("the log is away")
        self.out += out
        return list(range(len(out)))


@pytest.mark.parametrize("stalls", [False, True])
def test_a_push_that_comes_again_after_a_failed_append_claims_its_point_again(stalls: bool) -> None:
    view, log = View(), FailingLog(stalls=stalls)

    def decode(inbound: Inbound, lookup: Any) -> Intake:
        change = lookup.creation("acme", "d1", "heat", inbound.received_ms)
        return Intake(a_block(a_sample(1.0, 1)), [] if change is None else [change])

    push = Push(
        *("POST", ["/x"], Auth.BEARER, decode),
        accepted=lambda inbound, intake, verdicts: Reply(204),
        refused=lambda error, received_ms: Reply(503),
        answer=Answer.APPEND,
    )

    async def test() -> None:
        clock, settings = ManualClock(), Settings(append_wait_ms=100)
        intaker = Intaker(
            log=log,  # type: ignore[arg-type]
            view=view,
            desk=ReceiptDesk(log),  # type: ignore[arg-type]
            clock=clock,
            settings=settings,
            promises=Promises(log, clock, settings, bytes(32)),  # type: ignore[arg-type]
        )
        caller = Principal("acme", "client", frozenset({"ingest"}))
        statuses = [
            (await intaker.accept("test", push, Inbound(b"", at_ms, caller))).status
            for at_ms in (0, 1, 2)
        ]
        assert statuses == [503, 204, 204]

    run(test)
    kinds = [type(envelope.record) for _, _, envelope in log.out]
    assert kinds == [Change, Block, Block]
