"""Suppressed samples are counted by series and minute: few rows, none of them wrong, the same on
columns.
"""

from __future__ import annotations

from collections import defaultdict

import hypothesis
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import Block, bits_of
from schemas.envelope import Position
from schemas.samples import STORED, Conflict, Kind, Sample, Value, Verdict
from services.domain import suppressed
from services.domain.memory import Lane
from services.domain.suppressed import MINUTE_MS, Count
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.rounds import rounds, seed

SERIES = (1, 2, 2**63 + 5)
VALUES: list[tuple[Kind, Value]] = [
    *[(Kind.DOUBLE, 1.0), (Kind.DOUBLE, 1.5), (Kind.STRING, "on")] * 4,
    *[(Kind.DOUBLE, 9.0), (Kind.STRING, "off"), (Kind.JSON, "{}"), (Kind.BOOL, True)],
]
"""Most differ too little from the one before."""
SAMPLES = st.sampled_from(VALUES).flatmap(
    lambda one: st.builds(
        a_sample,
        st.just(one[1]),
        # Most minutes meet others, and few milliseconds do.
        st.integers(0, 8 * MINUTE_MS) | st.sampled_from([MINUTE_MS - 1, MINUTE_MS, 2 * MINUTE_MS]),
        # A series has few kinds: texts have one of their own.
        series=st.just(SERIES[0]) if one[0] == Kind.STRING else st.sampled_from(SERIES[1:]),
        kind=st.just(one[0]),
        quality=st.sampled_from([None, 0, -5, 192]),
        rule=st.sampled_from([Conflict.FIRST] * 6 + [Conflict.LAST, Conflict.RENEW]),
    )
)
RECORDS = st.lists(
    st.tuples(
        st.lists(SAMPLES, min_size=1, max_size=30), st.sampled_from([1, 1, 0]), st.booleans()
    ),
    min_size=1,
    max_size=8,
)
POLICY = a_policy(band=1.0, on_change=True)


def told_of(block: Block) -> list[tuple[Sample, int, int]]:
    """Samples as they were told of, their bits, their counts."""
    return list(zip(block.samples(), block.bits, block.version, strict=True))


class Reference:
    """Counts sample by sample."""

    def __init__(self) -> None:
        self.counts: dict[int, Count | None] = {}

    def count(self, block: Block, verdicts: bytes) -> list[tuple[Sample, int, int]]:
        """What is put out of a judged block."""
        out: list[tuple[Sample, int, int]] = []
        for sample, verdict in zip(block.samples(), map(Verdict, verdicts), strict=True):
            before = self.counts.get(sample.series)
            self.counts[sample.series], told = suppressed.step(before, sample, verdict)
            for row, count in told:
                origin = sample if row is sample or before is None else before.last
                plain = Sample(row.series, row.ts_ms, row.kind, row.value, row.quality)
                out.append((plain, bits_of(row.kind, origin.value), count))
        return out


@settings(max_examples=rounds(80))
@hypothesis.seed(seed())
@given(RECORDS)
def test_the_kernel_agrees_with_the_specification(
    records: list[tuple[list[Sample], int, bool]],
) -> None:
    lane, reference = Lane(whole=True), Reference()
    for offset, (samples, in_order, packed) in enumerate(records):
        if in_order:
            samples = sorted(samples, key=lambda sample: sample.ts_ms)
        shifted = [
            a_sample(
                s.value,
                s.ts_ms + offset * MINUTE_MS,
                series=s.series,
                kind=s.kind,
                quality=s.quality,
                rule=s.rule,
            )
            for s in samples
        ]
        block = a_block(*shifted, policy=POLICY)
        verdicts = lane.judge(block, Position(1, offset)).verdicts
        told = lane.suppressed(block, verdicts)
        assert told_of(told) == reference.count(block, bytes(verdicts))
        assert Block.decode(told.encode()) == told if len(told) else True
        open_ = [count for count in reference.counts.values() if count is not None]
        assert lane.untold == sum(count.told != count.count for count in open_)
        if packed:
            lane = Lane.unpack(lane.pack())


