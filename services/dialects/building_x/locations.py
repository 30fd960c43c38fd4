"""Locations: campuses, buildings, floors, rooms, with their postal addresses. A location's type is
the type of its resource.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder

from schemas.catalogue import LOCATION_TYPES, Location
from services.dialects._contract import Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.building_x import lists
from services.dialects.building_x.editing import (
    ATTRIBUTES,
    GONE,
    RELATIONSHIPS,
    Body,
    Data,
    Text,
    ToOne,
    call,
    created,
    data_of,
    ends,
    made_of,
    members,
    own_id,
    pointed,
    same,
)
from services.dialects.building_x.jsonapi import (
    Draft,
    Links,
    Members,
    read,
    related,
    resource,
    to_one,
)
from services.dialects.building_x.lists import Wanted
from services.dialects.building_x.paths import PARTITION, own_partition
from services.errors import Conflicting, Unknown

PATH = PARTITION + "/locations"
ONE = PATH + "/{locationId}"
INCLUDES = ("hasPostalAddress", "isPartOf")
ADDRESS = {
    "street": "street",
    "postalCode": "postal_code",
    "locality": "locality",
    "region": "region",
    "countryCode": "country_code",
}
"""Members of a postal address, and of a location."""


class _Address(Struct, rename="camel", forbid_unknown_fields=True):
    street: Text = UNSET
    postal_code: Text = UNSET
    locality: Text = UNSET
    region: Text = UNSET
    country_code: Text = UNSET


class _Attributes(Struct, rename="camel", forbid_unknown_fields=True):
    label: Text = UNSET
    description: Text = UNSET
    time_zone: Text = UNSET
    postal_address: _Address | UnsetType | None = UNSET


class _Relationships(Struct, rename={"parent": "isPartOf"}, forbid_unknown_fields=True):
    parent: ToOne | UnsetType = UNSET
    # What clients send back with the rest; it says nothing.
    hasPostalAddress: Any = UNSET
    hasDevices: Any = UNSET


_BODY = Decoder(Body[_Attributes, _Relationships])
_POINTERS = {
    "label": f"{ATTRIBUTES}/label",
    "description": f"{ATTRIBUTES}/description",
    "time_zone": f"{ATTRIBUTES}/timeZone",
    "parent": f"{RELATIONSHIPS}/isPartOf",
    "type": "/data/type",
    **{member: f"{ATTRIBUTES}/postalAddress/{name}" for name, member in ADDRESS.items()},
}
_FILTERS = {
    "type": lambda each: each.type,
    "label": lambda each: each.label,
    "isPartOf.data.id": lambda each: each.parent,
}


def rank(location: Location) -> lists.Rank:
    """Its place in the list."""
    return location.created_ms, location.id


def of(location: Location, lookup: Lookup, links: Links, wanted: Wanted) -> Members:
    """A location as it is shown."""
    above = lookup.location(location.tenant, location.parent)
    address = location.id if location.has_address else ""
    devices = links.to("devices", query={"filter[hasLocation.data.id]": location.id})
    return resource(
        location.type,
        location.id,
        {
            "label": location.label,
            "description": location.description,
            "timeZone": location.time_zone,
        },
        {
            "hasPostalAddress": to_one("PostalAddress", address),
            "isPartOf": to_one(above.type, above.id) if above else to_one("", ""),
            "hasDevices": related(devices),
        },
        link=links.to("locations", location.id),
        fields=wanted.of_type(location.type, "Location"),
    )


def included(location: Location, lookup: Lookup, links: Links, wanted: Wanted) -> Iterator[Members]:
    """What is included with a location."""
    if "hasPostalAddress" in wanted.included and location.has_address:
        address = {name: getattr(location, member) for name, member in ADDRESS.items()}
        fields = wanted.of_type("PostalAddress")
        yield resource("PostalAddress", location.id, address, fields=fields)
    if "isPartOf" in wanted.included:
        above = lookup.location(location.tenant, location.parent)
        if above is not None:
            yield of(above, lookup, links, wanted)


def find(inbound: Inbound, lookup: Lookup) -> Draft:
    """A page of the locations."""
    tenant, query = own_partition(inbound, lookup), inbound.query
    links, wanted = Links(inbound), Wanted.of(query, INCLUDES)
    rest = lists.behind(lookup.locations(tenant), rank, lists.after_of(query, 2))
    page, cursor = lists.paged(query, lists.filtered(query, rest, _FILTERS), rank)
    draft = Draft([of(each, lookup, links, wanted) for each in page])
    draft.links = links.page(query, cursor, "locations")
    for each in page:
        draft.include(included(each, lookup, links, wanted))
    return draft


def find_by_id(inbound: Inbound, lookup: Lookup) -> Draft:
    """One location."""
    location = own_location(inbound, lookup)
    links, wanted = Links(inbound), Wanted.of(inbound.query, INCLUDES)
    draft = Draft(of(location, lookup, links, wanted))
    draft.links = {"self": links.to("locations", location.id, query=inbound.query)}
    draft.include(included(location, lookup, links, wanted))
    return draft


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Make a location."""
    tenant, data = own_partition(inbound, lookup), data_of(_BODY, inbound)
    kind = made_of(data, LOCATION_TYPES)
    given = {"label": "", **_given(data, tenant, lookup)}
    with pointed(_POINTERS):
        control = actions.control(inbound.caller)
        made = await control.add_location(tenant, type=kind, **own_id(data), **given)
    return created(_shown(made, inbound, lookup), Links(inbound).to("locations", made.id))


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Change what is given of a location."""
    location, data = own_location(inbound, lookup), data_of(_BODY, inbound)
    same(data, location.type, location.id)
    given = _given(data, location.tenant, lookup)
    with pointed(_POINTERS):
        control = actions.control(inbound.caller)
        changed = await control.change_location(location.tenant, location.id, **given)
    return _shown(changed, inbound, lookup).reply()


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Delete a location with nothing in it any more."""
    location = own_location(inbound, lookup)
    with pointed({"id": ""}):
        await actions.control(inbound.caller).delete_location(location.tenant, location.id)
    return GONE


