"""What dialects may ask of the house: the catalogue (`Lookup`), what calls have done (`Actions`).

Both are protocols; `services.catalogue` and `services.ingress` implement them. Everything is asked
for a tenant: what belongs to another one does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from schemas.catalogue import (
    Binding,
    Device,
    Equipment,
    Key,
    Location,
    Point,
    Tenant,
    Trigger,
    User,
)
from schemas.commands import Command
from schemas.envelope import Change
from schemas.points import PointPolicy
from schemas.samples import Kind, Verdict


@dataclass(frozen=True, slots=True)
class Principal:
    """Who speaks, as `services.auth` found out from the credential. `device` is set where the
    credential is a device's.

    From `expires_ms` (UTC) on, the key behind the credential is not good any more: a door that asks
    once for a whole connection ends it then. `token` is the id of the token that a user came with;
    empty where it was a key.
    """

    tenant: str
    subject: str
    scopes: frozenset[str]
    device: str = ""
    expires_ms: float = inf
    token: str = ""


class Lookup(Protocol):
    """The read-only face of the catalogue. Everything is per tenant: what belongs to another one
    does not exist.
    """

    revision: int

    def series(self, tenant: str, device: str, key: str) -> int:
        """The series id, whether or not anything was ever written to it."""
        ...

    def known(self, tenant: str, device: str, key: str) -> Point | None:
        """The point at this key of the device."""
        ...

    def point(self, tenant: str, point: str) -> Point | None:
        """The point with this id."""
        ...

    def points(self, tenant: str, device: str) -> Mapping[str, Point]:
        """Key to point, for all points of the device, in the order of their creation."""
        ...

    def device(self, tenant: str, device: str) -> Device | None:
        """The device with this id."""
        ...

    def devices(self, tenant: str) -> Sequence[Device]:
        """The tenant's devices in the order of creation; the API server among them."""
        ...

    def location(self, tenant: str, location: str) -> Location | None:
        """The location with this id."""
        ...

    def locations(self, tenant: str) -> Sequence[Location]:
        """The tenant's locations, in the order of creation."""
        ...

    def api_server(self, tenant: str) -> Device:
        """The tenant's device for values that are pushed by key alone; there always is one."""
        ...

    def of_series(self, tenant: str, series: int) -> Point | None:
        """The point whose samples have this series id."""
        ...

    def kept_minutes(self, series: int) -> int:
        """For how long values of the series are kept; 0: for ever."""
        ...

    def equipment(self, tenant: str, equipment: str) -> Equipment | None:
        """The equipment with this id."""
        ...

    def all_equipment(self, tenant: str) -> Sequence[Equipment]:
        """The tenant's equipment, in the order of creation."""
        ...

    def binding(self, tenant: str, binding: str) -> Binding | None:
        """The binding with this id."""
        ...

    def bindings(self, tenant: str, *, point: str = "", equipment: str = "") -> Sequence[Binding]:
        """What a point feeds, or what an equipment is fed by, in the order of creation."""
        ...

    def trigger(self, tenant: str, trigger: str) -> Trigger | None:
        """The trigger with this id."""
        ...

    def triggers(self, tenant: str, point: str) -> Sequence[Trigger]:
        """A point's triggers, in the order of creation."""
        ...

    def tenant(self, tenant: str) -> Tenant | None:
        """The tenant with this short name."""
        ...

    def tenant_of(self, uuid: str) -> str | None:
        """The short name of the tenant that vendors' APIs call `uuid`. The one question that looks
        past one's own tenant: Building X tells "not yours" from "no such partition".
        """
        ...

    def policy(self, point: Point) -> PointPolicy:
        """The policy to stamp on the point's samples; the same object for the same policy."""
        ...

    def stamps(self, tenant: str, device: str) -> Mapping[str, tuple[int, PointPolicy]]:
        """Key to (series id, policy) of the device's points; valid for the message at hand."""
        ...

    def free_policy(self, tenant: str) -> PointPolicy:
        """The policy of points whose samples bring their own type."""
        ...

    def creation(
        self,
        tenant: str,
        device: str,
        key: str,
        received_ms: int,
        *,
        kind: Kind | None = None,
        locked: bool = False,
        precision: int | None = None,
        band: float = 0.0,
        on_change: bool = False,
        keep_minutes: int = 0,
    ) -> Change | None:
        """The `first` change that makes the point at a new key; None where there is nothing to do.

        That is so where the point is known, and where this process asked for it a moment ago: a
        burst of messages with a new key makes one claim. Raises Malformed ("too_many_keys") above
        the device's limit, Unavailable where too many keys are being made at once.
        """
        ...

    def commands_of(self, point: Point, now_ms: int) -> Sequence[Command]:
        """The point's newest commands as they are at a moment, the newest first."""
        ...

    def target(self, point: Point, now_ms: int) -> Command | None:
        """The newest command of the point of which something is still expected."""
        ...

    async def commands_current(self) -> None:
        """Wait until every command is in that is on the log now. Raises Unavailable."""
        ...

    async def caught_up(self, offset: int) -> None:
        """Wait until the change at this offset of the catalogue's log is in."""
        ...

    def creation_failed(self, change: Change) -> None:
        """A change that `creation` gave does not go to the log, or perhaps did not get there: the
        next use of its key makes another.
        """
        ...


@dataclass(frozen=True, slots=True)
class Promise:
    """What is known of a request that nobody waited for: the verdicts in its order, None until the
    judge has decided, and its intake's `note`.
    """

    verdicts: Sequence[Verdict] | None
    note: int = 0


class Actions(Protocol):
    """What `Call` doors can have done, by `services.catalogue.control` and `services.auth`. Raise
    Refused.
    """

    def client_token(self, client_id: str, client_secret: str, audience: str) -> tuple[str, int]:
        """(access token for `audience`, seconds it is good for) of a machine client. Raises
        Unauthorized, and OverQuota where too many have failed.
        """
        ...

    def key_set(self) -> Mapping[str, Any]:
        """The public keys of such tokens: a JWK Set (RFC 7517)."""
        ...

    def memberships(self, username: str, password: str) -> Sequence[Tenant]:
        """The tenants a user may enter. Raises Unauthorized."""
        ...

    def user_tokens(self, username: str, password: str, tenant: str) -> tuple[str, str]:
        """(token, refresh token) of a user for a tenant (its short name). Raises Unauthorized."""
        ...

    def log_in(
        self,
        username: str,
        password: str,
        choose: Callable[[Sequence[Tenant]], Tenant],
        seconds: int | None = None,
    ) -> tuple[str, int]:
        """(token, seconds it is good for) of a user for the one of their tenants that `choose`
        takes; what that raises is passed on. `seconds` may only shorten its life. Raises
        Unauthorized.
        """
        ...

    def refresh(self, refresh_token: str) -> tuple[str, str]:
        """A new pair for a refresh token. Raises Unauthorized."""
        ...

    def user(self, username: str) -> User | None:
        """The user."""
        ...

    def users(self, tenant: str) -> Sequence[User]:
        """Who may enter the tenant, by name."""
        ...

    def keys(self, tenant: str) -> Sequence[Key]:
        """The tenant's credentials, by id."""
        ...

    async def promise(self, caller: Principal, receipt: str) -> Promise:
        """What is known of a request of the caller's tenant that nobody waited for, by the id of
        its receipt. Raises Unknown, Unavailable.
        """
        ...

    def control(self, caller: Principal) -> Any:
        """The control actions (coroutines of `services.catalogue.Control`), done for the caller;
        for calls whose `handle` is a coroutine.
        """
        ...
