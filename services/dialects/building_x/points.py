"""Points, with their latest values where they are asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder

from schemas.catalogue import CONFIGURE, INGEST, Device, Point
from schemas.samples import Kind
from services.dialects._contract import Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.building_x import devices, lists
from services.dialects.building_x.commands import command, target_text
from services.dialects.building_x.devices import own_device
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
    for_good,
    made_of,
    members,
    own_id,
    pointed,
    same,
)
from services.dialects.building_x.jsonapi import Draft, Links, Members, read, resource, to_one
from services.dialects.building_x.lists import Wanted
from services.dialects.building_x.paths import PARTITION, POINT, own_partition, own_point
from services.errors import Conflicting, Forbidden, Malformed

PATH = PARTITION + "/points"
OF_DEVICE = devices.ONE + "/points"
INCLUDES = ("hasDevice",)
VALUE = "pointValue"
YES = "m:"
"""How the vendor says that something is so, in a text."""

_MARKERS = ("writable", "ingestable")
"""System attributes that say that something is so, and members of a point."""
_VALUE_ALONE = frozenset({VALUE})
_TYPES = {Kind.DOUBLE: "number", Kind.LONG: "number", Kind.BOOL: "boolean"}
_ENDS = {"has_device": ("Device",)}
_KINDS = {"number": Kind.DOUBLE, "boolean": Kind.BOOL, "string": Kind.STRING}


class _System(Struct, rename="camel", forbid_unknown_fields=True):
    description: Text = UNSET
    writable: Text = UNSET
    ingestable: Text = UNSET
    # What clients send back with the rest; it says nothing.
    cur_status: Any = UNSET


class _Attributes(Struct, rename="camel", forbid_unknown_fields=True):
    name: Text = UNSET
    key: str | UnsetType = UNSET
    unit: Text = UNSET
    data_type: str | UnsetType = UNSET
    system_attributes: _System | UnsetType = UNSET
    point_value: Any = UNSET


class _Relationships(Struct, rename="camel", forbid_unknown_fields=True):
    has_device: ToOne | UnsetType = UNSET


_BODY = Decoder(Body[_Attributes, _Relationships])
_POINTERS = {
    "name": f"{ATTRIBUTES}/name",
    "key": f"{ATTRIBUTES}/key",
    "unit": f"{ATTRIBUTES}/unit",
    "description": f"{ATTRIBUTES}/systemAttributes/description",
    "device": f"{RELATIONSHIPS}/hasDevice",
}
_FILTERS = {
    "name": lambda each: each.name or each.key,
    "dataType": lambda each: type_of(each),
    "hasDevice.data.id": lambda each: each.device,
}


def type_of(point: Point) -> str:
    """The declared type as the vendor calls it."""
    return "string" if point.declared is None else _TYPES.get(point.declared, "string")


def of(point: Point, links: Links, wanted: Wanted) -> Members:
    """A point as it is shown, without its value."""
    system: Members = {"description": point.description}
    system |= {name: YES for name in _MARKERS if getattr(point, name)}
    attributes: Members = {
        "name": point.name or point.key,
        "key": point.key,
        "dataType": type_of(point),
        "unit": point.unit,
        "systemAttributes": system,
    }
    fields = wanted.of_type("Point")
    if fields == _VALUE_ALONE:
        # The vendor's clients ask for the value by its name alone, and read the rest too.
        fields = None
    return resource(
        "Point",
        point.id,
        attributes,
        {"hasDevice": to_one("Device", point.device)},
        link=links.to("points", point.id),
        fields=fields,
    )


def draft_of(
    shown: Members | list[Members],
    points: Sequence[Point],
    lookup: Lookup,
    inbound: Inbound,
    wanted: Wanted,
) -> Draft:
    """A document about the points, with what is to be included, their values to be filled in."""
    draft, links = Draft(shown), Links(inbound)
    resources = shown if isinstance(shown, list) else [shown]
    for point, each in zip(points, resources, strict=True):
        if VALUE in (wanted.of_type("Point") or ()):
            attributes = each["attributes"]
            if "systemAttributes" in attributes:
                # Until a good value is found.
                attributes["systemAttributes"]["curStatus"] = "fail"
            draft.points[point.series] = attributes
            if (target := lookup.target(point, inbound.received_ms)) is not None:
                attributes[VALUE] = {"targetValue": target_text(target)}
        if "hasDevice" in wanted.included:
            device = lookup.device(point.tenant, point.device)
            if device is not None:
                draft.include([devices.of(device, lookup, links, wanted)])
    return draft


def find(inbound: Inbound, lookup: Lookup) -> Draft:
    """A page of all points, device by device."""
    tenant, query = own_partition(inbound, lookup), inbound.query
    of_one = query.get("filter[hasDevice.data.id]")
    if of_one is not None:
        found = lookup.device(tenant, of_one)
        those: Sequence[Device] = [] if found is None else [found]
    else:
        those = lookup.devices(tenant)
    after = lists.after_of(query, 4)
    if after is not None:
        those = those[bisect_left(those, after[:2], key=devices.rank) :]
    ranks: dict[str, lists.Rank] = {}

    def rest() -> Iterator[Point]:
        for device in those:
            ranks[device.id] = devices.rank(device)
            of_device = list(lookup.points(tenant, device.id).values())
            mine = after is not None and after[:2] == ranks[device.id]
            yield from lists.behind(of_device, _rank, after[2:] if mine and after else None)

    def rank(point: Point) -> lists.Rank:
        return *ranks[point.device], *_rank(point)

    return _page(inbound, lookup, lists.paged(query, _filtered(query, rest()), rank), "points")


def find_of_device(inbound: Inbound, lookup: Lookup) -> Draft:
    """A page of the points of a device."""
    device, query = own_device(inbound, lookup), inbound.query
    of_device = list(lookup.points(inbound.caller.tenant, device.id).values())
    rest = lists.behind(of_device, _rank, lists.after_of(query, 2))
    page = lists.paged(query, _filtered(query, rest), _rank)
    return _page(inbound, lookup, page, "devices", device.id, "points")


def _filtered(query: Mapping[str, str], points: Iterable[Point]) -> Iterator[Point]:
    return lists.filtered(query, points, _FILTERS)


def _page(inbound: Inbound, lookup: Lookup, page: tuple[list[Point], str], *steps: str) -> Draft:
    (points, cursor), links = page, Links(inbound)
    wanted = Wanted.of(inbound.query, INCLUDES)
    shown = [of(each, links, wanted) for each in points]
    draft = draft_of(shown, points, lookup, inbound, wanted)
    draft.links = links.page(inbound.query, cursor, *steps)
    return draft


def find_by_id(inbound: Inbound, lookup: Lookup) -> Draft:
    """One point."""
    point = own_point(inbound, lookup)
    links, wanted = Links(inbound), Wanted.of(inbound.query, INCLUDES)
    draft = draft_of(of(point, links, wanted), [point], lookup, inbound, wanted)
    draft.links = {"self": links.to("points", point.id, query=inbound.query)}
    return draft


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Declare a point of the device that the path names, or the body."""
    tenant, data = own_partition(inbound, lookup), data_of(_BODY, inbound)
    made_of(data, ("Point",))
    if not isinstance(data.attributes, UnsetType) and data.attributes.point_value is not UNSET:
        raise Malformed("a value is sent once the point is there", where=f"{ATTRIBUTES}/{VALUE}")
    given = _given(data)
    name, key = given.pop("name", ""), given.pop("key", "")
    kind = _KINDS.get(given.pop("data_type", ""))
    if kind is None:
        raise Malformed(f"one of {', '.join(_KINDS)}", where=f"{ATTRIBUTES}/dataType")
    device = str(ends(data.relationships, _ENDS).get("has_device", ""))
    if "deviceId" in inbound.path:
        of_path = own_device(inbound, lookup).id
        if device not in ("", of_path):
            where = f"{RELATIONSHIPS}/hasDevice/data/id"
            raise Conflicting(f"the path says {of_path}", where=where)
        device = of_path
    if not device:
        raise Malformed("the device that it is a point of", where=f"{RELATIONSHIPS}/hasDevice")
    if not (key or name):
        raise Malformed("a name, or a key", where=f"{ATTRIBUTES}/name")
    with pointed(_POINTERS):
        made = await actions.control(inbound.caller).add_point(
            tenant, device, key or name, kind=int(kind), name=name, **own_id(data), **given
        )
    links = Links(inbound)
    return created(Draft(of(made, links, Wanted.of({}))), links.to("points", made.id))


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Change what is given of a point; its type and its device are for good."""
    point, data = own_point(inbound, lookup), data_of(_BODY, inbound)
    attributes = members(data.attributes)
    commanded = "point_value" in attributes
    right = INGEST if commanded else CONFIGURE
    if right not in inbound.caller.scopes:
        raise Forbidden(f"the credential may not {right}")
    same(data, "Point", point.id)
    if commanded:
        if attributes.keys() != {"point_value"} or data.relationships is not UNSET:
            raise Malformed("a command goes alone", where=f"{ATTRIBUTES}/{VALUE}")
        return await command(inbound, point, actions, attributes["point_value"])
    given, related = _given(data), ends(data.relationships, _ENDS)
    for_good("dataType", given.pop("data_type", UNSET), type_of(point), ATTRIBUTES)
    for_good("hasDevice", related.get("has_device", UNSET), point.device, RELATIONSHIPS)
    with pointed(_POINTERS):
        control = actions.control(inbound.caller)
        changed = await control.change_point(point.tenant, point.id, **given)
    return Draft(of(changed, Links(inbound), Wanted.of({}))).reply()


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Delete a point with what is tied to it; what was stored of it stays."""
    point = own_point(inbound, lookup)
    with pointed({"id": ""}):
        await actions.control(inbound.caller).delete_point(point.tenant, point.id)
    return GONE


