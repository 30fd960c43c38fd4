"""Things of a `View` that belong to another one: found by the id of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from schemas.catalogue import Binding, Device, Location, Trigger

T = TypeVar("T", Binding, Trigger, Device, Location)


class Relation(Generic[T]):
    """`owner` names what a thing belongs to. Like every index of the view it is a function of the
    set of things, not of their order.
    """

    def __init__(self, owner: Callable[[T], str]) -> None:
        self._owner: Callable[[T], str] = owner
        self._things: dict[str, dict[str, T]] = {}
        self._changes = 0
        self._ordered: dict[str, tuple[int, list[T]]] = {}

    def put(self, thing: T) -> None:
        """Add a thing whose id is not in it."""
        self._things.setdefault(self._owner(thing), {})[thing.id] = thing
        self._changes += 1

    def remove(self, thing: T) -> None:
        """Take a thing out."""
        owner = self._owner(thing)
        things = self._things[owner]
        del things[thing.id]
        if not things:
            del self._things[owner]
        self._changes += 1
        self._ordered.pop(owner, None)

    def of(self, owner: str) -> list[T]:
        """What belongs to `owner`, in the order of creation: a picture that nobody may change."""
        # Readers in other threads may be late with their picture: it says of which state it is.
        changes = self._changes
        at, found = self._ordered.get(owner, (-1, []))
        if at != changes:
            if (things := self._things.get(owner)) is None:
                self._ordered.pop(owner, None)
                return []
            found = sorted(things.copy().values(), key=lambda thing: (thing.created_ms, thing.id))
            self._ordered[owner] = (changes, found)
        return found
