"""The actions that change what is configured: each appends to `catalogue.changed` and returns when
the own view has it.

The log decides between processes. What is made is claimed: of two that make the same, the first in
the log's order wins and the other is told. What is edited is read, changed and written; who finds
that another process wrote in between does it again on top of that. What must never be undone by
such a race, the revocation of a key, is a record of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID, uuid4

from schemas.catalogue import (
    INGEST,
    READ,
    SCOPES,
    Device,
    Key,
    Point,
    Revocation,
    Tenant,
    Thing,
    User,
)
from schemas.envelope import Change, Envelope
from schemas.samples import Kind
from schemas.topics import CATALOGUE_CHANGED
from services.catalogue._secrets import digest, drawn, drawn_secret, password_hash, pepper
from services.catalogue.view import View, first, new_point
from services.clock import Clock
from services.errors import Malformed, Refused, Unavailable, Unknown
from services.eventlog import EventLog

_log = logging.getLogger(__name__)

COMMIT_SECONDS = 10
"""How long an action waits for the log and the view."""
DAY_MS = 86_400_000
USES = ("device", "client", "api")
_EDITS_MAX = 8
_SECRETS_MAX = 4
_APPEND_RECORDS = 500
_OVERLAP_SECONDS_MAX = 30 * 86_400
_PASSWORD_LENGTHS = range(8, 1025)

T = TypeVar("T", bound=Thing)


class Control:
    """Every public method is an action. They raise Refused with what is wrong in words, and
    Unavailable where the outcome is unknown.
    """

    def __init__(
        self,
        log: EventLog,
        view: View,
        clock: Clock,
        secret: bytes,
        *,
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        self._log, self._view, self._clock = log, view, clock
        self._commit_seconds = commit_seconds
        self._pepper = pepper(secret)
        self._one = asyncio.Lock()
        self._watched: tuple[str, str] | None = None
        self._seen: list[tuple[str, Thing | None]] = []
        view.on_change(self._note)

    # -- tenants, devices, points ------------------------------------------------------------------

    async def add_tenant(self, id: str, name: str) -> Tenant:
        """Make a tenant; `id` is its short name."""
        _check(re.fullmatch(r"[a-z0-9-]{1,64}", id), "id", "1 to 64 of a-z, 0-9 and -")
        tenant = Tenant(id, name=_text(name, "name"), uuid=str(uuid4()))
        return await self._make(tenant)

    async def add_device(
        self, tenant: str, name: str, *, id: str | None = None, type: str = "default"
    ) -> Device:
        """Make a device; without `id` it gets a random UUID."""
        self._tenant(tenant)
        device = Device(
            str(uuid4()) if id is None else _uuid(id),
            tenant=tenant,
            name=_text(name, "name"),
            type=_text(type, "type"),
            created_ms=self._clock.now_ms(),
        )
        return await self._make(device)

    async def add_point(
        self,
        tenant: str,
        device: str,
        key: str,
        *,
        kind: int | None = None,
        locked: bool = True,
        id: str | None = None,
        name: str = "",
        unit: str = "",
        precision: int | None = None,
        band: float = 0.0,
        band_percent: float = 0.0,
        heartbeat_ms: int = 0,
    ) -> Point:
        """Declare the point at a key of a device; without `id` it gets a UUID."""
        self._device(tenant, device)
        _check(id is None or re.fullmatch(r"[^\s/?#%\x00-\x1f]{1,256}", id), "id", "a short text")
        _check(kind is None or kind in tuple(Kind), "kind", f"one of {[*map(int, Kind)]}")
        _check(precision is None or 0 <= precision <= 15, "precision", "0 to 15")
        for place, number in (("band", band), ("band_percent", band_percent)):
            _check(math.isfinite(number) and number >= 0, place, "a number, 0 or more")
        _check(heartbeat_ms >= 0, "heartbeat_ms", "0 or more")
        point = new_point(
            tenant,
            device,
            _text(key, "key"),
            id=id or "",
            name=_text(name or key, "name"),
            kind=None if kind is None else int(kind),
            locked=locked,
            unit=unit,
            precision=precision,
            band=float(band),
            band_percent=float(band_percent),
            heartbeat_ms=heartbeat_ms,
            created_ms=self._clock.now_ms(),
        )
        taken = f"device {device} has a point at {key!r} already"
        if self._view.known(tenant, device, key) is not None:
            raise Refused(taken, where="key", code="taken")
        await self._make(point)
        if self._view.point(tenant, point.id) is None:
            await self._delete([point])
            raise Refused(taken, where="key", code="taken")
        return point

    async def delete_point(self, tenant: str, id: str) -> None:
        """Delete a point; what was stored of it stays in the store."""
        if (point := self._view.point(tenant, id)) is None:
            raise Unknown(f"no point {id!r} in {tenant}", where="id")
        await self._delete([point])

    async def delete_device(self, tenant: str, id: str) -> None:
        """Delete a device with its keys and points. May be done again if it was interrupted."""
        device = self._device(tenant, id)
        # Its keys first: then nobody can make new points of it.
        await self._delete([key for key in self._view.keys(tenant) if key.device == id])
        while points := [*self._view.points(tenant, id).values()]:
            await self._delete(points)
        await self._delete([device])

    # -- machines' credentials ---------------------------------------------------------------------

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
    ) -> tuple[Key, str]:
        """Make a credential; (key, secret). The secret is nowhere to be had afterwards.

        A device key is a token of 20 characters; a client has its id and a secret of 43; an api key
        is `ls_<id>_<secret>`.
        """
        self._tenant(tenant)
        _check(use in USES, "use", f"one of {', '.join(USES)}")
        if device or use == "device":
            self._device(tenant, device)
        _check(days is None or (math.isfinite(days) and days > 0), "days", "more than 0")
        key_id = drawn(8 if use == "api" else 32) if id is None else id
        _check(re.fullmatch(r"[A-Za-z0-9._~-]{1,64}", key_id), "id", "letters, digits, . _ ~ -")
        if self._view.thing(Revocation.KIND, key_id) is not None:
            raise Refused(f"key {key_id!r} was revoked", where="id", code="taken")
        secret = drawn_secret(use, key_id)
        key = Key(
            key_id,
            tenant=tenant,
            use=use,
            name=_text(name, "name"),
            scopes=_scopes(scopes),
            secrets=((digest(self._pepper, secret), 0),),
            device=device,
            expires_ms=0 if days is None else self._clock.now_ms() + int(days * DAY_MS),
        )
        return await self._make(key), secret

    async def rotate_key(self, id: str, overlap_seconds: int = 0) -> str:
        """A new secret for a key; those that it has are good for `overlap_seconds` more."""
        _check(0 <= overlap_seconds <= _OVERLAP_SECONDS_MAX, "overlap_seconds", "0 to 30 days")
        secret = drawn_secret(self._found(Key, id).use, id)

        def rotated(key: Key) -> Key:
            if key.revoked:
                raise Refused(f"key {id!r} is revoked", where="id")
            now_ms = self._clock.now_ms()
            end_ms = now_ms + overlap_seconds * 1000
            old = [(hashed, min(until_ms or end_ms, end_ms)) for hashed, until_ms in key.secrets]
            kept = [pair for pair in old if pair[1] > now_ms]
            if len(kept) >= _SECRETS_MAX:
                raise Refused(f"{len(kept)} secrets of key {id!r} are still good", where="id")
            return replace(key, secrets=((digest(self._pepper, secret), 0), *kept))

        await self._edit(Key, id, rotated)
        return secret

    async def revoke_key(self, id: str) -> Key:
        """End a key, its secrets and the tokens that were given out for it, for good."""
        self._found(Key, id)
        async with self._one:
            await self._commit(Change(Revocation.KIND, id, Revocation(id).body()))
        _log.info("catalogue: revoked key %s", id)
        return self._found(Key, id)

    # -- people ------------------------------------------------------------------------------------

    async def add_user(
        self, name: str, tenants: Mapping[str, Sequence[str]], *, password: str | None = None
    ) -> tuple[User, str]:
        """Make a user who may enter `tenants` (tenant to scopes); (user, password). Without a
        password one is drawn.
        """
        _check(re.fullmatch(r"[^\s/?#%\x00-\x1f]{1,128}", name), "name", "a short text, no blanks")
        rights = {self._tenant(tenant).id: _scopes(scopes) for tenant, scopes in tenants.items()}
        plain = _password(password)
        hashed = await asyncio.to_thread(password_hash, plain)
        user = User(name, password=hashed, tenants=rights, uuid=str(uuid4()))
        return await self._make(user), plain

    async def set_password(self, name: str, password: str | None = None) -> str:
        """Give a user another password, drawn where there is none; tokens of the old one end."""
        self._found(User, name)
        plain = _password(password)
        hashed = await asyncio.to_thread(password_hash, plain)
        await self._edit(User, name, lambda user: replace(user, password=hashed))
        return plain

    async def disable_user(self, name: str) -> User:
        """Let a user in no more, also with tokens given out before."""
        return await self._edit(User, name, lambda user: replace(user, disabled=True))

    async def enable_user(self, name: str) -> User:
        """Let a disabled user in again."""
        return await self._edit(User, name, lambda user: replace(user, disabled=False))

    # -- how changes get onto the log --------------------------------------------------------------

    async def _make(self, thing: T) -> T:
        """Claim the thing's id. Raises Refused where somebody has it."""
        taken = f"there is a {thing.KIND} {thing.id!r} already"
        if self._view.thing(thing.KIND, thing.id) is not None:
            raise Refused(taken, where="id", code="taken")
        change = first(thing)
        async with self._one:
            seen = await self._commit(change)
        if all(claim != change.claim for claim, _ in seen):
            raise Refused(taken, where="id", code="taken")
        _log.info("catalogue: made %s %s", thing.KIND, thing.id)
        return thing

    async def _edit(self, cls: type[T], id: str, change: Callable[[T], T]) -> T:
        """Replace a thing by what `change` makes of it; again while others wrote in between."""
        async with self._one:
            base: T | None = self._found(cls, id)
            written = False
            for _ in range(_EDITS_MAX):
                refusal: Refused | None = None
                target = base
                try:
                    if base is None:
                        raise Unknown(f"{cls.KIND} {id!r} was deleted", where="id")
                    target = change(base)
                except Refused as error:
                    if not written:
                        raise
                    # What the other one wrote, and we wrote over, is put back.
                    refusal = error
                body = None if target is None else target.body()
                mine = Change(cls.KIND, id, body, claim=uuid4().hex)
                seen, written = await self._commit(mine), True
                claims = [claim for claim, _ in seen]
                if others := seen[: claims.index(mine.claim)]:
                    found = others[-1][1]
                    base = found if isinstance(found, cls) else None
                elif refusal is not None:
                    raise refusal
                elif target is not None:
                    _log.info("catalogue: changed %s %s", cls.KIND, id)
                    return target
        raise Unavailable(f"{cls.KIND} {id!r} is being changed by others")

    async def _delete(self, things: Iterable[Thing]) -> None:
        changes = [Change(thing.KIND, thing.id, None) for thing in things]
        async with self._one:
            for start in range(0, len(changes), _APPEND_RECORDS):
                await self._commit(*changes[start : start + _APPEND_RECORDS])
        for change in changes:
            _log.info("catalogue: deleted %s %s", change.kind, change.id)

    async def _commit(self, *changes: Change) -> list[tuple[str, Thing | None]]:
        """Append, and wait until the view is there. Returns claim and result of each change of the
        first one's thing that counted meanwhile, in the log's order.
        """
        out = [(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key)) for change in changes]
        self._watched, self._seen = (changes[0].kind, changes[0].id), []
        try:
            async with asyncio.timeout(self._commit_seconds):
                offsets = await self._log.append(out)
                await self._view.caught_up(max(offsets))
        except TimeoutError:
            raise Unavailable("the change is not in the catalogue yet; look again") from None
        finally:
            self._watched = None
        return self._seen

    def _note(self, change: Change) -> None:
        if self._watched == (change.kind, change.id):
            self._seen.append((change.claim, self._view.thing(change.kind, change.id)))

    # -- what must be there ------------------------------------------------------------------------

    def _found(self, cls: type[T], id: str) -> T:
        found = self._view.thing(cls.KIND, id)
        if not isinstance(found, cls):
            raise Unknown(f"no {cls.KIND} {id!r}", where="id")
        return found

    def _tenant(self, tenant: str) -> Tenant:
        if (found := self._view.tenant(tenant)) is None:
            raise Unknown(f"no tenant {tenant!r}", where="tenant")
        return found

    def _device(self, tenant: str, device: str) -> Device:
        self._tenant(tenant)
        if (found := self._view.device(tenant, device)) is None:
            raise Unknown(f"no device {device!r} in {tenant}", where="device")
        return found


def _check(holds: object, where: str, wanted: str) -> None:
    if not holds:
        raise Malformed(f"{where}: {wanted}", where=where)


def _text(value: str, where: str) -> str:
    """A text that people read: not empty, not long, without control characters."""
    _check(
        re.fullmatch(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}", value), where, "1 to 256 characters"
    )
    return value


def _uuid(value: str) -> str:
    try:
        return str(UUID(value))
    except ValueError:
        raise Malformed("id: a UUID", where="id") from None


def _scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    _check(scopes and set(scopes) <= set(SCOPES), "scopes", f"some of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in scopes)


def _password(password: str | None) -> str:
    if password is None:
        return drawn(20)
    _check(len(password) in _PASSWORD_LENGTHS, "password", "8 to 1024 characters")
    return password
