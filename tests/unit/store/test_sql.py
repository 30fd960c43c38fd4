"""The statements that queries become: nothing of a query's values is in their text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.queries import LatestQuery, RangeQuery, TakenQuery
from schemas.samples import TS_MS_MAX
from services.store import Query
from services.store._sql import SERIES_MAX, statements

IDS = st.integers(0, 2**64 - 1)
TIMES = st.integers(-(2**70), 2**70)
SERIES = st.lists(IDS, max_size=20).map(tuple)
QUERIES = st.one_of(
    st.builds(RangeQuery, st.text(), SERIES, TIMES, TIMES, st.integers(-5, 10**6), st.booleans()),
    st.builds(LatestQuery, st.none() | st.text(), st.none() | SERIES),
    st.lists(st.tuples(IDS, st.integers(0, TS_MS_MAX - 1)), max_size=20).map(
        lambda places: TakenQuery(tuple(s for s, _ in places), tuple(t for _, t in places))
    ),
)
A_RANGE = RangeQuery("acme", (1, 2), 0, 10, 5)


@given(QUERIES)
def test_every_read_is_of_final_rows_and_binds_all_its_values(query: Query) -> None:
    for statement in statements(query):
        assert "FROM samples FINAL" in statement.sql
        assert statement.sql.count("FROM samples") == statement.sql.count("FROM samples FINAL")
        bound = set(re.findall(r"\{(\w+):", statement.sql))
        assert bound == set(statement.parameters)
        # No text and no number of the query's own stands in the statement.
        assert "'" not in statement.sql.replace("'UTC'", "")
        fixed = {"0", "1", "2", "8", "64", "30", "600", "4294967296"}
        assert set(re.findall(r"\d+", statement.sql)) <= fixed


@pytest.mark.parametrize(
    "query",
    [
        RangeQuery("acme", (), 0, 10, 5),
        LatestQuery("acme", ()),
        TakenQuery((), ()),
    ],
)
def test_a_query_of_nothing_asks_nothing(query: Query) -> None:
    assert statements(query) == []


@pytest.mark.parametrize("count", [SERIES_MAX, SERIES_MAX + 1, 3 * SERIES_MAX])
def test_a_statement_names_a_bounded_number_of_series_in_their_order(count: int) -> None:
    ids = tuple(reversed(range(count)))
    for query in (
        RangeQuery("acme", ids, 0, 10, 5),
        LatestQuery(None, ids),
        TakenQuery(ids, ids),
    ):
        named = [statement.parameters["series"] for statement in statements(query)]
        assert [series for part in named for series in part] == list(range(count))
        assert max(map(len, named)) <= SERIES_MAX


def test_the_longest_list_of_ids_fits_into_a_field_of_a_form() -> None:
    [statement] = statements(TakenQuery((2**64 - 1,) * 1, (TS_MS_MAX - 1,) * 1))
    longest = max(len(str(value)) for value in statement.parameters.values())
    assert longest * SERIES_MAX <= 128 * 1024


def test_times_outside_of_what_can_be_stored_are_bound_as_its_edges() -> None:
    [statement] = statements(RangeQuery("acme", (1,), -(2**80), 2**80, 5))
    assert statement.parameters["start_ms"] == 0
    assert statement.parameters["end_ms"] == TS_MS_MAX


def test_the_same_series_named_twice_is_asked_once() -> None:
    [statement] = statements(RangeQuery("acme", (7, 1, 7), 0, 10, 5))
    assert statement.parameters["series"] == [1, 7]


def test_a_range_of_one_series_may_stop_at_its_limit() -> None:
    [one] = statements(RangeQuery("acme", (7,), 0, 10, 5))
    [two] = statements(A_RANGE)
    assert "LIMIT {limit:UInt64} SETTINGS" in one.sql
    assert "LIMIT {limit:UInt64} BY series SETTINGS" in two.sql


def test_nothing_but_the_set_is_asked_of_the_rows_that_it_passes_over() -> None:
    [statement] = statements(TakenQuery((1, 2), (10, 20)))
    before, where = statement.sql.partition(" WHERE ts BETWEEN ")[::2]
    assert re.search(r"PREWHERE \(series, ts\) IN \(SELECT [^\n]* AS place\)\)$", before)
    assert "first_ms" in where
    assert "last_ms" in where
