"""The usual push as one block, by columns: numbers and booleans for parameters that are there.

A producer sends the same keys over and over; so what they stand for, their layout, is looked up
once, and again when the catalogue has changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from schemas.blocks import Block
from schemas.points import PointPolicy
from schemas.samples import NO_QUALITY, TS_MS_MAX, Conflict, Kind
from services.dialects._ports import Lookup
from services.dialects._scan import ABSENT, Scanned

_LAYOUTS_MAX = 256
_PLAIN = (Kind.DOUBLE, Kind.BOOL)
_LAST_OR_RENEW = (Conflict.LAST, Conflict.RENEW)
"""The last value of a millisecond wins, unless what held it has expired."""
Stamp = tuple[int, PointPolicy]


class Moment:
    """The catalogue at one revision, for one tenant; equal to itself as long as nothing changed."""

    def __init__(self, lookup: Lookup, tenant: str) -> None:
        self._lookup, self._tenant = lookup, tenant
        self._same = (id(lookup), lookup.revision, tenant)

    def stamps(self, device: str) -> Mapping[str, Stamp]:
        """Series and policy of the device's keys."""
        return self._lookup.stamps(self._tenant, device)

    def __hash__(self) -> int:
        return hash(self._same)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moment) and self._same == other._same


class _Layout(NamedTuple):
    """What a list of keys stands for: one row a key, in order."""

    series: array[int]
    kinds: bytes
    policy: array[int]
    policies: list[PointPolicy]
    kept_ms: int
    """The shortest time for which any of them is kept."""


@lru_cache(maxsize=_LAYOUTS_MAX)
def _layout(moment: Moment, device: str, count: int, joined: bytes) -> _Layout:
    """The layout of `count` keys, joined by NUL, which no key has in it. Raises LookupError (that
    is not remembered) where one of them is no known parameter for a number or a boolean.
    """
    stamps = moment.stamps(device)
    stamped = [stamps[key] for key in joined.decode().split("\0")]
    distinct = {id(policy): policy for _, policy in stamped}
    numbers = {name: number for number, name in enumerate(distinct)}
    policies = list(distinct.values())
    if len(stamped) != count or any(policy.kind not in _PLAIN for policy in policies):
        raise LookupError("not all of them are numbers or booleans")
    return _Layout(
        array("Q", [series for series, _ in stamped]),
        bytes(policy.kind or Kind.DOUBLE for _, policy in stamped),
        array("H", [numbers[id(policy)] for _, policy in stamped]),
        policies,
        min((policy.keep_ms for policy in policies if policy.keep_ms), default=TS_MS_MAX),
    )


def block_of(scanned: Scanned, moment: Moment, device: str, received_ms: int) -> Block | None:
    """The block of a push; None where there is anything in it but values of the types that its
    parameters have.
    """
    try:
        layout = _layout(moment, device, scanned.items, scanned.texts)
    except (LookupError, UnicodeDecodeError):
        return None
    if scanned.mixed or scanned.kinds != layout.kinds:
        return None
    count, times = scanned.items, scanned.times
    oldest_ms = scanned.oldest_ms
    if oldest_ms == ABSENT:
        oldest_ms, times = received_ms, array("q", (received_ms,)) * count
    rule = array("B", (Conflict.LAST,)) * count
    if oldest_ms < received_ms - layout.kept_ms:
        policies = [layout.policies[number] for number in layout.policy]
        pairs = zip(times, policies, strict=True)
        rule = array("B", [rule_of(ts_ms, policy, received_ms) for ts_ms, policy in pairs])
    return Block(
        policies=list(layout.policies),
        series=layout.series[:],
        ts_ms=times,
        kind=array("B", layout.kinds),
        bits=scanned.bits,
        quality=array("i", (NO_QUALITY,)) * count,
        rule=rule,
        policy=layout.policy[:],
    )


def rule_of(ts_ms: int, policy: PointPolicy, received_ms: int) -> Conflict:
    """What a value does to another of its millisecond: one that would have expired is gone."""
    return _LAST_OR_RENEW[ts_ms < received_ms - policy.keep_ms if policy.keep_ms else False]
