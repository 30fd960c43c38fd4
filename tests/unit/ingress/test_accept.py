"""The one path in: cut by lane, wait for verdicts, honest answers when they do not come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from schemas.blocks import Block
from schemas.envelope import Envelope, Receipt
from schemas.points import PointPolicy
from schemas.samples import Kind, Sample, Verdict
from schemas.topics import SAMPLES_RECEIVED, Topic
from services.clock import ManualClock
from services.dialects import Answer, Auth, Inbound, Intake, Principal, Push, Reply
from services.errors import PipelineError, Unavailable
from services.ingress.accept import Intaker
from services.ingress.promises import Promises
from services.ingress.receipts import ReceiptDesk
from services.settings import Settings

LANES = 4
CALLER = Principal("demo", "client", frozenset({"ingest"}))


class FakeLog:
    """Keeps what is appended; `judge` may answer, `broken` refuses."""

    lanes = LANES

    def __init__(self) -> None:
        self.out: list[tuple[Topic, int, Envelope]] = []
        self.broken = False
        self.stalled = False

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        if self.broken:
            raise Unavailable("the log is away", retry_after_ms=3_000)
        if self.stalled:
            await asyncio.sleep(60)
        self.out += out
        return list(range(len(out)))


def _decode(inbound: Inbound, _: Any) -> Intake:
    policy = PointPolicy("demo")
    rows = [Sample(series << 48, at, Kind.LONG, at) for series, at in json.loads(inbound.body)]
    return Intake(Block.of_samples(rows, policy))


def _accepted(_: Inbound, intake: Intake, verdicts: Sequence[Verdict]) -> Reply:
    return Reply(200, json.dumps([int(verdict) for verdict in verdicts]).encode())


def _refused(error: PipelineError, _: int) -> Reply:
    wait = getattr(error, "retry_after_ms", 0)
    return Reply(getattr(error, "status", 400), str(error).encode(), headers=(("Wait", str(wait)),))


def _push(answer: Answer = Answer.VERDICT) -> Push:
    return Push("POST", ["/x"], Auth.BEARER, _decode, _accepted, _refused, answer=answer)


class Bench:
    """An intaker over a fake log, and a judge that is played by the test."""

    def __init__(self, wait_ms: int = 500) -> None:
        self.log = FakeLog()
        self.desk = ReceiptDesk(self.log)  # type: ignore[arg-type]
        self.desk.following.set()
        clock = ManualClock()
        settings = Settings(receipt_wait_ms=wait_ms, append_wait_ms=100)
        self.intaker = Intaker(
            log=self.log,  # type: ignore[arg-type]
            view=None,  # type: ignore[arg-type]
            desk=self.desk,
            clock=clock,
            settings=settings,
            promises=Promises(self.log, clock, settings, bytes(32)),  # type: ignore[arg-type]
        )

    async def send(
        self,
        rows: list[list[int]],
        key: str = "",
        push: Push | None = None,
        query: dict[str, str] | None = None,
    ) -> Reply:
        headers = {"idempotency-key": key} if key else {}
        body = json.dumps(rows).encode()
        inbound = Inbound(body, 0, CALLER, query=query or {}, headers=headers)
        return await self.intaker.accept("test", push or _push(), inbound)

    async def judge(self, *, backwards: bool = False) -> None:
        """Answer every entry on the log: the verdict of a row is its value modulo 6."""
        while not self.log.out:
            await asyncio.sleep(0)
        parts = reversed(self.log.out) if backwards else self.log.out
        for _, _, envelope in list(parts):
            block = envelope.record
            assert isinstance(block, Block)
            for entry in envelope.entries:
                rows = range(entry.start, entry.start + entry.count)
                verdicts = bytes(block.bits[row] % 6 for row in rows)
                self.desk.hand_out(
                    Receipt(entry.request_id, entry.reply_to, entry.index, entry.total, 0, verdicts)
                )


def test_verdicts_come_in_the_order_of_the_request_though_its_rows_lie_in_several_lanes() -> None:
    rows = [[lane % LANES, at] for at, lane in enumerate([3, 0, 0, 1, 3, 2, 1, 0])]

    async def body() -> Reply:
        bench = Bench()
        reply, _ = await asyncio.gather(bench.send(rows), bench.judge(backwards=True))
        assert {lane for _, lane, _ in bench.log.out} == {0, 1, 2, 3}
        return reply

    assert json.loads(asyncio.run(body()).body) == [at % 6 for at in range(8)]


def test_a_receipt_that_does_not_come_in_time_is_503_and_the_value_is_on_the_log() -> None:
    async def body() -> None:
        bench = Bench(wait_ms=20)
        reply = await bench.send([[1, 1]])
        assert (reply.status, dict(reply.headers)["Wait"]) == (503, "1000")
        assert len(bench.log.out) == 1
        # A late receipt finds nobody, and harms nobody.
        await bench.judge()

    asyncio.run(body())


def test_a_log_that_is_away_or_stalls_is_503_and_nobody_waits_for_a_receipt() -> None:
    async def body() -> None:
        bench = Bench()
        bench.log.broken = True
        reply = await bench.send([[1, 1]])
        assert (reply.status, dict(reply.headers)["Wait"]) == (503, "3000")
        bench.log.broken, bench.log.stalled = False, True
        reply = await bench.send([[1, 1]])
        assert reply.status == 503
        assert b"unknown" in reply.body
        assert not bench.desk._waiting

    asyncio.run(body())


def test_a_door_that_answers_on_append_gives_its_rows_no_entry() -> None:
    async def body() -> None:
        bench = Bench()
        reply = await bench.send([[1, 1], [2, 2]], push=_push(Answer.APPEND))
        assert reply.status == 200
        assert dict(reply.headers)["X-Ack-Level"] == "logged"
        assert [envelope.entries for _, _, envelope in bench.log.out] == [(), ()]
        assert {topic for topic, _, _ in bench.log.out} == {SAMPLES_RECEIVED}

    asyncio.run(body())


def test_the_same_key_and_body_give_the_same_request_id_and_another_body_another() -> None:
    async def body() -> None:
        bench = Bench(wait_ms=10)
        for rows, key in ([[[1, 1]], "k"], [[[1, 1]], "k"], [[[1, 2]], "k"], [[[1, 1]], "other"]):
            await bench.send(rows, key)
        ids = [envelope.entries[0].request_id for _, _, envelope in bench.log.out]
        assert ids[0] == ids[1]
        assert len(set(ids)) == 3
        assert all(envelope.entries[0].keyed for _, _, envelope in bench.log.out)

    asyncio.run(body())


def test_the_same_key_and_body_with_another_query_are_another_request() -> None:
    async def body() -> None:
        bench = Bench(wait_ms=10)
        for query in ({}, {"overwrite": "true"}, {"overwrite": "true"}):
            await bench.send([[1, 1]], "k", query=query)
        ids = [envelope.entries[0].request_id for _, _, envelope in bench.log.out]
        assert ids[0] != ids[1]
        assert ids[1] == ids[2]

    asyncio.run(body())


def test_an_empty_request_is_accepted_without_a_record() -> None:
    async def body() -> None:
        bench = Bench()
        assert (await bench.send([])).status == 200
        assert bench.log.out == []

    asyncio.run(body())


def test_a_large_request_is_cut_into_records_that_fit() -> None:
    rows = [[1, at] for at in range(9_000)]

    async def body() -> Reply:
        bench = Bench(wait_ms=5_000)
        reply, _ = await asyncio.gather(bench.send(rows), bench.judge())
        assert [len(envelope.record) for _, _, envelope in bench.log.out] == [4096, 4096, 808]  # type: ignore[arg-type]
        return reply

    assert json.loads(asyncio.run(body()).body) == [at % 6 for at in range(9_000)]
