"""Building X's token endpoint: client credentials for an access token, as Auth0 does it.

https://developer.siemens.com/building-x-openness/dev-guide/index.html
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from msgspec import Struct
from msgspec.json import Decoder

from services.dialects import _json
from services.dialects._contract import Actions, Auth, Call, Inbound, Lookup, Reply, described
from services.dialects.building_x.errors import token_refused
from services.errors import Forbidden, Malformed, Unsupported

AUDIENCE = "https://horizon.siemens.com"
"""The only audience that tokens are given out for."""
GRANT_TYPE = "client_credentials"

_FORM_FIELDS_MAX = 16


class _Request(Struct):
    client_id: str = ""
    client_secret: str = ""
    audience: str = ""
    grant_type: str = ""


_DECODER = Decoder(_Request)


def token(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """Give out an access token.

    Raises Malformed without the four members, Forbidden for another audience, Unauthorized for an
    unknown client or a wrong secret.
    """
    request = _request(inbound)
    for name in ("client_id", "client_secret", "audience", "grant_type"):
        if not getattr(request, name):
            raise Malformed(f"Missing required parameter: {name}", where=f"/{name}")
    if request.grant_type != GRANT_TYPE:
        raise Malformed(
            f"Grant type must be {GRANT_TYPE}", where="/grant_type", code="unsupported_grant_type"
        )
    if request.audience != AUDIENCE:
        raise Forbidden(f"Service not found: {request.audience[:200]}", where="/audience")
    access_token, expires_s = actions.client_token(request.client_id, request.client_secret)
    body = {"access_token": access_token, "token_type": "Bearer", "expires_in": expires_s}
    # A token must not stay in anybody's cache: RFC 6749, section 5.1.
    return Reply(200, _json.write(body), headers=(("Cache-Control", "no-store"),))


def _request(inbound: Inbound) -> _Request:
    """JSON as the vendor documents it, or form-encoded as standard OAuth 2 clients send it."""
    kind = inbound.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _json.read(_DECODER, inbound.body)
    if kind != "application/x-www-form-urlencoded":
        raise Unsupported("send application/json or application/x-www-form-urlencoded")
    try:
        fields = parse_qsl(
            inbound.body.decode(),
            keep_blank_values=True,
            max_num_fields=_FORM_FIELDS_MAX,
            errors="strict",
        )
    except ValueError:
        raise Malformed("the form cannot be read") from None
    return _Request(**{k: v for k, v in fields if k in _Request.__struct_fields__})


TOKEN = Call(
    "POST",
    ("/oauth/token",),
    Auth.NONE,
    token,
    token_refused,
    docs=described(
        "Create a token (client credentials)",
        {
            200: "access_token, token_type, expires_in",
            400: "a member is missing, or another grant type",
            401: "unknown client or wrong secret",
            403: "another audience",
        },
        example={
            "client_id": "…",
            "client_secret": "…",
            "audience": AUDIENCE,
            "grant_type": GRANT_TYPE,
        },
    ),
)
