"""What a query asks of a list or of one resource: `include`, sparse fields, filters, pages.

Parameters that nobody knows are passed over: clients in use send some that are misspelled.
https://jsonapi.org/format/1.1/#fetching
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from msgspec.json import Decoder

from services.dialects import _json
from services.errors import Malformed

T = TypeVar("T")
Rank = tuple[int | str, ...]
"""A thing's place in its list: what was made later is behind."""

CURSOR, LIMIT, INCLUDE = "page[cursor]", "page[limit]", "include"
PAGE_MAX = 1_000
"""Resources, or values, of a page, also where no limit is given: not every client follows
`links.next`.
"""
PAGING = {
    LIMIT: f"1 to {PAGE_MAX} (default; a higher one counts as that)",
    CURSOR: "from links.next",
}
FIELDS = "fields[TYPE] (or field[TYPE])"

_FIELDS = re.compile(r"fields?\[([^\]]*)\]")
_LIMIT_DIGITS_MAX = 9
_RANK = Decoder(tuple[int | str, ...])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be shown of each resource: `included` paths, and the fields by type."""

    included: frozenset[str]
    fields: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, query: Mapping[str, str], paths: Collection[str] = ()) -> Wanted:
        """What a query asks for, of the `paths` that can be included. Raises Malformed."""
        included = frozenset(filter(None, query.get(INCLUDE, "").split(",")))
        if unknown := sorted(included - {*paths}):
            known = ", ".join(paths) or "nothing"
            message = f"{unknown[0][:100]} cannot be included here; {known} can"
            raise Malformed(message, where=f"?{INCLUDE}")
        fields: dict[str, frozenset[str]] = {}
        for name, text in query.items():
            if found := _FIELDS.fullmatch(name):
                named = frozenset(filter(None, text.split(",")))
                fields[found[1]] = fields.get(found[1], frozenset()) | named
        return cls(included, fields)

    def of_type(self, *types: str) -> frozenset[str] | None:
        """The fields of a resource, by the first of its type's names that any are asked by; None:
        all.
        """
        return next((self.fields[name] for name in types if name in self.fields), None)


def filtered(
    query: Mapping[str, str], things: Iterable[T], members: Mapping[str, Callable[[T], str]]
) -> Iterator[T]:
    """The things that satisfy all filters of the query: `members` maps what stands in
    `filter[…]` to what has to be equal.
    """
    asked = [(of, query[f"filter[{n}]"]) for n, of in members.items() if f"filter[{n}]" in query]
    return (each for each in things if all(of(each) == text for of, text in asked))


def by_filters(names: Iterable[str]) -> dict[str, str]:
    """What the doors' docs say of `filtered`."""
    return {f"filter[{name}]": "is equal" for name in names}


def shown(paths: Iterable[str], more: str = "") -> dict[str, str]:
    """What the doors' docs say of `Wanted`; `more` follows what is said of fields."""
    fields = "which attributes and relationships are shown; comma-separated"
    return {INCLUDE: ", ".join(paths), FIELDS: f"{fields}. {more}" if more else fields}


def limit_of(query: Mapping[str, str]) -> int:
    """How many a page has. Raises Malformed."""
    text = query.get(LIMIT, str(PAGE_MAX))
    if not (text.isascii() and text.isdecimal() and len(text) <= _LIMIT_DIGITS_MAX and int(text)):
        raise Malformed(f"a number from 1 to {PAGE_MAX}", where=f"?{LIMIT}")
    return min(int(text), PAGE_MAX)


def after_of(query: Mapping[str, str], length: int) -> Rank | None:
    """The rank (of `length` members) behind which a page begins; None: it is the first. Raises
    Malformed.
    """
    if (text := query.get(CURSOR)) is None:
        return None
    try:
        rank = _json.read(_RANK, urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, Malformed):
        raise _no_cursor() from None
    if [type(member) for member in rank] != [int, str] * (length // 2):
        raise _no_cursor()
    return rank


def behind(things: Sequence[T], rank: Callable[[T], Rank], after: Rank | None) -> Sequence[T]:
    """Those of a list in the order of `rank` that are behind `after`."""
    return things if after is None else things[bisect_right(things, after, key=rank) :]


def paged(
    query: Mapping[str, str], things: Iterable[T], rank: Callable[[T], Rank]
) -> tuple[list[T], str]:
    """A page of the things, and the cursor of the next one; empty where there is none. Raises
    Malformed.
    """
    limit = limit_of(query)
    found: list[T] = []
    for each in things:
        if len(found) == limit:
            return found, _cursor(rank(found[-1]))
        found.append(each)
    return found, ""


def _cursor(rank: Rank) -> str:
    return urlsafe_b64encode(_json.write(rank)).decode().rstrip("=")


def _no_cursor() -> Malformed:
    return Malformed("no cursor of ours", where=f"?{CURSOR}")
