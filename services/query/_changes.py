"""Changes for those who follow: the rows of accepted blocks that are theirs, and their positions.

A change is named by where its record lies in `samples.accepted`, and by its place: where the sample
stands in the log that was judged, which its version says. A judge that goes on after a crash puts
out again what it had put out before, with the same versions; what appears for the first time does
so in the order of places. So a lane's rows at or below the highest place that went by are
repetitions, and each change has one position, in whichever process it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from schemas.blocks import Block
from schemas.catalogue import Point
from schemas.envelope import Envelope, Logged
from schemas.points import LANE_SHIFT
from schemas.samples import Value
from services.dialects import Lookup
from services.domain import lattice

Event = Callable[[Point, int, int, Value], bytes]
"""A point and a change's (UTC ms, kind, value) to the text that readers get."""

_LAST_ROW = (1 << lattice.ROW_BITS) - 1


class Position(NamedTuple):
    """A change's record in the lane of `samples.accepted`, and its place (-1: before all)."""

    offset: int
    place: int


NOTHING = Position(-1, -1)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is followed: the points of a device. `top` are the upper bits of their series ids;
    `mark` begins the ids of its positions.
    """

    tenant: str
    device: str
    lane: int
    top: int
    mark: str
    event: Event


@dataclass(frozen=True, slots=True)
class Change:
    """One accepted sample, rendered."""

    id: str
    position: Position
    series: int
    text: bytes


def mark_of(life: str, lane: int) -> str:
    """What the ids of a lane's positions begin with in this life of the topic."""
    return blake2b(f"{life}/{lane}".encode(), digest_size=5).hexdigest()


def id_of(mark: str, position: Position) -> str:
    """The position as readers see it."""
    return f"{mark}-{position.offset + 1:x}-{position.place + 1:x}"


def position_of(mark: str, text: str) -> Position | None:
    """The position behind an id; None where it is of another life or lane, or none at all."""
    begin, _, rest = text.partition("-")
    offset, _, place = rest.partition("-")
    if begin != mark or len(rest) > 40:
        return None
    try:
        found = Position(int(offset, 16) - 1, int(place, 16) - 1)
    except ValueError:
        return None
    return found if min(found) >= -1 else None


def block_of(logged: Logged) -> Block | None:
    """The judged rows of a record; None where there are none in it."""
    block = getattr(logged.envelope, "record", None)
    return block if isinstance(block, Block) and block.version else None


def end_of(logged: Logged, block: Block) -> Position:
    """The position behind which everything is that the record does not cover."""
    envelope = logged.envelope
    if isinstance(envelope, Envelope) and envelope.received >= 0:
        record = lattice.record_of(envelope.epoch, envelope.received)
        return Position(logged.offset, record << lattice.ROW_BITS | _LAST_ROW)
    return Position(logged.offset, place_of(block.version[-1]))


def place_of(version: int) -> int:
    """The place in the judged log behind a version, as a number that grows with it."""
    place = lattice.place_of(version)
    return lattice.record_of(place.epoch, place.offset) << lattice.ROW_BITS | place.row


def changes_of(
    subject: Subject, lookup: Lookup, offset: int, block: Block, after: int
) -> list[Change]:
    """The changes of the subject in the block at this offset, behind the place `after`."""
    found = []
    for row in _rows(subject, block):
        place = place_of(block.version[row])
        if place <= after:
            continue
        after, series = place, block.series[row]
        point = lookup.of_series(subject.tenant, series)
        if point is None or point.device != subject.device:
            continue
        text = subject.event(point, block.ts_ms[row], block.kind[row], block.value(row))
        position = Position(offset, place)
        found.append(Change(id_of(subject.mark, position), position, series, text))
    return found


def revision_of(subject: Subject, lookup: Lookup, block: Block) -> int:
    """The revision that the catalogue must have before the block's points can be known; at most the
    one that it has, where there is nothing to wait for.
    """
    revisions = [p.revision for p in block.policies if p.tenant == subject.tenant]
    wanted = max(revisions, default=-1)
    if wanted <= lookup.revision:
        return lookup.revision
    known = lookup.of_series
    if all(known(subject.tenant, block.series[row]) for row in _rows(subject, block)):
        return lookup.revision
    return wanted


def _rows(subject: Subject, block: Block) -> list[int]:
    """The rows whose series may be of the subject's device."""
    tenant, top, policies, policy = subject.tenant, subject.top, block.policies, block.policy
    own = [each.tenant == tenant for each in policies]
    if not any(own):
        return []
    rows = [row for row, series in enumerate(block.series) if series >> LANE_SHIFT == top]
    return rows if all(own) else [row for row in rows if own[policy[row]]]
