"""The judge on columns gives what the specification gives, whatever it forgets and wherever it is
packed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.envelope import Position
from schemas.points import PointPolicy
from schemas.queries import LatestQuery, TakenQuery
from schemas.samples import STORED, Conflict, Kind, Sample, Verdict
from services.domain.memory import Lane
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.reference import ModelStore, ReferenceLane
from tests.support.rounds import rounds, seed

SERIES = (1, 2, 2**63 + 5)
VALUES: dict[Kind, tuple[Any, ...]] = {
    Kind.DOUBLE: (
        *(0.0, -0.0, 0.1, 0.2, 0.3, 0.4, 100.0, 101.0, 1e300, math.inf, math.nan),
        # A unit in the last place beside a band: left to the specification.
        *(0.30000000000000004, 0.19999999999999998),
    ),
    Kind.LONG: (0, 1, 2, 3, 100, 101, 2**53 + 1, 2**63 - 1, -(2**63)),
    Kind.BOOL: (False, True),
    Kind.STRING: ("", "on", "äöü"),
    Kind.JSON: ("{}", "[1]"),
    Kind.DATE: (0, 5),
}
ANY_KIND = st.sampled_from([Kind.DOUBLE] * 4 + [Kind.LONG] * 3 + list(Kind))


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A sample of one of few series, times and values, so that they meet."""
    kind = draw(ANY_KIND)
    return a_sample(
        draw(st.sampled_from(VALUES[kind])),
        draw(st.integers(0, 20)),
        series=draw(st.sampled_from(SERIES)),
        kind=kind,
        quality=draw(st.sampled_from([None, None, None, 0, 192])),
        rule=draw(st.sampled_from(Conflict)),
    )


POLICIES = st.builds(
    a_policy,
    revision=st.integers(0, 3),
    kind=st.sampled_from([None, None, None, Kind.DOUBLE, Kind.LONG]),
    band=st.sampled_from([0.0, 0.0, 0.1, 1.0, 2.0]),
    band_percent=st.sampled_from([0.0, 0.0, 1.0, 50.0]),
    heartbeat_ms=st.sampled_from([0, 0, 3]),
    on_change=st.booleans(),
)


@dataclass(frozen=True)
class Turn:
    """One record, and what happens behind it: how many of the judged blocks that wait are stored,
    whether the memory goes through bytes.
    """

    items: list[tuple[Sample, PointPolicy]]
    stored: int
    packed: bool


