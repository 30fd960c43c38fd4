"""Changes of parameters as they are accepted: server-sent events, or a WebSocket at the same path.

Not published; ours. EventSource and WebSocket of a browser can set no header, so what a header says
may stand in the query too.
"""

from __future__ import annotations

from collections.abc import Iterator

from schemas.catalogue import Point
from schemas.samples import Value
from services.dialects import _json, _times
from services.dialects._contract import Auth, Follow, Following, Inbound, described
from services.dialects._ports import Lookup
from services.dialects.next_plus._items import UUID_FIELD
from services.dialects.next_plus.errors import (
    FILTER_INVALID,
    MODEL_NOT_FOUND,
    Invalid,
    refused,
)
from services.dialects.next_plus.values import json_of
from services.errors import Unknown

FILTER_MAX = 1_000
"""Parameters that one stream may name."""
_SHOWN = 100


def parse(inbound: Inbound, lookup: Lookup) -> Following:
    """All parameters, or those that `paramId` and `key` name; from behind the last event that the
    reader has. Raises Unknown, Invalid.
    """
    tenant = inbound.caller.tenant
    device = lookup.api_server(tenant).id
    since = inbound.headers.get("last-event-id") or inbound.query.get("lastEventId", "")
    series: set[int] = set()
    for name in _named(inbound, UUID_FIELD):
        point = lookup.point(tenant, name)
        if point is None or point.device != device:
            raise _unknown("id", name)
        series.add(point.series)
    for name in _named(inbound, "key"):
        point = lookup.known(tenant, device, name)
        if point is None:
            raise _unknown("key", name)
        series.add(point.series)
    return Following(device, frozenset(series) or None, since)


def _named(inbound: Inbound, member: str) -> Iterator[str]:
    """The parts of a query member, separated by commas. Raises Invalid."""
    text = inbound.query.get(member)
    if text is None:
        return
    names = text.split(",")
    if len(names) > FILTER_MAX or not all(names):
        raise Invalid(
            FILTER_INVALID,
            f"`{member}` names 1 to {FILTER_MAX} parameters, separated by commas",
            member=member,
        )
    yield from names


def _unknown(member: str, name: str) -> Unknown:
    return Unknown(f'Unknown "Parameter" {member} "{name[:_SHOWN]}".', code=MODEL_NOT_FOUND)


def event(point: Point, ts_ms: int, kind: int, value: Value) -> bytes:
    """`{"id", "key", "value", "timestamp"}` of one change."""
    said = {
        "id": point.id,
        "key": point.key,
        "value": json_of(kind, value),
        "timestamp": _times.text_of(ts_ms),
    }
    return _json.write(said)


STREAM = Follow(
    ("/api/ApiServers/stream",),
    Auth.ACCESS_TOKEN,
    parse,
    event,
    refused,
    docs=described(
        "Changes as they come: server-sent events, or a WebSocket where it is asked for an upgrade",
        {
            200: "the stream (text/event-stream); it lasts until one side ends it",
            101: "the stream as a WebSocket, a JSON object a message",
            401: "no valid token, or a role below operator",
            404: "a parameter that is named does not exist",
            422: "the filter cannot be used",
            503: "not ready yet, or too many streams; try again later",
        },
        parameters={
            "access_token": "the token, where it is not in `Authorization`",
            UUID_FIELD: "only these parameters: UUIDs, separated by commas",
            "key": "only these parameters: keys, separated by commas",
            "lastEventId": "the id of the last event that the reader has, where it is not in "
            "`Last-Event-ID`",
        },
    ),
)
