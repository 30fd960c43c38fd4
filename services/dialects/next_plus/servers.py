"""The API server: every tenant has exactly one, nobody makes or deletes it. It can be switched off;
pushes are answered 404 then.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import ADMIN, CONFIGURE, Device
from services.dialects._contract import Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.next_plus.filters import PARAMETERS
from services.dialects.next_plus.models import (
    body_of,
    call,
    listed,
    moment,
    same,
    shown,
    translated,
    unknown,
)
from services.errors import Forbidden

PATH = "/api/ApiServers"
ONE = PATH + "/{id}"


class _Members(Struct):
    id: str | None = None
    name: str | None = None
    active: bool | None = None


_MEMBERS = Decoder(_Members)


def of(server: Device) -> dict[str, Any]:
    """The API server as it is shown."""
    return {
        "id": server.id,
        "name": server.name,
        "active": not server.disabled,
        "created": moment(server.created_ms),
    }


def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """A list of the one."""
    return listed(inbound, [of(lookup.api_server(inbound.caller.tenant))])


def find_by_id(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The one, by its id."""
    return shown(of(_server(inbound, lookup)))


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Give it another name; switch it off or on, which takes an admin."""
    server, given = _server(inbound, lookup), body_of(_MEMBERS, inbound)
    same("id", given.id, server.id)
    if given.active is not None and ADMIN not in inbound.caller.scopes:
        raise Forbidden("only an admin switches the API server off and on")
    disabled = None if given.active is None else not given.active
    with translated():
        control = actions.control(inbound.caller)
        tenant = inbound.caller.tenant
        done = await control.change_device(tenant, server.id, name=given.name, disabled=disabled)
    return shown(of(done))


def _server(inbound: Inbound, lookup: Lookup) -> Device:
    server, asked = lookup.api_server(inbound.caller.tenant), inbound.path["id"]
    if asked.lower() != server.id:
        raise unknown("ApiServer", asked)
    return server


CALLS = (
    call(
        "GET",
        PATH,
        find,
        CONFIGURE,
        "The tenant's API server, as a list",
        {200: "a list of one", 400: "the filter is not understood"},
        parameters=PARAMETERS,
    ),
    call(
        "GET",
        ONE,
        find_by_id,
        CONFIGURE,
        "The API server",
        {200: "id, name, active", 404: "not the id of the tenant's API server"},
    ),
    call(
        "PATCH",
        ONE,
        change,
        CONFIGURE,
        "Rename the API server; switch it off or on (admins)",
        {200: "the API server", 404: "not its id", 422: "a member cannot be used"},
        example={"active": False},
    ),
)
