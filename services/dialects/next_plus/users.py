"""Users of the tenant and their roles, managed by its admins.

A user may enter other tenants too, of which nothing is shown here, and nothing can be changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import ADMIN, ROLES, User, role_of
from services.dialects._contract import Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.next_plus.filters import PARAMETERS
from services.dialects.next_plus.models import (
    DELETED,
    body_of,
    call,
    listed,
    member,
    same,
    shown,
    translated,
    unknown,
)

PATH = "/api/Users"
ONE = PATH + "/{id}"


class _Members(Struct):
    id: str | None = None
    username: str | None = None
    email: str | None = None
    password: str | None = None
    role: str | None = None
    disabled: bool | None = None


_MEMBERS = Decoder(_Members)
_NAMES = {"id": "username", "name": "username", "scopes": "role"}


def scopes_of(role: str | None) -> Sequence[str]:
    """The rights of a role. Raises Invalid where there is no such role."""
    if role is None or role not in ROLES:
        raise member("role", f"one of {', '.join(ROLES)}")
    return ROLES[role]


def of(user: User, tenant: str) -> dict[str, Any]:
    """A user as the tenant sees them."""
    scopes = user.tenants.get(tenant, ())
    return {
        "id": user.uuid,
        "username": user.id,
        "role": role_of(scopes),
        "scopes": list(scopes),
        "disabled": user.disabled,
    }


def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The tenant's users, by name."""
    tenant = inbound.caller.tenant
    return listed(inbound, [of(user, tenant) for user in actions.users(tenant)])


def find_by_id(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """One of the tenant's users."""
    return shown(of(_user(inbound, actions), inbound.caller.tenant))


def me(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Who asks: a user, or an API key (its id, and no name)."""
    caller = inbound.caller
    user = actions.user(caller.subject) if caller.token else None
    if user is not None:
        return shown(of(user, caller.tenant))
    scopes = sorted(caller.scopes)
    return shown(
        {"id": caller.subject, "username": None, "role": role_of(scopes), "scopes": scopes}
    )


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Make a user of this tenant."""
    given, tenant = body_of(_MEMBERS, inbound), inbound.caller.tenant
    name = given.username or given.email
    if not name:
        raise member("username", "1 to 128 characters, no blanks")
    if given.password is None:
        raise member("password", "8 to 1024 characters")
    rights = {tenant: scopes_of(given.role)}
    with translated(**_NAMES):
        control = actions.control(inbound.caller)
        user, _ = await control.add_user(name, rights, password=given.password)
    return shown(of(user, tenant))


async def change(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Change role, password or state of a user."""
    user, given, tenant = _user(inbound, actions), body_of(_MEMBERS, inbound), inbound.caller.tenant
    same("id", given.id, user.uuid)
    same("username", given.username, user.id)
    scopes = None if given.role is None else scopes_of(given.role)
    with translated(**_NAMES):
        changed = await actions.control(inbound.caller).change_user(
            tenant, user.id, scopes=scopes, password=given.password, disabled=given.disabled
        )
    return shown(of(changed, tenant))


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Let a user into this tenant no more; who may enter no other is deleted."""
    user = _user(inbound, actions)
    with translated(**_NAMES):
        await actions.control(inbound.caller).remove_user(inbound.caller.tenant, user.id)
    return DELETED


def _user(inbound: Inbound, actions: Actions) -> User:
    """The tenant's user whom the path names by UUID or user name. Raises Unknown."""
    asked = inbound.path["id"]
    for user in actions.users(inbound.caller.tenant):
        if asked in (user.uuid, user.id):
            return user
    raise unknown("User", asked)


_NOT_FOUND = "no such user of the tenant"
_EXAMPLE = {"username": "integration@example.com", "password": "…", "role": "editor"}
CALLS = (
    call("GET", PATH + "/me", me, "", "Who the token is of", {200: "user and role"}),
    call(
        "GET",
        PATH,
        find,
        ADMIN,
        "The tenant's users",
        {200: "a list", 400: "the filter is not understood"},
        parameters=PARAMETERS,
    ),
    call(
        "POST",
        PATH,
        create,
        ADMIN,
        "Make a user",
        {200: "the user", 409: "the name is taken", 422: "a member cannot be used"},
        example=_EXAMPLE,
    ),
    call("GET", ONE, find_by_id, ADMIN, "A user", {200: "the user", 404: _NOT_FOUND}),
    call(
        "PATCH",
        ONE,
        change,
        ADMIN,
        "Change role, password or state of a user",
        {
            200: "the user",
            404: _NOT_FOUND,
            422: "a member cannot be used; or password and state are those of a user who may"
            " enter other tenants too",
        },
        example={"role": "operator"},
    ),
    call(
        "DELETE",
        ONE,
        delete,
        ADMIN,
        "Let a user into the tenant no more",
        {200: "how many were deleted", 404: _NOT_FOUND},
    ),
)
