"""The newest changes of one subject, held once for all who follow it; how far a reader may be
behind.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.query._changes import Change, Position, Subject

if TYPE_CHECKING:
    from services.query._reader import Reader

_FRAMES_MAX = 64
_BATCH_CHANGES_MAX, _BATCH_BYTES_MAX = 500, 64 * 1024
"""What a reader is given at once."""
_CHANGE_BYTES = 400
"""What a change takes in memory beside its text."""


class Ring:
    """Changes in the order of their places, numbered from 0 on; the oldest go first.

    Everything behind `floor` that went by is here, and everything up to `head` went by. `life`
    grows where that is not so any more, and the ring begins anew.
    """

    def __init__(
        self, subject: Subject, floor: Position, *, changes_max: int, bytes_max: int
    ) -> None:
        self.subject, self.floor, self.head = subject, floor, floor
        self.readers: set[Reader] = set()
        self.life = 0
        self.first = 0
        """The number of the oldest change that is held."""
        self._changes: list[Change] = []
        self._bytes = 0
        self._changes_max, self._bytes_max = changes_max, bytes_max
        self._framed: dict[tuple[object, int], bytes | str] = {}

    @property
    def end(self) -> int:
        """The number that the next change will get."""
        return self.first + len(self._changes)

    def add(self, changes: list[Change], head: Position) -> None:
        """Take changes in that went by, up to `head`."""
        self.head = head
        if not changes:
            return
        self._framed.clear()
        self._changes += changes
        self._bytes += sum(len(change.text) + _CHANGE_BYTES for change in changes)
        if len(self._changes) > self._changes_max or self._bytes > self._bytes_max:
            self._trim()

    def _trim(self) -> None:
        """Let the oldest go, a tenth more than must, so that it is not done at every change."""
        count = max(0, len(self._changes) - self._changes_max * 9 // 10)
        size = self._bytes - sum(len(c.text) + _CHANGE_BYTES for c in self._changes[:count])
        while size > self._bytes_max * 9 // 10:
            size -= len(self._changes[count].text) + _CHANGE_BYTES
            count += 1
        self.floor = self._changes[count - 1].position
        del self._changes[:count]
        self.first, self._bytes = self.first + count, size

    def restart(self, floor: Position) -> None:
        """Begin anew behind `floor`: something went by that was not seen here."""
        self.first, self._bytes = self.end, 0
        self._changes.clear()
        self._framed.clear()
        self.floor = self.head = floor
        self.life += 1

    def number_after(self, position: Position) -> int | None:
        """The number of the first change behind the position; None where what follows it may not be
        held.
        """
        if position.place < self.floor.place:
            return None
        return self.first + bisect_right(
            self._changes, position.place, key=lambda change: change.position.place
        )

    def batch(self, number: int) -> list[Change]:
        """The changes from this number on, as many as a reader gets at once."""
        start = number - self.first
        return cut(self._changes[start : start + _BATCH_CHANGES_MAX])

    def framed(
        self, number: int, frame: Callable[[list[Change]], bytes | str], batch: list[Change]
    ) -> bytes | str:
        """`frame` of the batch at this number, made once for all readers."""
        made = self._framed.get((frame, number))
        if made is None:
            # Readers stand at few places, but for those that have just come: the oldest goes.
            while len(self._framed) >= _FRAMES_MAX:
                del self._framed[next(iter(self._framed))]
            made = self._framed[frame, number] = frame(batch)
        return made


def cut(changes: list[Change]) -> list[Change]:
    """As many of the first changes as a reader is given at once."""
    size = 0
    for count, change in enumerate(changes[:_BATCH_CHANGES_MAX]):
        size += len(change.text)
        if size > _BATCH_BYTES_MAX and count:
            return changes[:count]
    return changes[:_BATCH_CHANGES_MAX]
