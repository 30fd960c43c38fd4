"""A change smaller than the band is suppressed; one of exactly the band is a change."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.points import PointPolicy
from schemas.samples import Kind, Sample, Value, Verdict
from services.domain import deadband
from services.domain.memory import Lane, Position
from tests.support.builders import NOW_MS, a_block, a_policy, a_sample


def verdict_on(
    base: Value, value: Value, policy: PointPolicy, *, kind: Kind = Kind.DOUBLE, later_ms: int = 1
) -> Verdict:
    """What becomes of `value` after `base` was kept; the column kernel must say the same."""
    first = a_sample(base, NOW_MS, kind=kind)
    second = a_sample(value, NOW_MS + later_ms, kind=kind)
    _, verdict = deadband.step(deadband.base_of(first), second, policy)
    block = a_block(first, second, policy=policy)
    assert Lane(whole=True).judge(block, Position(1, 0)).verdicts[1] == verdict
    return verdict


@pytest.mark.parametrize(
    ("base", "value"),
    [(0.2, 0.3), (0.3, 0.2), (1.1, 1.2), (20.1, 20.2), (-0.1, 0.0), (4e3, 4000.1)],
)
def test_a_change_of_exactly_the_band_counts(base: float, value: float) -> None:
    assert verdict_on(base, value, a_policy(band=0.1)) == Verdict.KEPT


@given(st.integers(-(10**7), 10**7), st.integers(-200, 200), st.integers(1, 100), st.integers(0, 4))
def test_decimals_behave_as_decimals_do(base: int, change: int, band: int, digits: int) -> None:
    def number(units: int) -> float:
        return float(Decimal(units).scaleb(-digits))

    verdict = verdict_on(number(base), number(base + change), a_policy(band=number(band)))
    assert (verdict == Verdict.SUPPRESSED) == (abs(change) < band)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(1, 1000))
def test_whole_numbers_are_subtracted_exactly(base: int, value: int, band: int) -> None:
    verdict = verdict_on(base, value, a_policy(band=float(band)), kind=Kind.LONG)
    assert (verdict == Verdict.SUPPRESSED) == (abs(value - base) < band)


@given(st.integers(-(2**63), 2**63 - 2))
def test_a_neighbouring_whole_number_counts_however_large(base: int) -> None:
    assert verdict_on(base, base + 1, a_policy(band=1.0), kind=Kind.LONG) == Verdict.KEPT


@pytest.mark.parametrize(("value", "verdict"), [(109.9, Verdict.SUPPRESSED), (110.0, Verdict.KEPT)])
def test_a_percentage_is_of_the_base(value: float, verdict: Verdict) -> None:
    assert verdict_on(100.0, value, a_policy(band_percent=10.0)) == verdict


def test_of_two_bands_the_wider_decides() -> None:
    policy = a_policy(band=1.0, band_percent=10.0)
    assert verdict_on(100.0, 105.0, policy) == Verdict.SUPPRESSED
    assert verdict_on(1.0, 1.5, policy) == Verdict.SUPPRESSED


def test_an_equal_value_is_no_change_even_where_the_band_is_below_its_resolution() -> None:
    assert verdict_on(1e20, 1e20, a_policy(band=0.1)) == Verdict.SUPPRESSED
    assert verdict_on(1e20, math.nextafter(1e20, 0), a_policy(band=0.1)) == Verdict.KEPT


def test_without_a_band_nothing_is_suppressed() -> None:
    assert verdict_on(1.0, 1.0, a_policy()) == Verdict.KEPT
    assert verdict_on(0.0, 0.0, a_policy(band_percent=50.0)) == Verdict.KEPT


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_kept(value: float) -> None:
    policy = a_policy(band=1e9, band_percent=50.0)
    assert verdict_on(1.0, value, policy) == Verdict.KEPT
    assert verdict_on(value, 1.0, policy) == Verdict.KEPT


@pytest.mark.parametrize(("later_ms", "verdict"), [(999, Verdict.SUPPRESSED), (1000, Verdict.KEPT)])
def test_the_heartbeat_keeps_a_silent_series_alive(later_ms: int, verdict: Verdict) -> None:
    policy = a_policy(band=1.0, heartbeat_ms=1000)
    assert verdict_on(1.0, 1.0, policy, later_ms=later_ms) == verdict


@pytest.mark.parametrize("kind", [Kind.BOOL, Kind.STRING, Kind.JSON, Kind.DATE])
def test_only_numbers_have_a_band(kind: Kind) -> None:
    value: Value = "x" if kind in (Kind.STRING, Kind.JSON) else 1
    assert verdict_on(value, value, a_policy(band=5.0), kind=kind) == Verdict.KEPT


def test_another_type_than_the_base_is_kept_and_is_the_base() -> None:
    base = deadband.base_of(a_sample(1.0))
    sample = a_sample(1, NOW_MS + 1, kind=Kind.LONG)
    assert deadband.step(base, sample, a_policy(band=5.0)) == (
        deadband.base_of(sample),
        Verdict.KEPT,
    )


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40), st.integers(1, 20))
def test_the_kept_values_never_stray_a_band_from_the_given_ones(walk: list[int], band: int) -> None:
    base, policy = None, a_policy(band=float(band))
    for at, value in enumerate(walk):
        sample: Sample = a_sample(float(value), NOW_MS + at)
        base, _ = deadband.step(base, sample, policy)
        assert base is not None
        assert abs(float(base.value) - value) < band
