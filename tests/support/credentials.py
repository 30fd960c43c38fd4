"""A catalogue with one credential of each kind, and the auth that looks at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jwt
import pytest

from schemas.catalogue import Device, Key, Tenant, User
from schemas.envelope import Change
from services.auth import Auth
from services.catalogue import View, digest, password_hash, pepper
from services.clock import ManualClock
from services.dialects import Principal
from services.errors import Unauthorized
from services.settings import Settings
from tests.support.catalogue import SECRET, a_view, put

PASSWORD = "correct horse battery"
SETTINGS = Settings(token_seconds=3_600, user_token_seconds=600, user_refresh_seconds=7_200)
AUDIENCE = "https://api.example"
TOKEN, CLIENT_SECRET, API_KEY = "t" * 20, "c" * 43, "ls_k1_" + "a" * 43


@cache
def hashed(password: str) -> str:
    """The password as the catalogue keeps it; made once for all tests."""
    return password_hash(password)


def a_key(id: str, use: str, secret: str, **members: Any) -> Key:
    """A credential of tenant acme."""
    secrets = ((digest(pepper(SECRET), secret), 0),)
    return Key(id, **({"tenant": "acme", "use": use, "secrets": secrets} | members))


class World:
    """A catalogue with one credential of each kind, and the auth that looks at it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.token_key = a_key("dev-key", "device", TOKEN, device="d1", scopes=("ingest",))
        self.client_key = a_key("gw", "client", CLIENT_SECRET)
        self.api_key = a_key("k1", "api", API_KEY, scopes=("read",))
        self.anna = User(
            "anna",
            password=hashed(PASSWORD),
            tenants={"acme": ("read", "admin"), "beta": ("read",)},
            uuid="uuid of anna",
        )
        self.view: View = a_view(
            Tenant("acme", name="Acme", uuid="uuid of acme"),
            Tenant("beta", name="Beta", uuid="uuid of beta"),
            Device("d1", tenant="acme"),
            self.token_key,
            self.client_key,
            self.api_key,
            self.anna,
        )
        self.auth = Auth(self.view, self.clock, SETTINGS, SECRET)

    def put(self, thing: Any) -> None:
        """Change the catalogue."""
        put(self.view, thing)

    def delete(self, kind: str, id: str) -> None:
        """Delete from the catalogue."""
        self.view.apply(Change(kind, id, None), self.view.revision + 1)

    def access_token(self) -> str:
        """A token for the machine client."""
        return self.auth.client_token("gw", CLIENT_SECRET, AUDIENCE)[0]

    def client(self, token: str) -> Principal:
        """Who has this access token."""
        return self.auth.client(token, AUDIENCE)

    def another(self, secret: bytes = SECRET) -> Auth:
        """Another process, or with another secret another installation."""
        return Auth(self.view, self.clock, SETTINGS, secret)


def refused(ask: Callable[[], object]) -> str:
    """What is said to a credential that is not valid."""
    with pytest.raises(Unauthorized) as error:
        ask()
    return error.value.message


def kid_of(token: str) -> str:
    """The key that a token says it was signed with."""
    return str(jwt.get_unverified_header(token)["kid"])


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a token, its signature unchecked."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims
