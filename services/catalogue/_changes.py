"""How changes get onto the log: one at a time in a process, and between processes the log decides.

What is made is claimed: of two that make the same, the first in the log's order wins and the other
is told. What is edited is read, changed and written; who finds that another process wrote in
between does it again on top of that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar
from uuid import uuid4

from schemas.catalogue import Thing
from schemas.envelope import Change, Envelope
from schemas.topics import CATALOGUE_CHANGED
from services.catalogue._ids import first
from services.catalogue.view import View
from services.errors import Refused, Taken, Unavailable, Unknown
from services.eventlog import EventLog

_log = logging.getLogger(__name__)

_EDITS_MAX = 8
_APPEND_RECORDS = 500

T = TypeVar("T", bound=Thing)


class _Seen(NamedTuple):
    """A change that counted: its claim, the thing as it is then, whether it lost its place."""

    claim: str
    thing: Thing | None
    lost: bool


class Changes:
    """Appends to `catalogue.changed`; each method returns when the own view has it. They raise
    Unavailable where the outcome is unknown.
    """

    def __init__(self, log: EventLog, view: View, commit_seconds: float) -> None:
        self._log, self._view, self._commit_seconds = log, view, commit_seconds
        self._one = asyncio.Lock()
        self._watched: tuple[str, str] | None = None
        self._contested: Callable[[], bool] | None = None
        self._seen: list[_Seen] = []
        view.on_change(self._note)

    async def make(
        self, thing: T, *others: Thing, contested: Callable[[], bool] | None = None
    ) -> T:
        """Claim the thing's id, and those of `others` with it. Raises Taken where somebody has it.

        `contested` is asked at the moment when the claim counts: whether another thing had the
        place before, or what it hangs on is gone. Then it is deleted, and Taken raised.
        """
        taken = f"there is a {thing.KIND} {thing.id!r} already"
        if self._view.thing(thing.KIND, thing.id) is not None:
            raise Taken(taken, where="id")
        change = first(thing)
        async with self._one:
            self._contested = contested
            seen = await self._commit(change, *map(first, others))
            own = [each for each in seen if each.claim == change.claim]
            if own and own[0].lost:
                await self._commit(Change(thing.KIND, thing.id, None))
                _taken(thing)
        if not own:
            raise Taken(taken, where="id")
        _log.info("catalogue: made %s %s", thing.KIND, thing.id)
        return thing

    async def edit(
        self,
        cls: type[T],
        id: str,
        change: Callable[[T], T],
        *,
        contested: Callable[[], bool] | None = None,
    ) -> T:
        """Replace a thing by what `change` makes of it; again while others wrote in between.

        `contested` is asked at the moment when the change counts, as in `make`; then the thing is
        put back.
        """
        async with self._one:
            base: T | None = self.found(cls, id)
            written = False
            for _ in range(_EDITS_MAX):
                refusal: Refused | None = None
                target = base
                try:
                    if base is None:
                        raise Unknown(f"{cls.KIND} {id!r} was deleted", where="id")
                    target = change(base)
                except Refused as error:
                    if not written:
                        raise
                    # What the other one wrote, and we wrote over, is put back.
                    refusal = error
                body = None if target is None else target.body()
                mine = Change(cls.KIND, id, body, claim=uuid4().hex)
                self._contested = None if refusal else contested
                seen, written = await self._commit(mine), True
                own = next(at for at, each in enumerate(seen) if each.claim == mine.claim)
                if own:
                    found = seen[own - 1].thing
                    base = found if isinstance(found, cls) else None
                elif refusal is not None:
                    raise refusal
                elif seen[own].lost:
                    change = _taken
                elif target is not None:
                    _log.info("catalogue: changed %s %s", cls.KIND, id)
                    return target
        raise Unavailable(f"{cls.KIND} {id!r} is being changed by others")

    async def put(self, thing: Thing) -> None:
        """Write a thing that can only be said, and never undone."""
        async with self._one:
            await self._commit(Change(thing.KIND, thing.id, thing.body()))

    async def delete(
        self, things: Iterable[Thing], *, check: Callable[[], object] | None = None
    ) -> None:
        """Delete the things, in this order; not if `check` raises when it is their turn."""
        changes = [Change(thing.KIND, thing.id, None) for thing in things]
        async with self._one:
            if check is not None:
                check()
            for start in range(0, len(changes), _APPEND_RECORDS):
                await self._commit(*changes[start : start + _APPEND_RECORDS])
        for change in changes:
            _log.info("catalogue: deleted %s %s", change.kind, change.id)

    def found(self, cls: type[T], id: str) -> T:
        """The thing with this id. Raises Unknown."""
        found = self._view.thing(cls.KIND, id)
        if not isinstance(found, cls):
            raise Unknown(f"no {cls.KIND} {id!r}", where="id")
        return found

    async def _commit(self, *changes: Change) -> list[_Seen]:
        """Append, and wait until the view is there. Returns what counted meanwhile of the first
        one's thing, in the log's order.
        """
        out = [(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key)) for change in changes]
        self._watched, self._seen = (changes[0].kind, changes[0].id), []
        try:
            async with asyncio.timeout(self._commit_seconds):
                offsets = await self._log.append(out)
                await self._view.caught_up(max(offsets))
        except TimeoutError:
            raise Unavailable("the change is not in the catalogue yet; look again") from None
        finally:
            self._watched = self._contested = None
        return self._seen

    def _note(self, change: Change) -> None:
        if self._watched == (change.kind, change.id):
            thing = self._view.thing(change.kind, change.id)
            lost = self._contested is not None and self._contested()
            self._seen.append(_Seen(change.claim, thing, lost))


def _taken(base: T) -> T:
    raise Taken(f"the {base.KIND} has no place there any more: something changed a moment before")
