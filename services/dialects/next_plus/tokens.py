"""Access tokens that last: API keys of the tenant, made and revoked by its admins."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import ADMIN, Key, role_of
from services.dialects import _times
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
    shown,
    translated,
    unknown,
)
from services.dialects.next_plus.users import scopes_of

PATH = "/api/AccessTokens"
ONE = PATH + "/{id}"
TTL_SECONDS_MAX = 10 * 366 * 86_400


class _Members(Struct):
    name: str | None = None
    role: str | None = None
    ttl: int | None = None
    expires: str | None = None


_MEMBERS = Decoder(_Members)
_NAMES = {"scopes": "role", "expires_ms": "expires"}


def of(key: Key) -> dict[str, Any]:
    """An access token as it is shown: without its secret."""
    return {
        "id": key.id,
        "name": key.name,
        "role": role_of(key.scopes),
        "scopes": list(key.scopes),
        "expires": moment(key.expires_ms),
    }


def find(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The tenant's access tokens that were not deleted, by id."""
    return listed(inbound, [of(key) for key in _keys(inbound, actions)])


async def create(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Make an access token; the token itself is shown this once."""
    given = body_of(_MEMBERS, inbound)
    if given.name is None:
        raise member("name", "a text of 1 to 256 characters")
    scopes, expires_ms = scopes_of(given.role), _expires_ms(given, inbound.received_ms)
    with translated(**_NAMES):
        key, secret = await actions.control(inbound.caller).add_key(
            inbound.caller.tenant, use="api", name=given.name, scopes=scopes, expires_ms=expires_ms
        )
    return shown(of(key) | {"token": secret}, headers=(("Cache-Control", "no-store"),))


async def delete(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Revoke an access token, for good."""
    asked = inbound.path["id"]
    if all(asked != key.id for key in _keys(inbound, actions)):
        raise unknown("AccessToken", asked)
    with translated():
        await actions.control(inbound.caller).revoke_key(asked, tenant=inbound.caller.tenant)
    return DELETED


def _keys(inbound: Inbound, actions: Actions) -> list[Key]:
    keys = actions.keys(inbound.caller.tenant)
    return [key for key in keys if key.use == "api" and not key.revoked]


def _expires_ms(given: _Members, now_ms: int) -> int:
    """Until when it is good: `ttl` in seconds or `expires`; 0: for ever. Raises Invalid."""
    if given.ttl is not None:
        if not 0 < given.ttl <= TTL_SECONDS_MAX or given.expires is not None:
            raise member("ttl", f"seconds, 1 to {TTL_SECONDS_MAX}, in the place of `expires`")
        return now_ms + given.ttl * 1000
    try:
        expires_ms = _times.ms_of(given.expires) if given.expires is not None else 0
    except ValueError:
        raise member("expires", "an ISO-8601 time") from None
    if given.expires is not None and expires_ms <= now_ms:
        raise member("expires", "a time to come")
    return expires_ms


CALLS = (
    call(
        "GET",
        PATH,
        find,
        ADMIN,
        "The tenant's access tokens, without their secrets",
        {200: "a list", 400: "the filter is not understood"},
        parameters=PARAMETERS,
    ),
    call(
        "POST",
        PATH,
        create,
        ADMIN,
        "Make an access token",
        {200: "`token` is the token, shown this once", 422: "a member cannot be used"},
        example={"name": "line 1 gateway", "role": "editor", "ttl": 31_536_000},
    ),
    call(
        "DELETE",
        ONE,
        delete,
        ADMIN,
        "Revoke an access token",
        {200: "how many were deleted", 404: "no such access token"},
    ),
)
