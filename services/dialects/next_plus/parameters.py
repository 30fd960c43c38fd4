"""The parameters of the API server, managed: declared, shown, changed, deleted.

A parameter is a point of the API server. With another key it stays the same: its id, its values.
A new parameter may get the old key then.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder

from schemas.catalogue import CONFIGURE, Point
from services.dialects._contract import Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.next_plus.filters import PARAMETERS
from services.dialects.next_plus.models import (
    DELETED,
    body_of,
    call,
    listed,
    member,
    moment,
    same,
    shown,
    translated,
)
from services.dialects.next_plus.read import parameter_of
from services.dialects.next_plus.values import (
    KEEP_MINUTES,
    KEEP_MINUTES_DEFAULT,
    KEY_CHARACTERS_MAX,
    PRECISIONS,
    TYPES,
    declared,
    type_of,
)

PATH = "/api/ApiServers/parameters"
ONE = PATH + "/{paramId}"


class _Members(Struct, rename="camel"):
    id: str | None = None
    key: str | None = None
    nice_name: str | None = None
    type: str | None = None
    precision: int | UnsetType | None = UNSET
    max_log_period: int | None = None


_MEMBERS = Decoder(_Members)
_NAMES = {"name": "niceName", "keep_minutes": "maxLogPeriod"}


def of(point: Point) -> dict[str, Any]:
    """A parameter as it is shown."""
    return {
        "id": point.id,
        "key": point.key,
        "niceName": point.name or point.key,
        "type": type_of(point),
        "precision": point.precision,
        "maxLogPeriod": point.keep_minutes,
        "apiServerId": point.device,
        "created": moment(point.created_ms),
    }


def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """All parameters, in the order of their creation."""
    tenant = inbound.caller.tenant
    points = lookup.points(tenant, lookup.api_server(tenant).id)
    return listed(inbound, [of(point) for point in points.values()])


def find_by_id(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """One parameter."""
    return shown(of(parameter_of(inbound, lookup)))


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Declare a parameter."""
    given, tenant = body_of(_MEMBERS, inbound), inbound.caller.tenant
    if not given.key or len(given.key) > KEY_CHARACTERS_MAX:
        raise member("key", f"a text of 1 to {KEY_CHARACTERS_MAX} characters")
    if given.type not in TYPES:
        raise member("type", f"one of {', '.join(TYPES)}")
    keep = _keep(given.max_log_period)
    precision = _precision(given, given.type)
    shape = declared(given.type, precision, KEEP_MINUTES_DEFAULT if keep is None else keep)
    with translated(**_NAMES):
        point = await actions.control(inbound.caller).add_point(
            tenant,
            lookup.api_server(tenant).id,
            given.key,
            name=_name(given) or given.key,
            **shape,
        )
    return shown(of(point))


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Change what is given of a parameter; its type is for good."""
    point, given = parameter_of(inbound, lookup), body_of(_MEMBERS, inbound)
    kind = type_of(point)
    same("id", given.id, point.id)
    same("type", given.type, kind)
    if given.key is not None and not 0 < len(given.key) <= KEY_CHARACTERS_MAX:
        raise member("key", f"a text of 1 to {KEY_CHARACTERS_MAX} characters")
    precision, keep = _precision(given, kind), _keep(given.max_log_period)
    changes: dict[str, Any] = {"key": given.key, "name": _name(given), "keep_minutes": keep}
    if precision is not None:
        shape = declared(kind, precision, point.keep_minutes)
        changes |= {"precision": precision, "band": shape["band"]}
    with translated(**_NAMES):
        control = actions.control(inbound.caller)
        changed = await control.change_point(inbound.caller.tenant, point.id, **changes)
    return shown(of(changed))


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Delete a parameter with its bindings and triggers."""
    point = parameter_of(inbound, lookup)
    with translated():
        await actions.control(inbound.caller).delete_point(inbound.caller.tenant, point.id)
    return DELETED


def _name(given: _Members) -> str | None:
    if given.nice_name == "":
        raise member("niceName", "a text of 1 to 256 characters")
    return given.nice_name


def _keep(minutes: int | None) -> int | None:
    if minutes is not None and minutes not in KEEP_MINUTES:
        raise member("maxLogPeriod", f"minutes, one of {', '.join(map(str, KEEP_MINUTES))}")
    return minutes


def _precision(given: _Members, kind: str) -> int | None:
    if isinstance(given.precision, UnsetType) or given.precision is None:
        return None
    if kind != "number" or given.precision not in PRECISIONS:
        wanted = f"an integer from {PRECISIONS[0]} to {PRECISIONS[-1]}, for numbers only"
        raise member("precision", wanted)
    return given.precision


_EXAMPLE = {
    "key": "temperature",
    "niceName": "Temperature",
    "type": "number",
    "precision": 1,
    "maxLogPeriod": 720,
}
_NOT_FOUND, _INVALID = "no such parameter", "a member cannot be used, `details` says which"
_TAKEN = "another parameter has this key"
CALLS = (
    call(
        "GET",
        PATH,
        find,
        CONFIGURE,
        "The parameters",
        {200: "a list", 400: "the filter is not understood"},
        parameters=PARAMETERS,
    ),
    call(
        "POST",
        PATH,
        create,
        CONFIGURE,
        "Declare a parameter",
        {200: "the parameter", 409: _TAKEN, 422: _INVALID},
        example=_EXAMPLE,
    ),
    call("GET", ONE, find_by_id, CONFIGURE, "A parameter", {200: "the parameter", 404: _NOT_FOUND}),
    call(
        "PATCH",
        ONE,
        change,
        CONFIGURE,
        "Change key, name, precision or retention of a parameter",
        {200: "the parameter", 404: _NOT_FOUND, 409: _TAKEN, 422: f"{_INVALID}; type is for good"},
        example={"niceName": "Oven", "precision": 2},
    ),
    call(
        "DELETE",
        ONE,
        delete,
        CONFIGURE,
        "Delete a parameter with its bindings and triggers",
        {200: "how many were deleted", 404: _NOT_FOUND},
    ),
)
