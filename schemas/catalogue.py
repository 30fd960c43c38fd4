"""What is configured: tenants, users, keys, locations, devices, points, equipment and what ties
them together. Each is the body of a `Change` on `catalogue.changed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from schemas.samples import Kind, Value

VIEW, READ, INGEST, CONFIGURE, ADMIN = "view", "read", "ingest", "configure", "admin"
SCOPES = (VIEW, READ, INGEST, CONFIGURE, ADMIN)
"""What a credential may do: be in the tenant, read values, send values, declare points and
triggers, manage users and tokens.
"""
ROLES: Mapping[str, tuple[str, ...]] = {
    "viewer": SCOPES[:1],
    "operator": SCOPES[:2],
    "editor": SCOPES[:4],
    "admin": SCOPES,
}
"""Each role may do what the ones before it may."""


def role_of(scopes: Iterable[str]) -> str | None:
    """The role that gives just these rights; None where none does. To be in the tenant is part of
    every role and need not be named.
    """
    rights = {*scopes, VIEW}
    return next((role for role, given in ROLES.items() if rights == set(given)), None)


API_SERVER = "api_server"
"""Type of the one device of every tenant to which values are pushed by key alone."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Base of everything configured: `KIND` and `id` name it on the log."""

    KIND: ClassVar[str] = ""

    id: str

    def body(self) -> dict[str, Any]:
        """The JSON object that lies on the log."""
        return asdict(self)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """The thing behind a JSON object; members that a newer version wrote are passed over.

        Raises TypeError or ValueError where a member has another type than here.
        """
        known = cls.__dataclass_fields__
        members = {name: value for name, value in body.items() if name in known}
        for name, value in members.items():
            _check(name, value, known[name].default)
        return cls(**cls._typed(members))

    @classmethod
    def _typed(cls, members: dict[str, Any]) -> dict[str, Any]:
        """The members with JSON's lists as the tuples that they were."""
        return members


def _check(name: str, value: Any, default: Any) -> None:
    """A member that has a plain default is of the default's type; a double may be written without a
    point.
    """
    expected = str if name == "id" else type(default)
    allowed = (int, float) if expected is float else (expected,)
    if expected in (str, int, bool, float) and type(value) not in allowed:
        raise TypeError(f"{name} is {type(value).__name__}, not {expected.__name__}")


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(value)


def _secret(pair: Any) -> tuple[str, int]:
    digest, until_ms = pair
    if not isinstance(digest, str) or type(until_ms) is not int:
        raise TypeError(f"{type(until_ms).__name__} is no moment of a secret")
    return digest, until_ms


@dataclass(frozen=True, slots=True)
class Tenant(Thing):
    """A customer or plant; nothing of one is visible to another. `id` is a short name, `uuid` what
    vendors' APIs show.
    """

    KIND: ClassVar[str] = "tenant"

    name: str = ""
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Key(Thing):
    """A machine's credential. `use` says which door it opens: "device" (token), "client" (id and
    secret), "api" (key).

    `id` is public: the client id, or the visible part of the key. `device` binds it to one device.
    """

    KIND: ClassVar[str] = "key"

    tenant: str = ""
    use: str = "api"
    name: str = ""
    scopes: tuple[str, ...] = (INGEST, READ)
    secrets: tuple[tuple[str, int], ...] = ()
    """Pairs of digest (HMAC-SHA-256, hex) and the moment in UTC ms until which it is accepted (0:
    no end).
    """
    device: str = ""
    expires_ms: int = 0
    revoked: bool = False
    """Filled in by the view where there is a `Revocation`."""

    @classmethod
    def _typed(cls, members: dict[str, Any]) -> dict[str, Any]:
        if "scopes" in members:
            members["scopes"] = _texts(members["scopes"])
        if "secrets" in members:
            members["secrets"] = tuple(map(_secret, members["secrets"]))
        return members


@dataclass(frozen=True, slots=True)
class Revocation(Thing):
    """The end of the key with this id, for good: a record of its own, so that no edit of the key
    can undo it. `token_id` names the one that ends a single token of a user, `signing_key_id` the
    one that ends a signing key.
    """

    KIND: ClassVar[str] = "revocation"

    @staticmethod
    def token_id(token: str) -> str:
        """The id for a token; no key's id has a colon."""
        return f"token:{token}"

    @staticmethod
    def signing_key_id(key: str) -> str:
        """The id for a signing key."""
        return f"signing_key:{key}"


@dataclass(frozen=True, slots=True)
class SigningKey(Thing):
    """What access tokens of machine clients are signed with. Nothing secret is in it: the private
    key is made of the id (the `kid` of tokens) and the installation's secret.
    """

    KIND: ClassVar[str] = "signing_key"

    created_ms: int = 0
    signs_ms: int = 0
    """The moment in UTC ms from which it signs, until that of another one has come."""


FIRST_SIGNING_KEY = SigningKey("first")
"""The one that every installation has from the beginning, without a record of it."""


