"""Devices, what is known of them (DeviceInfo), and whether they are connected (Connectivity)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder

from schemas.catalogue import LOCATION_TYPES, Device
from services.dialects._contract import Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.building_x import lists, locations
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
    identifier,
    read,
    related,
    resource,
    to_one,
)
from services.dialects.building_x.lists import Wanted
from services.dialects.building_x.paths import PARTITION, own_partition
from services.errors import Unknown

PATH = PARTITION + "/devices"
ONE = PATH + "/{deviceId}"
BEHIND = ONE + "/devices"
FEATURES = ("DeviceInfo", "Connectivity")
INCLUDES = (
    "hasFeatures",
    *(f"hasFeatures.{feature}" for feature in FEATURES),
    "hasLocation",
    "hasGateway",
)

_NAMES = {"model": "modelName", "serial": "serialNumber"}
_ENDS = {"location": "hasLocation", "gateway": "hasGateway"}
_TYPES = {"location": LOCATION_TYPES, "gateway": ("Device",)}


class _Attributes(Struct, rename=_NAMES, forbid_unknown_fields=True):
    name: Text = UNSET
    description: Text = UNSET
    model: Text = UNSET
    serial: Text = UNSET


class _Relationships(Struct, rename=_ENDS, forbid_unknown_fields=True):
    location: ToOne | UnsetType = UNSET
    gateway: ToOne | UnsetType = UNSET
    # What clients send back with the rest; it says nothing.
    hasFeatures: Any = UNSET
    hasDevices: Any = UNSET
    hasPoints: Any = UNSET


_BODY = Decoder(Body[_Attributes, _Relationships])
_POINTERS = {
    name: f"{ATTRIBUTES}/{_NAMES.get(name, name)}" for name in _Attributes.__struct_fields__
} | {name: f"{RELATIONSHIPS}/{end}" for name, end in _ENDS.items()}
_FILTERS = {
    "name": lambda each: each.name,
    "modelName": lambda each: each.model,
    "serialNumber": lambda each: each.serial,
    "hasLocation.data.id": lambda each: each.location,
    "hasGateway.data.id": lambda each: each.gateway,
}


def rank(device: Device) -> lists.Rank:
    """Its place in the list."""
    return device.created_ms, device.id


def of(device: Device, lookup: Lookup, links: Links, wanted: Wanted) -> Members:
    """A device as it is shown."""
    place = lookup.location(device.tenant, device.location)
    gateway = lookup.device(device.tenant, device.gateway)
    own = links.to("devices", device.id)
    return resource(
        "Device",
        device.id,
        {
            "name": device.name,
            "description": device.description,
            "modelName": device.model,
            "serialNumber": device.serial,
        },
        {
            "hasFeatures": {
                "data": [identifier(each, feature_id(device, each)) for each in FEATURES]
            },
            "hasLocation": to_one(place.type, place.id) if place else to_one("", ""),
            "hasGateway": to_one("Device", gateway.id if gateway else ""),
            "hasDevices": related(f"{own}/devices"),
            "hasPoints": related(f"{own}/points"),
        },
        link=own,
        fields=wanted.of_type("Device"),
    )


def feature_id(device: Device, feature: str) -> str:
    """The id of a feature of a device."""
    return f"{device.id}-{feature}"


def draft_of(
    data: Members | list[Members],
    devices: Sequence[Device],
    lookup: Lookup,
    links: Links,
    wanted: Wanted,
) -> Draft:
    """A document about the devices, with what is to be included."""
    draft = Draft(data)
    for each in devices:
        draft.include(_included(each, lookup, links, wanted, draft))
    return draft


def _included(
    device: Device, lookup: Lookup, links: Links, wanted: Wanted, draft: Draft
) -> Iterator[Members]:
    attributes: dict[str, Members] = {
        "DeviceInfo": {"name": device.name, "description": device.description},
        "Connectivity": {"status": "unknown"},
    }
    for feature in FEATURES:
        if wanted.included.isdisjoint(("hasFeatures", f"hasFeatures.{feature}")):
            continue
        found = resource(
            feature,
            feature_id(device, feature),
            attributes[feature],
            {"hasDevice": to_one("Device", device.id)},
            fields=wanted.of_type(feature),
        )
        if "status" in found["attributes"]:
            draft.devices[device.id] = found["attributes"]
        yield found
    place = lookup.location(device.tenant, device.location)
    if place is not None and "hasLocation" in wanted.included:
        yield locations.of(place, lookup, links, wanted)
    gateway = lookup.device(device.tenant, device.gateway)
    if gateway is not None and "hasGateway" in wanted.included:
        yield of(gateway, lookup, links, wanted)


def find(inbound: Inbound, lookup: Lookup) -> Draft:
    """A page of the devices."""
    own_partition(inbound, lookup)
    return _page(inbound, lookup, "devices")


def find_behind(inbound: Inbound, lookup: Lookup) -> Draft:
    """A page of the devices behind a gateway."""
    gateway = own_device(inbound, lookup)
    return _page(inbound, lookup, "devices", gateway.id, "devices", gateway=gateway.id)


def _page(inbound: Inbound, lookup: Lookup, *steps: str, gateway: str = "") -> Draft:
    query, links = inbound.query, Links(inbound)
    wanted = Wanted.of(query, INCLUDES)
    rest = lists.behind(lookup.devices(inbound.caller.tenant), rank, lists.after_of(query, 2))
    those = (each for each in rest if not gateway or each.gateway == gateway)
    page, cursor = lists.paged(query, lists.filtered(query, those, _FILTERS), rank)
    shown = [of(each, lookup, links, wanted) for each in page]
    draft = draft_of(shown, page, lookup, links, wanted)
    draft.links = links.page(query, cursor, *steps)
    return draft


def find_by_id(inbound: Inbound, lookup: Lookup) -> Draft:
    """One device."""
    device = own_device(inbound, lookup)
    links, wanted = Links(inbound), Wanted.of(inbound.query, INCLUDES)
    draft = draft_of(of(device, lookup, links, wanted), [device], lookup, links, wanted)
    draft.links = {"self": links.to("devices", device.id, query=inbound.query)}
    return draft


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Make a device."""
    tenant, data = own_partition(inbound, lookup), data_of(_BODY, inbound)
    made_of(data, ("Device",))
    given = {"name": "", **_given(data, tenant, lookup)}
    with pointed(_POINTERS):
        made = await actions.control(inbound.caller).add_device(tenant, **own_id(data), **given)
    return created(_shown(made, inbound, lookup), Links(inbound).to("devices", made.id))


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Change what is given of a device."""
    device, data = own_device(inbound, lookup), data_of(_BODY, inbound)
    same(data, "Device", device.id)
    given = _given(data, device.tenant, lookup)
    with pointed(_POINTERS):
        control = actions.control(inbound.caller)
        changed = await control.change_device(device.tenant, device.id, **given)
    return _shown(changed, inbound, lookup).reply()


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Delete a device with its points and keys."""
    device = own_device(inbound, lookup)
    with pointed({"id": ""}):
        await actions.control(inbound.caller).delete_device(device.tenant, device.id)
    return GONE


