"""Receipts that are asked for later: found by any process, on the log, by their ids alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from schemas.envelope import Envelope, Receipt, Receipts
from schemas.samples import Verdict
from schemas.topics import RECEIPTS_ISSUED, TOPICS
from services.clock import ManualClock
from services.errors import Unknown
from services.eventlog import EventLog, open_eventlog
from services.ingress import promises as module
from services.ingress.promises import Promises
from services.settings import Settings

KEY, LANE = b"k" * 32, 1
Body = Callable[["Doors"], Awaitable[None]]


class Doors:
    """Door processes on one log, and what they share."""

    def __init__(self, log: EventLog) -> None:
        self.log, self.clock = log, ManualClock(1_700_000_000_000)

    async def process(self, *, key: bytes = KEY, hours: int = 24) -> Promises:
        """The promises of one more process."""
        made = Promises(self.log, self.clock, Settings(receipt_hours=hours), key)
        await made.open()
        return made

    async def issue(self, number: int, *verdicts: Sequence[Verdict], only: int = -1) -> None:
        """What the judge puts out for a request, a receipt for each of its entries."""
        for index, part in enumerate(verdicts):
            if only in (-1, index):
                receipt = a_receipt(number, index, len(verdicts), part)
                await self.log.append([(RECEIPTS_ISSUED, LANE, Envelope(Receipts((receipt,))))])


def a_receipt(number: int, index: int, total: int, verdicts: Sequence[Verdict]) -> Receipt:
    """A receipt of the request with this number."""
    return Receipt(request(number), b"d" * 16, index, total, 7, bytes(verdicts))


def request(number: int) -> bytes:
    """Its id."""
    return number.to_bytes(16, "big")


def give(promises: Promises, number: int, *, total: int = 1, note: int = 0, offset: int = 0) -> str:
    """An id of the request's receipt, for acme."""
    return promises.give("acme", request(number), total=total, note=note, lane=LANE, offset=offset)


def doors(folder: Path, body: Body) -> None:
    """Run `body` on a fresh log."""

    async def run() -> None:
        async with open_eventlog(f"sqlite:///{folder / 'log.sqlite'}", lanes=2) as log:
            await log.create(TOPICS)
            await asyncio.wait_for(body(Doors(log)), 60)

    asyncio.run(run())


def test_the_process_that_promised_sees_the_receipt_coming(tmp_path: Path) -> None:
    async def body(it: Doors) -> None:
        process = await it.process()
        receipt = give(process, 5, total=2, note=1)
        first, second = [Verdict.KEPT, Verdict.CONFLICT], [Verdict.DUPLICATE]
        process.hand_out(a_receipt(5, 1, 2, second))
        assert (await process.find("acme", receipt)).verdicts is None, "one entry is missing"
        process.hand_out(a_receipt(6, 0, 1, first))
        process.hand_out(a_receipt(5, 0, 2, first))
        promise = await process.find("acme", receipt)
        assert (promise.verdicts, promise.note) == ([*first, *second], 1)

    doors(tmp_path, body)


def test_another_process_finds_it_on_the_log_and_goes_on_from_where_it_looked(
    tmp_path: Path,
) -> None:
    async def body(it: Doors) -> None:
        for number in range(3):
            await it.issue(number, [Verdict.KEPT])
        receipt = give(await it.process(), 77, total=2, note=1, offset=3)
        restarted = await it.process()
        parts = [Verdict.CONFLICT], [Verdict.KEPT, Verdict.OVERWRITE]
        assert (await restarted.find("acme", receipt)).verdicts is None
        await it.issue(9, [Verdict.KEPT])
        await it.issue(77, *parts, only=1)
        assert (await restarted.find("acme", receipt)).verdicts is None
        await it.issue(77, *parts, only=0)
        for process in (restarted, await it.process()):
            promise = await process.find("acme", receipt)
            assert (promise.verdicts, promise.note) == ([*parts[0], *parts[1]], 1)

    doors(tmp_path, body)


