"""When a rule's condition begins and ends: a comparison with hysteresis and delay, once each time.

A condition is looked at for every accepted sample that is newer than all seen of its series, by
time and then by version: a late one does not move it, one that overwrites the newest counts. While
it holds, the bound is moved away by the hysteresis, so a value that trembles around the bound
begins and ends it once. It is told when it has held for the rule's delay, in the time of the
samples: a later sample that still holds shows it, or a tick. A policy with a higher revision brings
the rules to go by: one that changed begins anew, one that is gone is forgotten.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from schemas.points import PointPolicy, Rule
from schemas.samples import Sample, Value

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Finding(NamedTuple):
    """`rule`'s condition began (`raised`) or ended with the sample of `ts_ms` and `value`; found at
    `at_ms`, the time of the sample or tick that showed it.
    """

    rule: str
    raised: bool
    ts_ms: int
    at_ms: int
    value: Value


@dataclass(frozen=True, slots=True)
class Watch:
    """A rule on one series. `since_ms` is the time of the sample with which its condition began to
    hold (None: it does not), `value` that sample's; `raised` says that it was told.
    """

    rule: Rule
    since_ms: int | None = None
    value: Value = 0
    raised: bool = False

    @property
    def due_ms(self) -> int | None:
        """When it is to be told, if its condition holds till then and that was not yet done."""
        if self.since_ms is None or self.raised:
            return None
        return self.since_ms + self.rule.delay_ms


@dataclass(frozen=True, slots=True)
class Series:
    """All rules on one series: `revision` of the policy they are of, (time, version) of the newest
    sample.
    """

    tenant: str
    revision: int
    newest: tuple[int, int]
    watches: tuple[Watch, ...]


Found = tuple[Finding, ...]


def step(
    state: Series | None, sample: Sample, version: int, policy: PointPolicy
) -> tuple[Series | None, Found]:
    """The state after one accepted sample, and what it shows. None: the series has no rules."""
    state = _adopted(state, policy)
    if state is None:
        return None, ()
    if (sample.ts_ms, version) <= state.newest:
        return state, ()
    after = [_after(watch, sample) for watch in state.watches]
    watches = tuple(watch for watch, _ in after)
    found = tuple(finding for _, finding in after if finding is not None)
    return replace(state, newest=(sample.ts_ms, version), watches=watches), found


def tick(state: Series, now_ms: int) -> tuple[Series, Found]:
    """The state once it is `now_ms`, and which conditions have held for their delay by then."""
    watches, found = [], []
    for watch in state.watches:
        if (due_ms := watch.due_ms) is not None and due_ms <= now_ms:
            watch, finding = _told(watch, now_ms)
            found.append(finding)
        watches.append(watch)
    return (replace(state, watches=tuple(watches)), tuple(found)) if found else (state, ())


def due(state: Series) -> int | None:
    """The first moment at which a tick would show something, as far as is known."""
    moments = (watch.due_ms for watch in state.watches)
    return min((moment for moment in moments if moment is not None), default=None)


def holds(rule: Rule, value: Value, *, already: bool) -> bool:
    """Whether the condition holds for a value, where it did `already` or did not before."""
    if rule.when in ("=", "!="):
        return _are_equal(value, rule.bound) is (rule.when == "=")
    order = _ORDERS.get(rule.when)
    if order is None or not (_is_number(value) and _is_number(rule.bound)):
        return False
    return order(value, _moved(rule) if already else rule.bound)


def _adopted(state: Series | None, policy: PointPolicy) -> Series | None:
    """The state under a policy, if that is not older than the one it is of."""
    if state is None:
        watches = tuple(Watch(rule) for rule in policy.rules)
        return Series(policy.tenant, policy.revision, (-1, -1), watches) if watches else None
    if policy.revision <= state.revision:
        return state
    if not policy.rules:
        return None
    # To Python 1 is True.
    known = {(watch.rule, type(watch.rule.bound)): watch for watch in state.watches}
    watches = tuple(known.get((rule, type(rule.bound))) or Watch(rule) for rule in policy.rules)
    return replace(state, revision=policy.revision, watches=watches)


def _after(watch: Watch, sample: Sample) -> tuple[Watch, Finding | None]:
    ts_ms, value = sample.ts_ms, sample.value
    if not holds(watch.rule, value, already=watch.since_ms is not None):
        told = watch.raised and watch.rule.on_clear
        return Watch(watch.rule), Finding(
            watch.rule.id, False, ts_ms, ts_ms, value
        ) if told else None
    if watch.since_ms is None:
        watch = replace(watch, since_ms=ts_ms, value=value)
    due_ms = watch.due_ms
    return _told(watch, ts_ms) if due_ms is not None and due_ms <= ts_ms else (watch, None)


def _told(watch: Watch, at_ms: int) -> tuple[Watch, Finding]:
    assert watch.since_ms is not None
    finding = Finding(watch.rule.id, True, watch.since_ms, at_ms, watch.value)
    # The value is needed no more, and a text may be long.
    return replace(watch, raised=True, value=0), finding


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_equal(value: Value, bound: Value) -> bool:
    """A number equals a number, a text a text; `true` is no 1."""
    alike = _is_number(value) if _is_number(bound) else type(value) is type(bound)
    return alike and value == bound


@lru_cache(maxsize=4096)
def _moved(rule: Rule) -> Value:
    """The bound for a condition that holds: `hysteresis` further away. In decimals, as bounds are
    given in them: 0.3 - 0.1 as doubles is a little less than 0.2.
    """
    if not rule.hysteresis > 0:
        return rule.bound
    distance = Decimal(repr(rule.hysteresis))
    bound = Decimal(repr(rule.bound))
    return float(bound - distance if rule.when in (">", ">=") else bound + distance)
