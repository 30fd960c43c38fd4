"""A reader sees every accepted sample once, with its highest version, wherever it lies just now."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.queries import RangeQuery
from schemas.samples import Kind
from services.errors import Unavailable
from services.query._tail import Tail, merge
from tests.support.stores import MemoryStore, Row, a_block, rows_of, value_of

Op = tuple[Any, ...]
LANES = 2
LAST = 1 << 63
SERIES = (1, 2, (1 << 48) | 1, (3 << 48) | 7)
EVER = RangeQuery("acme", SERIES, 0, 100, 1_000)


class Plant:
    """What happens between log and reader: blocks are accepted, stored a prefix at a time, and
    marked some time after they are stored.
    """

    def __init__(self, rows_max: int = 1_000_000) -> None:
        self.tail = Tail(LANES, rows_max)
        self.store = MemoryStore()
        self.accepted: dict[tuple[int, int], int] = {}
        self._log: dict[int, list[Block]] = defaultdict(list)
        self._stored: dict[int, int] = defaultdict(int)

    def accept(self, rows: list[Row]) -> None:
        """A block of each lane that the rows belong to."""
        for lane, block in a_block(rows).by_lane(LANES).items() if rows else ():
            self.tail.add(lane, len(self._log[lane]), block)
            self._log[lane].append(block)
        for series, ts_ms, version in rows:
            place = (series, ts_ms)
            self.accepted[place] = max(self.accepted.get(place, 0), version)

    def insert(self, lane: int, records: int) -> None:
        """The sink's insert: durable, and not yet known to anybody."""
        first = self._stored[lane]
        for block in self._log[lane][first : first + records]:
            self.store.put(block)
            self._stored[lane] += 1

    def mark(self, lane: int) -> None:
        """The sink says how far it is."""
        self.tail.stored(lane, self._stored[lane])

    def do(self, ops: list[Op]) -> None:
        """Let these happen."""
        for name, *arguments in ops:
            getattr(self, name)(*arguments)


def expected(accepted: dict[tuple[int, int], int], query: RangeQuery) -> list[Row]:
    """The reference answer."""
    found = sorted(
        (series, ts_ms, version)
        for (series, ts_ms), version in accepted.items()
        if series in query.series and query.start_ms <= ts_ms < query.end_ms
    )
    answer: list[Row] = []
    for _, rows in groupby(found, key=lambda row: row[0]):
        answer += sorted(rows, reverse=query.descending)[: query.limit]
    return answer


row = st.tuples(
    st.sampled_from(SERIES),
    st.integers(0, 9),
    st.one_of(st.integers(1, 30), st.integers(LAST, LAST + 30)),
)
insert = st.tuples(st.just("insert"), st.integers(0, LANES - 1), st.integers(1, 3))
mark = st.tuples(st.just("mark"), st.integers(0, LANES - 1))
accept = st.tuples(st.just("accept"), st.lists(row, max_size=8))
ops = st.lists(st.one_of(accept, insert, mark), max_size=12)
queries = st.builds(
    RangeQuery,
    st.just("acme"),
    st.lists(st.sampled_from(SERIES), min_size=1, max_size=4, unique=True).map(tuple),
    st.integers(0, 5),
    st.integers(4, 10),
    st.integers(1, 6),
    st.booleans(),
)


@settings(max_examples=400)
@given(ops, ops, ops, queries)
def test_no_interleaving_hides_or_doubles_a_sample(
    before: list[Op], during: list[Op], after: list[Op], query: RangeQuery
) -> None:
    plant = Plant()
    plant.do(before)
    known = dict(plant.accepted)
    tail = plant.tail.select(query)
    plant.do(during)
    stored = plant.store.select(query)
    plant.do(after)
    answer = rows_of(merge(query, stored, tail))
    if expected(plant.accepted, query) == expected(known, query):
        assert answer == expected(known, query)
        return
    # What was accepted while the reader waited may or may not be in the answer.
    places = [(series, ts_ms) for series, ts_ms, _ in answer]
    assert len(set(places)) == len(places)
    assert all(known.get(p, 0) <= v <= plant.accepted[p] for p, v in zip_rows(answer))
    assert places == [(s, t) for s, t, _ in expected(dict(zip_rows(answer)), query)]


