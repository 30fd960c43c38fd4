"""Who speaks: credential to principal, always as the catalogue has it at this moment.

Between the doors and the catalogue's view. A key that was revoked, rotated out or has expired, a
user who was disabled, opens nothing from the moment the view knows, and neither do the tokens that
were given out for them: a token names the secret it was given for, and both are looked up each
time; so is whether a user ended the token itself (log out). Unknown, expired and revoked are
answered alike.

Tokens are JWTs (RFC 7519, RFC 8725): HS256 only, a key for each purpose, iss, aud, typ, iat and exp
checked.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from uuid import uuid4

import jwt

from schemas.catalogue import ADMIN, Key, Tenant, User
from services import metrics
from services.catalogue import View, derive, digest, password_hash, password_matches, pepper
from services.clock import Clock
from services.dialects import Auth as Way
from services.dialects import Principal
from services.errors import Forbidden, Unauthorized, Unavailable
from services.settings import BadSetting, Settings

ISSUER = "lineshaft"
LEEWAY_SECONDS = 60
"""Between the clocks of the processes of an installation."""
SECRET_FILE = "secret"
NO_CUSTOMER = "13814000-1dd2-11b2-8080-808080808080"
"""ThingsBoard's id of no customer."""

_SECRET_LENGTH_MIN = 32
_TOKEN_LENGTH_MAX = 4096
_VERIFIED_MAX = 10_000
_LOGINS_MAX = 2
_LOGIN_WAIT_SECONDS = 5
_REFUSED = "the credential is not valid"

Choose = Callable[[Sequence[Tenant]], Tenant]


@dataclass(frozen=True, slots=True)
class _Purpose:
    """A kind of token; `aud` and `typ` keep one from passing for another, and so does its key."""

    name: str
    typ: str

    @property
    def aud(self) -> str:
        return f"{ISSUER}:{self.name}"


_CLIENT = _Purpose("client", "at+jwt")
_USER = _Purpose("user", "at+jwt")
_REFRESH = _Purpose("refresh", "rt+jwt")

