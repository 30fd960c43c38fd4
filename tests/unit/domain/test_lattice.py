"""Versions: highest wins, in any order, however often, over all lives of the log."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import hypothesis
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from schemas.envelope import Position
from schemas.queries import LatestQuery, TakenQuery
from schemas.samples import Conflict, Sample
from services.domain import memory
from services.domain.lattice import Place, is_earlier, place_of, version_of
from tests.support.builders import a_block, a_sample
from tests.support.reference import ModelStore, sequential
from tests.support.rounds import rounds, seed

Record = Sequence[Sample]

PLACES = st.builds(
    Place,
    st.integers(0, 2**8 - 1),
    st.integers(0, 2**43 - 1),
    st.integers(0, 2**12 - 1),
    st.sampled_from(Conflict),
)
SAMPLES = st.builds(
    a_sample,
    st.integers(0, 5).map(float),
    st.integers(0, 4),
    series=st.integers(1, 2),
    rule=st.sampled_from(Conflict),
)
RECORDS = st.lists(st.lists(SAMPLES, min_size=1, max_size=4), min_size=1, max_size=10)


@given(PLACES)
def test_a_version_is_inverted(place: Place) -> None:
    version = version_of(place)
    assert 0 <= version < 2**64
    assert place_of(version) == place._replace(rule=class_of(place))


def class_of(place: Place) -> Conflict:
    """What the store knows of a rule: a renewed row is an overwriting one."""
    return Conflict.FIRST if place.rule == Conflict.FIRST else Conflict.LAST


@given(PLACES, PLACES)
def test_versions_order_places_by_rule(one: Place, other: Place) -> None:
    first, last = version_of(one), version_of(other)
    if class_of(one) != class_of(other):
        assert (first > last) == (class_of(one) == Conflict.LAST)
    elif class_of(one) == Conflict.LAST:
        assert (first > last) == (one[:3] > other[:3])
    else:
        assert (first > last) == (one < other)


@given(PLACES, PLACES)
def test_an_earlier_row_stands_in_an_earlier_record(place: Place, judged: Place) -> None:
    position = Position(judged.epoch, judged.offset)
    assert is_earlier(version_of(place), position) == (place[:2] < judged[:2])


def test_a_place_that_does_not_fit_is_an_error() -> None:
    for place in (Place(256, 0, 0, 0), Place(0, 2**43, 0, 0), Place(0, 0, 4096, 0)):
        with pytest.raises(AssertionError):
            version_of(place)


def judged(
    records: Sequence[Record],
    *,
    lives: Sequence[int],
    losses: Sequence[int],
    rows_max: int,
    number: Callable[[int], int],
) -> ModelStore:
    """The store after a lane has judged the records. At the records of `lives` the log is made anew
    (offsets start again, `number` says the epoch); at those of `losses` the lane's memory is lost
    and the log is read again from the beginning of its life.
    """
    store, epoch, begin = ModelStore(), 1, 0
    lane = memory.Lane(whole=True, rows_max=rows_max)

    def apply(at: int) -> None:
        position, block = Position(number(epoch), at - begin), a_block(*records[at])
        unknown, times = lane.questions(block)
        if unknown:
            lane.learn(store.answer(LatestQuery(series=tuple(unknown))), position, unknown)
        if times:
            lane.learn(store.answer(TakenQuery(*zip(*times, strict=True))), position)
        store.insert(lane.judge(block, position).stored(block))
        lane.forget(position.offset)

    for at in range(len(records)):
        if at in lives:
            epoch, begin = epoch + 1, at
            lane = memory.Lane(whole=False, rows_max=rows_max)
        if at in losses:
            lane = memory.Lane(whole=epoch == 1, rows_max=rows_max)
            for again in range(begin, at):
                apply(again)
        apply(at)
    return store


HISTORIES = given(
    records=RECORDS,
    lives=st.sets(st.integers(1, 9), max_size=2),
    losses=st.sets(st.integers(1, 9), max_size=2),
    rows_max=st.integers(0, 6),
)


@settings(max_examples=rounds(200))
@hypothesis.seed(seed())
@HISTORIES
def test_the_highest_version_is_the_sequential_result(
    records: list[Record], lives: set[int], losses: set[int], rows_max: int
) -> None:
    store = judged(
        records, lives=sorted(lives), losses=sorted(losses), rows_max=rows_max, number=int
    )
    assert store.merged() == sequential(sample for record in records for sample in record)


def test_without_an_epoch_a_log_made_anew_gives_wrong_results() -> None:
    """The control: with one number for all lives, the same search must find a counterexample."""

    def property_without_epoch() -> None:
        # The first one will do: to make it small takes longer than to find it.
        @settings(
            max_examples=2000,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
        )
        @HISTORIES
        def check(records: list[Record], lives: set[int], losses: set[int], rows_max: int) -> None:
            store = judged(
                records,
                lives=sorted(lives),
                losses=sorted(losses),
                rows_max=rows_max,
                number=lambda _: 1,
            )
            assert store.merged() == sequential(s for record in records for s in record)

        check()

    with pytest.raises(AssertionError):
        property_without_epoch()


@settings(max_examples=rounds(200))
@given(RECORDS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(records: list[Record], chance: random.Random) -> None:
    lane, blocks = memory.Lane(whole=True), []
    for offset, record in enumerate(records):
        block = a_block(*record)
        blocks.append(lane.judge(block, Position(1, offset)).stored(block))
    rows = [block.slice(row, row + 1) for block in blocks for row in range(len(block))]
    rows += chance.choices(rows, k=len(rows))
    chance.shuffle(rows)
    store = ModelStore()
    for row in rows:
        store.insert(row)
    assert store.merged() == sequential(sample for record in records for sample in record)
