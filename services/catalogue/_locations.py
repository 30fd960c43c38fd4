"""Control's actions on locations: campuses, buildings, floors, rooms, with postal addresses."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from uuid import uuid4

from schemas.catalogue import LOCATION_TYPES, Location
from services.catalogue._checks import check, check_tree, chosen_id, note, refuses, room, text
from services.catalogue._part import Part
from services.errors import Conflicting

LOCATIONS_MAX = 10_000
"""Of a tenant."""
_ADDRESS = ("street", "postal_code", "locality", "region")


class Locations(Part):
    """Locations."""

    async def add_location(
        self,
        tenant: str,
        label: str,
        *,
        id: str | None = None,
        type: str = "Building",
        description: str = "",
        time_zone: str = "",
        parent: str = "",
        street: str = "",
        postal_code: str = "",
        locality: str = "",
        region: str = "",
        country_code: str = "",
    ) -> Location:
        """Make a location; without `id` it gets a random UUID."""
        self._tenant(tenant)
        room(len(self._view.locations(tenant)), LOCATIONS_MAX, "a tenant", "locations")
        location = Location(
            str(uuid4()) if id is None else chosen_id(id),
            tenant=tenant,
            created_ms=self._clock.now_ms(),
            **_checked(
                label=label,
                type=type,
                description=description,
                time_zone=time_zone,
                parent=parent,
                street=street,
                postal_code=postal_code,
                locality=locality,
                region=region,
                country_code=country_code,
            ),
        )
        self._check_parent(tenant, location.id, parent)
        return await self._changes.make(
            location,
            contested=lambda: refuses(lambda: self._check_parent(tenant, location.id, parent)),
        )

    async def change_location(
        self,
        tenant: str,
        id: str,
        *,
        label: str | None = None,
        description: str | None = None,
        time_zone: str | None = None,
        parent: str | None = None,
        street: str | None = None,
        postal_code: str | None = None,
        locality: str | None = None,
        region: str | None = None,
        country_code: str | None = None,
    ) -> Location:
        """Change what is given of a location; an empty text takes it away. Its type is for good."""
        self._location(tenant, id, "id")
        given = _checked(
            label=label,
            description=description,
            time_zone=time_zone,
            parent=parent,
            street=street,
            postal_code=postal_code,
            locality=locality,
            region=region,
            country_code=country_code,
        )
        changes = {name: value for name, value in given.items() if value is not None}

        moved = False

        def changed(now: Location) -> Location:
            nonlocal moved
            # Clients send back what they were given.
            if moved := parent not in (None, now.parent):
                self._check_parent(tenant, id, parent or "")
            return replace(now, **changes)

        def misplaced() -> bool:
            return moved and refuses(lambda: self._check_parent(tenant, id, parent or ""))

        return await self._changes.edit(Location, id, changed, contested=misplaced)

    async def delete_location(self, tenant: str, id: str) -> None:
        """Delete a location. Raises Conflicting where a device or another location is there."""
        location = self._location(tenant, id, "id")

        def check_unused() -> None:
            if any(each.parent == id for each in self._view.locations(tenant)):
                raise Conflicting("other locations are part of it", where="id", code="in_use")
            if any(each.location == id for each in self._view.devices(tenant)):
                raise Conflicting("devices are there", where="id", code="in_use")

        await self._changes.delete([location], check=check_unused)
        # What another process put there before the deletion was on the log.
        for part in [each for each in self._view.locations(tenant) if each.parent == id]:
            await self._release(part, "parent", id)
        for device in [each for each in self._view.devices(tenant) if each.location == id]:
            await self._release(device, "location", id)

    def _check_parent(self, tenant: str, id: str, parent: str) -> None:
        """Raises Unknown, or Malformed where a location would be part of itself."""
        if parent:
            self._location(tenant, parent, "parent")
            ends = {each.id: each.parent for each in self._view.locations(tenant)}
            check_tree(id, parent, ends, "parent", "locations")


def _checked(**given: Any) -> dict[str, Any]:
    """What a location is made of; None is not looked at. Raises Malformed."""
    named = {name: value for name, value in given.items() if value is not None}
    for place in (*_ADDRESS, "description"):
        note(named.get(place, ""), place)
    if "label" in named:
        text(named["label"], "label")
    kind, zone, country = (named.get(name, "") for name in ("type", "time_zone", "country_code"))
    check("type" not in named or kind in LOCATION_TYPES, "type", ", ".join(LOCATION_TYPES))
    wanted = "a name of the IANA database, such as Europe/Zurich"
    check(re.fullmatch(r"([A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*)?", zone), "time_zone", wanted)
    check(len(zone) <= 64, "time_zone", wanted)
    check(re.fullmatch(r"([A-Z]{2})?", country), "country_code", "two letters, as ISO 3166-1 has")
    return given
