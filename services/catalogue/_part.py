"""What all parts of `Control` stand on, and the questions that they share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from schemas.catalogue import VIEW, Device, Location, Point, Tenant, Thing
from schemas.commands import Command
from services.catalogue._changes import Changes
from services.catalogue.audit import Caller, Journal
from services.catalogue.view import View
from services.clock import Clock
from services.errors import Forbidden, Unknown
from services.eventlog import EventLog

T = TypeVar("T", Device, Location)


class Part:
    """Some of the actions. `caller` is who has them done."""

    caller: Caller
    journal: Journal
    _changes: Changes
    _view: View
    _clock: Clock
    _secret: bytes
    _log: EventLog
    _commit_seconds: float
    _command_ms: int
    _device_commands_max: int
    _commands_under_way: list[Command]

    def _tenant(self, tenant: str) -> Tenant:
        if (found := self._view.tenant(tenant)) is None:
            raise Unknown(f"no tenant {tenant!r}", where="tenant")
        return found

    def _device(self, tenant: str, device: str, where: str = "device") -> Device:
        self._tenant(tenant)
        if (found := self._view.device(tenant, device)) is None:
            raise Unknown(f"no device {device!r} in {tenant}", where=where)
        return found

    def _location(self, tenant: str, location: str, where: str = "location") -> Location:
        if (found := self._view.location(tenant, location)) is None:
            raise Unknown(f"no location {location!r} in {tenant}", where=where)
        return found

    def _point(self, tenant: str, point: str, where: str = "id") -> Point:
        if (found := self._view.point(tenant, point)) is None:
            raise Unknown(f"no point {point!r} in {tenant}", where=where)
        return found

    def _own(self, scopes: Iterable[str]) -> None:
        """Nobody gives, or changes for somebody, rights beyond their own (whoever speaks may be
        there). Raises Forbidden.
        """
        if beyond := set(scopes) - self.caller.scopes - {VIEW}:
            raise Forbidden(f"you may not {', '.join(sorted(beyond))} yourself")

    async def _release(self, thing: T, member: str, gone: str) -> None:
        """Have a thing hang no more on what is gone; not on something made again by that id."""

        def released(now: T) -> T:
            nothing: dict[str, Any] = {member: ""}
            return replace(now, **nothing) if getattr(now, member) == gone else now

        with suppress(Unknown):
            await self._changes.edit(type(thing), thing.id, released)

    async def _delete_points(self, points: Iterable[Point]) -> None:
        """Delete points with what hangs on them; that first, so that it may be done again."""
        things: list[Thing] = []
        for point in points:
            things += self._view.triggers(point.tenant, point.id)
            things += self._view.bindings(point.tenant, point=point.id)
            things.append(point)
        await self._changes.delete(things)
