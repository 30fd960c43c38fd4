"""LoopBack's `filter` of lists: `{"where": {"key": "a"}, "order": "key DESC", "limit": 10,
"skip": 5}`.

Of `where` equality is understood. What is not is refused in words: a filter that was passed over
would look like an answer.
https://loopback.io/doc/en/lb3/Querying-data.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from services.dialects import _json
from services.errors import Malformed

PARAMETERS = {
    "filter": 'JSON: {"where": {member: value}, "order": "member ASC|DESC", "limit": n, "skip": n}'
}
"""How doors describe it."""
_WHERE = "?filter"


class _Asked(Struct, forbid_unknown_fields=True):
    where: dict[str, str | int | float | bool | None] | None = None
    order: str | list[str] | None = None
    limit: int | None = None
    skip: int | None = None
    offset: int | None = None


_ASKED = Decoder(_Asked | None)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which objects of a list are wanted. `order` lists pairs of member and whether it descends."""

    where: Mapping[str, Any]
    order: Sequence[tuple[str, bool]]
    limit: int | None
    skip: int

    def applied(self, models: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The objects that are left. Raises Malformed where none has a member that is asked for."""
        names = {*self.where, *(name for name, _ in self.order)}
        for model in models[:1]:
            if missing := sorted(names - model.keys()):
                raise Malformed(f"there is no member {missing[0]!r}", where=_WHERE)
        found = [model for model in models if all(map(_equal(model), self.where.items()))]
        for name, descending in reversed(self.order):
            found.sort(key=lambda model: _rank(model[name]), reverse=descending)
        end = None if self.limit is None else self.skip + self.limit
        return found[self.skip : end]


def of(query: Mapping[str, str]) -> Filter:
    """The filter of a query. Raises Malformed."""
    for name in query:
        if name.startswith("filter["):
            raise Malformed("filter is one JSON object: ?filter={…}", where=f"?{name[:100]}")
    text = query.get("filter", "")
    try:
        asked = _json.read(_ASKED, text.encode()) if text else None
    except Malformed as error:
        message = f"where (by equality), order, limit and skip are understood: {error.message}"
        raise Malformed(message, where=_WHERE) from None
    asked = asked or _Asked()
    skip = asked.skip if asked.skip is not None else asked.offset or 0
    if skip < 0 or (asked.limit is not None and asked.limit < 1):
        raise Malformed("limit is 1 or more, skip 0 or more", where=_WHERE)
    order = [asked.order] if isinstance(asked.order, str) else asked.order or ()
    return Filter(asked.where or {}, [_direction(text) for text in order], asked.limit, skip)


def _direction(text: str) -> tuple[str, bool]:
    name, _, direction = text.strip().partition(" ")
    if not name or direction.strip().upper() not in ("", "ASC", "DESC"):
        raise Malformed('order is "member", "member ASC" or "member DESC"', where=_WHERE)
    return name, direction.strip().upper() == "DESC"


def _equal(model: Mapping[str, Any]) -> Any:
    def equal(wanted: tuple[str, Any]) -> bool:
        value = model[wanted[0]]
        both = isinstance(value, bool) == isinstance(wanted[1], bool)
        return both and bool(value == wanted[1])

    return equal


def _rank(value: Any) -> tuple[int, Any]:
    """Anything can be ordered: nothing first, then numbers, then the rest as text."""
    if value is None:
        return 0, 0
    if isinstance(value, int | float):
        return 1, value
    return 2, str(value)
