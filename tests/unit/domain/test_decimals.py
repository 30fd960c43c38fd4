"""The deadband compares decimals exactly, for every double: the specification against fractions of
what the numbers are written as, the kernel against the specification.
"""

from __future__ import annotations

import math
import sys
from array import array
from fractions import Fraction

import hypothesis
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.blocks import Block, bits_of
from schemas.envelope import Position
from schemas.points import PointPolicy
from schemas.samples import Kind, Value, Verdict
from services.domain import deadband
from services.domain.memory import Lane
from tests.support.builders import a_block, a_policy, a_sample
from tests.support.rounds import rounds, seed

SUPPRESSED, KEPT = Verdict.SUPPRESSED, Verdict.KEPT
MAX, MIN_NORMAL, MIN = sys.float_info.max, sys.float_info.min, 5e-324


def oracle(base: Value, value: Value, policy: PointPolicy) -> Verdict:
    """What the text says, by fractions."""
    for number in (base, value):
        if isinstance(number, float) and not math.isfinite(number):
            return KEPT
    origin, change = Fraction(repr(base)), abs(Fraction(repr(value)) - Fraction(repr(base)))
    limit = Fraction(repr(policy.band))
    limit = max(limit, Fraction(repr(policy.band_percent)) * abs(origin) / 100)
    return SUPPRESSED if change < limit else KEPT


def specification(base: Value, value: Value, policy: PointPolicy, kind: Kind) -> Verdict:
    """The verdict of `deadband` on `value` after `base`."""
    first, second = a_sample(base, 1, kind=kind), a_sample(value, 2, kind=kind)
    return deadband.step(deadband.base_of(first), second, policy)[1]


def kernel(base: Value, value: Value, policy: PointPolicy, kind: Kind) -> tuple[Verdict, int]:
    """The verdict of a lane, and how many rows it left to the specification."""
    lane = Lane(whole=True)
    block = a_block(a_sample(base, 1, kind=kind), a_sample(value, 2, kind=kind), policy=policy)
    verdict = Verdict(lane.judge(block, Position(1, 0)).verdicts[1])
    return verdict, lane.decided


def check(base: Value, value: Value, policy: PointPolicy, kind: Kind = Kind.DOUBLE) -> None:
    """All three agree."""
    want = oracle(base, value, policy)
    assert specification(base, value, policy, kind) == want
    assert kernel(base, value, policy, kind)[0] == want


def nudged(number: float, ulps: int) -> float:
    """So many doubles further up or down."""
    for _ in range(abs(ulps)):
        number = math.nextafter(number, math.copysign(math.inf, ulps))
    return number


ULPS = st.integers(-8, 8)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.builds(
    lambda units, digits: float(f"{units}e-{digits}"),
    st.integers(-(10**9), 10**9),
    st.integers(0, 12),
)
"""Decimals of few digits, as meters write them."""
LONG_ONES = st.builds(nudged, PLAIN, ULPS)
"""17-digit doubles beside them."""
EDGES = st.builds(
    lambda number, ulps, sign: sign * nudged(number, ulps),
    st.sampled_from([MAX, MIN, MIN_NORMAL, 2.0**53, 1e15, 1e22, 1e23, 2.0**60, 1e-290, 1e290, 1.0]),
    st.integers(-3, 3),
    st.sampled_from([1.0, -1.0]),
).filter(math.isfinite)
NUMBERS = PLAIN | LONG_ONES | FINITE | EDGES
WIDTHS = st.sampled_from([0.1, 0.01, 1e-10, 0.3, 1.0, 5e-324, 1e308]) | NUMBERS.map(abs)


@settings(max_examples=rounds(400))
@hypothesis.seed(seed())
@given(NUMBERS, WIDTHS, ULPS, st.booleans())
def test_at_the_border_of_a_band(base: float, band: float, ulps: int, above: bool) -> None:
    value = nudged(base + band if above else base - band, ulps)
    assume(math.isfinite(value))
    check(base, value, a_policy(band=band))
    check(value, base, a_policy(band=band))


@settings(max_examples=rounds(400))
@hypothesis.seed(seed())
@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=2), st.integers(-1, 1))
def test_at_the_border_with_17_digits_each(numbers: list[float], ulps: int) -> None:
    """Here whole numbers of 16 digits and more would mislead."""
    base, band = numbers
    check(base, nudged(base + band, ulps), a_policy(band=band))
    check(base, nudged(base + base * (band / 1e4), ulps), a_policy(band_percent=band / 100))


@settings(max_examples=rounds(400))
@hypothesis.seed(seed())
@given(NUMBERS, WIDTHS, ULPS, st.booleans(), st.sampled_from([0.0, 0.1]))
def test_at_the_border_of_a_percentage(
    base: float, percent: float, ulps: int, above: bool, band: float
) -> None:
    share = base * (percent / 100)
    value = nudged(base + share if above else base - share, ulps)
    assume(math.isfinite(value))
    check(base, value, a_policy(band=band, band_percent=percent))


@settings(max_examples=rounds(300))
@hypothesis.seed(seed())
@given(NUMBERS, NUMBERS, WIDTHS | st.just(0.0), WIDTHS | st.just(0.0))
def test_of_any_numbers(base: float, value: float, band: float, percent: float) -> None:
    check(base, value, a_policy(band=band, band_percent=percent))


