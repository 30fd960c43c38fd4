"""Control's actions on tenants, devices, the API server, points."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from sys import float_info
from typing import Any
from uuid import uuid4

from schemas.catalogue import API_SERVER, Device, Point, Tenant
from schemas.samples import TS_MS_MAX, Kind
from services.catalogue._checks import check, check_tree, chosen_id, note, refuses, text
from services.catalogue._ids import new_point
from services.catalogue._part import Part
from services.errors import Conflicting, Refused, Taken

_KEEP_MINUTES_MAX = 527_040
"""A year."""
_ENDS = ("location", "gateway")
"""What of a device names other things."""


class Places(Part):
    """Tenants, devices, points."""

    async def add_tenant(self, id: str, name: str) -> Tenant:
        """Make a tenant with its API server; `id` is its short name."""
        check(re.fullmatch(r"[a-z0-9-]{1,64}", id), "id", "1 to 64 of a-z, 0-9 and -")
        tenant = Tenant(id, name=text(name, "name"), uuid=str(uuid4()))
        server = replace(self._view.api_server(id), created_ms=self._clock.now_ms())
        if self._view.tenant(id) is None:
            self._check_free(server)
        made = await self._changes.make(tenant, server)
        try:
            self._check_free(server)
        except Conflicting:
            await self._changes.delete([made])
            raise
        return made

    async def add_device(
        self,
        tenant: str,
        name: str,
        *,
        id: str | None = None,
        type: str = "default",
        description: str = "",
        model: str = "",
        serial: str = "",
        location: str = "",
        gateway: str = "",
    ) -> Device:
        """Make a device; without `id` it gets a random UUID."""
        self._tenant(tenant)
        check(type != API_SERVER, "type", f"another one than {API_SERVER}: every tenant has one")
        device = Device(
            str(uuid4()) if id is None else chosen_id(id),
            tenant=tenant,
            name=text(name, "name"),
            type=text(type, "type"),
            created_ms=self._clock.now_ms(),
            description=note(description, "description"),
            model=note(model, "model"),
            serial=note(serial, "serial"),
            location=location,
            gateway=gateway,
        )
        self._check_place(device)
        return await self._changes.make(
            device, contested=lambda: refuses(lambda: self._check_place(device))
        )

    async def change_device(
        self,
        tenant: str,
        id: str,
        *,
        name: str | None = None,
        disabled: bool | None = None,
        description: str | None = None,
        model: str | None = None,
        serial: str | None = None,
        location: str | None = None,
        gateway: str | None = None,
    ) -> Device:
        """Change what is given of a device, an empty text takes it away; switch it off, so that
        pushes to it are refused, or on.
        """
        device = self._device(tenant, id)
        notes = {"description": description, "model": model, "serial": serial}
        ends = {"location": location, "gateway": gateway}
        given: dict[str, Any] = {k: v for k, v in (notes | ends).items() if v is not None}
        for place in given.keys() & notes.keys():
            note(given[place], place)
        if name is not None:
            given["name"] = text(name, "name")
        if disabled is not None:
            given["disabled"] = bool(disabled)
        await self._there(device)
        moved: list[str] = []

        def changed(now: Device) -> Device:
            changed = replace(now, **given)
            moved[:] = [end for end in ends if getattr(changed, end) != getattr(now, end)]
            self._check_place(changed, moved)
            return changed

        def misplaced() -> bool:
            now = self._view.device(tenant, id)
            return now is not None and refuses(lambda: self._check_place(now, moved))

        return await self._changes.edit(Device, id, changed, contested=misplaced)

    async def delete_device(self, tenant: str, id: str) -> None:
        """Delete a device with its keys and points; it is nobody's gateway any more. May be done
        again if it was interrupted.
        """
        device = self._device(tenant, id)
        if device.type == API_SERVER:
            raise Refused("every tenant has its API server; switch it off", where="id")
        # Its keys first: then nobody can make new points of it.
        await self._changes.delete([key for key in self._view.keys(tenant) if key.device == id])
        await self._clear(device)
        await self._changes.delete([device])
        # What came to it before the deletion was on the log.
        await self._clear(device)

    async def add_point(
        self,
        tenant: str,
        device: str,
        key: str,
        *,
        kind: int | None = None,
        locked: bool = True,
        id: str | None = None,
        name: str = "",
        unit: str = "",
        precision: int | None = None,
        band: float = 0.0,
        band_percent: float = 0.0,
        heartbeat_ms: int = 0,
        on_change: bool = False,
        keep_minutes: int = 0,
        description: str = "",
        writable: bool = False,
        ingestable: bool = True,
    ) -> Point:
        """Declare the point at a key of a device; without `id` it gets a UUID."""
        found = self._device(tenant, device)
        check(kind is None or kind in tuple(Kind), "kind", f"one of {[*map(int, Kind)]}")
        point = new_point(
            tenant,
            device,
            text(key, "key"),
            id="" if id is None else chosen_id(id),
            origin=self._view.origin(tenant, device, key),
            name=text(name or key, "name"),
            kind=None if kind is None else int(kind),
            locked=locked,
            unit=note(unit, "unit"),
            description=note(description, "description"),
            writable=bool(writable),
            ingestable=bool(ingestable),
            created_ms=self._clock.now_ms(),
            **_rules(
                precision=precision,
                band=band,
                band_percent=band_percent,
                heartbeat_ms=heartbeat_ms,
                on_change=on_change,
                keep_minutes=keep_minutes,
            ),
        )
        if self._view.known(tenant, device, key) is not None:
            raise _taken(key)
        await self._there(found)
        crowded = self._crowded(point)
        return await self._changes.make(
            point, contested=lambda: crowded() or self._view.device(tenant, device) is None
        )

    async def change_point(
        self,
        tenant: str,
        id: str,
        *,
        key: str | None = None,
        name: str | None = None,
        unit: str | None = None,
        precision: int | None = None,
        band: float | None = None,
        band_percent: float | None = None,
        heartbeat_ms: int | None = None,
        on_change: bool | None = None,
        keep_minutes: int | None = None,
        description: str | None = None,
        writable: bool | None = None,
        ingestable: bool | None = None,
    ) -> Point:
        """Change what is given of a point. With another key it stays the same series, and what was
        stored stays its own.
        """
        point = self._point(tenant, id)
        rules = _rules(
            precision=precision,
            band=band,
            band_percent=band_percent,
            heartbeat_ms=heartbeat_ms,
            on_change=on_change,
            keep_minutes=keep_minutes,
        )
        given = {"name": name and text(name, "name"), "writable": writable, **rules}
        given["ingestable"] = ingestable
        for place, said in (("unit", unit), ("description", description)):
            if said is not None:
                given[place] = note(said, place)
        check(name != "", "name", "1 to 256 characters")
        changes: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        if key is None or text(key, "key") == point.key:
            return await self._changes.edit(Point, id, lambda now: replace(now, **changes))

        def moved(now: Point) -> Point:
            other = self._view.known(tenant, now.device, key)
            if other is not None and other.id != id:
                raise _taken(key)
            origin = now.origin or now.key
            return replace(now, key=key, origin="" if origin == key else origin, **changes)

        contested = self._crowded(replace(point, key=key))
        return await self._changes.edit(Point, id, moved, contested=contested)

    async def delete_point(self, tenant: str, id: str) -> None:
        """Delete a point with its bindings and triggers; what was stored of it stays."""
        await self._delete_points([self._point(tenant, id)])

    async def _clear(self, device: Device) -> None:
        """Have nothing hang on a device: no point, and no device behind it."""
        for each in [*self._view.devices(device.tenant)]:
            if each.gateway == device.id:
                await self._release(each, "gateway", device.id)
        while points := [*self._view.points(device.tenant, device.id).values()]:
            await self._delete_points(points)

    def _check_place(self, device: Device, ends: Collection[str] = _ENDS) -> None:
        """Where a device is, and what it is connected through, are there, and that is not behind
        the device itself. Raises Unknown, Malformed.
        """
        if "location" in ends and device.location:
            self._location(device.tenant, device.location)
        if "gateway" in ends and device.gateway:
            self._device(device.tenant, device.gateway, "gateway")
            gateways = {each.id: each.gateway for each in self._view.devices(device.tenant)}
            check_tree(device.id, device.gateway, gateways, "gateway", "devices")

    def _crowded(self, point: Point) -> Callable[[], bool]:
        """Whether others are where the point is, once it is there."""
        return lambda: self._view.crowded(point.tenant, point.device, point.key)

    def _check_free(self, server: Device) -> None:
        """Raises Conflicting where another tenant's device has the id of an API server."""
        found = self._view.thing(Device.KIND, server.id)
        if isinstance(found, Device) and found.tenant != server.tenant:
            said = f"a device of another tenant has the id of {server.tenant}'s API server"
            raise Conflicting(said, where="id")

    async def _there(self, device: Device) -> None:
        """Have an API server on the log that is taken to be there: tenants from before they had
        one.
        """
        self._check_free(device)
        if self._view.thing(Device.KIND, device.id) is None:
            with suppress(Taken):
                await self._changes.make(replace(device, created_ms=self._clock.now_ms()))


def _taken(key: str) -> Taken:
    return Taken(f"there is a point at {key!r} already", where="key")


def _rules(**given: Any) -> dict[str, Any]:
    """How a point's samples are judged and kept; None is not looked at. Raises Malformed."""
    precision, heartbeat_ms, keep = (
        given[name] for name in ("precision", "heartbeat_ms", "keep_minutes")
    )
    check(precision is None or 0 <= precision <= 15, "precision", "0 to 15")
    for place in ("band", "band_percent"):
        if (number := given[place]) is not None:
            check(0 <= number <= float_info.max, place, "a number, 0 or more")
            given[place] = float(number)
    beats = heartbeat_ms is None or 0 <= heartbeat_ms <= TS_MS_MAX
    check(beats, "heartbeat_ms", f"0 to {TS_MS_MAX}")
    wanted = f"0 (for ever) to {_KEEP_MINUTES_MAX} minutes"
    check(keep is None or 0 <= keep <= _KEEP_MINUTES_MAX, "keep_minutes", wanted)
    return given
