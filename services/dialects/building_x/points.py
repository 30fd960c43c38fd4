"""Points, with their latest values where they are asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from schemas.catalogue import Device, Point
from schemas.samples import Kind
from services.dialects._contract import Inbound, Lookup
from services.dialects.building_x import devices, lists
from services.dialects.building_x.devices import own_device
from services.dialects.building_x.ingest import own_partition, own_point
from services.dialects.building_x.jsonapi import Draft, Links, Members, read, resource, to_one
from services.dialects.building_x.lists import Wanted
from services.dialects.building_x.partitions import ONE as PARTITION

PATH = PARTITION + "/points"
ONE = PATH + "/{pointId}"
OF_DEVICE = devices.ONE + "/points"
INCLUDES = ("hasDevice",)
VALUE = "pointValue"
YES = "m:"
"""How the vendor says that something is so, in a text."""

_VALUE_ALONE = frozenset({VALUE})
_TYPES = {Kind.DOUBLE: "number", Kind.LONG: "number", Kind.BOOL: "boolean"}
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
    if point.writable:
        system["writable"] = YES
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
    links: Links,
    wanted: Wanted,
) -> Draft:
    """A document about the points, with what is to be included, their values to be filled in."""
    draft = Draft(shown)
    resources = shown if isinstance(shown, list) else [shown]
    for point, each in zip(points, resources, strict=True):
        if VALUE in (wanted.of_type("Point") or ()):
            attributes = each["attributes"]
            if "systemAttributes" in attributes:
                # Until a good value is found.
                attributes["systemAttributes"]["curStatus"] = "fail"
            draft.points[point.series] = attributes
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
    draft = draft_of(shown, points, lookup, links, wanted)
    draft.links = links.page(inbound.query, cursor, *steps)
    return draft


def find_by_id(inbound: Inbound, lookup: Lookup) -> Draft:
    """One point."""
    point = own_point(inbound, lookup)
    links, wanted = Links(inbound), Wanted.of(inbound.query, INCLUDES)
    draft = draft_of(of(point, links, wanted), [point], lookup, links, wanted)
    draft.links = {"self": links.to("points", point.id, query=inbound.query)}
    return draft


def _rank(point: Point) -> lists.Rank:
    return point.created_ms, point.key


_SHOWN = {
    lists.INCLUDE: ", ".join(INCLUDES),
    lists.FIELDS: "which attributes and relationships are shown; comma-separated. "
    f"field[Point]={VALUE} adds the latest value to the others",
}
_LISTED = {f"filter[{name}]": "is equal" for name in _FILTERS} | lists.PAGING | _SHOWN
_PAGE = "a page of points; links.next leads to the following one"
READS = (
    read(PATH, find, "The points, device by device", _PAGE, parameters=_LISTED),
    read(
        ONE,
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