def test_a_long_way_on_the_log_is_gone_in_stretches(tmp_path: Path) -> None:
    """The judge was away for long: one question must not read the whole log."""

    async def body(it: Doors) -> None:
        many = [
            (RECEIPTS_ISSUED, LANE, Envelope(Receipts((a_receipt(at, 0, 1, [Verdict.KEPT]),))))
            for at in range(50)
        ]
        for item in many:
            await it.log.append([item])
        receipt = give(await it.process(), 49)
        process = Promises(it.log, it.clock, Settings(), KEY, stretch_records=20)
        await process.open()
        found = [(await process.find("acme", receipt)).verdicts for _ in range(3)]
        assert found == [None, None, [Verdict.KEPT]]

    doors(tmp_path, body)


def test_an_id_is_good_for_its_tenant_its_key_and_its_log_only(tmp_path: Path) -> None:
    async def body(it: Doors) -> None:
        process = await it.process()
        receipt = give(process, 1)
        assert (await process.find("acme", receipt)).verdicts is None
        stranger = await it.process(key=b"x" * 32)
        wrong = [
            (process, "globex", receipt),
            (stranger, "acme", receipt),
            (process, "acme", ("A" if receipt[0] != "A" else "B") + receipt[1:]),
            (process, "acme", receipt[:-1]),
            (process, "acme", ""),
            (process, "acme", "é" * 20),
            (process, "acme", "A" * 10_000),
        ]
        for who, tenant, named in wrong:
            with pytest.raises(Unknown):
                await who.find(tenant, named)

    doors(tmp_path, body)

    async def other_log(it: Doors) -> None:
        made = await it.process()
        receipt = give(made, 1)
        made._life = b"another life"
        with pytest.raises(Unknown):
            await made.find("acme", receipt)

    (tmp_path / "other").mkdir()
    doors(tmp_path / "other", other_log)


def test_a_receipt_is_kept_for_its_time_and_not_longer(tmp_path: Path) -> None:
    async def body(it: Doors) -> None:
        process = await it.process(hours=2)
        receipt = give(process, 1)
        process.hand_out(a_receipt(1, 0, 1, [Verdict.KEPT]))
        it.clock.advance(2 * 3_600_000 - 1)
        assert (await process.find("acme", receipt)).verdicts == [Verdict.KEPT]
        it.clock.advance(1)
        with pytest.raises(Unknown):
            await process.find("acme", receipt)

    doors(tmp_path, body)


def test_memory_is_bounded_and_what_left_it_is_found_on_the_log(tmp_path: Path) -> None:
    async def body(it: Doors) -> None:
        process = await it.process()
        await it.issue(1, [Verdict.CONFLICT])
        receipt = give(process, 1)
        process.hand_out(a_receipt(1, 0, 1, [Verdict.CONFLICT]))
        for number in range(2, module.HELD_MAX + 2):
            give(process, number, offset=1)
        assert len(process._held) == module.HELD_MAX
        assert request(1) not in process._held
        assert (await process.find("acme", receipt)).verdicts == [Verdict.CONFLICT]

    doors(tmp_path, body)


def test_what_was_decided_stays_decided_when_the_request_comes_again(tmp_path: Path) -> None:
    async def body(it: Doors) -> None:
        process = await it.process()
        receipt = give(process, 5)
        process.hand_out(a_receipt(5, 0, 1, [Verdict.CONFLICT]))
        give(process, 5)
        assert (await process.find("acme", receipt)).verdicts == [Verdict.CONFLICT]

    doors(tmp_path, body)


def test_unknown_receipts_leave_nothing_behind(tmp_path: Path) -> None:
    """Not even in the error: one that was raised before has the frames of that time on it."""

    async def body(it: Doors) -> None:
        process = await it.process()
        for _ in range(3):
            with pytest.raises(Unknown) as refused:
                await process.find("acme", "nonsense")
        frames = [entry.name for entry in refused.traceback]
        assert frames.count("find") == 1

    doors(tmp_path, body)
