"""A change too small to matter: numbers within a band around the last kept one are suppressed.

A sample is suppressed if its value differs from the base, the last kept one, by *less* than the
band: `band` itself or `band_percent` of the base's amount, whichever is wider. A change of exactly
the band counts. An equal value never counts as a change.

Values and bands are the decimals that they are written as: a double stands for its shortest
notation that reads back as itself (`repr`), a LONG for itself; and they are compared exactly. So
0.3 after 0.2 is a change of 0.1, although 0.3 - 0.2 as doubles is a little less.

With `on_change` a sample of the base's own kind and bits is suppressed too, of whatever kind it is.
Otherwise only DOUBLE and LONG samples of the base's kind have a difference, and infinities and NaN
have none; what has none is kept. When `heartbeat_ms` has passed since the base, the sample is kept
whatever its value.

Whoever folds hands in only samples newer than any seen of the series: late ones bypass the
deadband, which makes it a function of the log's order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow

from schemas.blocks import bits_of
from schemas.points import PointPolicy
from schemas.samples import Kind, Sample, Value, Verdict

_EXACT = Context(prec=2_000, traps=[Inexact, InvalidOperation, Overflow, DivisionByZero])
"""Rounds nothing. Doubles have digits from the 309th before the point to the 324th behind it, a
percentage of one up to the 650th; a result that did not fit would be an error.
"""
_HUNDREDTH = Decimal("0.01")
_NUMBERS = (Kind.DOUBLE, Kind.LONG)


@dataclass(frozen=True, slots=True)
class Base:
    """The last kept sample of a series: what a change is measured against."""

    ts_ms: int
    kind: Kind
    bits: int
    value: Value


def base_of(sample: Sample) -> Base:
    """The sample as base of what follows."""
    return Base(sample.ts_ms, sample.kind, bits_of(sample.kind, sample.value), sample.value)


def step(base: Base | None, sample: Sample, policy: PointPolicy) -> tuple[Base | None, Verdict]:
    """SUPPRESSED, or KEPT and the sample is the base."""
    if base is not None and _is_suppressed(base, sample, policy):
        return base, Verdict.SUPPRESSED
    return base_of(sample), Verdict.KEPT


def _is_suppressed(base: Base, sample: Sample, policy: PointPolicy) -> bool:
    if sample.kind != base.kind:
        return False
    if policy.heartbeat_ms != 0 and sample.ts_ms - base.ts_ms >= policy.heartbeat_ms:
        return False
    if policy.on_change and bits_of(sample.kind, sample.value) == base.bits:
        return True
    if sample.kind not in _NUMBERS or not _is_finite(sample.value, base.value):
        return False
    value, origin = _decimal(sample.value), _decimal(base.value)
    change = _EXACT.abs(_EXACT.subtract(value, origin))
    if policy.band > 0.0 and change < _decimal(policy.band):
        return True
    if not policy.band_percent > 0.0 or not origin:
        return False
    percent = _EXACT.multiply(_decimal(policy.band_percent), _HUNDREDTH)
    return change < _EXACT.multiply(percent, _EXACT.abs(origin))


def _is_finite(*values: Value) -> bool:
    return all(not isinstance(value, float) or math.isfinite(value) for value in values)


def _decimal(value: Value) -> Decimal:
    """The decimal that a number is written as."""
    return Decimal(repr(value))