@settings(max_examples=rounds(300))
@hypothesis.seed(seed())
@given(
    st.integers(-(2**63), 2**63 - 1) | st.integers(-1000, 1000),
    st.integers(-3, 3),
    WIDTHS,
    st.sampled_from([0.0, 0.1, 1.0, 33.3]),
)
def test_of_whole_numbers(base: int, beside: int, band: float, percent: float) -> None:
    share = int(min(max(Fraction(repr(band)), abs(base) * Fraction(repr(percent)) / 100), 2**64))
    for value in (base + share + beside, base - share + beside):
        if -(2**63) <= value < 2**63:
            check(base, value, a_policy(band=band, band_percent=percent), Kind.LONG)


@settings(max_examples=rounds(400))
@hypothesis.seed(seed())
@given(st.integers(-(10**6), 10**6), st.integers(-150, 150), st.integers(1, 100), st.integers(0, 9))
def test_numbers_of_few_digits_never_go_back_to_the_specification(
    units: int, change: int, band: int, digits: int
) -> None:
    base, value, width = (float(f"{n}e-{digits}") for n in (units, units + change, band))
    verdict, decided = kernel(base, value, a_policy(band=width), Kind.DOUBLE)
    assert (verdict, decided) == (SUPPRESSED if abs(change) < band else KEPT, 0)
    percent = a_policy(band_percent=float(band))
    verdict, decided = kernel(base, value, percent, Kind.DOUBLE)
    assert (verdict, decided) == (oracle(base, value, percent), 0)


@pytest.mark.parametrize(
    ("base", "value", "verdict"),
    [
        (0.2, 0.3, KEPT),
        (0.2, 0.29999999999999993, SUPPRESSED),
        (0.2, 0.30000000000000004, KEPT),
        (23.5, 23.6, KEPT),
        (23.5, 23.599999999999998, SUPPRESSED),
        (1e16, 1e16, SUPPRESSED),
        (0.0, -0.0, SUPPRESSED),
    ],
)
def test_examples(base: float, value: float, verdict: Verdict) -> None:
    assert oracle(base, value, a_policy(band=0.1)) == verdict
    check(base, value, a_policy(band=0.1))


@pytest.mark.parametrize(("beside", "verdict"), [(-1, KEPT), (0, KEPT), (1, SUPPRESSED)])
def test_a_percentage_of_a_whole_number_that_no_double_holds(beside: int, verdict: Verdict) -> None:
    base, policy = 10**6 * 2**40 + beside, a_policy(band_percent=0.0001)
    assert oracle(base, base + 2**40, policy) == verdict
    check(base, base + 2**40, policy, Kind.LONG)


def test_what_doubles_and_fifteen_digits_cannot_tell_goes_to_the_specification_alone() -> None:
    """Two rows of a thousand lie at the border with 17 digits; the rows around them are judged by
    the kernel, those behind the border against the base that the specification has found.
    """
    policy, lane = a_policy(band=0.1), Lane(whole=True)
    values = [20.0 + (row % 7) / 100 for row in range(1000)]
    values[400:402] = [0.2, 0.30000000000000004]
    values[700:702] = [0.2, 0.29999999999999993]
    block = a_block(*(a_sample(value, at) for at, value in enumerate(values)), policy=policy)
    verdicts = lane.judge(block, Position(1, 0)).verdicts
    assert lane.decided == 2
    assert list(verdicts[400:403]) == [KEPT, KEPT, KEPT]
    assert list(verdicts[700:703]) == [KEPT, SUPPRESSED, KEPT]
    base, want = None, []
    for at, value in enumerate(values):
        base, verdict = deadband.step(base, a_sample(value, at), policy)
        want.append(verdict)
    assert list(verdicts) == want


def test_the_numbers_of_a_noisy_sensor_hardly_ever_need_it() -> None:
    lane, block = Lane(whole=True), Block([a_policy(band=0.25)])
    values = [math.sin(row) * row**0.3 for row in range(4096)]
    block.series = array("Q", bytes(8 * 4096))
    block.ts_ms = array("q", range(4096))
    block.bits = array("q", [bits_of(Kind.DOUBLE, value) for value in values])
    block.kind, block.rule = array("B", bytes(4096)), array("B", bytes(4096))
    block.quality, block.policy = array("i", bytes(4 * 4096)), array("H", bytes(2 * 4096))
    counts = lane.judge(block, Position(1, 0)).counts
    assert counts[KEPT] and counts[SUPPRESSED]
    assert lane.decided == 0


@pytest.mark.parametrize("band", [math.inf, MAX])
def test_a_band_that_nothing_leaves(band: float) -> None:
    first, second = a_sample(-MAX / 4, 1), a_sample(MAX / 4, 2)
    block = a_block(first, second, policy=a_policy(band=band))
    assert Lane(whole=True).judge(block, Position(1, 0)).verdicts[1] == SUPPRESSED


@pytest.mark.parametrize("width", [math.nan, -1.0])
def test_a_band_that_is_none(width: float) -> None:
    for policy in (a_policy(band=width), a_policy(band_percent=width)):
        assert specification(1.0, 1.0, policy, Kind.DOUBLE) == KEPT
        assert kernel(1.0, 1.0, policy, Kind.DOUBLE) == (KEPT, 0)
