"""A change too small to matter: numbers within a band around the last kept one are suppressed.

A sample is suppressed if its value differs from the base, the last kept one, by *less* than the
band: `band` itself or `band_percent` of the base's amount, whichever is wider. A change of exactly
the band counts. Bands are given in decimals, and 0.3 - 0.2 as doubles is a little less than 0.1; so
a difference that misses the band by a few units in the last place of the larger operand counts as
the band itself. An equal value never counts as a change. When `heartbeat_ms` has passed since the
base, the sample is kept whatever its value.

Only DOUBLE and LONG samples of the base's own kind have a difference; any other is kept. Whoever
folds hands in only samples newer than any seen of the series: late ones bypass the deadband, which
makes it a function of the log's order.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from schemas.blocks import bits_of
from schemas.points import PointPolicy
from schemas.samples import Kind, Sample, Value, Verdict

ULPS = 4
"""Units in the last place by which a difference may miss the band and still be it."""

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
    if sample.kind != base.kind or sample.kind not in _NUMBERS:
        return False
    if policy.heartbeat_ms != 0 and sample.ts_ms - base.ts_ms >= policy.heartbeat_ms:
        return False
    value, origin = sample.value, base.value
    assert not isinstance(value, str) and not isinstance(origin, str)
    limit = policy.band
    relative = policy.band_percent * float(abs(origin)) / 100.0
    if relative > limit:
        limit = relative
    if not limit > 0.0:
        return False
    # Whole numbers are subtracted exactly; only the band itself may be off by a few units.
    change, scale = float(abs(value - origin)), limit
    if sample.kind == Kind.DOUBLE:
        scale = max(limit, abs(value), abs(origin))
    return change == 0.0 or change + ULPS * sys.float_info.epsilon * scale < limit
