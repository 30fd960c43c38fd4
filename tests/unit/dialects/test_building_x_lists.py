"""Building X's lists: pages that lead through everything once, filters, what is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.catalogue import Device, Location, Point, Tenant, Thing
from schemas.queries import LatestQuery
from schemas.samples import Kind
from services.catalogue import View, new_point
from services.dialects import Inbound, Page, Read
from services.dialects.building_x import DIALECT, lists
from services.dialects.building_x.paths import PREFIXES
from services.errors import Malformed
from tests.support.catalogue import a_view
from tests.support.examples import examples
from tests.support.lookup import a_principal

PARTITION = "0c1f3f62-6a0e-4f0b-9a4d-5b1f1a2b3c4d"
TENANT = Tenant("acme", uuid=PARTITION)
DOORS = {door.paths[0].removeprefix(PREFIXES[0]): door for door in DIALECT.reads}


def door(path: str) -> Read:
    return DOORS[f"/partitions/{{partitionId}}{path}"]


def read(path: str, view: View, query: Mapping[str, str] | None = None, **names: str) -> Any:
    """The document behind a path, without anything live."""
    asked = {"partitionId": PARTITION, **names}
    inbound = Inbound(b"", 0, a_principal(), asked, query or {})
    question = door(path).parse(inbound, view)
    answer = door(path).render(inbound, question, Page(Block(), question.names, ()))
    return json.loads(answer.body)


def walk(path: str, view: View, limit: int, **names: str) -> list[str]:
    """The ids on all pages, by their links."""
    ids, query = [], {"page[limit]": str(limit)}
    while True:
        document = read(path, view, query, **names)
        assert len(document["data"]) <= limit
        ids += [each["id"] for each in document["data"]]
        assert len(set(ids)) == len(ids), "a page goes back"
        if "next" not in document["links"]:
            return ids
        query = dict(parse_qsl(urlsplit(document["links"]["next"]).query))


moments = st.integers(1, 5)
limits = st.integers(1, 4)


@given(st.lists(moments, max_size=9), limits)
def test_the_pages_of_locations_and_devices_have_each_once_in_the_order_of_creation(
    created: list[int], limit: int
) -> None:
    ids = [f"{index:02}" for index in range(len(created))]
    pairs = list(zip(ids, created, strict=True))
    view = a_view(
        TENANT,
        *(Location(id, tenant="acme", label=id, created_ms=ms) for id, ms in pairs),
        *(Device(id, tenant="acme", name=id, created_ms=ms) for id, ms in pairs),
    )
    wanted = [id for id, _ in sorted(pairs, key=lambda pair: (pair[1], pair[0]))]
    server = view.api_server("acme").id
    assert walk("/locations", view, limit) == wanted
    assert walk("/devices", view, limit) == [server, *wanted]


@given(st.lists(st.lists(moments, max_size=4), max_size=4), limits)
def test_the_pages_of_points_go_device_by_device(created: list[list[int]], limit: int) -> None:
    things: list[Thing] = [TENANT]
    wanted: list[str] = []
    for number, points in enumerate(created):
        device = Device(f"d{number}", tenant="acme", created_ms=number + 1)
        of_device = [
            new_point("acme", device.id, f"k{index}", id=f"{number}-{index}", created_ms=ms)
            for index, ms in enumerate(points)
        ]
        things += [device, *of_device]
        ordered = sorted(of_device, key=lambda point: (point.created_ms, point.key))
        wanted += [point.id for point in ordered]
    view = a_view(*things)
    assert walk("/points", view, limit) == wanted
    for number in range(len(created)):
        mine = [id for id in wanted if id.startswith(f"{number}-")]
        assert walk("/devices/{deviceId}/points", view, limit, deviceId=f"d{number}") == mine


def test_a_page_goes_on_behind_what_was_deleted() -> None:
    places = [Location(f"l{n}", tenant="acme", label="x", created_ms=n) for n in range(1, 6)]
    first = read("/locations", a_view(TENANT, *places), {"page[limit]": "2"})
    query = dict(parse_qsl(urlsplit(first["links"]["next"]).query))
    left = read("/locations", a_view(TENANT, places[0], *places[3:]), query)
    assert [each["id"] for each in left["data"]] == ["l4", "l5"]


@pytest.mark.parametrize("cursor", ["", "?", "W10", "WzFd", "WyJhIiwxXQ", "WzEsMiwzLDRd", "é"])
def test_a_cursor_of_something_else_is_refused(cursor: str) -> None:
    for path in ("/locations", "/devices", "/points"):
        with pytest.raises(Malformed) as caught:
            read(path, a_view(TENANT), {"page[cursor]": cursor})
        assert caught.value.where == "?page[cursor]"


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1.5", "9" * 10, "²"])
def test_a_limit_is_a_number(limit: str) -> None:
    with pytest.raises(Malformed) as caught:
        lists.limit_of({"page[limit]": limit})
    assert caught.value.where == "?page[limit]"


def test_a_higher_limit_counts_as_the_highest_and_the_rest_is_on_the_next_page() -> None:
    places = [Location(f"{n:05}", tenant="acme", created_ms=1) for n in range(lists.PAGE_MAX + 1)]
    view = a_view(TENANT, *places)
    for query in ({}, {"page[limit]": "5000"}):
        document = read("/locations", view, query)
        assert len(document["data"]) == lists.PAGE_MAX
        assert "next" in document["links"]


def test_the_values_of_a_page_of_points_are_one_question() -> None:
    view = a_view(
        TENANT,
        Device("d", tenant="acme"),
        *(new_point("acme", "d", key, kind=Kind.LONG) for key in "abc"),
    )
    inbound = Inbound(
        b"",
        0,
        a_principal(),
        {"partitionId": PARTITION, "deviceId": "d"},
        {"field[Point]": "pointValue", "page[limit]": "2"},
    )
    query = door("/devices/{deviceId}/points").parse(inbound, view).query
    assert isinstance(query, LatestQuery)
    points = view.points("acme", "d")
    assert query.series == (points["a"].series, points["b"].series)
    without = replace(inbound, query={})
    assert door("/devices/{deviceId}/points").parse(without, view).query.series == ()


def test_what_is_not_there_any_more_counts_as_none() -> None:
    device = Device("d", tenant="acme", location="gone", gateway="gone", created_ms=1)
    place = Location("l", tenant="acme", label="x", parent="gone")
    view = a_view(TENANT, device, place, Location("gone", tenant="globex"))
    shown = read("/devices/{deviceId}", view, deviceId="d")["data"]["relationships"]
    assert shown["hasLocation"] == shown["hasGateway"] == {"data": None}
    shown = read("/locations/{locationId}", view, locationId="l")["data"]["relationships"]
    assert shown["isPartOf"] == {"data": None}


def test_what_is_on_the_page_is_not_included_a_second_time() -> None:
    view = a_view(
        TENANT,
        Location("house", tenant="acme", label="x", created_ms=1),
        *(Location(id, tenant="acme", label=id, parent="house", created_ms=2) for id in "ab"),
    )
    query = {"include": "isPartOf"}
    assert "included" not in read("/locations", view, query)
    first = read("/locations", view, query | {"page[limit]": "1"})
    following = dict(parse_qsl(urlsplit(first["links"]["next"]).query))
    second = read("/locations", view, following | {"page[limit]": "5"})
    assert [each["id"] for each in second["data"]] == ["a", "b"]
    assert [each["id"] for each in second["included"]] == ["house"]


def test_no_fields_are_no_fields() -> None:
    view = a_view(TENANT, Location("l", tenant="acme", label="x"))
    [shown] = read("/locations", view, {"fields[Location]": ""})["data"]
    assert shown["attributes"] == {} and "relationships" not in shown


def test_a_point_of_another_tenant_is_not_in_a_list() -> None:
    other = Point("p", tenant="globex", device="d", key="k")
    view = a_view(
        TENANT, Tenant("globex", uuid="g"), Device("d", tenant="globex"),
        replace(other, series=view_series(other)),
    )  # fmt: skip
    assert read("/points", view)["data"] == []
    assert read("/points", view, {"filter[hasDevice.data.id]": "d"})["data"] == []


def view_series(point: Point) -> int:
    return new_point(point.tenant, point.device, point.key).series


# -- what JSON:API asks of a document --------------------------------------------------------------

DOCUMENTS = [
    (str(example), reply["body"])
    for example in examples()
    if example.dialect == "building_x"
    and "data" in ((reply := example.json("reply") or {}).get("body") or {})
    and reply.get("exactly")
]


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[name for name, _ in DOCUMENTS])
def test_a_document_is_json_api(name: str, document: dict[str, Any]) -> None:
    data, included = document["data"], document.get("included", [])
    primary = data if isinstance(data, list) else [data]
    resources = primary + included
    places = [(each["type"], each["id"]) for each in resources]
    assert len(set(places)) == len(places), "a resource is there twice"
    linked = set()
    for each in resources:
        assert set(each) <= {"type", "id", "attributes", "relationships", "links"}
        fields = [*each["attributes"], *each.get("relationships", {})]
        assert len(set(fields)) == len(fields), "attributes and relationships share a name"
        assert not {"type", "id"} & set(fields)
        for relationship in each.get("relationships", {}).values():
            assert relationship.keys() and set(relationship) <= {"data", "links", "meta"}
            ends = relationship.get("data")
            found = ends if isinstance(ends, list) else [ends] if ends else []
            linked |= {(end["type"], end["id"]) for end in found}
    assert {(each["type"], each["id"]) for each in included} <= linked, "not fully linked"


def test_there_are_documents() -> None:
    assert len(DOCUMENTS) > 25
