"""The points of a `View`: indexed by id, by device and key, by series; the policies to stamp on
their samples; those that are being made.

Every index is a function of the set of points alone, not of the order in which they came: what
compaction leaves of the log gives the same answers as the whole log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from schemas.catalogue import Point
from schemas.points import PointPolicy, Rule
from services import metrics
from services.errors import Malformed, Unavailable

_log = logging.getLogger(__name__)
PENDING_MS = 5_000
"""A creation of which nothing was heard by then, neither in the view nor of a failure, is taken to
have failed.
"""
_PENDING_MAX = 65_536
_NONE: Mapping[str, Point] = MappingProxyType({})


def _rank(point: Point) -> tuple[int, str]:
    """Of two points for one series the one with the lower rank stands."""
    return point.created_ms, point.id


class PointIndex:
    """The points that can be seen: one for each series.

    Two points may want one series: two names for the same (tenant, device, key), or two different
    ones whose 64-bit ids collide. The one created first stands, the others are as if they were not
    there (`shadowed`) until it goes. Two series may want one key, where a point was given it while
    another was made there: the point created first has it, the other only its id.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Point] = {}
        self._by_series: dict[int, Point] = {}
        self._by_device: dict[tuple[str, str], dict[str, Point]] = {}
        self._ordered: dict[tuple[str, str], tuple[int, Mapping[str, Point]]] = {}
        self._changes: dict[tuple[str, str], int] = {}
        self._shadowed: dict[int, dict[str, Point]] = {}
        self._behind: dict[tuple[str, str, str], dict[str, Point]] = {}

    @property
    def shadowed(self) -> int:
        """How many points stand back behind another one for their series."""
        return sum(map(len, self._shadowed.values()))

    def put(self, point: Point) -> None:
        """Add a point whose id is not in the index."""
        other = self._by_series.get(point.series)
        if other is None:
            self._show(point)
            return
        first, later = sorted((other, point), key=_rank)
        if first is point:
            self._hide(other)
            self._show(point)
        self._shadowed.setdefault(point.series, {})[later.id] = later
        metrics.CATALOGUE_SKIPPED.labels("collision").inc()
        _log.error(
            "point %s (%s, %s, %r) is passed over: its series %#x belongs to point %s (%s, %s, %r)",
            *(later.id, later.tenant, later.device, later.key, point.series),
            *(first.id, first.tenant, first.device, first.key),
        )

    def remove(self, point: Point) -> None:
        """Take a point out; of those that stood back behind it the first takes its place."""
        waiting = self._shadowed.get(point.series, {})
        if waiting.pop(point.id, None) is None:
            self._hide(point)
            if waiting:
                heir = min(waiting.values(), key=_rank)
                del waiting[heir.id]
                self._show(heir)
        if not waiting:
            self._shadowed.pop(point.series, None)

    def of_series(self, series: int) -> Point | None:
        """The point whose series this is, of any tenant."""
        return self._by_series.get(series)

    def retained(self) -> list[Point]:
        """The points whose values are not kept for ever."""
        return [point for point in self._by_id.values() if point.keep_minutes]

    def get(self, point: str) -> Point | None:
        """The point with this id, of any tenant."""
        return self._by_id.get(point)

    def at(self, tenant: str, device: str, key: str) -> Point | None:
        """The point at this key of the device."""
        points = self._by_device.get((tenant, device))
        return None if points is None else points.get(key)

    def crowded(self, tenant: str, device: str, key: str) -> bool:
        """Whether more than one point wants this key of the device, or the series of who has it."""
        point = self.at(tenant, device, key)
        shadows = point is not None and point.series in self._shadowed
        return shadows or (tenant, device, key) in self._behind

    def tangled(self, point: Point) -> bool:
        """Whether the series of a point that came or went is, or was, wanted at another key too."""
        stands = self._by_series.get(point.series)
        return point.series in self._shadowed or (stands is not None and stands.key != point.key)

    def count(self, tenant: str, device: str) -> int:
        """How many points the device has."""
        return len(self._by_device.get((tenant, device), ()))

    def of(self, tenant: str, device: str) -> Mapping[str, Point]:
        """Key to point in the order of creation: a picture of the moment that nothing changes."""
        place = (tenant, device)
        # Readers in other threads may be late with their picture: it says of which state it is.
        changes = self._changes.get(place, 0)
        at, found = self._ordered.get(place, (-1, _NONE))
        if at != changes:
            if (points := self._by_device.get(place)) is None:
                return _NONE
            ordered = sorted(points.values(), key=lambda point: (point.created_ms, point.key))
            found = MappingProxyType({point.key: point for point in ordered})
            self._ordered[place] = (changes, found)
        return found

    def _changed(self, place: tuple[str, str]) -> None:
        self._changes[place] = self._changes.get(place, 0) + 1
        self._ordered.pop(place, None)

    def _show(self, point: Point) -> None:
        self._by_id[point.id] = self._by_series[point.series] = point
        place = (point.tenant, point.device)
        points = self._by_device.setdefault(place, {})
        if (other := points.get(point.key)) is not None:
            point, later = sorted((other, point), key=_rank)
            self._behind.setdefault((*place, point.key), {})[later.id] = later
        points[point.key] = point
        self._changed(place)

    def _hide(self, point: Point) -> None:
        del self._by_id[point.id], self._by_series[point.series]
        place = (point.tenant, point.device)
        points, behind = self._by_device[place], self._behind.get((*place, point.key), {})
        if behind.pop(point.id, None) is None:
            del points[point.key]
            if behind:
                heir = min(behind.values(), key=_rank)
                points[point.key] = behind.pop(heir.id)
        if not behind:
            self._behind.pop((*place, point.key), None)
        if not points:
            del self._by_device[place]
        self._changed(place)


