"""A sample's place in the log and its conflict rule become the version that decides in the store:
the highest wins.

Taking the maximum does not care for order, repetition or grouping, so replayed, reordered and
doubled rows come to one result. First-wins samples count down from the centre (the earliest is the
highest), overwriting and renewing ones count up from it (the latest is the highest, and above all
first-wins ones). The epoch in the top bits keeps positions comparable when the log is made anew.
"""

from __future__ import annotations

from typing import NamedTuple

from schemas.envelope import Position
from schemas.samples import Conflict

EPOCH_BITS = 8
OFFSET_BITS = 43
ROW_BITS = 12
CENTRE = 1 << 63


class Place(NamedTuple):
    """What a version is made of: where the sample stands in the log, and its conflict rule."""

    epoch: int
    offset: int
    row: int
    rule: Conflict


def record_of(epoch: int, offset: int) -> int:
    """The order of records over all epochs: a record is earlier exactly if this is lower."""
    assert 0 <= epoch < 1 << EPOCH_BITS, f"epoch {epoch} does not fit"
    assert 0 <= offset < 1 << OFFSET_BITS, f"offset {offset} does not fit"
    return epoch << OFFSET_BITS | offset


def version_of(place: Place) -> int:
    """The version (uint64) of the row that stands at `place`."""
    assert 0 <= place.row < 1 << ROW_BITS, f"row {place.row} does not fit"
    position = record_of(place.epoch, place.offset) << ROW_BITS | place.row
    return CENTRE - 1 - position if place.rule == Conflict.FIRST else CENTRE + position


def place_of(version: int) -> Place:
    """The inverse of `version_of`; a renewal's version is that of an overwrite, and says LAST."""
    if version >= CENTRE:
        position, rule = version - CENTRE, Conflict.LAST
    else:
        position, rule = CENTRE - 1 - version, Conflict.FIRST
    record, row = divmod(position, 1 << ROW_BITS)
    epoch, offset = divmod(record, 1 << OFFSET_BITS)
    return Place(epoch, offset, row, rule)


def is_earlier(version: int, position: Position) -> bool:
    """Whether the row of that version stands in a record before `position`."""
    place = place_of(version)
    return (place.epoch, place.offset) < (position.epoch, position.offset)