def _given(data: Data[_Attributes, _Relationships]) -> Members:
    """What is given of a point, by control's names, and its `data_type`."""
    given = members(data.attributes)
    given.pop("point_value", None)
    system = members(given.pop("system_attributes", UNSET))
    system.pop("cur_status", None)
    for name in system.keys() & _MARKERS:
        if system[name] not in (YES, ""):
            raise Malformed(f"{YES} or null", where=f"{ATTRIBUTES}/systemAttributes/{name}")
        system[name] = system[name] == YES
    return given | system


def _rank(point: Point) -> lists.Rank:
    return point.created_ms, point.key


_SHOWN = lists.shown(INCLUDES, f"field[Point]={VALUE} adds the latest value to the others")
_LISTED = lists.by_filters(_FILTERS) | lists.PAGING | _SHOWN
_PAGE = "a page of points; links.next leads to the following one"
READS = (
    read(PATH, find, "The points, device by device", _PAGE, parameters=_LISTED),
    read(
        POINT,
        find_by_id,
        "A point",
        "the point",
        missing="unknown partition or point",
        parameters=_SHOWN,
    ),
    read(
        OF_DEVICE,
        find_of_device,
        "The points of a device, in the order of their creation",
        _PAGE,
        missing="unknown partition or device",
        parameters=_LISTED,
    ),
)
_NEW = {
    "type": "Point",
    "attributes": {
        "name": "Supply air temperature",
        "key": "supply_air",
        "dataType": "number",
        "unit": "degC",
        "systemAttributes": {"description": "Air handling unit 3", "writable": YES},
    },
}
_IN_BODY = {"relationships": {"hasDevice": {"data": {"type": "Device", "id": "…"}}}}
_CREATED = {201: "the point", 409: "the id or the key is taken, or the type is another"}
CALLS = (
    call("POST", PATH, create, "Declare a point", _CREATED, example=_NEW | _IN_BODY),
    call("POST", OF_DEVICE, create, "Declare a point of a device", _CREATED, example=_NEW),
    call(
        "PATCH",
        POINT,
        change,
        "Change what is given of a point",
        {
            200: "the point",
            409: "another type or id than the path's, or the key is taken",
            429: "too many commands wait for the point's device",
        },
        # Who configures needs another right than who commands: `change` asks for it.
        scope="",
        example={"type": "Point", "id": "…", "attributes": {"name": "Supply air"}},
        headers={"Idempotency-Key": "the same command under the same key is one"},
    ),
    call(
        "DELETE",
        POINT,
        delete,
        "Delete a point with what is tied to it",
        {204: "it is gone; what was stored stays"},
    ),
)