@settings(max_examples=rounds(150))
@hypothesis.seed(seed())
@given(
    st.lists(
        st.tuples(st.integers(1, 20_000), st.sampled_from([Verdict.SUPPRESSED] * 5 + list(Verdict)))
    )
)
def test_counts_are_never_high_low_by_less_than_half_and_right_once_something_follows(
    steps: list[tuple[int, Verdict]],
) -> None:
    state: Count | None = None
    true, seen, rows = defaultdict[int, int](int), defaultdict[int, int](int), 0
    ts_ms, stored = 0, 0
    for later_ms, verdict in steps:
        ts_ms += later_ms
        sample = a_sample(float(ts_ms), ts_ms)
        state, told = suppressed.step(state, sample, verdict)
        stored += verdict in STORED
        true[ts_ms // MINUTE_MS] += verdict == Verdict.SUPPRESSED
        for last, count in told:
            minute = last.ts_ms // MINUTE_MS
            assert seen[minute] < count <= true[minute]
            seen[minute] = count
        rows += len(told)
        for minute, count in true.items():
            assert 2 * seen[minute] > count or count == 0
            ended = verdict == Verdict.SUPPRESSED and minute < ts_ms // MINUTE_MS
            if ended or verdict in STORED:
                assert seen[minute] == count
    assert rows <= sum(count.bit_length() + 1 for count in true.values()) + stored


def count_of(*samples: Sample, lane: Lane | None = None) -> list[tuple[Value, int, int]]:
    """(value, time, count) of what one record has put out."""
    lane = lane or Lane(whole=True)
    block = a_block(*samples, policy=POLICY)
    told = lane.suppressed(block, lane.judge(block, Position(1, 0)).verdicts)
    return [(s.value, s.ts_ms, count) for s, _, count in told_of(told)]


def test_rows_come_at_powers_of_two_and_when_something_else_follows() -> None:
    samples = [a_sample(1.0, 0), *(a_sample(1.0 + n / 100, n) for n in range(1, 8))]
    assert count_of(*samples) == [(1.01, 1, 1), (1.02, 2, 2), (1.04, 4, 4)]
    assert count_of(*samples, a_sample(9.0, 9))[3:] == [(1.07, 7, 7)]
    assert count_of(*samples, a_sample(1.5, MINUTE_MS))[3:] == [
        (1.07, 7, 7),
        (1.5, MINUTE_MS, 1),
    ]
    assert count_of(*samples[:3], a_sample(9.0, 9)) == [(1.01, 1, 1), (1.02, 2, 2)]


def test_a_minute_is_counted_on_after_a_stored_sample() -> None:
    lane = Lane(whole=True)
    assert count_of(a_sample(1.0, 0), a_sample(1.1, 1), a_sample(9.0, 2), lane=lane) == [
        (1.1, 1, 1)
    ]
    assert count_of(a_sample(9.1, 3), lane=lane) == [(9.1, 3, 2)]
    assert count_of(a_sample(9.2, 4), lane=lane) == []
    assert count_of(a_sample(1.0, 5), lane=lane) == [(9.2, 4, 3)]
    assert count_of(a_sample(1.0, 6), lane=lane) == [(1.0, 6, 4)]


def test_a_text_is_told_where_it_is_at_hand() -> None:
    def text(value: str, ts_ms: int) -> Sample:
        return a_sample(value, ts_ms, kind=Kind.STRING)

    lane = Lane(whole=True)
    first = [text("on", ts_ms) for ts_ms in range(4)]
    assert count_of(*first, lane=lane) == [("on", 1, 1), ("on", 2, 2)]
    assert count_of(text("on", MINUTE_MS), lane=lane) == [("on", 3, 3), ("on", MINUTE_MS, 1)]
    assert count_of(*(text("on", MINUTE_MS + n) for n in (1, 2)), lane=lane)[1:] == []
    assert count_of(text("off", MINUTE_MS + 9), lane=lane) == [("", MINUTE_MS + 2, 3)]


def test_what_is_neither_stored_nor_suppressed_puts_nothing_out() -> None:
    lane = Lane(whole=True)
    count_of(*(a_sample(1.0, ts_ms) for ts_ms in range(4)), lane=lane)
    assert count_of(a_sample(1.0, 3), a_sample(2.0, 3), lane=lane) == []
    assert count_of(a_sample(9.0, 2), lane=lane) == [(1.0, 3, 3)]


def test_a_lane_without_suppressed_samples_counts_nothing() -> None:
    lane = Lane(whole=True)
    block = a_block(*(a_sample(float(ts), ts) for ts in range(10)))
    assert len(lane.suppressed(block, lane.judge(block, Position(1, 0)).verdicts)) == 0


def test_a_lane_knows_whether_anything_is_to_be_told() -> None:
    lane = Lane(whole=True)
    for ts_ms, untold in enumerate([0, 0, 0, 1, 0, 1]):
        count_of(a_sample(1.0, ts_ms), lane=lane)
        assert lane.untold == Lane.unpack(lane.pack()).untold == untold
    count_of(a_sample(9.0, 9), lane=lane)
    assert lane.untold == 0
