"""Locations: campuses, buildings, floors, rooms, with their postal addresses. A location's type is
the type of its resource.
"""

from __future__ import annotations

from collections.abc import Iterator

from schemas.catalogue import Location
from services.dialects._contract import Inbound, Lookup
from services.dialects.building_x import lists
from services.dialects.building_x.ingest import own_partition
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
from services.dialects.building_x.partitions import ONE as PARTITION
from services.errors import Unknown

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


def own_location(inbound: Inbound, lookup: Lookup) -> Location:
    """The location that the path names. Raises Unknown."""
    tenant, asked = own_partition(inbound, lookup), inbound.path["locationId"]
    if (found := lookup.location(tenant, asked)) is None:
        raise Unknown(f"there is no location {asked[:100]} in this partition")
    return found


_SHOWN = {
    lists.INCLUDE: ", ".join(INCLUDES),
    lists.FIELDS: "which attributes and relationships are shown; comma-separated",
}
READS = (
    read(
        PATH,
        find,
        "The locations, in the order of their creation",
        "a page of locations; links.next leads to the following one",
        parameters={f"filter[{name}]": "is equal" for name in _FILTERS} | lists.PAGING | _SHOWN,
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
