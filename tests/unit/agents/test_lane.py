"""The lane keeper under a runner that loses, repeats and reorders, and under crashes anywhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.envelope import Envelope, Logged, Position, Tick, Undecodable
from schemas.topics import SAMPLES_ACCEPTED, SAMPLES_RECEIVED, Topic
from services.agents._contract import Agent, Outcome
from services.agents._guard import guarded
from services.agents._lane import LaneKeeper, Parts, cut, newest
from services.clock import ManualClock
from services.errors import Broken, Unavailable
from services.settings import Settings
from tests.support.rounds import rounds

RECORDS = 60


def _chain(state: int, value: int) -> int:
    return (state * 31 + value + 1) % 1_000_003


def _step(state: list[int], position: Position, record: Any, _: Any, __: int) -> Outcome:
    if isinstance(record, Undecodable):
        return Outcome()
    state[0] = _chain(state[0], record.record.now_ms)
    made = Envelope(Tick(now_ms=state[0], key=str(position.offset)))
    return Outcome([(SAMPLES_ACCEPTED, 0, made)])


AGENT = Agent(
    name="chain",
    source=SAMPLES_RECEIVED,
    fresh=lambda whole: [0],
    ask=lambda state, position, record: (),
    step=_step,
    pack=lambda state: state[0].to_bytes(8, "big") * 300_000,
    unpack=lambda data: [int.from_bytes(data[:8], "big")],
    stored=lambda state, offset: None,
)


class Crash(BaseException):
    """The process ends here."""


class FakeLog:
    """Keeps what is appended; `crash_at` counts down over everything that reaches the log."""

    lanes = 1

    def __init__(self) -> None:
        self.out: dict[str, set[int]] = {}
        self.slots: dict[int, tuple[bytes, int, int]] = {}
        self.crash_at = -1
        self.away = 0
        self.hangs_at = -1
        """Counts down over the pieces of checkpoints: that one is never taken."""

    def _touch(self) -> None:
        if self.away > 0:
            self.away -= 1
            raise Unavailable("away")
        self.crash_at -= 1
        if self.crash_at == 0:
            raise Crash

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        self._touch()
        for _, _, envelope in out:
            tick = envelope.record
            assert isinstance(tick, Tick)
            self.out.setdefault(tick.key, set()).add(tick.now_ms)
        return []

    async def checkpoint(
        self, agent: str, lane: int, slot: int, state: bytes, offset: int, epoch: int
    ) -> None:
        self._touch()
        self.hangs_at -= 1
        if self.hangs_at == 0:
            await asyncio.Event().wait()
        self.slots[slot] = (state, offset, epoch)


class Runner:
    """Delivers the lane's records by a script of faults, then faithfully. Obeys seeks."""

    def __init__(self, log: FakeLog, keeper_class: type[LaneKeeper]) -> None:
        self.log, self.keeper_class = log, keeper_class
        self.records = [Logged(offset, Envelope(Tick(now_ms=offset))) for offset in range(RECORDS)]
        self.cursor = 0
        self.start()

    def start(self) -> None:
        parts = Parts(AGENT, self.log, None, ManualClock(), Settings(), 1)  # type: ignore[arg-type]
        found = newest(self.log.slots, 1)
        self.keeper = self.keeper_class(parts, 0, self, begin=0, whole=True, checkpoint=found)
        self.cursor = self.keeper.expected
        self.task = asyncio.create_task(self.keeper.run())

    def seek(self, lane: int, offset: int) -> None:
        self.cursor = offset

    def pause(self, lane: int) -> None: ...

    def resume(self, lane: int) -> None: ...

    async def commit(self, lane: int, next_offset: int) -> None: ...

    async def settle(self) -> None:
        """Let the lane work until it rests or crashed; a crashed one starts anew."""
        for _ in range(400):
            await asyncio.sleep(0)
            if self.task.done() or not self.keeper.queued:
                break
        if self.task.done():
            assert isinstance(self.task.exception(), Crash)
            self.start()

    async def faulty(self, chance: random.Random) -> None:
        batch = self.records[self.cursor : self.cursor + chance.randint(1, 12)]
        self.cursor += len(batch)
        batch = [record for record in batch if chance.random() > 0.2]
        batch += [chance.choice(self.records) for _ in range(chance.randint(0, 3))]
        if chance.random() < 0.3:
            chance.shuffle(batch)
        for record in batch:
            self.keeper.offer(record)

    async def finish(self) -> None:
        """Deliver faithfully; where the lane stands still, seek it as the watch would."""
        self.log.crash_at = -1
        for _ in range(RECORDS * 4):
            for record in self.records[self.cursor : self.cursor + 8]:
                self.cursor += 1
                self.keeper.offer(record)
            await self.settle()
            if self.keeper.position >= RECORDS - 1:
                break
            if self.cursor >= RECORDS:
                self.keeper.seek_back(again=True)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def _reference() -> dict[str, set[int]]:
    state, out = 0, {}
    for offset in range(RECORDS):
        state = _chain(state, offset)
        out[str(offset)] = {state}
    return out