TURNS = st.lists(
    st.builds(
        Turn,
        st.lists(st.tuples(samples(), POLICIES), min_size=1, max_size=8),
        st.sampled_from([0, 0, 1, 2, 99]),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


class Judge:
    """The kernels with a store behind them that lags."""

    def __init__(self, store: ModelStore, *, whole: bool, rows_max: int) -> None:
        self.store = store
        self.lane = Lane(whole=whole, rows_max=rows_max)
        self._waiting: list[tuple[int, Block]] = []

    def judge(
        self, position: Position, items: list[tuple[Sample, PointPolicy]]
    ) -> tuple[list[Verdict], list[int]]:
        """Verdicts and versions of one record."""
        policies = [policy for _, policy in items]
        block = a_block(*(sample for sample, _ in items), policies=policies)
        unknown, times = self.lane.questions(block)
        if unknown:
            answer = self.store.answer(LatestQuery(series=tuple(unknown)))
            self.lane.learn(answer, position, unknown)
        if times:
            answer = self.store.answer(TakenQuery(*zip(*times, strict=True)))
            self.lane.learn(answer, position)
        judgement = self.lane.judge(block, position)
        verdicts = [Verdict(verdict) for verdict in judgement.verdicts]
        expected = block.take([row for row, v in enumerate(verdicts) if v in STORED])
        stored = judgement.stored(block)
        assert replace(stored, version=expected.version) == expected
        self._waiting.append((position.offset, stored))
        return verdicts, judgement.versions.tolist()

    def settle(self, count: int) -> None:
        """Store some of the blocks that wait, and let the memory forget what is stored."""
        for offset, block in self._waiting[:count]:
            self.store.insert(block)
            self.lane.forget(offset)
        del self._waiting[:count]

    def pack(self) -> None:
        """Through bytes and back."""
        self.lane = Lane.unpack(self.lane.pack(), rows_max=self.lane.rows_max)


def run(judge: Judge, reference: ReferenceLane, epoch: int, turns: list[Turn]) -> None:
    """Both judge the same records."""
    for offset, turn in enumerate(turns):
        position = Position(epoch, offset)
        assert judge.judge(position, turn.items) == reference.judge(position, turn.items)
        judge.settle(turn.stored)
        if turn.packed:
            judge.pack()
    judge.settle(len(turns))


@settings(max_examples=rounds(200))
@hypothesis.seed(seed())
@given(TURNS, st.integers(0, 10))
def test_kernels_agree_with_the_specification(turns: list[Turn], rows_max: int) -> None:
    store = ModelStore()
    judge = Judge(store, whole=True, rows_max=rows_max)
    run(judge, ReferenceLane(ModelStore(), whole=True), 1, turns)


@settings(max_examples=rounds(100))
@hypothesis.seed(seed())
@given(TURNS, TURNS, st.integers(0, 10))
def test_kernels_agree_when_the_memory_was_lost(
    before: list[Turn], after: list[Turn], rows_max: int
) -> None:
    store = ModelStore()
    run(
        Judge(store, whole=True, rows_max=rows_max),
        ReferenceLane(ModelStore(), whole=True),
        1,
        before,
    )
    judge = Judge(store, whole=False, rows_max=rows_max)
    # The reference learns from the same rows as they stood: it never forgets, so it needs no more.
    reference = ReferenceLane(copy_of(store), whole=False)
    run(judge, reference, 2, after)


def copy_of(store: ModelStore) -> ModelStore:
    """The same rows, apart."""
    other = ModelStore()
    for series, times in store.rows.items():
        for ts_ms, versions in times.items():
            other.rows[series][ts_ms].update(versions)
    return other


def test_long_histories_outgrow_every_table() -> None:
    """Thousands of rows through rings and tables that grow, wrap and are made anew."""
    chance = random.Random(seed())
    judge = Judge(ModelStore(), whole=True, rows_max=700)
    reference = ReferenceLane(ModelStore(), whole=True)
    for offset in range(60):
        items = []
        for _ in range(chance.randrange(1, 400)):
            ts_ms = offset * 10 + chance.randrange(-60, 10)
            value = float(chance.randrange(3))
            series = chance.randrange(300) << 40
            rule = Conflict(chance.randrange(3))
            items.append((a_sample(value, ts_ms, series=series, rule=rule), a_policy()))
        position = Position(1, offset)
        assert judge.judge(position, items) == reference.judge(position, items)
        judge.settle(chance.randrange(3))


def test_what_is_forgotten_is_asked_and_nothing_else() -> None:
    lane = Lane(whole=True, rows_max=2)
    block = a_block(*(a_sample(float(ts), ts) for ts in (10, 20, 30, 40)))
    lane.judge(block, Position(1, 0))
    lane.forget(-1)
    assert lane.questions(block) == ([], [])
    lane.forget(0)
    probe = a_block(*(a_sample(0.0, ts) for ts in (5, 10, 20, 25, 30, 40, 50)))
    assert lane.questions(probe) == ([], [(1, 5), (1, 10), (1, 20)])


def test_traffic_in_order_never_builds_the_index() -> None:
    lane = Lane(whole=True)
    for offset in range(5):
        block = a_block(*(a_sample(float(row), offset * 100 + row) for row in range(100)))
        lane.judge(block, Position(1, offset))
    assert lane.indexed == 0
    lane.judge(a_block(a_sample(ts_ms=3)), Position(1, 5))
    assert lane.indexed == 500


def test_a_lane_with_unknown_history_asks_for_a_series_once() -> None:
    lane = Lane(whole=False)
    block = a_block(a_sample(ts_ms=7), a_sample(ts_ms=7), a_sample(ts_ms=8))
    assert lane.questions(block) == ([1], [(1, 7), (1, 8)])
    lane.learn(Block(), Position(1, 0), [1])
    lane.judge(block, Position(1, 0))
    assert lane.questions(block) == ([], [])


def test_a_rows_own_copy_in_the_store_is_not_its_own_duplicate() -> None:
    store, position = ModelStore(), Position(1, 3)
    block = a_block(a_sample(ts_ms=7))
    store.insert(Lane(whole=True).judge(block, position).stored(block))
    again = Lane(whole=False)
    unknown, times = again.questions(block)
    again.learn(store.answer(LatestQuery(series=tuple(unknown))), position, unknown)
    again.learn(store.answer(TakenQuery(*zip(*times, strict=True))), position)
    assert again.judge(block, position).verdicts == bytes([Verdict.KEPT])


def test_rows_outside_the_spans_are_not_judged() -> None:
    lane = Lane(whole=True)
    block = a_block(*(a_sample(ts_ms=ts) for ts in (1, 2, 3)))
    judgement = lane.judge(block, Position(1, 0), [(0, 1), (2, 3)])
    assert list(judgement.verdicts) == [Verdict.KEPT, Verdict.DUPLICATE, Verdict.KEPT]
    late = lane.judge(a_block(a_sample(9.0, ts_ms=2)), Position(1, 1))
    assert list(late.verdicts) == [Verdict.KEPT]


def test_a_stored_block_shares_nothing_with_the_judged_one() -> None:
    block = a_block(a_sample())
    stored = Lane(whole=True).judge(block, Position(1, 0)).stored(block)
    stored.extend(stored.slice(0, 1))
    assert len(block) == 1


def test_another_format_is_refused() -> None:
    packed = bytearray(Lane(whole=True).pack())
    packed[0] += 1
    with pytest.raises(ValueError, match="format"):
        Lane.unpack(bytes(packed))