def _given(data: Data[_Attributes, _Relationships], tenant: str, lookup: Lookup) -> Members:
    """What is given of a location, by control's names."""
    given = members(data.attributes)
    if (address := given.pop("postal_address", UNSET)) is not UNSET:
        # Null takes the whole address away.
        given |= members(address) if address else dict.fromkeys(ADDRESS.values(), "")
    above = ends(data.relationships, {"parent": LOCATION_TYPES})
    if not isinstance(data.relationships, UnsetType):
        check_type(data.relationships.parent, "isPartOf", tenant, lookup)
    return given | ({"parent": above["parent"]} if "parent" in above else {})


def _shown(location: Location, inbound: Inbound, lookup: Lookup) -> Draft:
    """A location that was made or changed, with its address."""
    links, wanted = Links(inbound), Wanted.of({lists.INCLUDE: "hasPostalAddress"}, INCLUDES)
    draft = Draft(of(location, lookup, links, wanted))
    draft.include(included(location, lookup, links, wanted))
    return draft


def check_type(end: ToOne | UnsetType, name: str, tenant: str, lookup: Lookup) -> None:
    """Raises Conflicting where the relationship `name` leads to a location and says another type
    than that has. Whether it is there is for control.
    """
    if isinstance(end, UnsetType) or end.data is None:
        return
    found = lookup.location(tenant, end.data.id)
    if found is not None and end.data.type not in (UNSET, found.type):
        where = f"{RELATIONSHIPS}/{name}/data/type"
        raise Conflicting(f"{found.id} is a {found.type}", where=where)


def own_location(inbound: Inbound, lookup: Lookup) -> Location:
    """The location that the path names. Raises Unknown."""
    tenant, asked = own_partition(inbound, lookup), inbound.path["locationId"]
    if (found := lookup.location(tenant, asked)) is None:
        raise Unknown(f"there is no location {asked[:100]} in this partition")
    return found


_SHOWN = lists.shown(INCLUDES)
READS = (
    read(
        PATH,
        find,
        "The locations, in the order of their creation",
        "a page of locations; links.next leads to the following one",
        parameters=lists.by_filters(_FILTERS) | lists.PAGING | _SHOWN,
    ),
    read(
        ONE,
        find_by_id,
        "A location",
        "the location",
        missing="unknown partition or location",
        parameters=_SHOWN,
    ),
)
_EXAMPLE = {
    "type": "Building",
    "attributes": {
        "label": "Headquarters",
        "timeZone": "Europe/Zurich",
        "postalAddress": {"street": "Main Street 1", "locality": "Zug", "countryCode": "CH"},
    },
    "relationships": {"isPartOf": {"data": {"type": "Campus", "id": "…"}}},
}
CALLS = (
    call(
        "POST",
        PATH,
        create,
        "Make a location",
        {201: "the location", 409: "the id is taken, or the type is none of locations"},
        example=_EXAMPLE,
    ),
    call(
        "PATCH",
        ONE,
        change,
        "Change what is given of a location",
        {200: "the location", 409: "another type or id than the path's"},
        example={"type": "Building", "id": "…", "attributes": {"label": "Old headquarters"}},
    ),
    call(
        "DELETE",
        ONE,
        delete,
        "Delete a location",
        {204: "it is gone", 409: "devices are there, or other locations are part of it"},
    ),
)
