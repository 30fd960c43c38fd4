"""What `Call` doors can have done: by `services.auth` where it is about who they are, by the
catalogue where something is configured.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.catalogue import Tenant, User
from services.auth import Auth
from services.catalogue import Control
from services.dialects import Principal


class DoorActions:
    """Implements `services.dialects.Actions`."""

    def __init__(self, authority: Auth, control: Control) -> None:
        self._authority, self._control = authority, control

    def client_token(self, client_id: str, client_secret: str) -> tuple[str, int]:
        """(access token, seconds it is good for) for a machine client. Raises Unauthorized."""
        return self._authority.client_token(client_id, client_secret)

    def memberships(self, username: str, password: str) -> Sequence[Tenant]:
        """The tenants a user may enter. Raises Unauthorized."""
        return self._authority.memberships(username, password)

    def user_tokens(self, username: str, password: str, tenant: str) -> tuple[str, str]:
        """(token, refresh token) of a user for a tenant. Raises Unauthorized."""
        return self._authority.user_tokens(username, password, tenant)

    def refresh(self, refresh_token: str) -> tuple[str, str]:
        """A new pair for a refresh token. Raises Unauthorized."""
        return self._authority.refresh(refresh_token)

    def user(self, username: str) -> User | None:
        """The user."""
        return self._authority.user(username)

    def control(self, caller: Principal) -> Control:
        """The control actions, done for the caller."""
        return self._control
