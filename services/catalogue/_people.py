"""Control's actions on users. A user may enter several tenants; what admins of one of them can do
ends at its border.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

from schemas.catalogue import User
from services.catalogue._checks import check, password_of, scopes_of
from services.catalogue._part import Part
from services.catalogue._secrets import password_hash
from services.errors import Refused, Unknown


class People(Part):
    """Users, their passwords and rights."""

    async def add_user(
        self, name: str, tenants: Mapping[str, Sequence[str]], *, password: str | None = None
    ) -> tuple[User, str]:
        """Make a user who may enter `tenants` (tenant to scopes); (user, password). Without a
        password one is drawn.
        """
        check(re.fullmatch(r"[^\s/?#%\x00-\x1f]{1,128}", name), "name", "a short text, no blanks")
        rights = {self._tenant(tenant).id: scopes_of(scopes) for tenant, scopes in tenants.items()}
        for scopes in rights.values():
            self._own(scopes)
        plain = password_of(password)
        hashed = await asyncio.to_thread(password_hash, plain)
        user = User(name, password=hashed, tenants=rights, uuid=str(uuid4()))
        return await self._changes.make(user), plain

    async def set_password(self, name: str, password: str | None = None) -> str:
        """Give a user another password, drawn where there is none; tokens of the old one end."""
        self._changes.found(User, name)
        plain = password_of(password)
        hashed = await asyncio.to_thread(password_hash, plain)
        await self._changes.edit(User, name, lambda user: replace(user, password=hashed))
        return plain

    async def set_rights(self, name: str, tenant: str, scopes: Sequence[str]) -> User:
        """Let a user into a tenant, or give other rights there."""
        self._tenant(tenant)
        rights = scopes_of(scopes)
        self._own(rights)

        def changed(user: User) -> User:
            self._may_change(user, tenant, entering=not self.caller.tenant)
            return replace(user, tenants={**user.tenants, tenant: rights})

        return await self._changes.edit(User, name, changed)

    async def disable_user(self, name: str) -> User:
        """Let a user in no more, also with tokens given out before."""
        return await self._changes.edit(User, name, lambda user: replace(user, disabled=True))

    async def enable_user(self, name: str) -> User:
        """Let a disabled user in again."""
        return await self._changes.edit(User, name, lambda user: replace(user, disabled=False))

    async def change_user(
        self,
        tenant: str,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        password: str | None = None,
        disabled: bool | None = None,
    ) -> User:
        """Change what is given of a tenant's user. Password and `disabled` count everywhere, so
        only of a user who may enter no other tenant.
        """
        self._tenant(tenant)
        rights = None if scopes is None else scopes_of(scopes)
        self._own(rights or ())
        self._may_change(self._changes.found(User, name), tenant)
        hashed = None
        if password is not None:
            hashed = await asyncio.to_thread(password_hash, password_of(password))

        def changed(user: User) -> User:
            self._may_change(user, tenant)
            if (hashed or disabled is not None) and set(user.tenants) != {tenant}:
                message = f"{name!r} may enter other tenants too: password and state are theirs"
                raise Refused(message, where="name", code="shared")
            if name == self.caller.subject and (rights or disabled):
                raise Refused("nobody changes their own rights", where="name", code="self")
            if rights is not None:
                user = replace(user, tenants={**user.tenants, tenant: rights})
            if hashed is not None:
                user = replace(user, password=hashed)
            return user if disabled is None else replace(user, disabled=bool(disabled))

        return await self._changes.edit(User, name, changed)

    async def remove_user(self, tenant: str, name: str) -> None:
        """Let a user into a tenant no more; who may enter no other is deleted."""
        self._tenant(tenant)
        if name == self.caller.subject and self.caller.tenant:
            raise Refused("nobody removes themselves", where="name", code="self")

        def changed(user: User) -> User:
            self._may_change(user, tenant)
            rest = {other: scopes for other, scopes in user.tenants.items() if other != tenant}
            return replace(user, tenants=rest)

        user = await self._changes.edit(User, name, changed)
        if not user.tenants:
            await self._changes.delete([user])

    def _may_change(self, user: User, tenant: str, *, entering: bool = False) -> None:
        """Raises Unknown where the user is no member of the tenant, Forbidden where they may more
        there than the caller.
        """
        if tenant not in user.tenants and not entering:
            raise Unknown(f"no user {user.id!r} in {tenant}", where="name")
        self._own(user.tenants.get(tenant, ()))
