"""Tokens: how they are signed, and what one says that is ours and not past its end.

They are JWTs (RFC 7519, RFC 8725, RFC 9068) of three purposes, none of which passes for another:
each has keys of its own, one algorithm that the verifier insists on, its `aud` and its `typ`;
`iss`, `iat` and `exp` are checked too. The access tokens of machine clients are signed with ES256
by keys that are published and take turns (`services.catalogue` says which one when); tokens of
users are for this installation alone and signed with HS256.

Whether whom a token names may still do anything is for `services.auth`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from services.catalogue import View, derive, signing, verifying
from services.clock import Clock
from services.errors import Unauthorized

ISSUER = "lineshaft"
LEEWAY_SECONDS = 60
"""Between the clocks of the processes of an installation."""
TOKEN_LENGTH_MAX = 4096
REFUSED = "the credential is not valid"

_VERIFIED_MAX = 10_000
_KEYS_HELD = 64
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_MACHINE_ALGORITHM, _USER_ALGORITHM = "ES256", "HS256"
_MACHINE_TYP = "at+jwt"
_REQUIRED = ["iss", "aud", "iat", "exp", "sub", "secret"]


@dataclass(frozen=True, slots=True)
class Purpose:
    """A kind of token of users."""

    name: str
    typ: str

    @property
    def aud(self) -> str:
        """The audience: ourselves, for this purpose."""
        return f"{ISSUER}:{self.name}"


USER = Purpose("user", "at+jwt")
REFRESH = Purpose("refresh", "rt+jwt")


@dataclass(frozen=True, slots=True)
class Said:
    """What a token says, its signature checked. `secret` is the mark of the secret or password that
    it was given for, `tenant` the short name for users and the UUID for machines, `kid` the key
    that signed it where there are several.
    """

    subject: str
    secret: str
    tenant: str
    exp: int
    id: str
    kid: str


class Tokens:
    """Signs and reads tokens. Any method may be called from any thread."""

    def __init__(self, view: View, clock: Clock, secret: bytes) -> None:
        self._view, self._clock = view, clock
        self._shared = {
            purpose: derive(secret, f"jwt {purpose.name}") for purpose in (USER, REFRESH)
        }
        self._private = lru_cache(_KEYS_HELD)(lambda kid: private_key(secret, kid))
        self._verified: dict[tuple[str, str], Said] = {}

    # -- machine clients ---------------------------------------------------------------------------

    def for_machine(
        self, audience: str, seconds: int, *, client: str, tenant: str, secret: str
    ) -> str:
        """An access token for a machine client."""
        kid = signing(self._view.signing_keys(), self._clock.now_ms()).id
        named = {"sub": client, "client_id": client, "tenant": tenant, "secret": secret}
        return jwt.encode(
            self._times(audience, seconds) | named | {"jti": uuid4().hex},
            self._private(kid),
            algorithm=_MACHINE_ALGORITHM,
            headers={"typ": _MACHINE_TYP, "kid": kid},
        )

    def of_machine(self, token: str, audience: str) -> Said:
        """What an access token for this audience says. Raises Unauthorized."""
        said = self._said(token, audience, lambda: self._machine(token, audience))
        self._check_kid(said.kid)
        return said

    def key_set(self) -> dict[str, Any]:
        """The public keys of access tokens as a JWK Set (RFC 7517): of all that may be good, and
        the next one.
        """
        return {"keys": [self._public(key.id) for key in self._verifying()]}

    def _machine(self, token: str, audience: str) -> Said:
        kid = jwt.get_unverified_header(token).get("kid", "")
        self._check_kid(kid)
        key, algorithm = self._private(kid).public_key(), _MACHINE_ALGORITHM
        return self._decoded(token, key, algorithm, audience, _MACHINE_TYP)

    def _check_kid(self, kid: str) -> None:
        """A key that was ended, and one that nobody knows, verifies nothing."""
        if all(key.id != kid for key in self._verifying()):
            raise Unauthorized(REFUSED)

    def _verifying(self) -> list[Any]:
        return verifying(self._view.signing_keys(), self._clock.now_ms())

    def _public(self, kid: str) -> dict[str, Any]:
        public: Mapping[str, Any] = ECAlgorithm.to_jwk(self._private(kid).public_key(), True)
        return {**public, "kid": kid, "use": "sig", "alg": _MACHINE_ALGORITHM}

    # -- users -------------------------------------------------------------------------------------

    def for_user(self, purpose: Purpose, claims: Mapping[str, Any], seconds: int) -> str:
        """A token of a user."""
        return jwt.encode(
            {**claims, **self._times(purpose.aud, seconds)},
            self._shared[purpose],
            algorithm=_USER_ALGORITHM,
            headers={"typ": purpose.typ},
        )

    def of_user(self, token: str, purpose: Purpose) -> Said:
        """What a token of this purpose says. Raises Unauthorized."""
        key, algorithm = self._shared[purpose], _USER_ALGORITHM
        return self._said(
            token,
            purpose.aud,
            lambda: self._decoded(token, key, algorithm, purpose.aud, purpose.typ),
        )

    # -- both --------------------------------------------------------------------------------------

    def _times(self, audience: str, seconds: int) -> dict[str, Any]:
        now_s = self._clock.now_ms() // 1000
        return {"iss": ISSUER, "aud": audience, "iat": now_s, "exp": now_s + seconds}

    def _said(self, token: str, audience: str, read: Callable[[], Said]) -> Said:
        """What `read` makes of a token that is not past its end.

        Signatures that were checked are remembered: a hot door pays a look into a dict.
        """
        found = self._verified.get((audience, token))
        if found is None:
            if len(token) > TOKEN_LENGTH_MAX:
                raise Unauthorized(REFUSED)
            try:
                found = read()
            except (jwt.PyJWTError, ValueError):
                raise Unauthorized(REFUSED) from None
            if len(self._verified) >= _VERIFIED_MAX:
                with suppress(StopIteration, RuntimeError, KeyError):
                    del self._verified[next(iter(self._verified))]
            self._verified[audience, token] = found
        if found.exp + LEEWAY_SECONDS <= self._clock.now_ms() // 1000:
            self._verified.pop((audience, token), None)
            raise Unauthorized(REFUSED)
        return found

    def _decoded(self, token: str, key: Any, algorithm: str, audience: str, typ: str) -> Said:
        # The library would ask the wall clock: times are compared with our own.
        decoded = jwt.decode_complete(
            token,
            key,
            algorithms=[algorithm],
            audience=audience,
            issuer=ISSUER,
            options={
                "require": _REQUIRED,
                "strict_aud": True,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        header, claims = decoded["header"], decoded["payload"]
        latest_s = self._clock.now_ms() // 1000 + LEEWAY_SECONDS
        if header.get("typ") != typ or claims["iat"] > latest_s:
            raise Unauthorized(REFUSED)
        return Said(
            claims["sub"],
            claims["secret"],
            claims.get("tenant", ""),
            claims["exp"],
            claims.get("jti", ""),
            header.get("kid", ""),
        )


def private_key(secret: bytes, kid: str) -> ec.EllipticCurvePrivateKey:
    """The key with this id, of an installation's secret: the same in every process that has it.

    It is made of twice the digits that it has, so that no key is likelier than another by more than
    chance (FIPS 186-5, A.2.1).
    """
    wide = b"".join(derive(secret, f"signing key {half} {kid}") for half in "12")
    number = int.from_bytes(wide, "big") % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(number, ec.SECP256R1())
