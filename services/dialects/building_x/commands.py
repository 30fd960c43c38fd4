"""Building X's commands: a value is to be written to a point, and how far that has come.

The vendor's part is the PATCH of a point with a value, as public clients send it; what it answers
beyond 200 and the two ways to look at a command again are ours. `command` is what a door does once
it has the value, whichever body it came in.
https://developer.siemens.com/building-x-openness/api/building-operations/overview.html
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import INGEST, READ, Point
from schemas.commands import Command
from schemas.samples import Kind, Value
from services.dialects import _json
from services.dialects._contract import Actions, Auth, Call, Inbound, Lookup, Reply, described
from services.dialects._times import text_of
from services.dialects.building_x.errors import JSON_API, refused
from services.dialects.building_x.ingest import (
    PREFIXES,
    VALUE_BYTES_MAX,
    check_media_type,
    own_point,
)
from services.dialects.building_x.texts import text_of_value, value_of, why_not_value
from services.errors import Forbidden, Malformed, Taken, Unknown

POINT = "/partitions/{partitionId}/points/{pointId}"
COMMANDS = POINT + "/commands"
ONE = COMMANDS + "/{commandId}"
VALUE_POINTER = "/data/attributes/pointValue/value"


class _Attributes(Struct, gc=False):
    pointValue: Any


class _Resource(Struct, gc=False):
    attributes: _Attributes
    id: str | None = None
    type: str | None = None


class _Body(Struct, gc=False):
    data: _Resource


_DECODER = Decoder(_Body)


async def patch(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Have a value written to the point. Clients may send neither `type` nor `id`; one that is
    there has to be this point's.
    """
    point = own_point(inbound, lookup)
    check_media_type(inbound.headers.get("content-type", ""))
    resource = _json.read(_DECODER, inbound.body).data
    if resource.type not in (None, "Point"):
        raise Taken("the path is that of a Point", where="/data/type", code="CONFLICT")
    if resource.id not in (None, point.id):
        raise Taken("the path names another point", where="/data/id", code="CONFLICT")
    return await command(inbound, point, actions, resource.attributes.pointValue)


async def command(inbound: Inbound, point: Point, actions: Actions, point_value: Any) -> Reply:
    """Queue what the text in `pointValue` (decoded JSON) means as a value of the point's type: the
    point with its target, and the command. A point without a type takes the text.

    Raises Malformed, Forbidden where the point is not writable or the credential may not send
    values, OverQuota where too many commands wait for its device.
    """
    if INGEST not in inbound.caller.scopes:
        raise Forbidden(f"the credential may not {INGEST}")
    kind = Kind.STRING if point.declared is None else point.declared
    value = _value(kind, _text_in(point_value))
    control = actions.control(inbound.caller)
    queued: Command = await control.command_point(
        inbound.caller.tenant,
        point.id,
        value,
        kind=int(kind),
        idempotency_key=inbound.headers.get("idempotency-key", ""),
    )
    link = _link(inbound, COMMANDS)
    resource = {
        "type": "Point",
        "id": point.id,
        "attributes": {"pointValue": {"targetValue": target_text(queued)}},
        "relationships": {
            "hasCommand": {
                "links": {"related": link},
                "data": {"type": "PointCommand", "id": queued.id},
            }
        },
    }
    body = {"data": resource, "included": [_resource(inbound, queued)]}
    return Reply(200, _json.write(body), JSON_API)


async def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The newest commands of a point."""
    point = own_point(inbound, lookup)
    found = await _commands(inbound, lookup, point)
    links = {"self": _link(inbound, COMMANDS)}
    data = [_resource(inbound, each) for each in found]
    return Reply(200, _json.write({"links": links, "data": data}), JSON_API)


async def find_by_id(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """One command of a point. Raises Unknown, for one of another point, too."""
    point = own_point(inbound, lookup)
    asked = inbound.path["commandId"]
    for each in await _commands(inbound, lookup, point):
        if each.id == asked:
            return Reply(200, _json.write({"data": _resource(inbound, each)}), JSON_API)
    raise Unknown(f"the point has no command {asked[:100]}")


def target_text(target: Command | None) -> str | None:
    """`targetValue` of a point whose newest pending command (`Lookup.target`) this is."""
    return None if target is None else text_of_value(target.kind, target.value)


async def _commands(inbound: Inbound, lookup: Lookup, point: Point) -> list[Command]:
    # Another process may have answered for the command that is asked for.
    await lookup.commands_current()
    return [*lookup.commands_of(point, inbound.received_ms)]


def _text_in(point_value: Any) -> str:
    text = point_value.get("value") if isinstance(point_value, dict) else None
    if not isinstance(text, str):
        raise Malformed("a text", where=VALUE_POINTER)
    return text


def _value(kind: Kind, text: str) -> Value:
    if len(text) > VALUE_BYTES_MAX // 4 and len(text.encode()) > VALUE_BYTES_MAX:
        raise Malformed(f"longer than {VALUE_BYTES_MAX} bytes", where=VALUE_POINTER)
    if reason := why_not_value(kind, text):
        raise Malformed(reason, where=VALUE_POINTER)
    return value_of(kind, text)


def _resource(inbound: Inbound, command: Command) -> dict[str, Any]:
    return {
        "type": "PointCommand",
        "id": command.id,
        "attributes": {
            "value": text_of_value(command.kind, command.value),
            "state": command.state,
            "changed": text_of(command.changed_ms),
            "requested": text_of(command.at_ms),
            "requestedBy": command.subject,
            "expires": text_of(command.expires_ms),
        },
        "relationships": {"isCommandOf": {"data": {"type": "Point", "id": command.point}}},
        "links": {"self": f"{_link(inbound, COMMANDS)}/{quote(command.id, safe='')}"},
    }


def _link(inbound: Inbound, path: str) -> str:
    """A path that begins at `/partitions`, as the vendor's links do."""
    return path.format_map({name: quote(text, safe="") for name, text in inbound.path.items()})


def _paths(path: str) -> tuple[str, ...]:
    return tuple(prefix + path for prefix in PREFIXES)


_READING = {
    401: "no token, or not a valid one",
    403: "another's partition",
    503: "not read that far yet: try again",
}
COMMAND = Call(
    "PATCH",
    _paths(POINT),
    Auth.BEARER,
    patch,
    refused,
    INGEST,
    docs=described(
        "Have a value written to a point that is writable",
        {
            200: "the command is queued: the point with `targetValue`, the command in `included`",
            400: "the value is not of the point's type, or the body cannot be used",
            401: "no token, or not a valid one",
            403: "another's partition, or a point that is not writable",
            404: "unknown partition or point",
            409: "`type` or `id` of another resource",
            415: "another content type than the two of JSON",
            429: "too many commands wait for the device",
            503: "nobody knows whether it was taken: look at the point's commands",
        },
        media_type=JSON_API,
        example={"data": {"id": "…", "attributes": {"pointValue": {"value": "true"}}}},
    ),
)
FIND = Call(
    "GET",
    _paths(COMMANDS),
    Auth.BEARER,
    find,
    refused,
    READ,
    docs=described(
        "The newest commands of a point, the newest first",
        {200: "at most 100", 404: "unknown partition or point", **_READING},
    ),
)
FIND_ONE = Call(
    "GET",
    _paths(ONE),
    Auth.BEARER,
    find_by_id,
    refused,
    READ,
    docs=described(
        "A command of a point, with its state",
        {200: "queued, delivered, confirmed or expired", 404: "no such command", **_READING},
    ),
)
CALLS = (COMMAND, FIND, FIND_ONE)
