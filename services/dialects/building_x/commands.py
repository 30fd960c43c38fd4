"""Building X's commands: a value is to be written to a point, and how far that has come.

The vendor's part is the PATCH of a point with a value, as public clients send it; what it answers
beyond 200 and the two ways to look at a command again are ours. `command` is what a door does once
it has the value, whichever body it came in.
https://developer.siemens.com/building-x-openness/api/building-operations/overview.html
"""

from __future__ import annotations

from typing import Any

from schemas.catalogue import READ, Point
from schemas.commands import Command, State
from schemas.samples import Kind, Value
from services.dialects._contract import Auth, Call, Inbound, Reply, described
from services.dialects._ports import Actions, Lookup
from services.dialects._times import text_of
from services.dialects.building_x.errors import refused
from services.dialects.building_x.ingest import VALUE_BYTES_MAX
from services.dialects.building_x.jsonapi import (
    Draft,
    Links,
    Members,
    identifier,
    resource,
    to_one,
)
from services.dialects.building_x.paths import POINT, below, own_point
from services.dialects.building_x.texts import text_of_value, value_of, why_not_value
from services.errors import Malformed, Unknown

COMMANDS = POINT + "/commands"
ONE = COMMANDS + "/{commandId}"
_PENDING = (State.QUEUED, State.DELIVERED)
POINTER = "/data/attributes/pointValue"
VALUE_POINTER = f"{POINTER}/value"


async def command(inbound: Inbound, point: Point, actions: Actions, point_value: Any) -> Reply:
    """Queue what the text in `pointValue` (decoded JSON) means as a value of the point's type: the
    point with its target, and the command. A point without a type takes the text. The caller has
    the right to send values.

    Raises Malformed, Forbidden where the point is not writable, OverQuota where too many commands
    wait for its device.
    """
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
    links = Links(inbound)
    told = {
        "links": {"related": links.to(*_steps(point))},
        "data": identifier("PointCommand", queued.id),
    }
    # One that was sent before under the same key may have come to its end.
    pending = queued.state in _PENDING and inbound.received_ms < queued.expires_ms
    target = {"targetValue": target_text(queued)} if pending else {}
    shown = resource(
        "Point",
        point.id,
        {"pointValue": target},
        {"hasCommand": told},
        link=links.to("points", point.id),
    )
    draft = Draft(shown)
    draft.include([_shown(queued, point, links)])
    return draft.reply()


async def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The newest commands of a point."""
    point = own_point(inbound, lookup)
    found = await _commands(inbound, lookup, point)
    links = Links(inbound)
    itself = {"self": links.to(*_steps(point))}
    return Draft([_shown(each, point, links) for each in found], itself).reply()


async def find_by_id(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """One command of a point. Raises Unknown, for one of another point, too."""
    point = own_point(inbound, lookup)
    asked = inbound.path["commandId"]
    for each in await _commands(inbound, lookup, point):
        if each.id == asked:
            return Draft(_shown(each, point, Links(inbound))).reply()
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
    for name in point_value:
        if name != "value":
            # As the decoder says it of what is around it.
            raise Malformed(f"Object contains unknown field `{name}`", where=POINTER)
    return text


def _value(kind: Kind, text: str) -> Value:
    if len(text) > VALUE_BYTES_MAX // 4 and len(text.encode()) > VALUE_BYTES_MAX:
        raise Malformed(f"longer than {VALUE_BYTES_MAX} bytes", where=VALUE_POINTER)
    if reason := why_not_value(kind, text):
        raise Malformed(reason, where=VALUE_POINTER)
    return value_of(kind, text)


def _shown(command: Command, point: Point, links: Links) -> Members:
    return resource(
        "PointCommand",
        command.id,
        {
            "value": text_of_value(command.kind, command.value),
            "state": command.state,
            "changed": text_of(command.changed_ms),
            "requested": text_of(command.at_ms),
            "requestedBy": command.subject,
            "expires": text_of(command.expires_ms),
        },
        {"isCommandOf": to_one("Point", command.point)},
        link=links.to(*_steps(point), command.id),
    )


def _steps(point: Point) -> tuple[str, ...]:
    return "points", point.id, "commands"


_READING = {
    401: "no token, or not a valid one",
    403: "another's partition",
    503: "not read that far yet: try again",
}
FIND = Call(
    "GET",
    below(COMMANDS),
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
    below(ONE),
    Auth.BEARER,
    find_by_id,
    refused,
    READ,
    docs=described(
        "A command of a point, with its state",
        {200: "queued, delivered, confirmed or expired", 404: "no such command", **_READING},
    ),
)
CALLS = (FIND, FIND_ONE)
