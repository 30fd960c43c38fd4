"""What `Call` doors can have done: by `services.auth` where it is about who they are, by the
catalogue where something is configured. People who log in are written down like everything else
that is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from schemas.catalogue import Key, Tenant, User
from schemas.envelope import Audit
from services import metrics
from services.auth import Auth, Choose
from services.catalogue import Caller, Control, View
from services.catalogue.audit import Ration
from services.clock import Clock
from services.dialects import Principal, Promise
from services.errors import OverQuota, Unauthorized
from services.ingress.promises import Promises
from services.settings import Settings

T = TypeVar("T")
VIA = "http"

metrics.AUTH_FAILURES.labels("token")


class DoorActions:
    """Implements `services.dialects.Actions`. Made in the loop's thread; what checks a password is
    called in others.
    """

    def __init__(
        self,
        authority: Auth,
        control: Control,
        view: View,
        clock: Clock,
        settings: Settings,
        promises: Promises,
    ) -> None:
        self._authority, self._control, self._view = authority, control, view
        self._promises = promises
        self._loop = asyncio.get_running_loop()
        self._failures, self._client_failures = Ration(clock), Ration(clock)
        a_minute = settings.token_failures_per_minute
        self._client_attempts = Ration(clock, burst=a_minute, every_ms=max(1, 60_000 // a_minute))

    def client_token(self, client_id: str, client_secret: str, audience: str) -> tuple[str, int]:
        """(access token for `audience`, seconds it is good for) of a machine client. Raises
        Unauthorized, and OverQuota where too many have failed; that keeps nobody out who has a good
        secret.
        """
        try:
            return self._authority.client_token(client_id, client_secret, audience)
        except Unauthorized:
            metrics.AUTH_FAILURES.labels("token").inc()
            if self._client_attempts.take() is None:
                raise OverQuota(
                    "too many requests for tokens failed", retry_after_ms=5_000
                ) from None
            target = f"{Key.KIND}/{client_id}"
            self._note(self._client_failures, Caller(client_id, VIA), "token", target)
            raise

    def key_set(self) -> Mapping[str, Any]:
        """The public keys of access tokens of machine clients: a JWK Set (RFC 7517)."""
        return self._authority.key_set()

    def memberships(self, username: str, password: str) -> Sequence[Tenant]:
        """The tenants a user may enter. Raises Unauthorized."""
        return self._watched(username, lambda: self._authority.memberships(username, password))

    def user_tokens(self, username: str, password: str, tenant: str) -> tuple[str, str]:
        """(token, refresh token) of a user for a tenant. Raises Unauthorized."""
        pair = self._watched(
            username, lambda: self._authority.user_tokens(username, password, tenant)
        )
        self._write(self._log_in(username, "done", tenant))
        return pair

    def log_in(
        self, username: str, password: str, choose: Choose, seconds: int | None = None
    ) -> tuple[str, int]:
        """(token, seconds it is good for) of a user for the tenant that `choose` takes. Raises
        Unauthorized, and what that raises.
        """
        token, life, tenant = self._watched(
            username, lambda: self._authority.log_in(username, password, choose, seconds)
        )
        self._write(self._log_in(username, "done", tenant.id))
        return token, life

    def refresh(self, refresh_token: str) -> tuple[str, str]:
        """A new pair for a refresh token. Raises Unauthorized."""
        return self._authority.refresh(refresh_token)

    def user(self, username: str) -> User | None:
        """The user."""
        return self._authority.user(username)

    def users(self, tenant: str) -> Sequence[User]:
        """Who may enter the tenant, by name."""
        return [user for user in self._view.users() if tenant in user.tenants]

    def keys(self, tenant: str) -> Sequence[Key]:
        """The tenant's credentials, by id."""
        return self._view.keys(tenant)

    async def promise(self, caller: Principal, receipt: str) -> Promise:
        """What is known of a request of the caller's tenant that nobody waited for. Raises Unknown,
        Unavailable.
        """
        return await self._promises.find(caller.tenant, receipt)

    def control(self, caller: Principal) -> Control:
        """The control actions, done for the caller."""
        return self._control.by(Caller(caller.subject, VIA, caller.tenant, caller.scopes))

    def _watched(self, username: str, log_in: Callable[[], T]) -> T:
        """The result of `log_in`; that it failed is written down."""
        try:
            return log_in()
        except Unauthorized:
            target = f"{User.KIND}/{username}"
            self._note(self._failures, Caller(username, VIA), "log_in", target)
            raise

    def _note(self, room: Ration, caller: Caller, action: str, target: str) -> None:
        """Write a failure down, as long as strangers leave room for it."""
        if (passed_over := room.take()) is not None:
            detail = f"{passed_over} before it were not written down" if passed_over else ""
            record = self._control.journal.record(caller, action, target, "refused", detail=detail)
            self._write(record)

    def _log_in(self, username: str, outcome: str, tenant: str) -> Audit:
        target = f"{User.KIND}/{username}"
        journal, caller = self._control.journal, Caller(username, VIA)
        return journal.record(caller, "log_in", target, outcome, tenant=tenant)

    def _write(self, record: Audit) -> None:
        """Have it on the log before anybody is answered. Raises Unavailable."""
        writing = self._control.journal.write(record)
        asyncio.run_coroutine_threadsafe(writing, self._loop).result()