@settings(max_examples=200)
@given(ops, ops, ops)
def test_whatever_was_accepted_before_is_never_missed(
    before: list[Op], during: list[Op], after: list[Op]
) -> None:
    plant = Plant()
    plant.do(before)
    known = dict(plant.accepted)
    tail = plant.tail.select(EVER)
    plant.do(during)
    answer = dict(zip_rows(rows_of(merge(EVER, plant.store.select(EVER), tail))))
    assert all(answer[place] >= version for place, version in known.items())


def zip_rows(rows: list[Row]) -> list[tuple[tuple[int, int], int]]:
    """Rows as (place, version) pairs."""
    return [((series, ts_ms), version) for series, ts_ms, version in rows]


def test_taking_the_tail_after_the_store_would_miss_a_sample() -> None:
    """The control of the rule that the tail goes first."""
    plant = Plant()
    plant.accept([(1, 5, 9)])
    stored = plant.store.select(EVER)
    plant.insert(0, 1)
    plant.mark(0)
    assert rows_of(merge(EVER, stored, plant.tail.select(EVER))) == []


def test_values_and_texts_come_with_their_rows() -> None:
    tail = Tail(LANES, 100)
    store = MemoryStore()
    store.put(a_block([(1, 1, 10), (1, 2, 20), (1, 4, 40)], kind=Kind.STRING))
    tail.add(0, 0, a_block([(1, 3, 30), (1, 2, 21), (1, 9, 90)], kind=Kind.STRING))
    answer = merge(EVER, store.select(EVER), tail.select(EVER))
    assert rows_of(answer) == [(1, 1, 10), (1, 2, 21), (1, 3, 30), (1, 4, 40), (1, 9, 90)]
    assert [answer.value(row) for row in range(5)] == [
        value_of(version, Kind.STRING) for version in answer.version
    ]
    assert answer.text_bytes == 10


def test_many_series_are_found_as_one_is() -> None:
    tail = Tail(1, 100_000)
    ids = [(n << 48) | n * 3 for n in range(1, 200)]
    tail.add(0, 0, a_block([(series, ts, ts + 1) for ts in range(3) for series in ids]))
    query = RangeQuery("acme", tuple(ids[:50]), 1, 3, 10)
    assert sorted(rows_of(tail.select(query))) == sorted(
        (series, ts, ts + 1) for series in ids[:50] for ts in (1, 2)
    )
    for series in ids[:3]:
        one = RangeQuery("acme", (series,), 0, 2, 10)
        assert rows_of(tail.select(one)) == [(series, 0, 1), (series, 1, 2)]


def test_bytes_that_match_across_two_rows_are_no_match() -> None:
    tail = Tail(1, 100)
    low, high = 0x0102030405060708, 0x0506070801020304
    tail.add(0, 0, a_block([(low, 1, 1), (low, 2, 2)]))
    assert not len(tail.select(RangeQuery("acme", (high,), 0, 10, 10)))


def test_another_tenants_rows_are_not_there() -> None:
    tail = Tail(1, 100)
    tail.add(0, 0, a_block([(1, 5, 1)], tenant="other"))
    assert not len(tail.select(EVER))


def test_a_full_tail_answers_unavailable_until_the_store_has_what_was_dropped() -> None:
    plant = Plant(rows_max=4)
    other = (1 << 48) | 1
    plant.accept([(1, ts, 1) for ts in range(3)])
    plant.accept([(other, 0, 1)])
    plant.accept([(1, 7, 1)])
    assert plant.tail.rows == 2
    with pytest.raises(Unavailable):
        plant.tail.select(EVER)
    only = RangeQuery("acme", (other,), 0, 100, 1_000)
    assert rows_of(plant.tail.select(only)) == [(other, 0, 1)]
    plant.insert(0, 1)
    with pytest.raises(Unavailable):
        plant.tail.select(EVER)
    plant.mark(0)
    answer = merge(EVER, plant.store.select(EVER), plant.tail.select(EVER))
    assert rows_of(answer) == expected(plant.accepted, EVER)


def test_a_block_that_is_stored_when_it_is_read_is_not_held() -> None:
    tail = Tail(1, 100)
    tail.stored(0, 5)
    tail.add(0, 4, a_block([(1, 1, 1)]))
    assert tail.rows == 0
    tail.add(0, 5, a_block([(1, 2, 1)]))
    assert tail.rows == 1
