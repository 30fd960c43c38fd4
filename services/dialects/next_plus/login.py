"""Log in and log out, as LoopBack's User model has them. The token is good for one tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from schemas.catalogue import Tenant
from services.dialects import _json
from services.dialects._contract import Auth, Inbound, Reply
from services.dialects._ports import Actions, Lookup
from services.dialects.next_plus import errors
from services.dialects.next_plus.errors import Invalid, refused
from services.dialects.next_plus.models import body_of, call, member, moment, shown
from services.errors import Malformed, PipelineError, Unauthorized


class _Credentials(Struct):
    username: Any = None
    email: Any = None
    password: Any = None
    tenant: str | None = None
    ttl: int | None = None


_CREDENTIALS = Decoder(_Credentials)
_TTL_DIGITS_MAX = 10


def login(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """A token. Raises Unauthorized, Malformed, Invalid (which of several tenants?)."""
    asked = body_of(_CREDENTIALS, inbound)
    name = asked.username or asked.email
    if not name or not asked.password:
        message = "username or email, and password are required"
        raise Malformed(message, code=errors.USERNAME_EMAIL_REQUIRED)
    if not isinstance(name, str) or not isinstance(asked.password, str):
        raise Unauthorized("username and password are texts")

    def choose(tenants: Sequence[Tenant]) -> Tenant:
        return _chosen(tenants, asked.tenant)

    token, ttl = actions.log_in(name, asked.password, choose, _ttl(asked, inbound.query))
    user = actions.user(name)
    body = {
        "id": token,
        "ttl": ttl,
        "created": moment(inbound.received_ms),
        "userId": "" if user is None else user.uuid,
    }
    return shown(body, headers=(("Cache-Control", "no-store"),))


async def logout(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """End the token that the request came with, and no other."""
    caller = inbound.caller
    if not caller.token:
        raise Invalid(errors.NO_SESSION, "this is no token of a log in; an admin can delete it")
    await actions.control(caller).log_out(caller.tenant, caller.token)
    return Reply(204)


def _chosen(tenants: Sequence[Tenant], asked: str | None) -> Tenant:
    """The tenant that is named by its short name or UUID; where none is, the only one."""
    if asked is not None:
        for tenant in tenants:
            if asked in (tenant.id, tenant.uuid):
                return tenant
        raise Unauthorized("the user may not enter this tenant")
    if len(tenants) > 1:
        choices = [{"id": each.id, "uuid": each.uuid, "name": each.name} for each in tenants]
        message = "`tenant` says which one to enter"
        raise Invalid(errors.TENANT_REQUIRED, message, where="tenant", tenants=choices)
    return tenants[0]


def _ttl(asked: _Credentials, query: Any) -> int | None:
    """The wanted life in seconds: `?ttl=`, else the body's. Raises Invalid."""
    text = query.get("ttl", "")
    digits = text.isascii() and text.isdecimal() and len(text) <= _TTL_DIGITS_MAX
    ttl = int(text) if digits else asked.ttl
    if (text and not digits) or (ttl is not None and ttl < 1):
        raise member("ttl", "seconds, 1 or more")
    return ttl


def login_refused(error: PipelineError, now_ms: int) -> Reply:
    """LoopBack tells a failed log in from a token that is not valid."""
    if not isinstance(error, Unauthorized):
        return refused(error, now_ms)
    said = {
        "statusCode": 401,
        "name": "Error",
        "message": "login failed",
        "code": errors.LOGIN_FAILED,
    }
    return Reply(401, _json.write({"error": said}))


CALLS = (
    call(
        "POST",
        ("/api/Users/login", "/api/users/login"),
        login,
        "",
        "Log in",
        {
            200: "`id` is the token, `ttl` its life in seconds",
            400: "name or password is missing",
            401: "unknown user, wrong password, or no member of the tenant",
            422: "the user may enter several tenants, `details` names them; or a bad ttl",
        },
        auth=Auth.NONE,
        refusal=login_refused,
        example={"username": "user@example.com", "password": "…", "tenant": "acme"},
        parameters={"ttl": "wanted life of the token in seconds"},
    ),
    call(
        "POST",
        ("/api/Users/logout", "/api/users/logout"),
        logout,
        "",
        "End the token that the request comes with",
        {204: "it is over", 422: "it is an API key, which has no session"},
    ),
)
