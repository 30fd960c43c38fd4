"""A history of what clients were told, and the checker that holds the stored values against it.

Unknown is not failure: a write whose answer was lost, late or 503 may or may not be there (`info`).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Place = tuple[str, int]
"""Series (any name for it) and time in ms."""


@dataclass(frozen=True, slots=True)
class Write:
    """One value that was sent, when (monotonic), and what was told: "kept", "dropped" or "info"."""

    place: Place
    value: str
    told: str
    began: float
    ended: float
    last_wins: bool = False


@dataclass(slots=True)
class Findings:
    """Counts that must be 0, with the first places where they were not."""

    lost: list[Place] = field(default_factory=list)
    doubled: list[Place] = field(default_factory=list)
    wrong: list[Place] = field(default_factory=list)
    phantom: list[Place] = field(default_factory=list)
    lies: list[Place] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        for name in ("lost", "doubled", "wrong", "phantom", "lies"):
            found = getattr(self, name)
            parts.append(f"{name} {len(found)}{f' e.g. {found[:3]}' if found else ''}")
        return ", ".join(parts)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.lost or self.doubled or self.wrong or self.phantom or self.lies)


class History:
    """Collects writes from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.writes: list[Write] = []

    def add(self, writes: Iterable[Write]) -> None:
        """Note what was sent and told."""
        with self._lock:
            self.writes.extend(writes)

    def told(self, word: str) -> int:
        """How many writes were told so."""
        return sum(write.told == word for write in self.writes)

    def __str__(self) -> str:
        return f"{len(self.writes)} writes, {self.told('kept')} kept, {self.told('info')} unknown"

    def check(self, stored: Mapping[str, Iterable[tuple[int, str]]]) -> Findings:
        """Hold what is stored (series to (time, value) rows) against what was told."""
        findings = Findings()
        by_place: dict[Place, list[Write]] = defaultdict(list)
        for write in self.writes:
            by_place[write.place].append(write)
        there: dict[Place, str] = {}
        for series, rows in stored.items():
            for ts_ms, value in rows:
                if (series, ts_ms) in there:
                    findings.doubled.append((series, ts_ms))
                there[series, ts_ms] = value
        for place, value in there.items():
            if not any(write.value == value for write in by_place.get(place, ())):
                findings.phantom.append(place)
        for place, writes in by_place.items():
            judge = _last_wins if writes[0].last_wins else _first_wins
            judge(place, writes, there.get(place), findings)
        return findings


def _first_wins(place: Place, writes: list[Write], value: str | None, found: Findings) -> None:
    kept = [write for write in writes if write.told == "kept"]
    if kept and value is None:
        found.lost.append(place)
    elif kept and value != kept[0].value:
        found.wrong.append(place)
    if len({id(write) for write in kept}) > 1:
        found.lies.append(place)
    for write in writes:
        if write.told == "dropped":
            rivals = [other for other in writes if other is not write and other.told != "dropped"]
            if not any(other.began <= write.ended for other in rivals):
                found.lies.append(place)


def _last_wins(place: Place, writes: list[Write], value: str | None, found: Findings) -> None:
    told = [write for write in writes if write.told == "kept"]
    if not told:
        return
    if value is None:
        found.lost.append(place)
        return
    latest = max(told, key=lambda write: write.began)
    allowed = {write.value for write in writes if write.ended >= latest.began}
    if value not in allowed:
        found.wrong.append(place)
