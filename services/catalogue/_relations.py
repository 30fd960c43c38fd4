"""Things of a `View` that belong to another one: found by the id of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from schemas.catalogue import Binding, Trigger

T = TypeVar("T", Binding, Trigger)


class Relation(Generic[T]):
    """`owner` names what a thing belongs to. Like every index of the view it is a function of the
    set of things, not of their order.
    """

    def __init__(self, owner: Callable[[T], str]) -> None:
        self._owner: Callable[[T], str] = owner
        self._things: dict[str, dict[str, T]] = {}

    def put(self, thing: T) -> None:
        """Add a thing whose id is not in it."""
        self._things.setdefault(self._owner(thing), {})[thing.id] = thing

    def remove(self, thing: T) -> None:
        """Take a thing out."""
        owner = self._owner(thing)
        things = self._things[owner]
        del things[thing.id]
        if not things:
            del self._things[owner]

    def of(self, owner: str) -> list[T]:
        """What belongs to `owner`, in the order of creation."""
        found = self._things.get(owner, {}).values()
        return sorted(found, key=lambda thing: (thing.created_ms, thing.id))
