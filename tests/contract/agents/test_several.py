"""Judge and watch in one process, on every runner: each follows its own topic to its end, and
crashes repeat alerts only under their ids.
"""

from __future__ import annotations

import asyncio
import time

from schemas.envelope import Alert, Envelope, Position, Tick
from schemas.points import LANE_SHIFT, PointPolicy, Rule
from schemas.topics import ALERTS_RAISED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED
from services.agents import triggers
from tests.contract.agents._ground import Ground, Member
from tests.contract.eventlog._places import LANES, opened
from tests.contract.eventlog._records import read_all
from tests.support.builders import a_block, a_sample
from tests.support.processes import wait_for

RULES = (Rule("hot", ">", 10.0, 2.0, 0, True), Rule("long", ">", 10.0, 0.0, 1_000, False))
POLICY = PointPolicy("acme", 1, rules=RULES)
VALUES = (11.0, 9.0, 8.0, 3.0, 12.0, 5.0)


async def feed(ground: Ground, begin_ms: int, values: tuple[float, ...]) -> None:
    """The values, one record each, into every lane."""
    async with opened(ground.place) as log:
        for number, value in enumerate(values):
            out = []
            for lane in range(LANES):
                sample = a_sample(value, begin_ms + number, series=lane << LANE_SHIFT | 1)
                out.append((SAMPLES_RECEIVED, lane, Envelope(a_block(sample, policy=POLICY))))
            await log.append(out)


def wait_until_it_rests(member: Member, seconds: float = 6) -> None:
    """Until the watch has moved, and then not for longer than the time takes to be told."""
    since, last = time.monotonic(), member.watched

    def rests() -> bool:
        nonlocal since, last
        ended = member.process.returncode
        assert ended is None, f"ended with {ended}:\n{member.process.output()[-3000:]}"
        if (now := member.watched) != last or max(now.values(), default=-1) < 0:
            since, last = time.monotonic(), now
        return time.monotonic() - since > seconds

    wait_for(rests, seconds=60, what="rest")


async def alerts(ground: Ground) -> tuple[dict[str, Alert], dict[str, Alert], int]:
    """Those that lie on their topic, those that the accepted records lead to, and the ticks."""
    async with opened(ground.place) as log:
        told = (await read_all(log, ALERTS_RAISED)).get(0, [])
        accepted = await read_all(log, SAMPLES_ACCEPTED)
    expected, ticks = [], 0
    for records in accepted.values():
        state = triggers.State()
        for logged in records:
            assert isinstance(logged.envelope, Envelope)
            ticks += isinstance(logged.envelope.record, Tick)
            position = Position(1, logged.offset)
            expected += triggers.step(state, position, logged.envelope, (), LANES).out
    found = [logged.envelope for logged in told]
    return _by_id(found), _by_id([envelope for *_, envelope in expected]), ticks


def _by_id(envelopes: list[object]) -> dict[str, Alert]:
    found: dict[str, Alert] = {}
    for envelope in envelopes:
        assert isinstance(envelope, Envelope) and isinstance(envelope.record, Alert)
        assert found.setdefault(envelope.record.id, envelope.record) == envelope.record
    return found


def test_judge_and_watch_in_one_process(ground: Ground) -> None:
    begin_ms = time.time_ns() // 1_000_000
    asyncio.run(feed(ground, begin_ms, VALUES))
    crashing = ground.start(agent="samples+triggers", crash_at=4)
    assert crashing.process.wait() == -9
    asyncio.run(feed(ground, begin_ms + 100, (13.0,)))
    member = ground.start(agent="samples+triggers")
    wait_until_it_rests(member)
    assert member.process.stop() == 0
    told, expected, ticks = asyncio.run(alerts(ground))
    assert told == expected
    by_rule = [(alert.rule, alert.raised) for alert in told.values()]
    assert by_rule.count(("hot", True)) == 3 * LANES
    assert by_rule.count(("hot", False)) == 2 * LANES
    # The last value goes on to hold: only the time shows that.
    assert by_rule.count(("long", True)) == LANES
    assert LANES <= ticks <= 2 * LANES