async def _run(seed: int, keeper_class: type[LaneKeeper] = LaneKeeper) -> dict[str, set[int]]:
    chance = random.Random(seed)
    log = FakeLog()
    runner = Runner(log, keeper_class)
    for _ in range(25):
        if chance.random() < 0.2:
            log.crash_at = chance.randint(1, 4)
        await runner.faulty(chance)
        await runner.settle()
        if chance.random() < 0.3:
            await _checkpoint(runner)
    await runner.finish()
    return log.out


async def _checkpoint(runner: Runner) -> None:
    """A checkpoint at a moment of the test's choice; a crash in the middle of its pieces is one."""
    try:
        await runner.keeper.checkpoint_if_clean()
    except Crash:
        runner.task.cancel()
        await asyncio.gather(runner.task, return_exceptions=True)
        runner.start()


@settings(max_examples=rounds(150))
@given(st.integers(0, 2**32))
def test_whatever_a_runner_loses_repeats_or_reorders_changes_nothing(seed: int) -> None:
    assert asyncio.run(_run(seed)) == _reference()


class Unchecked(LaneKeeper):
    """The control: takes whatever comes."""

    def _place(self, offset: int) -> int:
        return 0


def test_without_the_keepers_check_the_same_faults_do_harm() -> None:
    harmed = 0
    for seed in range(10):
        harmed += asyncio.run(_run(seed, Unchecked)) != _reference()
    assert harmed == 10


def test_a_checkpoint_with_a_missing_piece_falls_back_to_the_older_generation() -> None:
    old = {slot: (piece, 7, 1) for slot, piece in cut(b"o" * 2_000_000, 0)}
    new = {slot: (piece, 9, 1) for slot, piece in cut(b"n" * 2_000_000, 1)}
    assert newest(old | new, 1).offset == 9  # type: ignore[union-attr]
    torn = dict(list(new.items())[:-1])
    assert newest(old | torn, 1).offset == 7  # type: ignore[union-attr]
    mixed = new | {max(new): (new[max(new)][0], 8, 1)}
    assert newest(old | mixed, 1).offset == 7  # type: ignore[union-attr]


def test_a_checkpoint_that_is_cut_short_twice_leaves_the_older_one_whole() -> None:
    async def cut_short(keeper: LaneKeeper) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await keeper.checkpoint_if_clean()

    async def body() -> None:
        log = FakeLog()
        runner = Runner(log, LaneKeeper)
        for offset in (0, 1):
            runner.keeper.offer(runner.records[offset])
            await runner.settle()
            if not offset:
                await runner.keeper.checkpoint()
        runner.task.cancel()
        await asyncio.gather(runner.task, return_exceptions=True)
        for piece in (2, 2):
            log.hangs_at = piece
            await cut_short(runner.keeper)
            found = newest(log.slots, 1)
            assert found is not None
            assert found.offset == 0

    asyncio.run(body())


def test_a_checkpoint_of_another_epoch_counts_as_lost() -> None:
    slots = {slot: (piece, 7, 1) for slot, piece in cut(b"state", 0)}
    assert newest(slots, 2) is None


def test_a_log_that_is_away_is_waited_for_in_place() -> None:
    async def body() -> dict[str, set[int]]:
        log = FakeLog()
        runner = Runner(log, LaneKeeper)
        log.away = 2
        for record in runner.records[:1]:
            runner.keeper.offer(record)
        async with asyncio.timeout(5):
            while runner.keeper.position < 0 or runner.keeper._open:
                await asyncio.sleep(0.01)
        await runner.finish()
        return log.out

    assert asyncio.run(body()) == _reference()


def test_more_unreadable_records_than_the_limit_stop_the_lane() -> None:
    async def body() -> None:
        runner = Runner(FakeLog(), LaneKeeper)
        for offset in range(Settings().refused_run_max + 1):
            runner.keeper.offer(Logged(offset, Undecodable("torn", b"")))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await runner.task

    with pytest.raises(Broken, match="cannot be read"):
        asyncio.run(body())


def test_what_an_agent_raises_ends_the_process_and_nothing_else_happens() -> None:
    codes: list[int] = []

    def die(code: int) -> Any:
        codes.append(code)

    async def body() -> None:
        raise ValueError("a bug")

    asyncio.run(guarded(body, what="test", die=die))
    assert codes == [70]
