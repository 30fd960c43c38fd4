"""Control's actions on the credentials of machines, and on single tokens of people."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from schemas.catalogue import INGEST, READ, Key, Revocation
from services.catalogue._checks import check, scopes_of, text
from services.catalogue._part import Part
from services.catalogue._secrets import digest, drawn, drawn_secret, pepper
from services.errors import Refused, Taken, Unknown

_log = logging.getLogger(__name__)

DAY_MS = 86_400_000
USES = ("device", "client", "api")
_SECRETS_MAX = 4
_OVERLAP_SECONDS_MAX = 30 * 86_400


class Credentials(Part):
    """Device tokens, clients, API keys."""

    async def add_key(
        self,
        tenant: str,
        *,
        use: str,
        name: str,
        scopes: Sequence[str] = (INGEST, READ),
        device: str = "",
        days: float | None = None,
        id: str | None = None,
        expires_ms: int = 0,
    ) -> tuple[Key, str]:
        """Make a credential; (key, secret). The secret is nowhere to be had afterwards. It is good
        for `days`, or until the moment `expires_ms`; without either for ever.

        A device key is a token of 20 characters; a client has its id and a secret of 43; an api key
        is `ls_<id>_<secret>`.
        """
        self._tenant(tenant)
        check(use in USES, "use", f"one of {', '.join(USES)}")
        if device or use == "device":
            self._device(tenant, device)
        check(days is None or (math.isfinite(days) and days > 0), "days", "more than 0")
        if days is not None:
            expires_ms = self._clock.now_ms() + int(days * DAY_MS)
        check(not expires_ms or expires_ms > self._clock.now_ms(), "expires_ms", "to come")
        rights = scopes_of(scopes)
        self._own(rights)
        key_id = drawn(8 if use == "api" else 32) if id is None else id
        check(re.fullmatch(r"[A-Za-z0-9._~-]{1,64}", key_id), "id", "letters, digits, . _ ~ -")
        if self._view.thing(Revocation.KIND, key_id) is not None:
            raise Taken(f"key {key_id!r} was revoked", where="id")
        secret = drawn_secret(use, key_id)
        key = Key(
            key_id,
            tenant=tenant,
            use=use,
            name=text(name, "name"),
            scopes=rights,
            secrets=((digest(pepper(self._secret), secret), 0),),
            device=device,
            expires_ms=expires_ms,
        )
        return await self._changes.make(key), secret

    async def rotate_key(self, id: str, overlap_seconds: int = 0) -> str:
        """A new secret for a key; those that it has are good for `overlap_seconds` more."""
        check(0 <= overlap_seconds <= _OVERLAP_SECONDS_MAX, "overlap_seconds", "0 to 30 days")
        secret = drawn_secret(self._changes.found(Key, id).use, id)
        hashed_now = digest(pepper(self._secret), secret)

        def rotated(key: Key) -> Key:
            if key.revoked:
                raise Refused(f"key {id!r} is revoked", where="id")
            now_ms = self._clock.now_ms()
            end_ms = now_ms + overlap_seconds * 1000
            old = [(hashed, min(until_ms or end_ms, end_ms)) for hashed, until_ms in key.secrets]
            kept = [pair for pair in old if pair[1] > now_ms]
            if len(kept) >= _SECRETS_MAX:
                raise Refused(f"{len(kept)} secrets of key {id!r} are still good", where="id")
            return replace(key, secrets=((hashed_now, 0), *kept))

        await self._changes.edit(Key, id, rotated)
        return secret

    async def revoke_key(self, id: str, tenant: str | None = None) -> Key:
        """End a key (of `tenant`, where one is named), its secrets and the tokens that were given
        out for it, for good.
        """
        key = self._changes.found(Key, id)
        if tenant is not None and key.tenant != tenant:
            raise Unknown(f"no key {id!r}", where="id")
        await self._changes.put(Revocation(id))
        _log.info("catalogue: revoked key %s", id)
        return self._changes.found(Key, id)

    async def log_out(self, tenant: str, token: str) -> None:
        """End a user's token, the one with this id, for good."""
        check(re.fullmatch(r"[A-Za-z0-9-]{1,64}", token), "token", "the id of a token")
        await self._changes.put(Revocation(Revocation.token_id(token)))
