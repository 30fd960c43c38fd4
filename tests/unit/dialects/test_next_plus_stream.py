"""Which changes a reader of Next Plus asks for, and how one reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.catalogue import API_SERVER, Device, Point
from schemas.samples import Kind, Value
from services.dialects import Inbound
from services.dialects.next_plus.stream import FILTER_MAX, STREAM
from services.errors import Refused
from tests.support.lookup import ListedLookup, a_principal

SERVER = Device("server", "acme", type=API_SERVER)
POINTS = [Point(f"id of {key}", "acme", "server", key, name=key) for key in ("a", "b", "c")]
OTHERS = [
    Point("id of d", "acme", "boiler", "d", name="d"),
    Point("id of e", "bolt", "elsewhere", "e", name="e"),
]
LOOKUP = ListedLookup([SERVER, Device("boiler", "acme"), *POINTS, *OTHERS])


def following(query: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Any:
    """What the door makes of a request."""
    inbound = Inbound(b"", 0, a_principal("acme"), query=query, headers=headers or {})
    return STREAM.parse(inbound, LOOKUP)


def series(*keys: str) -> frozenset[int]:
    """The series of parameters."""
    return frozenset(LOOKUP.series("acme", "server", key) for key in keys)


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ({}, None),
        ({"key": "a"}, "a"),
        ({"key": "a,c"}, "ac"),
        ({"paramId": "id of b,id of a"}, "ab"),
        ({"paramId": "id of b", "key": "c,b"}, "bc"),
    ],
)
def test_a_filter_is_the_parameters_that_it_names(query: dict[str, str], keys: str | None) -> None:
    found = following(query)
    assert (found.device, found.since) == ("server", "")
    assert found.series == (None if keys is None else series(*keys))


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"key": "nobody"}, 404),
        ({"key": "a,d"}, 404),
        ({"paramId": "a"}, 404),
        ({"paramId": "id of d"}, 404),
        ({"paramId": "id of e"}, 404),
        ({"key": ""}, 422),
        ({"key": "a,"}, 422),
        ({"paramId": ",".join(["id of a"] * (FILTER_MAX + 1))}, 422),
    ],
)
def test_a_filter_that_names_nobody_of_the_own_is_refused(
    query: dict[str, str], status: int
) -> None:
    with pytest.raises(Refused) as refused:
        following(query)
    reply = STREAM.refused(refused.value, 0)
    assert (reply.status, json.loads(reply.body)["error"]["statusCode"]) == (status, status)


def test_the_last_id_comes_in_the_header_or_in_the_query() -> None:
    assert following({"lastEventId": "q"}).since == "q"
    assert following({}, {"last-event-id": "h"}).since == "h"
    # EventSource comes again with the address it was given at first, and with the header.
    assert following({"lastEventId": "q"}, {"last-event-id": "h"}).since == "h"


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        (Kind.DOUBLE, 42.0, 42),
        (Kind.DOUBLE, 23.5, 23.5),
        (Kind.BOOL, False, False),
        (Kind.STRING, 'war"m', 'war"m'),
        (Kind.DATE, 1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
        (Kind.JSON, '{"x":[1]}', {"x": [1]}),
    ],
)
def test_a_change_reads_as_the_value_was_pushed(kind: Kind, value: Value, shown: object) -> None:
    text = STREAM.event(POINTS[0], 1_700_000_000_007, kind, value)
    assert b"\n" not in text
    assert json.loads(text) == {
        "id": "id of a",
        "key": "a",
        "value": shown,
        "timestamp": "2023-11-14T22:13:20.007Z",
    }
