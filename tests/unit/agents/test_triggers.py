"""The agent that watches over rules: what it says of accepted blocks and ticks, that it says the
same when it reads again, and that the lane keeper has the time told to it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.blocks import Block
from schemas.envelope import Alert, Envelope, Position, Record, Tick, Undecodable
from schemas.points import LANE_SHIFT, PointPolicy, Rule
from schemas.topics import ALERTS_RAISED, SAMPLES_ACCEPTED, SAMPLES_RECEIVED
from services.agents import all_agents, samples, triggers
from services.agents._lane import TICK_AGAIN_MS, Parts
from services.agents._lanes import Lanes
from services.agents._loop import run_loop
from services.agents.triggers import AGENT, State
from services.clock import ManualClock, SystemClock
from services.eventlog import EventLog
from services.settings import Settings
from services.sinks import SinkWorker, all_sinks
from tests.support.builders import NOW_MS, a_block, a_sample
from tests.support.rounds import rounds, seed
from tests.support.stores import MemoryStore
from tests.unit.agents.test_lanes import a_log, until
from tests.unit.agents.test_lost import Killed

ABOVE = Rule("above", ">", 10.0, 2.0, 0, True)
SLOW = Rule("slow", ">", 10.0, 0.0, 1_000, True)
SERIES = 3 << LANE_SHIFT | 7


def ruled(*rules: Rule, revision: int = 1) -> PointPolicy:
    """A policy with these rules."""
    return PointPolicy("acme", revision, rules=rules)


def accepted(*pairs: tuple[float, int], policy: PointPolicy, series: int = SERIES) -> Block:
    """A judged block: (value, ts_ms) rows of one series."""
    rows = [a_sample(value, ts_ms, series=series) for value, ts_ms in pairs]
    block = a_block(*rows, policy=policy)
    block.version.extend(range(1, len(rows) + 1))
    return block


def test_the_time_says_how_far_the_lane_is_judged() -> None:
    state = State()
    assert triggers.tick(state, 5) == Envelope(Tick(5, "triggers"))
    for record in (
        Envelope(accepted((11.0, 1), policy=ruled(SLOW)), received=41, epoch=3),
        Envelope(Tick(7, "samples"), received=2, epoch=1),
        Envelope(Block(), received=42, epoch=3),
    ):
        triggers.step(state, Position(1, 1), record, (), 16)
    for one in (state, State.unpack(state.pack())):
        assert triggers.tick(one, 5) == Envelope(Tick(5, "triggers"), received=42, epoch=3)


def said(state: State, record: Record | Undecodable, offset: int = 0) -> list[Alert]:
    """What one record has the agent say."""
    given = record if isinstance(record, Undecodable) else Envelope(record)
    outcome = triggers.step(state, Position(2, offset), given, (), 16)
    alerts = []
    for topic, lane, envelope in outcome.out:
        assert (topic, lane) == (ALERTS_RAISED, 0) and isinstance(envelope.record, Alert)
        alerts.append(envelope.record)
    told = dict(outcome.tally)
    assert told.get("raised", 0) == sum(alert.raised for alert in alerts)
    assert sum(told.values()) == len(alerts)
    return alerts


# -- what it says


def test_an_alert_names_the_place_the_rule_and_the_sample() -> None:
    state = State()
    block = accepted((1.0, NOW_MS), (11.0, NOW_MS + 1), policy=ruled(ABOVE))
    assert said(state, block, 5) == [
        Alert(
            id="samples.accepted/3/2.5.1/above",
            tenant="acme",
            rule="above",
            series=SERIES,
            raised=True,
            ts_ms=NOW_MS + 1,
            at_ms=NOW_MS + 1,
            value=11.0,
        )
    ]
    assert said(state, accepted((9.0, NOW_MS + 2), policy=ruled(ABOVE)), 6) == []
    [end] = said(state, accepted((8.0, NOW_MS + 3), policy=ruled(ABOVE)), 7)
    assert (end.id, end.raised, end.value) == ("samples.accepted/3/2.7.0/above", False, 8.0)


def test_a_tick_of_its_own_shows_that_a_delay_has_passed_and_no_other_does() -> None:
    state = State()
    assert said(state, accepted((11.0, NOW_MS), policy=ruled(SLOW))) == []
    assert triggers.due(state) == NOW_MS + 1_000
    assert said(state, Tick(NOW_MS + 2_000, "samples")) == []
    assert said(state, Tick(NOW_MS + 999, "triggers")) == []
    [alert] = said(state, Tick(NOW_MS + 1_004, "triggers"), 9)
    assert (alert.id, alert.ts_ms, alert.at_ms) == (
        "samples.accepted/3/2.9.0/slow",
        NOW_MS,
        NOW_MS + 1_004,
    )
    assert triggers.due(state) is None
    assert said(state, Tick(NOW_MS + 3_000, "triggers")) == []


@pytest.mark.parametrize(
    "record",
    [Block(), a_block(), Undecodable("torn", b""), Tick(1)],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_judged_block_is_passed_over(record: Any) -> None:
    state = State()
    assert said(state, record) == [] and not state.series


def test_series_without_rules_leave_no_state_and_those_that_lost_them_are_forgotten() -> None:
    state = State()
    said(state, accepted((11.0, 1), policy=PointPolicy("acme", 1)))
    assert not state.series
    said(state, accepted((11.0, 2), policy=ruled(SLOW)))
    assert set(state.series) == {SERIES} == set(state.due_ms)
    said(state, accepted((11.0, 3), policy=PointPolicy("acme", 2)))
    assert not state.series and triggers.due(state) is None


def test_a_block_without_rules_costs_next_to_nothing() -> None:
    plain = accepted(*((1.0, ts_ms) for ts_ms in range(4096)), policy=PointPolicy("acme", 1))
    held = accepted((1.0, 1), policy=ruled(ABOVE), series=5)
    for state in (State(), State()):
        said(state, plain)
        began = time.perf_counter()
        for _ in range(20):
            triggers.step(state, Position(1, 1), Envelope(plain), (), 16)
        # 4,096 rows in less than a millisecond, on a slow machine too.
        assert (time.perf_counter() - began) / 20 < 0.001
        said(state, held)


# -- the same again


def a_history(chance: random.Random) -> list[Record]:
    """Blocks of three series with rules that change now and then, and ticks."""
    records: list[Record] = []
    revision, rules = 1, (ABOVE, SLOW)
    for step in range(60):
        if chance.random() < 0.1:
            revision += 1
            bound = chance.choice((8.0, 10.0))
            rules = tuple(
                rule
                for rule in (Rule("above", ">", bound, 2.0, 0, True), SLOW)
                if chance.random() < 0.8
            )
        if chance.random() < 0.3:
            records.append(Tick(step * 300, "triggers"))
            continue
        pairs = [
            (chance.choice((5.0, 9.0, 11.0)), step * 300 + chance.randrange(-400, 400))
            for _ in range(chance.randrange(4))
        ]
        of = SERIES + chance.randrange(3)
        records.append(accepted(*pairs, policy=ruled(*rules, revision=revision), series=of))
    return records


@pytest.mark.parametrize("round_", range(rounds(20)))
def test_from_any_checkpoint_on_it_says_the_same_under_the_same_ids(round_: int) -> None:
    history = a_history(random.Random(f"{seed()}/triggers/{round_}"))
    state, states, whole = State(), [], []
    for offset, record in enumerate(history):
        states.append(AGENT.pack(state))
        whole.append(said(state, record, offset))
    assert any(whole)
    ids = [alert.id for alerts in whole for alert in alerts]
    assert len(set(ids)) == len(ids)
    for begin in range(len(history)):
        again = AGENT.unpack(states[begin])
        for offset in range(begin, len(history)):
            assert said(again, history[offset], offset) == whole[offset]
        assert again.series == state.series and again.due_ms == state.due_ms
        assert triggers.tick(again, 1) == triggers.tick(state, 1)


def test_a_state_of_another_format_is_not_taken() -> None:
    with pytest.raises(ValueError, match="format 9"):
        AGENT.unpack(b"\x09" + AGENT.pack(State())[1:])


def test_after_a_loss_the_first_sample_says_how_things_are() -> None:
    state = AGENT.fresh(False)
    assert [alert.raised for alert in said(state, accepted((11.0, 5), policy=ruled(ABOVE)))] == [
        True
    ]
    state = AGENT.fresh(False)
    assert said(state, accepted((1.0, 5), policy=ruled(ABOVE))) == []


# -- on a log


@asynccontextmanager
async def watching(
    log: EventLog, clock: Any, lanes_class: type[Lanes] = Lanes
) -> AsyncIterator[Parts]:
    """One life of the agent."""
    stop = asyncio.Event()
    parts = Parts(AGENT, log, MemoryStore(), clock, Settings(), 1)
    running = asyncio.create_task(run_loop(parts, stop, lanes_class=lanes_class))
    yield parts
    stop.set()
    await running


async def records_of(log: EventLog, topic: Any) -> list[Any]:
    """What lies on lane 0 of a topic."""
    found = []
    async with log.reader([topic]) as reader:
        while batch := await reader.batch(wait_ms=0):
            found += [logged.envelope.record for logged in batch.records]  # type: ignore[union-attr]
    return found


async def end_of(log: EventLog, topic: Any) -> int:
    """The next offset of lane 0."""
    return (await log.spans(topic))[0].end


async def until_end(log: EventLog, topic: Any, end: int) -> None:
    """Wait until lane 0 holds so many records."""
    async with asyncio.timeout(10):
        while await end_of(log, topic) < end:
            await asyncio.sleep(0.002)


async def put(log: EventLog, *pairs: tuple[float, int], rule: Rule = SLOW) -> None:
    """One more accepted block."""
    await log.append([(SAMPLES_ACCEPTED, 0, Envelope(accepted(*pairs, policy=ruled(rule))))])


def test_the_time_is_told_to_a_lane_once_when_it_would_change_something(tmp_path: Path) -> None:
    async def body() -> None:
        clock = ManualClock(NOW_MS)
        async with a_log(tmp_path) as log, watching(log, clock) as parts:
            await until(lambda: parts.readiness.why_not is None)
            await put(log, (1.0, NOW_MS), (11.0, NOW_MS + 10_000))
            clock.advance(TICK_AGAIN_MS)
            await asyncio.sleep(0.1)
            clock.advance(10_999 - TICK_AGAIN_MS)
            await asyncio.sleep(0.1)
            assert await end_of(log, SAMPLES_ACCEPTED) == 1
            clock.advance(1)
            await until_end(log, ALERTS_RAISED, 1)
            clock.advance(100_000)
            await put(log, (12.0, NOW_MS + 11_000))
            await asyncio.sleep(1.2)
            assert await end_of(log, SAMPLES_ACCEPTED) == 3
            ticks = [r for r in await records_of(log, SAMPLES_ACCEPTED) if isinstance(r, Tick)]
            assert ticks == [Tick(NOW_MS + 11_000, "triggers")]
            [alert] = await records_of(log, ALERTS_RAISED)
            assert (alert.ts_ms, alert.at_ms) == (NOW_MS + 10_000, NOW_MS + 11_000)

    asyncio.run(body())


class Forgetful:
    """A log on which ticks get lost as long as it is told so; the rest goes on to the real one."""

    def __init__(self, log: EventLog) -> None:
        self._log, self.loses, self.lost = log, True, 0

    async def append(self, out: Any) -> list[int]:
        """Append, or lose a tick."""
        if self.loses and any(isinstance(envelope.record, Tick) for *_, envelope in out):
            self.lost += 1
            return [0]
        return await self._log.append(out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def test_a_tick_that_does_not_come_back_is_appended_again_after_a_while(tmp_path: Path) -> None:
    async def body() -> None:
        clock = ManualClock(NOW_MS)
        async with a_log(tmp_path) as real:
            log: Any = Forgetful(real)
            async with watching(log, clock) as parts:
                # A lane that was loaded later would wait from then on.
                await until(lambda: parts.readiness.why_not is None)
                await put(real, (11.0, NOW_MS))
                clock.advance(TICK_AGAIN_MS)
                await until(lambda: log.lost == 1)
                clock.advance(TICK_AGAIN_MS - 1)
                await asyncio.sleep(1.2)
                assert log.lost == 1
                log.loses = False
                clock.advance(1)
                await until_end(real, ALERTS_RAISED, 1)

    asyncio.run(body())


def test_kills_repeat_alerts_only_under_their_ids(tmp_path: Path) -> None:
    chance = random.Random(f"{seed()}/triggers")

    async def body() -> None:
        clock, fed = ManualClock(NOW_MS), 0
        async with a_log(tmp_path) as log:
            for round_ in range(8):
                async with watching(log, clock, chance.choice((Lanes, Killed))):
                    for _ in range(5):
                        value = chance.choice((1.0, 11.0))
                        await put(log, (value, NOW_MS + fed), rule=ABOVE)
                        fed += 1
                    if round_ % 2:
                        await asyncio.sleep(chance.uniform(0, 0.05))
            async with watching(log, clock):
                agreed, state = {}, State()
                for offset, record in enumerate(await records_of(log, SAMPLES_ACCEPTED)):
                    outcome = triggers.step(state, Position(1, offset), Envelope(record), (), 1)
                    for *_, envelope in outcome.out:
                        agreed[envelope.record.id] = envelope.record  # type: ignore[union-attr]
                async with asyncio.timeout(10):
                    while {a.id: a for a in await records_of(log, ALERTS_RAISED)} != agreed:
                        await asyncio.sleep(0.02)
        assert agreed

    asyncio.run(body())


def test_judge_watch_and_sink_go_their_own_way_on_one_log(tmp_path: Path) -> None:
    async def body() -> None:
        stop, store, settings = asyncio.Event(), MemoryStore(), Settings(sink_wait_ms=10)
        clock = SystemClock()
        async with a_log(tmp_path) as log, asyncio.TaskGroup() as group:
            for agent in (samples.agent(), all_agents()["triggers"]):
                parts = Parts(agent, log, store, clock, settings, 1)
                group.create_task(run_loop(parts, stop))
            sink = next(sink for sink in all_sinks() if sink.name == "samples")
            group.create_task(SinkWorker(sink, log, store, clock, settings).run(stop))
            now_ms = clock.now_ms()
            block = a_block(a_sample(11.0, now_ms), policy=ruled(ABOVE, SLOW))
            await log.append([(SAMPLES_RECEIVED, 0, Envelope(block))])
            # One at once, and one by a tick, which the sink passes over.
            await until_end(log, ALERTS_RAISED, 2)
            assert [alert.rule for alert in await records_of(log, ALERTS_RAISED)] == [
                "above",
                "slow",
            ]
            stored = {"sinks.samples": 2}
            async with asyncio.timeout(10):
                for name, end in stored.items():
                    while (await log.committed(name, SAMPLES_ACCEPTED)).get(0, 0) < end:
                        await asyncio.sleep(0.01)
            assert await end_of(log, SAMPLES_ACCEPTED) == 2
            stop.set()
        async with a_log(tmp_path) as log:
            # Its last checkpoint was committed: what it has not read may not be trimmed.
            assert await log.committed("agents.triggers", SAMPLES_ACCEPTED) == {0: 2}
            assert await log.committed("agents.samples", SAMPLES_RECEIVED) == {0: 1}

    asyncio.run(body())
