"""Building X's token endpoint: client credentials for an access token, as Auth0 does it, and the
public keys of those tokens.

https://developer.siemens.com/building-x-openness/dev-guide/index.html
"""

from __future__ import annotations

from base64 import b64decode
from urllib.parse import parse_qsl, unquote_plus

from msgspec import Struct
from msgspec.json import Decoder
from msgspec.structs import replace

from services.dialects import _json
from services.dialects._contract import Auth, Call, Inbound, Reply, described
from services.dialects._ports import Actions, Lookup
from services.dialects.building_x.errors import token_refused
from services.errors import Forbidden, Malformed, Unauthorized, Unsupported

AUDIENCE = "https://horizon.siemens.com"
"""The only audience that tokens are given out for."""
GRANT_TYPE = "client_credentials"
KEYS_SECONDS = 300
"""How long the key set may be kept. A new key is published for longer before it signs."""

_FORM_FIELDS_MAX = 16
_NO_STORE = (("Cache-Control", "no-store"),)
"""A token must not stay in anybody's cache: RFC 6749, section 5.1."""


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
    request = _with_basic(_request(inbound), inbound.headers.get("authorization", ""))
    for name in ("client_id", "client_secret", "audience", "grant_type"):
        if not getattr(request, name):
            raise Malformed(f"Missing required parameter: {name}", where=f"/{name}")
    if request.grant_type != GRANT_TYPE:
        raise Malformed(
            f"Grant type must be {GRANT_TYPE}", where="/grant_type", code="unsupported_grant_type"
        )
    if request.audience != AUDIENCE:
        raise Forbidden(f"Service not found: {request.audience[:200]}", where="/audience")
    access_token, expires_s = actions.client_token(
        request.client_id, request.client_secret, request.audience
    )
    body = {"access_token": access_token, "token_type": "Bearer", "expires_in": expires_s}
    return Reply(200, _json.write(body), headers=_NO_STORE)


def _request(inbound: Inbound) -> _Request:
    """JSON as the vendor documents it, or form-encoded as standard OAuth 2 clients send it."""
    kind = inbound.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _json_request(inbound.body)
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
    known: dict[str, str] = {}
    for name, value in fields:
        if name in known:
            raise Malformed(f"Parameter is there twice: {name}", where=f"/{name}")
        if name in _Request.__struct_fields__:
            known[name] = value
    return _Request(**known)


def _json_request(body: bytes) -> _Request:
    try:
        return _json.read(_DECODER, body)
    except Malformed as error:
        if not error.where:
            raise
        # The envelope has no place for the member.
        raise Malformed(f"{error.where[1:]}: {error.message}", where=error.where) from None


def _with_basic(request: _Request, header: str) -> _Request:
    """The request with the client that HTTP Basic names, which standard OAuth 2 clients prefer: RFC
    6749, section 2.3.1.
    """
    scheme, _, packed = header.partition(" ")
    if scheme.lower() != "basic":
        return request
    if request.client_secret:
        raise Malformed("The client authenticates in more than one way", where="/client_secret")
    try:
        id_, colon, secret = b64decode(packed.strip(), validate=True).decode().partition(":")
        client_id, client_secret = (unquote_plus(part, errors="strict") for part in (id_, secret))
    except ValueError:
        raise Unauthorized("The Authorization header cannot be read") from None
    if not (client_id and client_secret and colon):
        raise Unauthorized("The Authorization header names no client and secret")
    if request.client_id not in ("", client_id):
        raise Malformed("Two clients are named", where="/client_id")
    return replace(request, client_id=client_id, client_secret=client_secret)


async def key_set(inbound: Inbound, lookup: Lookup, actions: Actions) -> Reply:
    """The public keys of access tokens, for whoever checks those without asking us."""
    kept = (("Cache-Control", f"public, max-age={KEYS_SECONDS}"),)
    return Reply(200, _json.write(actions.key_set()), headers=kept)


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
            415: "another content type than those of JSON and of a form",
            429: "too many requests with wrong secrets",
            503: "try again later",
        },
        example={
            "client_id": "…",
            "client_secret": "…",
            "audience": AUDIENCE,
            "grant_type": GRANT_TYPE,
        },
    ),
)
KEY_SET = Call(
    "GET",
    ("/.well-known/jwks.json",),
    Auth.NONE,
    key_set,
    token_refused,
    docs=described("The public keys of the tokens (JWKS)", {200: "a JWK Set, RFC 7517"}),
)
