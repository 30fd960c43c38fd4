"""Who speaks: credential to principal, always as the catalogue has it at this moment.

Between the doors and the catalogue's view. A key that was revoked, rotated out or has expired, a
user who was disabled, opens nothing from the moment the view knows, and neither do the tokens that
were given out for them: a token names the secret it was given for, and both are looked up each
time; so is whether a user ended the token itself (log out). Unknown, expired and revoked are
answered alike.

What a token is, and whether one is ours, is for `services.tokens`.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from uuid import uuid4

from schemas.catalogue import ADMIN, Key, Tenant, User
from services import metrics
from services.catalogue import View, derive, digest, password_hash, password_matches, pepper
from services.clock import Clock
from services.dialects import Auth as Way
from services.dialects import Principal
from services.errors import Forbidden, Unauthorized, Unavailable
from services.settings import BadSetting, Settings
from services.tokens import LEEWAY_SECONDS, REFRESH, REFUSED, TOKEN_LENGTH_MAX, USER, Said, Tokens

SECRET_FILE = "secret"
NO_CUSTOMER = "13814000-1dd2-11b2-8080-808080808080"
"""ThingsBoard's id of no customer."""

_SECRET_LENGTH_MIN = 32
_LOGINS_MAX = 2
_MARKS_MAX = 10_000
_LOGIN_WAIT_SECONDS = 5

Choose = Callable[[Sequence[Tenant]], Tenant]

for _way in set(Way) - {Way.NONE}:
    metrics.AUTH_FAILURES.labels(_way.value)


