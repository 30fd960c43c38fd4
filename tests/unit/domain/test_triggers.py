"""Rules as a fold: against a naive oracle that looks at the whole history each time, and the
properties that a person would name.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.points import WHENS, PointPolicy, Rule
from schemas.samples import Kind, Sample, Value
from services.domain import triggers
from services.domain.triggers import Finding, Series

KINDS = {float: Kind.DOUBLE, int: Kind.LONG, bool: Kind.BOOL, str: Kind.STRING}
ORDERED = (">", ">=", "<", "<=")


def a_rule(
    when: str = ">",
    bound: Value = 10.0,
    *,
    id: str = "r",
    hysteresis: float = 0.0,
    delay_ms: int = 0,
    on_clear: bool = True,
) -> Rule:
    """Above 10, told at once, and its end too."""
    return Rule(id, when, bound, hysteresis, delay_ms, on_clear)


def a_sample(value: Value, ts_ms: int) -> Sample:
    """A sample of the kind that the value has."""
    return Sample(1, ts_ms, KINDS[type(value)], value)


def run(rule: Rule, steps: list[Any]) -> list[Finding]:
    """What is found over steps: (value, ts_ms), (value, ts_ms, version), or a tick's moment."""
    state: Series | None = None
    policy, found = PointPolicy("acme", 1, rules=(rule,)), []
    for number, one in enumerate(steps):
        if isinstance(one, int):
            if state is not None:
                state, new = triggers.tick(state, one)
                found += new
            continue
        value, ts_ms, *version = one
        state, new = triggers.step(state, a_sample(value, ts_ms), *(version or [number]), policy)
        found += new
    return found


def told(rule: Rule, *steps: Any) -> list[tuple[bool, int, int, Value]]:
    """The same, without the rule's name."""
    return [(f.raised, f.ts_ms, f.at_ms, f.value) for f in run(rule, list(steps))]


# -- single cases


def test_a_condition_is_told_when_it_begins_and_when_it_ends() -> None:
    rule = a_rule()
    assert told(rule, (9.0, 1), (11.0, 2), (12.0, 3), (10.0, 4), (11.0, 5)) == [
        (True, 2, 2, 11.0),
        (False, 4, 4, 10.0),
        (True, 5, 5, 11.0),
    ]
    quiet = replace(rule, on_clear=False)
    assert told(quiet, (11.0, 2), (10.0, 4), (11.0, 5)) == [(True, 2, 2, 11.0), (True, 5, 5, 11.0)]


@pytest.mark.parametrize(
    ("when", "begins", "still", "over"),
    [
        (">", 10.1, 8.1, 8.0),
        (">=", 10.0, 8.0, 7.9),
        ("<", 9.9, 11.9, 12.0),
        ("<=", 10.0, 12.0, 12.1),
    ],
)
def test_hysteresis_moves_the_bound_while_the_condition_holds(
    when: str, begins: float, still: float, over: float
) -> None:
    rule = a_rule(when, hysteresis=2.0)
    assert told(rule, (begins, 1), (still, 2), (over, 3), (still, 4)) == [
        (True, 1, 1, begins),
        (False, 3, 3, over),
    ]


def test_hysteresis_is_subtracted_as_it_is_written() -> None:
    rule = a_rule(bound=0.3, hysteresis=0.1)
    assert told(rule, (0.4, 1), (0.2, 2)) == [(True, 1, 1, 0.4), (False, 2, 2, 0.2)]


def test_a_delay_is_over_by_a_later_sample_or_by_a_tick() -> None:
    rule = a_rule(delay_ms=1000)
    assert told(rule, (11.0, 0), (12.0, 999), 999) == []
    assert told(rule, (11.0, 0), (12.0, 1000)) == [(True, 0, 1000, 11.0)]
    assert told(rule, (11.0, 0), 1003, (12.0, 1500), 2000) == [(True, 0, 1003, 11.0)]
    assert told(rule, (11.0, 0), (9.0, 500), 1003, (12.0, 1500)) == []
    # It ended before it was told: its end is nobody's business.
    assert told(rule, (11.0, 0), (9.0, 5000)) == []


