"""A device's telemetry for readers: its keys, its latest values, ranges of raw values.

`startTs` and `endTs` without `keys` are answered with the latest values: that is how optiCLOUD's
own page reads them, and how ThingsBoard did up to 4.0. Upstream: TelemetryController.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from schemas.blocks import Block
from schemas.queries import LatestQuery, RangeQuery
from schemas.samples import TS_MS_MAX
from services.dialects import _json
from services.dialects._contract import Auth, Call, Inbound, Page, Question, Read, Reply, described
from services.dialects._ports import Actions, Lookup
from services.dialects.opticloud.errors import refused
from services.dialects.opticloud.spelling import json_of_value, text_of_value
from services.errors import Malformed, Unknown

ENTITY = "/api/plugins/telemetry/{entityType}/{entityId}"
LIMIT_DEFAULT, LIMIT_MAX = 100, 2**31 - 1
KEYS_MAX = 1000

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_OTHER_ENTITIES = frozenset(
    {"TENANT", "CUSTOMER", "USER", "DASHBOARD", "ASSET", "ALARM", "ENTITY_VIEW", "EDGE"}
)
_AGGREGATIONS = frozenset({"MIN", "MAX", "AVG", "SUM", "COUNT"})
_BOOLEANS = {"true": True, "false": False, "": False}


class _Asked(NamedTuple):
    """What rendering must know: whether the answer is the latest values, of keys that were named,
    in JSON types.
    """

    latest: bool
    named: bool
    strict: bool


def keys(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The keys of a device."""
    device = _device(inbound, lookup)
    return Reply(200, _json.write(list(lookup.points(inbound.caller.tenant, device))))


def parse(inbound: Inbound, lookup: Lookup) -> Question:
    """Latest values, or a range where `keys`, `startTs` and `endTs` are all there."""
    tenant, query = inbound.caller.tenant, inbound.query
    device = _device(inbound, lookup)
    strict = _flag(query, "useStrictDataTypes")
    named = _keys(query)
    start_ms, end_ms = _integer(query, "startTs"), _integer(query, "endTs")
    names = {lookup.series(tenant, device, key): key for key in named}
    if named and start_ms is not None and end_ms is not None:
        if end_ms < start_ms:
            raise Malformed("endTs is before startTs", where="?endTs")
        _check_raw(query)
        limit = _integer(query, "limit")
        if limit is not None and not 1 <= limit <= LIMIT_MAX:
            raise Malformed("limit is a positive integer", where="?limit")
        ranged = RangeQuery(
            tenant,
            tuple(names),
            min(max(start_ms, 0), TS_MS_MAX),
            min(max(end_ms, 0), TS_MS_MAX),
            limit or LIMIT_DEFAULT,
            descending=_descending(query),
        )
        return Question(ranged, names, _Asked(False, True, strict))
    if not named:
        points = lookup.points(tenant, device)
        names = {point.series: key for key, point in points.items()}
    return Question(LatestQuery(tenant, tuple(names)), names, _Asked(True, bool(named), strict))


def render(inbound: Inbound, question: Question, page: Page) -> Reply:
    """`{"key": [{"ts": …, "value": …}]}` in the order of the keys.

    A key that was named and has no latest value is answered with null at the present time, as
    upstream does; in a range it is left out.
    """
    asked: _Asked = question.context
    spelled = json_of_value if asked.strict else text_of_value
    block: Block = page.block
    found: dict[int, list[dict[str, Any]]] = {}
    for row, series in enumerate(block.series):
        item = {"ts": block.ts_ms[row], "value": spelled(block.kind[row], block.value(row))}
        found.setdefault(series, []).append(item)
    nothing = [{"ts": inbound.received_ms, "value": None}] if asked.latest and asked.named else None
    answer = {}
    for series, key in question.names.items():
        items = found.get(series) or nothing
        if items:
            answer[key] = items
    return Reply(200, _json.write(answer))


def _device(inbound: Inbound, lookup: Lookup) -> str:
    """The device that the path names. Raises Malformed where it names nothing, Unknown where there
    is none (of this tenant).
    """
    kind, entity = inbound.path["entityType"], inbound.path["entityId"]
    if kind != "DEVICE" and kind not in _OTHER_ENTITIES:
        raise Malformed(f"there is no entity type {kind[:100]}")
    if not _UUID.fullmatch(entity):
        raise Malformed(f"Invalid UUID string: {entity[:100]}")
    device = lookup.device(inbound.caller.tenant, entity.lower()) if kind == "DEVICE" else None
    if device is None:
        raise Unknown(f"{kind.title()} with id [{entity}] is not found")
    return device.id


def _keys(query: Mapping[str, str]) -> list[str]:
    named = query.get("keys") or query.get("key") or ""
    found = list(dict.fromkeys(key for key in named.split(",") if key))
    if len(found) > KEYS_MAX:
        raise Malformed(f"more than {KEYS_MAX} keys", where="?keys")
    return found


def _check_raw(query: Mapping[str, str]) -> None:
    """Without an interval every aggregation means raw values, as upstream; with one it is not
    offered.
    """
    aggregation = query.get("agg") or "NONE"
    if aggregation == "NONE":
        return
    if aggregation not in _AGGREGATIONS:
        raise Malformed(f"there is no aggregation {aggregation[:100]}", where="?agg")
    if _integer(query, "interval") or query.get("intervalType", "MILLISECONDS") != "MILLISECONDS":
        raise Malformed(
            "aggregated ranges are not offered; ask with agg=NONE for raw values", where="?agg"
        )


def _descending(query: Mapping[str, str]) -> bool:
    order = (query.get("orderBy") or "DESC").upper()
    if order not in ("ASC", "DESC"):
        raise Malformed("orderBy is ASC or DESC", where="?orderBy")
    return order == "DESC"


def _integer(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if not text:
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 19):
        raise Malformed(f"{name} is an integer", where=f"?{name}")
    return int(text)


def _flag(query: Mapping[str, str], name: str) -> bool:
    flag = _BOOLEANS.get(query.get(name, "").lower())
    if flag is None:
        raise Malformed(f"{name} is true or false", where=f"?{name}")
    return flag


KEYS = Call(
    "GET",
    (ENTITY + "/keys/timeseries",),
    Auth.X_AUTHORIZATION,
    keys,
    refused,
    scope="read",
    docs=described(
        "The keys of a device",
        {200: "their names", 400: "not a UUID", 401: "no token", 404: "no such device"},
    ),
)
TIMESERIES = Read(
    "GET",
    (ENTITY + "/values/timeseries", ENTITY + "/values/timeseries/history"),
    Auth.X_AUTHORIZATION,
    parse,
    render,
    refused,
    docs=described(
        "Latest values; with keys, startTs and endTs a range of raw values",
        {
            200: "for each key its values, the newest first",
            400: "a parameter cannot be used",
            401: "no token, or not a valid one",
            404: "no such device",
        },
        parameters={
            "keys": "comma-separated; without them the latest values of all keys",
            "startTs": "UTC ms, inclusive",
            "endTs": "UTC ms, exclusive",
            "limit": f"values of a key, default {LIMIT_DEFAULT}",
            "orderBy": "DESC (default) or ASC",
            "useStrictDataTypes": "true for JSON types; false (default) for text",
        },
    ),
)