class Policies:
    """One `PointPolicy` object for all points that are judged alike.

    All carry one revision: the offset of the last change that could alter how any series is judged.
    So of two policies for a series the one with the higher revision is the newer, also after a
    point was loosened or deleted and made anew; points share policies, blocks stay small, and where
    keys only appear by first use the revision rests.
    """

    def __init__(self, rules_of: Callable[[str], tuple[Rule, ...]]) -> None:
        self.revision = 0
        self._rules_of = rules_of
        self._shared: dict[PointPolicy, PointPolicy] = {}
        self._by_point: dict[str, PointPolicy] = {}

    def advance(self, offset: int) -> None:
        """The change at `offset` of the catalogue may alter how a series is judged."""
        self.revision = offset
        self._shared, self._by_point = {}, {}

    def of(self, point: Point) -> PointPolicy:
        """The policy of a point."""
        if (found := self._by_point.get(point.id)) is None:
            shape = PointPolicy(
                point.tenant,
                kind=point.declared if point.locked else None,
                band=point.band,
                band_percent=point.band_percent,
                heartbeat_ms=point.heartbeat_ms,
                on_change=point.on_change,
                keep_ms=point.keep_minutes * 60_000,
                rules=self._rules_of(point.id),
            )
            found = self._by_point[point.id] = self._of_shape(shape)
        return found

    def free(self, tenant: str) -> PointPolicy:
        """The policy of points without rules of their own."""
        return self._of_shape(PointPolicy(tenant))

    def _of_shape(self, shape: PointPolicy) -> PointPolicy:
        """The one policy of this shape (a policy without its revision)."""
        if (found := self._shared.get(shape)) is None:
            found = self._shared[shape] = replace(shape, revision=self.revision)
        return found


def special(point: Point) -> bool:
    """Whether the point's samples are judged in another way than those of a key without a point."""
    numbers = (point.band, point.band_percent, point.heartbeat_ms, point.keep_minutes)
    return bool(point.locked or point.on_change or any(numbers))


class Creations:
    """Points that this process is making by first use, so that a burst of messages with a new key
    makes one claim. Time is what the doors say: UTC ms.
    """

    def __init__(self, keys_per_device_max: int) -> None:
        self._keys_per_device_max = keys_per_device_max
        self._pending: dict[tuple[str, str], dict[str, int]] = {}
        self._count = 0
        self._swept_ms = 0

    def begin(self, tenant: str, device: str, key: str, *, known: int, received_ms: int) -> bool:
        """Whether a point shall be made now at a key of a device that has `known` points.

        Raises Malformed ("too_many_keys") above the device's limit, Unavailable where there is no
        room to remember one more.
        """
        place = (tenant, device)
        since_ms = self._pending.get(place, {}).get(key)
        if since_ms is None:
            self._admit(place, known, received_ms)
            self._count += 1
        elif abs(received_ms - since_ms) < PENDING_MS:
            return False
        self._pending.setdefault(place, {})[key] = received_ms
        return True

    def end(self, tenant: str, device: str, key: str) -> None:
        """The point is there, or its making has failed."""
        keys = self._pending.get((tenant, device))
        if keys is not None and keys.pop(key, None) is not None:
            self._count -= 1
            if not keys:
                del self._pending[tenant, device]

    def _admit(self, place: tuple[str, str], known: int, received_ms: int) -> None:
        if self._count >= _PENDING_MAX and abs(received_ms - self._swept_ms) >= PENDING_MS:
            self._swept_ms = received_ms
            for other in list(self._pending):
                self._sweep(other, received_ms)
        if self._count >= _PENDING_MAX:
            raise Unavailable("too many new keys at a time", retry_after_ms=PENDING_MS)
        limit = self._keys_per_device_max
        if known + len(self._pending.get(place, ())) >= limit:
            self._sweep(place, received_ms)
            if known + len(self._pending.get(place, ())) >= limit:
                raise Malformed(f"a device may have {limit} keys", code="too_many_keys")

    def _sweep(self, place: tuple[str, str], received_ms: int) -> None:
        for key, since_ms in list(self._pending.get(place, {}).items()):
            if abs(received_ms - since_ms) >= PENDING_MS:
                self.end(*place, key)