for _way in set(Way) - {Way.NONE}:
    metrics.AUTH_FAILURES.labels(_way.value)


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token says, its signature checked. `secret` is the mark of the secret or password that
    it was given for; `id` is there in the tokens of users, which can be ended one by one.
    """

    subject: str
    secret: str
    tenant: str
    exp: int
    id: str


class Auth:
    """What doors may ask of it: who speaks, and tokens. All in memory.

    `memberships`, `user_tokens` and `log_in` check a password, which takes about 50 ms of CPU: they
    are called in a worker thread. Any method may be called from any thread.
    """

    def __init__(self, view: View, clock: Clock, settings: Settings, secret: bytes) -> None:
        self._view, self._clock, self._settings = view, clock, settings
        self._pepper = pepper(secret)
        self._mark = derive(secret, "marks")
        self._keys = {
            purpose: derive(secret, f"jwt {purpose.name}") for purpose in (_CLIENT, _USER, _REFRESH)
        }
        self._verified: dict[tuple[_Purpose, str], _Verified] = {}
        self._logins = BoundedSemaphore(_LOGINS_MAX)
        # What a password is compared with where there is no user: that takes as long.
        self._nobody = password_hash(secrets.token_urlsafe())

    # -- principals --------------------------------------------------------------------------------

    def principal_of(
        self,
        auth: Way,
        headers: Mapping[str, str],
        path: Mapping[str, str],
        query: Mapping[str, str],
        *,
        scope: str,
    ) -> Principal | None:
        """Who sent a request; None where the door asks for nobody. `headers` have lower-case names.

        Raises Unauthorized, and Forbidden where the credential lacks `scope` (empty: none needed).
        """
        if auth is Way.NONE:
            return None
        try:
            if auth is Way.DEVICE_TOKEN:
                principal = self.device(path.get("token", ""))
            elif auth is Way.BEARER:
                principal = self.machine(_bearer(headers.get("authorization", "")))
            elif auth is Way.ACCESS_TOKEN:
                principal = self.anyone(_access_token(headers, query))
            else:
                # The vendor's own name goes first; generic clients can only send the standard one.
                header = headers.get("x-authorization") or headers.get("authorization", "")
                principal = self.user_principal(_bearer(header))
        except Unauthorized:
            metrics.AUTH_FAILURES.labels(auth.value).inc()
            raise
        if scope and scope not in principal.scopes:
            raise Forbidden(f"the credential may not {scope}")
        return principal

    def device(self, token: str) -> Principal:
        """The device with this token. Raises Unauthorized."""
        principal = self._holder(token, "device")
        if self._view.device(principal.tenant, principal.device) is None:
            raise Unauthorized(_REFUSED)
        return principal

    def machine(self, credential: str) -> Principal:
        """The machine client with this access token or API key. Raises Unauthorized."""
        return self.client(credential) if credential.count(".") == 2 else self.api(credential)

    def anyone(self, credential: str) -> Principal:
        """The user with this token, or who has this API key. Raises Unauthorized."""
        by_token = credential.count(".") == 2
        return self.user_principal(credential) if by_token else self.api(credential)

    def api(self, secret: str) -> Principal:
        """Who has this API key. Raises Unauthorized."""
        return self._holder(secret, "api")

    def client(self, access_token: str) -> Principal:
        """The machine client that was given this access token. Raises Unauthorized."""
        token = self._verify(_CLIENT, access_token)
        key = self._valid(self._view.key(token.subject), "client")
        for hashed, until_ms in self._good_secrets(key):
            if hmac.compare_digest(self._mark_of(hashed), token.secret):
                return _machine(key, until_ms)
        raise Unauthorized(_REFUSED)

    def user_principal(self, token: str) -> Principal:
        """The user, in the tenant that the token is for. Raises Unauthorized."""
        verified = self._verify(_USER, token)
        if not verified.id or self._view.revoked(verified.id):
            raise Unauthorized(_REFUSED)
        user, tenant = self._user_of(verified)
        ends_ms = (verified.exp + LEEWAY_SECONDS) * 1000
        scopes = frozenset(user.tenants[tenant.id])
        return Principal(tenant.id, user.id, scopes, expires_ms=ends_ms, token=verified.id)

    # -- log-in ------------------------------------------------------------------------------------

    def client_token(self, client_id: str, client_secret: str) -> tuple[str, int]:
        """(access token, seconds it is good for) for a machine client. Raises Unauthorized."""
        hashed = self._digest(client_secret)
        key = self._valid(self._view.key(client_id), "client")
        for known, until_ms in self._good_secrets(key):
            if hmac.compare_digest(known, hashed):
                ends_ms = [until_ms, key.expires_ms]
                return self._client_token(key, hashed, ends_ms)
        raise Unauthorized(_REFUSED)

    def memberships(self, username: str, password: str) -> Sequence[Tenant]:
        """The tenants a user may enter. Raises Unauthorized, and Unavailable where too many log in
        at once. Takes CPU.
        """
        return self._entered(self._log_in(username, password))

    def user_tokens(self, username: str, password: str, tenant: str) -> tuple[str, str]:
        """(token, refresh token) of a user for a tenant (its short name). Raises Unauthorized, and
        Unavailable where too many log in at once. Takes CPU.
        """
        user = self._log_in(username, password)
        entered = self._view.tenant(tenant)
        if entered is None or tenant not in user.tenants:
            raise Unauthorized(_REFUSED)
        return self._pair(user, entered)

    def log_in(
        self, username: str, password: str, choose: Choose, seconds: int | None = None
    ) -> tuple[str, int, Tenant]:
        """(token, seconds it is good for, tenant) of a user for the one of their tenants that
        `choose` takes; what that raises is passed on. `seconds` may only shorten its life. Raises
        Unauthorized, and Unavailable where too many log in at once. Takes CPU.
        """
        user = self._log_in(username, password)
        tenants = self._entered(user)
        if not tenants:
            raise Unauthorized(_REFUSED)
        tenant = choose(tenants)
        longest = self._settings.user_token_seconds
        life = longest if seconds is None else min(seconds, longest)
        return self._user_token(user, tenant, life), life, tenant

    def refresh(self, refresh_token: str) -> tuple[str, str]:
        """A new pair for a refresh token. Raises Unauthorized."""
        return self._pair(*self._user_of(self._verify(_REFRESH, refresh_token)))

    def user(self, username: str) -> User | None:
        """The user."""
        return self._view.user(username)

    # -- credentials -------------------------------------------------------------------------------

    def _holder(self, secret: str, use: str) -> Principal:
        """Who holds the valid key of this use that has the secret."""
        hashed = self._digest(secret)
        key = self._valid(self._view.key_of_secret(hashed), use)
        for known, until_ms in self._good_secrets(key):
            if hmac.compare_digest(known, hashed):
                return _machine(key, until_ms)
        raise Unauthorized(_REFUSED)

    def _valid(self, key: Key | None, use: str) -> Key:
        if (
            key is None
            or key.use != use
            or key.revoked
            or 0 < key.expires_ms <= self._clock.now_ms()
            or self._view.tenant(key.tenant) is None
            or (key.device and self._view.device(key.tenant, key.device) is None)
        ):
            raise Unauthorized(_REFUSED)
        return key

    def _good_secrets(self, key: Key) -> list[tuple[str, int]]:
        now_ms = self._clock.now_ms()
        return [pair for pair in key.secrets if not 0 < pair[1] <= now_ms]

    def _digest(self, secret: str) -> str:
        if len(secret) > _TOKEN_LENGTH_MAX:
            raise Unauthorized(_REFUSED)
        return digest(self._pepper, secret)

    def _mark_of(self, stored: str) -> str:
        """What stands in a token for the secret or password behind `stored`."""
        return digest(self._mark, stored)[:32]

    def _log_in(self, username: str, password: str) -> User:
        user = self._view.user(username)
        known = user is not None and not user.disabled
        stored = user.password if user is not None and known else self._nobody
        if len(password) > _TOKEN_LENGTH_MAX:
            raise Unauthorized(_REFUSED)
        if not self._logins.acquire(timeout=_LOGIN_WAIT_SECONDS):
            raise Unavailable("too many log-ins at a time")
        try:
            matches = password_matches(password, stored)
        finally:
            self._logins.release()
        if user is None or not known or not matches:
            raise Unauthorized(_REFUSED)
        return user

    # -- tokens ------------------------------------------------------------------------------------

    def _client_token(self, key: Key, hashed: str, ends_ms: Sequence[int]) -> tuple[str, int]:
        """A token that does not outlive the key or the secret it was given for."""
        now_ms = self._clock.now_ms()
        left = [(end_ms - now_ms) // 1000 for end_ms in ends_ms if end_ms]
        seconds = max(1, min([self._settings.token_seconds, *left]))
        claims = {"sub": key.id, "secret": self._mark_of(hashed)}
        return self._sign(_CLIENT, claims, seconds), seconds

    def _entered(self, user: User) -> list[Tenant]:
        """The tenants that a user may enter."""
        tenants = [self._view.tenant(tenant) for tenant in user.tenants]
        return [tenant for tenant in tenants if tenant is not None]

    def _pair(self, user: User, tenant: Tenant) -> tuple[str, str]:
        """Token and refresh token."""
        claims = self._named(user, tenant) | {"scopes": ["REFRESH_TOKEN"]}
        settings = self._settings
        return (
            self._user_token(user, tenant, settings.user_token_seconds),
            self._sign(_REFRESH, claims, settings.user_refresh_seconds),
        )

    def _named(self, user: User, tenant: Tenant) -> dict[str, Any]:
        """Whom a token is for."""
        return {"sub": user.id, "secret": self._mark_of(user.password), "tenant": tenant.id}

    def _user_token(self, user: User, tenant: Tenant, seconds: int) -> str:
        """A token of a user for a tenant, with the claims of ThingsBoard's."""
        admin = ADMIN in user.tenants[tenant.id]
        shown = {
            "scopes": ["TENANT_ADMIN" if admin else "CUSTOMER_USER"],
            "userId": user.uuid,
            "tenantId": tenant.uuid,
            "customerId": NO_CUSTOMER,
            "enabled": True,
            "isPublic": False,
        }
        named = self._named(user, tenant) | {"jti": uuid4().hex}
        return self._sign(_USER, named | shown, seconds)

    def _sign(self, purpose: _Purpose, claims: dict[str, Any], seconds: int) -> str:
        now_s = self._clock.now_ms() // 1000
        whole = {"iss": ISSUER, "aud": purpose.aud, "iat": now_s, "exp": now_s + seconds}
        headers = {"typ": purpose.typ}
        return jwt.encode(claims | whole, self._keys[purpose], algorithm="HS256", headers=headers)

    def _verify(self, purpose: _Purpose, token: str) -> _Verified:
        """What a token of ours says that is not past its end. Raises Unauthorized.

        Signatures that were checked are remembered: a hot door pays a look into a dict.
        """
        found = self._verified.get((purpose, token))
        if found is None:
            found = self._read(purpose, token)
            if len(self._verified) >= _VERIFIED_MAX:
                with suppress(StopIteration, RuntimeError, KeyError):
                    del self._verified[next(iter(self._verified))]
            self._verified[purpose, token] = found
        if found.exp + LEEWAY_SECONDS <= self._clock.now_ms() // 1000:
            self._verified.pop((purpose, token), None)
            raise Unauthorized(_REFUSED)
        return found

    def _read(self, purpose: _Purpose, token: str) -> _Verified:
        if len(token) > _TOKEN_LENGTH_MAX:
            raise Unauthorized(_REFUSED)
        try:
            # The library would ask the wall clock: times are compared with our own.
            decoded = jwt.decode_complete(
                token,
                self._keys[purpose],
                algorithms=["HS256"],
                audience=purpose.aud,
                issuer=ISSUER,
                options={
                    "require": ["iss", "aud", "iat", "exp", "sub", "secret"],
                    "strict_aud": True,
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.PyJWTError, ValueError):
            raise Unauthorized(_REFUSED) from None
        claims = decoded["payload"]
        latest_s = self._clock.now_ms() // 1000 + LEEWAY_SECONDS
        if decoded["header"].get("typ") != purpose.typ or claims["iat"] > latest_s:
            raise Unauthorized(_REFUSED)
        names = (claims.get("tenant", ""), claims["exp"], claims.get("jti", ""))
        return _Verified(claims["sub"], claims["secret"], *names)

    def _user_of(self, token: _Verified) -> tuple[User, Tenant]:
        """The user and the tenant of a token, as they are now."""
        user, tenant = self._view.user(token.subject), self._view.tenant(token.tenant)
        if (
            user is None
            or user.disabled
            or tenant is None
            or token.tenant not in user.tenants
            or not hmac.compare_digest(self._mark_of(user.password), token.secret)
        ):
            raise Unauthorized(_REFUSED)
        return user, tenant


def _machine(key: Key, until_ms: int) -> Principal:
    """The holder of a key by a secret that is good until then (0: no end)."""
    expires_ms = min(key.expires_ms or inf, until_ms or inf)
    return Principal(key.tenant, key.id, frozenset(key.scopes), key.device, expires_ms)


def _bearer(header: str) -> str:
    """The credential behind the scheme, in any case of letters. Raises Unauthorized."""
    scheme, _, credential = header.partition(" ")
    if scheme.lower() != "bearer" or not credential:
        raise Unauthorized(_REFUSED)
    return credential.strip()


def _access_token(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The first credential that is there. Raises Unauthorized ("none") where there is none."""
    header = headers.get("authorization", "")
    scheme, _, rest = header.partition(" ")
    bare = rest.strip() if scheme.lower() == "bearer" else header
    found = query.get("access_token") or bare or headers.get("x-access-token", "")
    if not found:
        raise Unauthorized("a credential is needed", code="none")
    return found


def installation_secret(settings: Settings) -> bytes:
    """The key behind all tokens and digests: the setting, else a file in the data folder, made
    once.

    Processes that share a Kafka log may be on several machines and must agree: there it has to be
    set. Raises BadSetting.
    """
    if settings.secret:
        return settings.secret.encode()
    if not settings.log_embedded:
        raise BadSetting(
            "LINESHAFT_SECRET: has to be set (32 characters or more, the same for every process)"
            " where the log is Kafka"
        )
    path = Path(settings.data_dir) / SECRET_FILE
    try:
        if not path.exists():
            _make_secret(path)
        secret = path.read_text().strip()
    except OSError as error:
        raise BadSetting(
            f"LINESHAFT_SECRET: not set, and {path} cannot be used: {error}"
        ) from error
    if len(secret) < _SECRET_LENGTH_MIN:
        raise BadSetting(f"LINESHAFT_SECRET: not set, and {path} holds no secret")
    return secret.encode()


def _make_secret(path: Path) -> None:
    """Write a fresh secret; of several processes that do it at once one wins, and none ever sees
    half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
