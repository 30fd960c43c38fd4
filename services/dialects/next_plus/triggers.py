"""Triggers: when a parameter's values begin to satisfy a rule, a webhook is called."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import CONFIGURE, Point, Trigger
from schemas.samples import Kind, Value
from services.dialects import _times
from services.dialects._contract import Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.next_plus import parameters
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
    unknown,
)
from services.dialects.next_plus.read import parameter_of
from services.dialects.next_plus.values import json_of, type_of

PATH = parameters.ONE + "/triggers"
ONE = "/api/ApiServers/triggers/{triggerId}"


class _Members(Struct, rename="camel"):
    id: str | None = None
    parameter_id: str | None = None
    name: str | None = None
    when: str | None = None
    value: str | int | float | bool | None = None
    hysteresis: float | None = None
    delay: int | None = None
    on_clear: bool | None = None
    url: str | None = None
    active: bool | None = None


_MEMBERS = Decoder(_Members)
_NAMES = {"bound": "value", "delay_ms": "delay", "on_clear": "onClear", "disabled": "active"}


def of(trigger: Trigger, point: Point) -> dict[str, Any]:
    """A trigger as it is shown."""
    date = point.declared is Kind.DATE
    bound = "" if trigger.bound is None else trigger.bound
    return {
        "id": trigger.id,
        "name": trigger.name,
        "parameterId": trigger.point,
        "when": trigger.when,
        "value": json_of(Kind.DATE if date else Kind.STRING, bound),
        "hysteresis": trigger.hysteresis,
        "delay": trigger.delay_ms,
        "onClear": trigger.on_clear,
        "url": trigger.url,
        "active": not trigger.disabled,
        "created": moment(trigger.created_ms),
    }


def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """A parameter's triggers."""
    point = parameter_of(inbound, lookup)
    found = lookup.triggers(inbound.caller.tenant, point.id)
    return listed(inbound, [of(trigger, point) for trigger in found])


def find_by_id(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """One trigger."""
    return shown(of(*_trigger(inbound, lookup)))


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Make a trigger; the secret that signs its calls is shown this once."""
    point, given = parameter_of(inbound, lookup), body_of(_MEMBERS, inbound)
    for name, value in (("when", given.when), ("value", given.value), ("url", given.url)):
        if value is None:
            raise member(name, "has to be there")
    with translated(**_NAMES):
        trigger, secret = await actions.control(inbound.caller).add_trigger(
            inbound.caller.tenant, point.id, **_given(given, point)
        )
    no_store = (("Cache-Control", "no-store"),)
    return shown(of(trigger, point) | {"secret": secret}, headers=no_store)


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Change what is given of a trigger."""
    (trigger, point), given = _trigger(inbound, lookup), body_of(_MEMBERS, inbound)
    same("id", given.id, trigger.id)
    same("parameterId", given.parameter_id, point.id)
    with translated(**_NAMES):
        changed = await actions.control(inbound.caller).change_trigger(
            inbound.caller.tenant, trigger.id, **_given(given, point)
        )
    return shown(of(changed, point))


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Delete a trigger."""
    trigger, _ = _trigger(inbound, lookup)
    with translated():
        await actions.control(inbound.caller).delete_trigger(inbound.caller.tenant, trigger.id)
    return DELETED


def _given(given: _Members, point: Point) -> dict[str, Any]:
    """The members that came, as control calls them."""
    members = {
        "name": given.name,
        "when": given.when,
        "bound": _bound(given.value, point),
        "hysteresis": given.hysteresis,
        "delay_ms": given.delay,
        "on_clear": given.on_clear,
        "url": given.url,
        "disabled": None if given.active is None else not given.active,
    }
    return {name: value for name, value in members.items() if value is not None}


def _bound(value: Value | None, point: Point) -> Value | None:
    """The value that is compared with, as the parameter's own are kept."""
    if value is None or type_of(point) != "date":
        return value
    if isinstance(value, str):
        with suppress(ValueError):
            return _times.ms_of(value)
    raise member("value", "an ISO-8601 date, as the parameter's values are")


def _trigger(inbound: Inbound, lookup: Lookup) -> tuple[Trigger, Point]:
    tenant, asked = inbound.caller.tenant, inbound.path["triggerId"]
    trigger = lookup.trigger(tenant, asked)
    point = None if trigger is None else lookup.point(tenant, trigger.point)
    if trigger is None or point is None or point.device != lookup.api_server(tenant).id:
        raise unknown("Trigger", asked)
    return trigger, point


_EXAMPLE = {
    "name": "too hot",
    "when": ">",
    "value": 80,
    "hysteresis": 2,
    "delay": 5000,
    "onClear": True,
    "url": "https://example.com/hook",
}
_NOT_FOUND, _INVALID = "no such trigger", "a member cannot be used, `details` says which"
_NO_PARAMETER = "no such parameter"
CALLS = (
    call(
        "GET",
        PATH,
        find,
        CONFIGURE,
        "A parameter's triggers",
        {200: "a list", 400: "the filter is not understood", 404: _NO_PARAMETER},
        parameters=PARAMETERS,
    ),
    call(
        "POST",
        PATH,
        create,
        CONFIGURE,
        "Make a trigger",
        {
            200: "the trigger, and the secret that signs its calls, shown this once",
            404: _NO_PARAMETER,
            422: _INVALID,
        },
        example=_EXAMPLE,
    ),
    call("GET", ONE, find_by_id, CONFIGURE, "A trigger", {200: "the trigger", 404: _NOT_FOUND}),
    call(
        "PATCH",
        ONE,
        change,
        CONFIGURE,
        "Change a trigger",
        {200: "the trigger", 404: _NOT_FOUND, 422: _INVALID},
        example={"active": False},
    ),
    call(
        "DELETE",
        ONE,
        delete,
        CONFIGURE,
        "Delete a trigger",
        {200: "how many were deleted", 404: _NOT_FOUND},
    ),
)
