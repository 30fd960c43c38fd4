"""The newest records of every lane in memory, so that readers beside the writer need no decoding.

It holds what fits into a bound of bytes for all lanes together and forgets the oldest first; what
it does not hold is read from the file.
"""

from __future__ import annotations

from collections import deque

from schemas.envelope import Envelope, Logged, Undecodable
from services.eventlog._coalesce import LaneKey

_RECORD_BYTES = 2048
"""What a record takes in memory beside its columns."""


class Tail:
    """Offset to record, by lane. Belongs to the loop's thread."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lanes: dict[LaneKey, dict[int, Logged]] = {}
        self._ages: deque[tuple[dict[int, Logged], int, int]] = deque()

    def add(self, key: LaneKey, offset: int, envelope: Envelope | Undecodable, size: int) -> None:
        """Remember the newest record of a lane, of about `size` bytes."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = {}
        size += _RECORD_BYTES
        lane[offset] = Logged(offset, envelope)
        self._ages.append((lane, offset, size))
        self._bytes += size
        while self._bytes > self._bytes_max:
            oldest, offset, size = self._ages.popleft()
            del oldest[offset]
            self._bytes -= size

    def read(self, key: LaneKey, offset: int, records_max: int) -> list[Logged]:
        """Consecutive records from `offset` on; none if that one is not here (any more)."""
        lane = self._lanes.get(key)
        if lane is None or offset not in lane:
            return []
        found = []
        for place in range(offset, offset + records_max):
            logged = lane.get(place)
            if logged is None:
                break
            found.append(logged)
        return found
