"""Building X's reading of a point's values: a range of time, oldest first, by pages.

https://developer.siemens.com/building-x-openness/api/building-operations/overview.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from schemas.queries import RangeQuery
from schemas.samples import NO_QUALITY, TS_MS_MAX
from services.dialects import _json
from services.dialects._contract import Auth, Inbound, Page, Question, Read, Reply, described
from services.dialects._ports import Lookup
from services.dialects._times import bound_ms_of, text_of
from services.dialects.building_x.errors import JSON_API, refused
from services.dialects.building_x.jsonapi import Links
from services.dialects.building_x.lists import CURSOR, PAGING, limit_of
from services.dialects.building_x.paths import VALUES, below, own_point
from services.dialects.building_x.texts import text_of_value
from services.errors import Malformed

FROM, TO = "filter[timestamp][from]", "filter[timestamp][to]"


class _Asked(NamedTuple):
    point: str
    end_ms: int
    limit: int


def parse(inbound: Inbound, lookup: Lookup) -> Question:
    """The range asked for; `to` is by default the moment of the request. Other parameters are
    passed over.
    """
    point = own_point(inbound, lookup)
    start_ms = _time(inbound.query, FROM)
    if start_ms is None:
        raise Malformed(f"{FROM} is required", where=f"?{FROM}")
    end_ms = _time(inbound.query, TO)
    if end_ms is None:
        end_ms = inbound.received_ms
    start_ms = max(start_ms, _cursor(inbound.query))
    limit = limit_of(inbound.query)
    # One more than a page: whether it is there says whether another page is.
    query = RangeQuery(
        inbound.caller.tenant, (point.series,), start_ms, max(start_ms, end_ms), limit + 1
    )
    return Question(query, {point.series: point.key}, _Asked(point.id, end_ms, limit))


def render(inbound: Inbound, question: Question, page: Page) -> Reply:
    """One page, with a link to the next where there is one."""
    asked: _Asked = question.context
    point, links = asked.point, Links(inbound)
    block = page.block
    data = []
    for row in range(min(len(block), asked.limit)):
        time = text_of(block.ts_ms[row])
        attributes: dict[str, Any] = {
            "value": text_of_value(block.kind[row], block.value(row)),
            "timestamp": time,
        }
        if block.quality[row] != NO_QUALITY:
            attributes["qualityOfValue"] = block.quality[row]
        data.append({"type": "PointValue", "id": f"cov-{point}-{time}", "attributes": attributes})
    found = links.page(inbound.query, "", "points", point, "values")
    if len(block) > asked.limit:
        # The end is pinned, else "now" would move from page to page.
        following = {TO: text_of(asked.end_ms), CURSOR: str(block.ts_ms[asked.limit])}
        query = {**inbound.query, **following}
        found["next"] = links.to("points", point, "values", query=query)
    return Reply(200, _json.write({"links": found, "data": data}), JSON_API)


def _time(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        # An unescaped "+" of an offset arrives as a space.
        return bound_ms_of(text.replace(" ", "+"))
    except ValueError:
        raise Malformed("not an RFC 3339 time with an offset", where=f"?{name}") from None


def _cursor(query: Mapping[str, str]) -> int:
    text = query.get(CURSOR)
    if text is None:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(TS_MS_MAX))):
        raise Malformed("no cursor of ours", where=f"?{CURSOR}")
    return int(text)


READ_VALUES = Read(
    "GET",
    below(VALUES),
    Auth.BEARER,
    parse,
    render,
    refused,
    docs=described(
        "The values of a point in a range of time, oldest first",
        {
            200: "a page of values; links.next leads to the following one",
            400: "a parameter is missing or cannot be used",
            401: "no token, or not a valid one",
            403: "another's partition",
            404: "unknown partition or point",
            503: "try again later",
        },
        parameters={
            FROM: "RFC 3339, inclusive",
            TO: "RFC 3339, exclusive; default now",
        }
        | PAGING,
        required={FROM},
    ),
)
