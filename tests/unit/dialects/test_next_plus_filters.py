"""LoopBack's filter of lists: what is left, in which order, and what is not understood."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.dialects.next_plus import filters
from services.errors import Malformed

ROWS: list[dict[str, Any]] = [
    {"key": "b", "precision": 2, "active": True},
    {"key": "a", "precision": None, "active": False},
    {"key": "c", "precision": 2, "active": True},
    {"key": "d", "precision": 1, "active": True},
]


def keys(asked: Any) -> str:
    """The keys of the rows that are left."""
    text = asked if isinstance(asked, str) else json.dumps(asked)
    return "".join(row["key"] for row in filters.of({"filter": text}).applied(ROWS))


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({}, "bacd"),
        ("", "bacd"),
        ("null", "bacd"),
        ({"where": {"precision": 2}}, "bc"),
        ({"where": {"precision": 2.0, "key": "c"}}, "c"),
        ({"where": {"precision": None}}, "a"),
        ({"where": {"active": False}}, "a"),
        ({"where": {"active": 1}}, ""),
        ({"where": {"precision": True}}, ""),
        ({"where": {"key": "e"}}, ""),
        ({"where": {}}, "bacd"),
        ({"order": "key"}, "abcd"),
        ({"order": "key DESC"}, "dcba"),
        ({"order": ["precision ASC", "key desc"]}, "adcb"),
        ({"limit": 2}, "ba"),
        ({"limit": 2, "skip": 1}, "ac"),
        ({"skip": 3}, "d"),
        ({"offset": 3}, "d"),
        ({"skip": 9}, ""),
        ({"where": {"precision": 2}, "order": "key DESC", "limit": 1}, "c"),
    ],
)
def test_what_a_filter_leaves(asked: Any, left: str) -> None:
    assert keys(asked) == left


@pytest.mark.parametrize(
    "asked",
    [
        "{",
        "[]",
        "5",
        {"where": {"key": {"like": "a"}}},
        {"where": {"or": [{"key": "a"}]}},
        {"where": {"nothing": 1}},
        {"where": []},
        {"order": "nothing"},
        {"order": "key UP"},
        {"order": ""},
        {"order": {"key": 1}},
        {"limit": 0},
        {"limit": "2"},
        {"skip": -1},
        {"fields": ["key"]},
        {"include": "bindings"},
        '{"where":' * 2_000,
    ],
)
def test_what_is_not_understood_is_refused_in_words(asked: Any) -> None:
    with pytest.raises(Malformed) as caught:
        keys(asked)
    assert caught.value.where == "?filter" and caught.value.message


def test_a_filter_in_brackets_is_not_passed_over() -> None:
    with pytest.raises(Malformed):
        filters.of({"filter[limit]": "1"})
    assert len(filters.of({"access_token": "x"}).applied(ROWS)) == 4