def test_a_late_sample_moves_nothing() -> None:
    assert told(a_rule(), (9.0, 10), (11.0, 5), (11.0, 10, -7)) == []
    assert told(a_rule(), (11.0, 10), (9.0, 5)) == [(True, 10, 10, 11.0)]


def test_what_overwrites_the_newest_millisecond_counts() -> None:
    assert told(a_rule(), (11.0, 10, 1), (9.0, 10, 2), (11.0, 10, 1)) == [
        (True, 10, 10, 11.0),
        (False, 10, 10, 9.0),
    ]


@pytest.mark.parametrize(
    ("bound", "value", "equal"),
    [
        (1, 1.0, True),
        (1.0, 1, True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        ("on", "on", True),
        ("1", 1, False),
        (2**53 + 1, float(2**53), False),
    ],
)
def test_equal_is_exact_and_of_one_kind(bound: Value, value: Value, equal: bool) -> None:
    assert triggers.holds(a_rule("=", bound), value, already=False) is equal
    assert triggers.holds(a_rule("!=", bound), value, already=True) is not equal


@pytest.mark.parametrize("value", ["11", True, "x"])
def test_only_numbers_are_above_or_below(value: Value) -> None:
    assert not any(triggers.holds(a_rule(when, 0), value, already=False) for when in ORDERED)
    assert not triggers.holds(a_rule(">", "0"), 11, already=False)


def test_a_comparison_that_only_a_newer_version_knows_never_holds() -> None:
    assert told(a_rule("~"), (11.0, 1)) == []


# -- rules that change


def after(state: Series | None, value: float, ts_ms: int, policy: PointPolicy) -> Any:
    """One more sample."""
    return triggers.step(state, a_sample(value, ts_ms), ts_ms, policy)


def test_a_rule_that_changed_begins_anew_and_one_that_is_gone_is_forgotten() -> None:
    kept, old = a_rule(id="kept"), a_rule(id="edited")
    state, found = after(None, 11.0, 1, PointPolicy("acme", 1, rules=(kept, old)))
    assert [one.rule for one in found] == ["kept", "edited"]
    edited = replace(old, bound=5.0)
    state, found = after(state, 12.0, 2, PointPolicy("acme", 2, rules=(edited, kept)))
    assert [(one.rule, one.ts_ms) for one in found] == [("edited", 2)]
    # A door whose view is behind brings the old rules once more.
    state, found = after(state, 13.0, 3, PointPolicy("acme", 1, rules=(kept, old)))
    assert found == ()
    state, found = after(state, 1.0, 4, PointPolicy("acme", 3, rules=(kept,)))
    assert [(one.rule, one.raised) for one in found] == [("kept", False)]
    state, found = after(state, 1.0, 5, PointPolicy("acme", 4))
    assert (state, found) == (None, ())


def test_a_late_sample_brings_the_newer_rules_all_the_same() -> None:
    state, _ = after(None, 11.0, 10, PointPolicy("acme", 1, rules=(a_rule(),)))
    state, found = after(state, 11.0, 5, PointPolicy("acme", 2, rules=(a_rule(bound=5.0),)))
    assert found == () and state.revision == 2
    assert after(state, 6.0, 11, PointPolicy("acme", 2, rules=(a_rule(bound=5.0),)))[1]


def test_a_series_without_rules_has_no_state() -> None:
    assert after(None, 1.0, 1, PointPolicy("acme", 1)) == (None, ())


# -- against an oracle

values = st.integers(-6, 6).map(lambda number: number / 2)
rules = st.builds(
    lambda when, bound, hysteresis, delay, clear: a_rule(
        when, bound, hysteresis=hysteresis, delay_ms=delay, on_clear=clear
    ),
    st.sampled_from(WHENS),
    values,
    st.sampled_from((0.0, 0.5, 2.0)),
    st.sampled_from((0, 0, 3, 10)),
    st.booleans(),
)
samples = st.tuples(values, st.integers(0, 30), st.integers(0, 3))
histories = st.lists(st.one_of(samples, samples, st.integers(0, 40)), max_size=30)


def plainly(rule: Rule, value: float, bound: Fraction) -> bool:
    """The comparison, in exact numbers."""
    one = Fraction(value)
    return {
        ">": one > bound,
        ">=": one >= bound,
        "<": one < bound,
        "<=": one <= bound,
        "=": one == bound,
        "!=": one != bound,
    }[rule.when]


def oracle(rule: Rule, history: list[Any]) -> list[tuple[bool, int, int]]:
    """What a person would tell who writes the newest values down, and each time goes through the
    stretches in which the condition held.
    """
    said: list[tuple[bool, int, int]] = []
    newest = (-1, -1)
    stretch: list[int] = []  # times of the samples since the condition began
    away = {">": -1, ">=": -1, "<": 1, "<=": 1}.get(rule.when, 0)
    was_told = False
    for one in history:
        moment = None
        if isinstance(one, int):
            moment = one
        else:
            value, ts_ms, version = one
            if (ts_ms, version) <= newest:
                continue
            newest = (ts_ms, version)
            bound = Fraction(rule.bound)  # type: ignore[arg-type]
            easier = bound + away * Fraction(rule.hysteresis)
            if plainly(rule, value, easier if stretch else bound):
                stretch.append(ts_ms)
                moment = ts_ms
            else:
                if was_told and rule.on_clear:
                    said.append((False, ts_ms, ts_ms))
                stretch, was_told = [], False
        if stretch and not was_told and moment is not None and moment - stretch[0] >= rule.delay_ms:
            said.append((True, stretch[0], moment))
            was_told = True
    return said


@given(rules, histories)
@example(a_rule(hysteresis=0.5, bound=0.0), [(0.5, 0, 0), (0.0, 1, 0), (-0.5, 2, 0)])
def test_it_says_what_the_oracle_says(rule: Rule, history: list[Any]) -> None:
    found = [(one.raised, one.ts_ms, one.at_ms) for one in run(rule, history)]
    assert found == oracle(rule, history)


@given(rules, histories)
def test_it_is_never_told_twice_without_an_end_between(rule: Rule, history: list[Any]) -> None:
    found = run(replace(rule, on_clear=True), history)
    assert [one.raised for one in found] == [number % 2 == 0 for number in range(len(found))]


@given(st.sampled_from(ORDERED), st.lists(st.floats(-0.99, 0.99), max_size=40))
def test_within_the_band_it_never_chatters(when: str, trembling: list[float]) -> None:
    rule = a_rule(when, 0.0, hysteresis=1.0)
    far = 5.0 if when in (">", ">=") else -5.0
    history = [(far, 0), *((value, ts) for ts, value in enumerate(trembling, 1))]
    assert [one.raised for one in run(rule, history)] == [True]


@given(rules, histories)
def test_what_is_told_has_held_for_the_delay(rule: Rule, history: list[Any]) -> None:
    assert all(f.at_ms - f.ts_ms >= rule.delay_ms for f in run(rule, history) if f.raised)


@given(rules, histories, st.integers(0, 60))
def test_a_tick_changes_something_exactly_when_it_is_due(
    rule: Rule, history: list[Any], now_ms: int
) -> None:
    state: Series | None = None
    policy = PointPolicy("acme", 1, rules=(rule,))
    for one in history:
        if not isinstance(one, int):
            state, _ = triggers.step(state, a_sample(one[0], one[1]), one[2], policy)
    if state is None:
        return
    due_ms = triggers.due(state)
    later, found = triggers.tick(state, now_ms)
    assert bool(found) is (due_ms is not None and due_ms <= now_ms)
    assert (later == state) is (not found)
