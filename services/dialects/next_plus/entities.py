"""Production Entities (our equipment), and which parameters feed them (bindings)."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import CONFIGURE, ROLES_OF_A_BINDING, Binding, Equipment
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

PATH = "/api/ProductionEntities"
ONE = PATH + "/{id}"
BINDINGS = parameters.ONE + "/bindings"


class _Members(Struct):
    id: str | None = None
    name: str | None = None


class _BindingMembers(Struct, rename="camel"):
    production_entity_id: str | None = None
    role: str | None = None


_MEMBERS, _BINDING = Decoder(_Members), Decoder(_BindingMembers)
_NAMES = {"equipment": "productionEntityId"}


def of(equipment: Equipment) -> dict[str, Any]:
    """A Production Entity as it is shown."""
    return {
        "id": equipment.id,
        "name": equipment.name,
        "created": moment(equipment.created_ms),
    }


def of_binding(binding: Binding) -> dict[str, Any]:
    """A binding as it is shown."""
    return {
        "id": binding.id,
        "parameterId": binding.point,
        "productionEntityId": binding.equipment,
        "role": binding.role,
        "created": moment(binding.created_ms),
    }


def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """All Production Entities, in the order of their creation."""
    return listed(inbound, [of(each) for each in lookup.all_equipment(inbound.caller.tenant)])


def find_by_id(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """One Production Entity."""
    return shown(of(_entity(inbound, lookup)))


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Make a Production Entity."""
    given = body_of(_MEMBERS, inbound)
    if given.name is None:
        raise member("name", "a text of 1 to 256 characters")
    with translated():
        control = actions.control(inbound.caller)
        made = await control.add_equipment(inbound.caller.tenant, given.name)
    return shown(of(made))


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Rename a Production Entity."""
    entity, given = _entity(inbound, lookup), body_of(_MEMBERS, inbound)
    same("id", given.id, entity.id)
    if given.name is None:
        return shown(of(entity))
    with translated():
        control, tenant = actions.control(inbound.caller), inbound.caller.tenant
        changed = await control.change_equipment(tenant, entity.id, name=given.name)
    return shown(of(changed))


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Delete a Production Entity with its bindings."""
    entity = _entity(inbound, lookup)
    with translated():
        control = actions.control(inbound.caller)
        await control.delete_equipment(inbound.caller.tenant, entity.id)
    return DELETED


def find_bindings(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """What a parameter feeds."""
    point = parameter_of(inbound, lookup)
    found = lookup.bindings(inbound.caller.tenant, point=point.id)
    return listed(inbound, [of_binding(binding) for binding in found])


def find_bindings_of_entity(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """What a Production Entity is fed by."""
    entity = _entity(inbound, lookup)
    found = lookup.bindings(inbound.caller.tenant, equipment=entity.id)
    return listed(inbound, [of_binding(binding) for binding in found])


async def bind(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Have a parameter feed a Production Entity."""
    point, given = parameter_of(inbound, lookup), body_of(_BINDING, inbound)
    if given.production_entity_id is None:
        raise member("productionEntityId", "the id of a Production Entity")
    with translated(**_NAMES):
        binding = await actions.control(inbound.caller).add_binding(
            inbound.caller.tenant,
            point.id,
            given.production_entity_id,
            role=given.role or ROLES_OF_A_BINDING[0],
        )
    return shown(of_binding(binding))


async def unbind(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Have a parameter feed it no more."""
    point, asked = parameter_of(inbound, lookup), inbound.path["bindingId"]
    binding = lookup.binding(inbound.caller.tenant, asked)
    if binding is None or binding.point != point.id:
        raise unknown("Binding", asked)
    with translated():
        await actions.control(inbound.caller).delete_binding(inbound.caller.tenant, binding.id)
    return DELETED


def _entity(inbound: Inbound, lookup: Lookup) -> Equipment:
    asked = inbound.path["id"]
    if (found := lookup.equipment(inbound.caller.tenant, asked)) is None:
        raise unknown("ProductionEntity", asked)
    return found


_NOT_FOUND, _INVALID = "no such Production Entity", "a member cannot be used"
_NO_PARAMETER = "no such parameter"
_LIST = {200: "a list", 400: "the filter is not understood"}
CALLS = (
    call("GET", PATH, find, CONFIGURE, "The Production Entities", _LIST, parameters=PARAMETERS),
    call(
        "POST",
        PATH,
        create,
        CONFIGURE,
        "Make a Production Entity",
        {200: "the Production Entity", 422: _INVALID},
        example={"name": "Press 7"},
    ),
    call(
        "GET",
        ONE,
        find_by_id,
        CONFIGURE,
        "A Production Entity",
        {200: "the Production Entity", 404: _NOT_FOUND},
    ),
    call(
        "PATCH",
        ONE,
        change,
        CONFIGURE,
        "Rename a Production Entity",
        {200: "the Production Entity", 404: _NOT_FOUND, 422: _INVALID},
        example={"name": "Press 7b"},
    ),
    call(
        "DELETE",
        ONE,
        delete,
        CONFIGURE,
        "Delete a Production Entity with its bindings",
        {200: "how many were deleted", 404: _NOT_FOUND},
    ),
    call(
        "GET",
        ONE + "/bindings",
        find_bindings_of_entity,
        CONFIGURE,
        "What a Production Entity is fed by",
        {**_LIST, 404: _NOT_FOUND},
        parameters=PARAMETERS,
    ),
    call(
        "GET",
        BINDINGS,
        find_bindings,
        CONFIGURE,
        "What a parameter feeds",
        {**_LIST, 404: _NO_PARAMETER},
        parameters=PARAMETERS,
    ),
    call(
        "POST",
        BINDINGS,
        bind,
        CONFIGURE,
        "Bind a parameter to a Production Entity",
        {200: "the binding", 404: _NO_PARAMETER, 409: "it is there already", 422: _INVALID},
        example={"productionEntityId": "…", "role": "counter"},
    ),
    call(
        "DELETE",
        BINDINGS + "/{bindingId}",
        unbind,
        CONFIGURE,
        "Undo a binding",
        {200: "how many were deleted", 404: "no such parameter, or no such binding of it"},
    ),
)