class Auth:
    """What doors may ask of it: who speaks, and tokens. All in memory.

    `memberships`, `user_tokens` and `log_in` check a password, which takes about 50 ms of CPU: they
    are called in a worker thread. Any method may be called from any thread.
    """

    def __init__(self, view: View, clock: Clock, settings: Settings, secret: bytes) -> None:
        self._view, self._clock, self._settings = view, clock, settings
        self._pepper = pepper(secret)
        # A hot door asks for the same one over and over.
        self._digest_of = lru_cache(_MARKS_MAX)(partial(digest, derive(secret, "marks")))
        self._tokens = Tokens(view, clock, secret)
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
        audience: str,
    ) -> Principal | None:
        """Who sent a request; None where the door asks for nobody. `headers` have lower-case names.
        `audience` is what an access token of a machine client must be for.

        Raises Unauthorized, and Forbidden where the credential lacks `scope` (empty: none needed).
        """
        if auth is Way.NONE:
            return None
        try:
            if auth is Way.DEVICE_TOKEN:
                principal = self.device(path.get("token", ""))
            elif auth is Way.BEARER:
                principal = self.machine(_bearer(headers.get("authorization", "")), audience)
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
            raise Unauthorized(REFUSED)
        return principal

    def machine(self, credential: str, audience: str) -> Principal:
        """The machine client with this access token for `audience`, or who has this API key. Raises
        Unauthorized.
        """
        by_token = credential.count(".") == 2
        return self.client(credential, audience) if by_token else self.api(credential)

    def anyone(self, credential: str) -> Principal:
        """The user with this token, or who has this API key. Raises Unauthorized."""
        by_token = credential.count(".") == 2
        return self.user_principal(credential) if by_token else self.api(credential)

    def api(self, secret: str) -> Principal:
        """Who has this API key. Raises Unauthorized."""
        return self._holder(secret, "api")

    def client(self, access_token: str, audience: str) -> Principal:
        """The machine client that was given this access token for `audience`. Raises
        Unauthorized.
        """
        said = self._tokens.of_machine(access_token, audience)
        key = self._valid(self._view.key(said.subject), "client")
        if said.tenant == self._uuid_of(key):
            for hashed, until_ms in self._good_secrets(key):
                if hmac.compare_digest(self._mark_of(hashed), said.secret):
                    return _machine(key, until_ms)
        raise Unauthorized(REFUSED)

    def user_principal(self, token: str) -> Principal:
        """The user, in the tenant that the token is for. Raises Unauthorized."""
        said = self._tokens.of_user(token, USER)
        if not said.id or self._view.revoked(said.id):
            raise Unauthorized(REFUSED)
        user, tenant = self._user_of(said)
        ends_ms = (said.exp + LEEWAY_SECONDS) * 1000
        scopes = frozenset(user.tenants[tenant.id])
        return Principal(tenant.id, user.id, scopes, expires_ms=ends_ms, token=said.id)

    # -- log-in ------------------------------------------------------------------------------------

    def client_token(self, client_id: str, client_secret: str, audience: str) -> tuple[str, int]:
        """(access token for `audience`, seconds it is good for) of a machine client. Raises
        Unauthorized.
        """
        hashed = self._digest(client_secret)
        key = self._valid(self._view.key(client_id), "client")
        for known, until_ms in self._good_secrets(key):
            if hmac.compare_digest(known, hashed):
                seconds = self._seconds_left(until_ms, key.expires_ms)
                tenant, mark = self._uuid_of(key), self._mark_of(hashed)
                token = self._tokens.for_machine(
                    audience, seconds, client=key.id, tenant=tenant, secret=mark
                )
                return token, seconds
        raise Unauthorized(REFUSED)

    def key_set(self) -> dict[str, Any]:
        """The public keys of access tokens of machine clients: a JWK Set (RFC 7517)."""
        return self._tokens.key_set()

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
            raise Unauthorized(REFUSED)
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
            raise Unauthorized(REFUSED)
        tenant = choose(tenants)
        longest = self._settings.user_token_seconds
        life = longest if seconds is None else min(seconds, longest)
        return self._user_token(user, tenant, life), life, tenant

    def refresh(self, refresh_token: str) -> tuple[str, str]:
        """A new pair for a refresh token. Raises Unauthorized."""
        return self._pair(*self._user_of(self._tokens.of_user(refresh_token, REFRESH)))

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
        raise Unauthorized(REFUSED)

    def _valid(self, key: Key | None, use: str) -> Key:
        if (
            key is None
            or key.use != use
            or key.revoked
            or 0 < key.expires_ms <= self._clock.now_ms()
            or self._view.tenant(key.tenant) is None
            or (key.device and self._view.device(key.tenant, key.device) is None)
        ):
            raise Unauthorized(REFUSED)
        return key

    def _good_secrets(self, key: Key) -> list[tuple[str, int]]:
        now_ms = self._clock.now_ms()
        return [pair for pair in key.secrets if not 0 < pair[1] <= now_ms]

    def _digest(self, secret: str) -> str:
        if len(secret) > TOKEN_LENGTH_MAX:
            raise Unauthorized(REFUSED)
        return digest(self._pepper, secret)

    def _mark_of(self, stored: str) -> str:
        """What stands in a token for the secret or password behind `stored`."""
        return self._digest_of(stored)[:32]

    def _log_in(self, username: str, password: str) -> User:
        user = self._view.user(username)
        known = user is not None and not user.disabled
        stored = user.password if user is not None and known else self._nobody
        if len(password) > TOKEN_LENGTH_MAX:
            raise Unauthorized(REFUSED)
        if not self._logins.acquire(timeout=_LOGIN_WAIT_SECONDS):
            raise Unavailable("too many log-ins at a time")
        try:
            matches = password_matches(password, stored)
        finally:
            self._logins.release()
        if user is None or not known or not matches:
            raise Unauthorized(REFUSED)
        return user

    # -- tokens ------------------------------------------------------------------------------------

    def _seconds_left(self, *ends_ms: int) -> int:
        """How long a token is good: it does not outlive the key or the secret it was given for (0:
        no end).
        """
        now_ms = self._clock.now_ms()
        left = [(end_ms - now_ms) // 1000 for end_ms in ends_ms if end_ms]
        return max(1, min([self._settings.token_seconds, *left]))

    def _uuid_of(self, key: Key) -> str:
        """The tenant of a valid key, as vendors' APIs show it."""
        tenant = self._view.tenant(key.tenant)
        return "" if tenant is None else tenant.uuid

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
            self._tokens.for_user(REFRESH, claims, settings.user_refresh_seconds),
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
        return self._tokens.for_user(USER, named | shown, seconds)

    def _user_of(self, token: Said) -> tuple[User, Tenant]:
        """The user and the tenant of a token, as they are now."""
        user, tenant = self._view.user(token.subject), self._view.tenant(token.tenant)
        if (
            user is None
            or user.disabled
            or tenant is None
            or token.tenant not in user.tenants
            or not hmac.compare_digest(self._mark_of(user.password), token.secret)
        ):
            raise Unauthorized(REFUSED)
        return user, tenant


def _machine(key: Key, until_ms: int) -> Principal:
    """The holder of a key by a secret that is good until then (0: no end)."""
    expires_ms = min(key.expires_ms or inf, until_ms or inf)
    return Principal(key.tenant, key.id, frozenset(key.scopes), key.device, expires_ms)


def _bearer(header: str) -> str:
    """The credential behind the scheme, in any case of letters. Raises Unauthorized."""
    scheme, _, credential = header.partition(" ")
    if scheme.lower() != "bearer" or not credential:
        raise Unauthorized(REFUSED)
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
