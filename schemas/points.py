"""Who a series is, and by which policy its samples are judged."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.samples import Kind, Value


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a series' values that is told to somebody: `value WHEN bound` with `when` one
    of WHENS.

    Numbers are compared as numbers, anything else is equal or not. Once it holds, it has to fail by
    `hysteresis` more before it counts as over (ordered comparisons only); it is told after it has
    held for `delay_ms`. `on_clear` tells the end too. Where to it is told, the catalogue's trigger
    with this `id` says.
    """

    id: str
    when: str
    bound: Value
    hysteresis: float = 0.0
    delay_ms: int = 0
    on_clear: bool = False


WHENS = (">", ">=", "<", "<=", "=", "!=")
"""How a rule compares."""


@dataclass(frozen=True, slots=True)
class PointPolicy:
    """What the judge must know of a series; travels with the data, so that a replay judges as the
    first time did.

    `revision` is the catalogue's: a lane keeps the policy with the highest one it has seen for a
    series. `kind` is the locked type, None where every sample brings its own. `band` is the
    deadband around the last kept value (a change *smaller* than it is suppressed, 0 is off);
    `band_percent` the same relative to the last kept value; after `heartbeat_ms` without a kept
    sample the next one is kept whatever its value (0 is off). With `on_change` a value that equals
    the last kept one does not count either, of whatever kind.

    Not the judge's: samples are kept for `keep_ms` (0: for ever), and told of by `rules`.
    """

    tenant: str
    revision: int = 0
    kind: Kind | None = None
    band: float = 0.0
    band_percent: float = 0.0
    heartbeat_ms: int = 0
    on_change: bool = False
    keep_ms: int = 0
    rules: tuple[Rule, ...] = ()


LANE_SHIFT = 48
"""The top bits of a series id come from its device, so that a device's series share a lane and lie
together on disk.
"""


def lane_of(series: int, lanes: int) -> int:
    """The lane that judges `series` (uint64) where there are `lanes` of them."""
    return (series >> LANE_SHIFT) % lanes
