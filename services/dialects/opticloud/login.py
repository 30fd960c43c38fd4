"""optiCLOUD's login: which tenants a user may enter, then a pair of tokens for one of them.

Two steps where ThingsBoard has one; a client of plain ThingsBoard leaves the first out.
https://docs.optimeas.com/en/docs/software/opticloud/api/rest-api-basics
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import Tenant
from services.dialects import _json
from services.dialects._contract import Auth, Call, Inbound, Reply, described
from services.dialects._ports import Actions, Lookup
from services.dialects.opticloud.errors import refused
from services.errors import Malformed, Unauthorized


class _Credentials(Struct, rename="camel"):
    username: str
    password: str
    authority_id: str | None = None


class _Refresh(Struct, rename="camel"):
    refresh_token: str


_CREDENTIALS, _REFRESH = Decoder(_Credentials), Decoder(_Refresh)


def authorization(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The tenants that the user may enter, each with the authority to log in to it."""
    asked = _json.read(_CREDENTIALS, inbound.body)
    tenants = actions.memberships(asked.username, asked.password)
    return Reply(200, _json.write([_membership(tenant) for tenant in tenants]))


def login(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """A pair of tokens. Raises Malformed where the user has several tenants and names none."""
    asked = _json.read(_CREDENTIALS, inbound.body)
    if asked.authority_id is not None:
        tenant = lookup.tenant_of(asked.authority_id)
        if tenant is None:
            raise Unauthorized("no such authority")
    else:
        tenants = actions.memberships(asked.username, asked.password)
        if not tenants:
            raise Unauthorized("the user may enter no tenant")
        if len(tenants) > 1:
            raise Malformed("authorityId says which tenant to enter", where="/authorityId")
        tenant = tenants[0].id
    return _pair(actions.user_tokens(asked.username, asked.password, tenant))


def refresh(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """A new pair of tokens for a refresh token."""
    return _pair(actions.refresh(_json.read(_REFRESH, inbound.body).refresh_token))


def _membership(tenant: Tenant) -> dict[str, object]:
    entity = {"entityType": "TENANT", "id": tenant.uuid}
    return {
        "tenant": {"id": entity, "name": tenant.name or tenant.id, "title": tenant.name},
        "authorityId": entity,
    }


def _pair(tokens: tuple[str, str]) -> Reply:
    token, refresh_token = tokens
    body = {"token": token, "refreshToken": refresh_token}
    return Reply(200, _json.write(body), headers=(("Cache-Control", "no-store"),))


AUTHORIZATION = Call(
    "POST",
    ("/api/noauth/authorization",),
    Auth.NONE,
    authorization,
    refused,
    docs=described(
        "The tenants that a user may enter",
        {200: "tenant and authorityId of each", 401: "unknown user or wrong password"},
        example={"username": "user@example.com", "password": "…"},
    ),
)
LOGIN = Call(
    "POST",
    ("/api/auth/login",),
    Auth.NONE,
    login,
    refused,
    docs=described(
        "Log in to a tenant",
        {
            200: "token (for X-Authorization: Bearer) and refreshToken",
            400: "authorityId is missing, though the user has several tenants",
            401: "unknown user, wrong password, or no member of the tenant",
        },
        example={"username": "user@example.com", "password": "…", "authorityId": "…"},
    ),
)
REFRESH = Call(
    "POST",
    ("/api/auth/token",),
    Auth.NONE,
    refresh,
    refused,
    docs=described(
        "A new pair of tokens",
        {200: "token and refreshToken", 401: "not a refresh token of ours, or too old"},
        example={"refreshToken": "…"},
    ),
)
