"""The newest sample of every series is the maximum of (time, version), whatever came when."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.points import PointPolicy
from schemas.samples import NO_QUALITY, Kind
from services.domain.newest import newest_rows
from services.query._latest import Latest
from tests.support.stores import Row, a_block, rows_of, value_of

LAST = 1 << 63
SERIES = (1, 2, (7 << 48) | 1)

rows = st.tuples(
    st.sampled_from(SERIES),
    st.integers(0, 4),
    st.one_of(st.integers(1, 40), st.integers(LAST, LAST + 40)),
)
blocks = st.lists(st.lists(rows, max_size=12), max_size=6)


def newest(accepted: list[list[Row]]) -> dict[int, tuple[int, int]]:
    """The reference: series to its highest (time, version)."""
    found: dict[int, tuple[int, int]] = {}
    for series, ts_ms, version in (row for block in accepted for row in block):
        found[series] = max(found.get(series, (-1, 0)), (ts_ms, version))
    return found


@given(blocks)
def test_latest_is_the_maximum_of_time_and_version(accepted: list[list[Row]]) -> None:
    latest = Latest()
    for block in accepted:
        latest.apply(a_block(block))
    answer = latest.select("acme", SERIES)
    assert {s: (ts, v) for s, ts, v in rows_of(answer)} == newest(accepted)
    assert [answer.value(row) for row in range(len(answer))] == [
        value_of(version) for version in answer.version
    ]
    assert len(latest) == len(newest(accepted))


@given(st.lists(rows, min_size=1, max_size=30))
def test_the_newest_row_of_a_block_does_not_depend_on_its_order(block: list[Row]) -> None:
    found = newest_rows(a_block(block))
    assert {block[row][0]: block[row][1:] for row in found} == newest([block])
    assert [block[row][0] for row in found] == list(dict.fromkeys(row[0] for row in block))


@pytest.mark.parametrize("versions", [(9, 5), (5, 9), (5, 9, 7), (LAST + 1, LAST + 2), (3, LAST)])
def test_of_one_millisecond_the_highest_version_counts(versions: tuple[int, ...]) -> None:
    block = [(1, 4, version) for version in versions]
    assert [block[row] for row in newest_rows(a_block(block))] == [(1, 4, max(versions))]


@given(blocks, st.randoms(use_true_random=False))
def test_repetition_and_order_of_blocks_change_nothing(
    accepted: list[list[Row]], chance: Random
) -> None:
    again = [*accepted, *accepted]
    chance.shuffle(again)
    once, twice = Latest(), Latest()
    for block in accepted:
        once.apply(a_block(block))
    for block in again:
        twice.apply(a_block(block))
    assert rows_of(once.select(None, SERIES)) == rows_of(twice.select(None, SERIES))


def test_every_kind_comes_back_with_its_value_and_quality() -> None:
    latest = Latest()
    for series, kind in enumerate(Kind):
        latest.apply(a_block([(series, 5, 77)], kind=kind))
    quality = Block()
    policy = quality.policy_index(PointPolicy("acme"))
    quality.add(100, 1, Kind.STRING, "", policy=policy, quality=-3)
    quality.version.append(9)
    latest.apply(quality)
    answer = latest.select("acme", [100, *range(len(Kind))])
    assert [Kind(kind) for kind in answer.kind] == [Kind.STRING, *Kind]
    assert [answer.value(row) for row in range(len(answer))] == [
        "",
        *(value_of(77, kind) for kind in Kind),
    ]
    assert list(answer.quality) == [-3] + [NO_QUALITY] * len(Kind)


def test_another_tenants_series_is_not_there() -> None:
    latest = Latest()
    latest.apply(a_block([(1, 5, 1)], tenant="acme"))
    mixed = a_block([(2, 5, 1)], tenant="other")
    mixed.extend(a_block([(3, 5, 1)], tenant="acme"))
    latest.apply(mixed)
    assert list(latest.select("acme", [3, 2, 1]).series) == [3, 1]
    assert list(latest.select("other", None).series) == [2]
    answer = latest.select(None, None)
    tenants = [answer.policies[index].tenant for index in answer.policy]
    assert dict(zip(answer.series, tenants, strict=True)) == {1: "acme", 2: "other", 3: "acme"}


def test_a_series_asked_for_twice_has_one_row() -> None:
    latest = Latest()
    latest.apply(a_block([(1, 5, 1)]))
    assert list(latest.select("acme", [1, 1, 9]).series) == [1]
