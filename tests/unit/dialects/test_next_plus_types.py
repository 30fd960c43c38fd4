"""Pushes to points of types that only the command declares, and texts that are too long."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.blocks import Block
from schemas.catalogue import API_SERVER, Device, Point
from schemas.samples import Kind
from services.dialects import Inbound
from services.dialects.next_plus._items import TEXT_BYTES_MAX
from services.dialects.next_plus.errors import Invalid
from services.dialects.next_plus.push import decode
from services.errors import TooLarge
from tests.support.lookup import ListedLookup, a_principal

SERVER = Device("server", tenant="acme", type=API_SERVER)
POINTS = [
    Point(kind.name, tenant="acme", device="server", key=kind.name, kind=kind, locked=True)
    for kind in (Kind.STRING, Kind.LONG, Kind.JSON)
]


def pushed(*items: dict[str, Any]) -> Block:
    lookup = ListedLookup([SERVER, *POINTS])
    body = json.dumps(list(items)).encode()
    return decode(Inbound(body, 1_700_000_000_000, a_principal()), lookup).block


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("STRING", "warm", "warm"),
        ("LONG", 7, 7),
        ("JSON", {"a": [1]}, '{"a":[1]}'),
        ("JSON", "text", '"text"'),
        ("JSON", 1.5, "1.5"),
    ],
)
def test_values_of_the_type_are_taken(key: str, value: Any, stored: Any) -> None:
    (sample,) = pushed({"key": key, "value": value}).samples()
    assert (sample.kind.name, sample.value) == (key, stored)


@pytest.mark.parametrize(("key", "value"), [("STRING", 7), ("LONG", "x"), ("LONG", 1.5)])
def test_others_are_mismatches_in_words(key: str, value: Any) -> None:
    with pytest.raises(Invalid) as refused:
        pushed({"key": key, "value": value})
    assert refused.value.code == "API_PUSH_VALUE_TYPE_MISMATCH"
    assert refused.value.details["expected"] == key.lower()


@pytest.mark.parametrize("value", ["x" * (TEXT_BYTES_MAX + 1), ["é" * (TEXT_BYTES_MAX // 2)]])
def test_a_text_that_is_too_long_is_refused_before_anything_is_made(value: Any) -> None:
    lookup = ListedLookup([SERVER, *POINTS])
    items = [{"key": "new", "value": 1}, {"key": "JSON", "value": value}]
    with pytest.raises(TooLarge):
        decode(Inbound(json.dumps(items).encode(), 1_700_000_000_000, a_principal()), lookup)
    assert not lookup.creations
    assert len(pushed({"key": "STRING", "value": "x" * TEXT_BYTES_MAX})) == 1


def test_the_first_value_of_a_new_key_says_its_type_for_the_rest_of_the_push() -> None:
    lookup = ListedLookup([SERVER])
    items = [{"key": "new", "value": "a"}, {"key": "new", "value": {"x": 1}}]
    intake = decode(Inbound(json.dumps(items).encode(), 1_700_000_000_000, a_principal()), lookup)
    assert intake.again
    (change,) = intake.changes
    assert change.body is not None
    assert change.body["kind"] == Kind.STRING