def _given(data: Data[_Attributes, _Relationships], tenant: str, lookup: Lookup) -> Members:
    """What is given of a device, by control's names."""
    given = ends(data.relationships, _TYPES)
    if not isinstance(data.relationships, UnsetType):
        locations.check_type(data.relationships.location, "hasLocation", tenant, lookup)
    return members(data.attributes) | {name: given[name] for name in _ENDS if name in given}


def _shown(device: Device, inbound: Inbound, lookup: Lookup) -> Draft:
    """A device that was made or changed."""
    return Draft(of(device, lookup, Links(inbound), Wanted.of({})))


def own_device(inbound: Inbound, lookup: Lookup) -> Device:
    """The device that the path names. Raises Unknown."""
    tenant, asked = own_partition(inbound, lookup), inbound.path["deviceId"]
    if (found := lookup.device(tenant, asked)) is None:
        raise Unknown(f"there is no device {asked[:100]} in this partition")
    return found


_SHOWN = lists.shown(INCLUDES)
_LISTED = lists.by_filters(_FILTERS) | lists.PAGING | _SHOWN
_PAGE = "a page of devices; links.next leads to the following one"
_MISSING = "unknown partition or device"
READS = (
    read(PATH, find, "The devices, in the order of their creation", _PAGE, parameters=_LISTED),
    read(ONE, find_by_id, "A device", "the device", missing=_MISSING, parameters=_SHOWN),
    read(
        BEHIND,
        find_behind,
        "The devices behind a gateway",
        _PAGE,
        missing=_MISSING,
        parameters=_LISTED,
    ),
)
CALLS = (
    call(
        "POST",
        PATH,
        create,
        "Make a device",
        {201: "the device", 409: "the id is taken, or the type is another"},
        example={
            "type": "Device",
            "attributes": {"name": "Press 7", "modelName": "HP-200", "serialNumber": "SN-7"},
            "relationships": {"hasLocation": {"data": {"type": "Building", "id": "…"}}},
        },
    ),
    call(
        "PATCH",
        ONE,
        change,
        "Change what is given of a device",
        {200: "the device", 409: "another type or id than the path's"},
        example={"type": "Device", "id": "…", "attributes": {"description": "Hall 2"}},
    ),
    call(
        "DELETE",
        ONE,
        delete,
        "Delete a device with its points and keys",
        {204: "it is gone; what was stored stays"},
    ),
)