@dataclass(frozen=True, slots=True)
class User(Thing):
    """A person who logs in with a password; `id` is the user name. `tenants` maps tenant to
    scopes.
    """

    KIND: ClassVar[str] = "user"

    password: str = ""
    """scrypt, as `services.catalogue` writes it."""
    tenants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    uuid: str = ""
    disabled: bool = False

    @classmethod
    def _typed(cls, members: dict[str, Any]) -> dict[str, Any]:
        if "tenants" in members:
            tenants = dict(members["tenants"])
            members["tenants"] = {tenant: _texts(scopes) for tenant, scopes in tenants.items()}
        return members


@dataclass(frozen=True, slots=True)
class Device(Thing):
    """Something that brings data; `id` is a UUID."""

    KIND: ClassVar[str] = "device"

    tenant: str = ""
    name: str = ""
    type: str = "default"
    created_ms: int = 0
    disabled: bool = False
    description: str = ""
    model: str = ""
    serial: str = ""
    location: str = ""
    """Id of the location where it is; what is not there any more counts as none."""
    gateway: str = ""
    """Id of the device that it is connected through; likewise."""


LOCATION_TYPES = (
    "Campus",
    "CampusPart",
    "Building",
    "BuildingPart",
    "Outside",
    "Floor",
    "FloorArea",
    "Room",
)


@dataclass(frozen=True, slots=True)
class Location(Thing):
    """A place: a campus, a building, a floor, a room (`type`), with its postal address. `id` is a
    UUID; `parent` is the id of the location that it is part of; what is not there any more counts
    as none.
    """

    KIND: ClassVar[str] = "location"

    tenant: str = ""
    type: str = "Building"
    label: str = ""
    description: str = ""
    time_zone: str = ""
    """A name of the IANA database."""
    parent: str = ""
    street: str = ""
    postal_code: str = ""
    locality: str = ""
    region: str = ""
    country_code: str = ""
    """ISO 3166-1, two letters."""
    created_ms: int = 0

    @property
    def has_address(self) -> bool:
        """Whether any part of the postal address is known."""
        return any((self.street, self.postal_code, self.locality, self.region, self.country_code))


@dataclass(frozen=True, slots=True)
class Point(Thing):
    """A measured or commanded place on a device, as its source names it: (tenant, device, key) is
    its series.

    `kind` is the declared type, and `locked` whether samples of another are refused. `id` is what
    contracts that address points by an id use; others use (device, key).
    """

    KIND: ClassVar[str] = "point"

    tenant: str = ""
    device: str = ""
    key: str = ""
    origin: str = ""
    """The key of which the series was made, where that is another one: keys may change."""
    series: int = 0
    """The 64-bit id of (tenant, device, origin or key), made in `services.catalogue._ids`."""
    name: str = ""
    kind: int | None = None
    locked: bool = False
    unit: str = ""
    precision: int | None = None
    band: float = 0.0
    band_percent: float = 0.0
    heartbeat_ms: int = 0
    on_change: bool = False
    """Whether a value that equals the last one counts for nothing."""
    keep_minutes: int = 0
    """For how long values are kept; 0: for ever."""
    ingestable: bool = True
    """Whether it takes values over Building X."""
    created_ms: int = 0
    description: str = ""
    writable: bool = False
    """Whether it takes commands."""

    @property
    def declared(self) -> Kind | None:
        """The declared type."""
        return None if self.kind is None else Kind(self.kind)

    @classmethod
    def _typed(cls, members: dict[str, Any]) -> dict[str, Any]:
        if members.get("kind") is not None:
            members["kind"] = int(Kind(members["kind"]))
        if type(members.get("precision")) not in (int, type(None)):
            raise TypeError(f"precision is {members['precision']!r}")
        return members


@dataclass(frozen=True, slots=True)
class Equipment(Thing):
    """A work unit in the sense of ISA-95: a machine, a cell, a line. `id` is a UUID."""

    KIND: ClassVar[str] = "equipment"

    tenant: str = ""
    name: str = ""
    created_ms: int = 0


ROLES_OF_A_BINDING = ("value", "state", "counter")


@dataclass(frozen=True, slots=True)
class Binding(Thing):
    """The point `point` feeds `equipment` as `role`; a point may feed several."""

    KIND: ClassVar[str] = "binding"

    tenant: str = ""
    point: str = ""
    equipment: str = ""
    role: str = "value"
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class Trigger(Thing):
    """A `schemas.points.Rule` on a point, and the webhook (`url`) that is called when it begins to
    hold.
    """

    KIND: ClassVar[str] = "trigger"

    tenant: str = ""
    point: str = ""
    name: str = ""
    when: str = ">"
    bound: Value | None = None
    hysteresis: float = 0.0
    delay_ms: int = 0
    on_clear: bool = False
    url: str = ""
    disabled: bool = False
    created_ms: int = 0


THINGS: dict[str, type[Thing]] = {
    cls.KIND: cls
    for cls in (
        Tenant,
        Key,
        Revocation,
        SigningKey,
        User,
        Location,
        Device,
        Point,
        Equipment,
        Binding,
        Trigger,
    )
}
