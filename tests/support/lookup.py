"""A catalogue made of plain lists, and actions that know one client and one user: what dialects
need of the outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from schemas.catalogue import (
    API_SERVER,
    Binding,
    Device,
    Equipment,
    Key,
    Location,
    Point,
    Tenant,
    Thing,
    Trigger,
    User,
)
from schemas.commands import Command
from schemas.envelope import Change, Envelope
from schemas.points import PointPolicy
from schemas.samples import Kind, Verdict
from schemas.topics import CATALOGUE_CHANGED, Topic
from services.catalogue import Caller, Control, View, series_id
from services.clock import ManualClock
from services.dialects import Principal, Promise
from services.domain import commands as rules
from services.errors import Unauthorized, Unknown
from tests.support.catalogue import a_control, a_view

_SERIES_DEVICE_BITS = 48

T = TypeVar("T", bound=Thing)


class ListedLookup:
    """`Lookup` over given things. Series ids are counted, devices above the lanes' shift, so that a
    test can tell them apart by eye.
    """

    def __init__(
        self, things: Iterable[Thing] = (), commands: Sequence[Command] = (), revision: int = 1
    ) -> None:
        self.revision = revision
        self._commands = commands
        self.creations: list[Change] = []
        self._things = {(thing.KIND, thing.id): thing for thing in things}
        self._series: dict[tuple[str, str, str], int] = {}
        self._devices: dict[tuple[str, str], int] = {}
        self._points: dict[tuple[str, str], dict[str, Point]] = {}
        self._policies: dict[str, PointPolicy] = {}
        self._free: dict[str, PointPolicy] = {}
        for thing in list(self._things.values()):
            if isinstance(thing, Point):
                self._add(thing)

    def _add(self, point: Point) -> None:
        placed = replace(point, series=self.series(point.tenant, point.device, point.key))
        self._things[Point.KIND, point.id] = placed
        self._points.setdefault((point.tenant, point.device), {})[point.key] = placed
        self._policies[point.id] = PointPolicy(
            point.tenant,
            self.revision,
            point.declared if point.locked else None,
            point.band,
            point.band_percent,
            point.heartbeat_ms,
            point.on_change,
            point.keep_minutes * 60_000,
        )

    def series(self, tenant: str, device: str, key: str) -> int:
        """The series id of any place."""
        place = (tenant, device, key)
        if place not in self._series:
            number = self._devices.setdefault((tenant, device), len(self._devices) + 1)
            self._series[place] = number << _SERIES_DEVICE_BITS | len(self._series) + 1
        return self._series[place]

    def places(self, tenant: str) -> dict[int, tuple[str, str]]:
        """Series id to device and key, for all series that anybody asked for."""
        return {
            series: (device, key)
            for (owner, device, key), series in self._series.items()
            if owner == tenant
        }

    def known(self, tenant: str, device: str, key: str) -> Point | None:
        """The point at a place."""
        return self.points(tenant, device).get(key)

    def point(self, tenant: str, point: str) -> Point | None:
        """The point with this id."""
        found = self._things.get((Point.KIND, point))
        return found if isinstance(found, Point) and found.tenant == tenant else None

    def points(self, tenant: str, device: str) -> Mapping[str, Point]:
        """The points of a device."""
        return self._points.get((tenant, device), {})

    def device(self, tenant: str, device: str) -> Device | None:
        """The device with this id."""
        found = self._things.get((Device.KIND, device))
        return found if isinstance(found, Device) and found.tenant == tenant else None

    def devices(self, tenant: str) -> Sequence[Device]:
        """The tenant's devices, as listed."""
        return [each for each in self._all(Device) if each.tenant == tenant]

    def location(self, tenant: str, location: str) -> Location | None:
        """The location with this id."""
        return self._own(Location, tenant, location)

    def locations(self, tenant: str) -> Sequence[Location]:
        """The tenant's locations, as listed."""
        return [each for each in self._all(Location) if each.tenant == tenant]

    def api_server(self, tenant: str) -> Device:
        """The tenant's API server: the device of that type, if one was given."""
        for thing in self._things.values():
            if isinstance(thing, Device) and (thing.tenant, thing.type) == (tenant, API_SERVER):
                return thing
        return Device(f"api-server-of-{tenant}", tenant, "API server", API_SERVER)

    def of_series(self, tenant: str, series: int) -> Point | None:
        """The point with this series."""
        points = (thing for thing in self._things.values() if isinstance(thing, Point))
        return next((p for p in points if (p.tenant, p.series) == (tenant, series)), None)

    def kept_minutes(self, series: int) -> int:
        """For how long values of the series are kept."""
        points = (thing for thing in self._things.values() if isinstance(thing, Point))
        return next((each.keep_minutes for each in points if each.series == series), 0)

    def commands_of(self, point: Point, now_ms: int) -> Sequence[Command]:
        """The point's commands, as listed."""
        return [rules.seen_at(each, now_ms) for each in self._commands if each.point == point.id]

    def target(self, point: Point, now_ms: int) -> Command | None:
        """The first that is listed of which something is still expected."""
        own = (each for each in self._commands if each.point == point.id)
        return next((each for each in own if rules.pending(each, now_ms)), None)

    async def commands_current(self) -> None:
        """They are all listed."""

    async def caught_up(self, offset: int) -> None:
        """Changes are in at once."""

    def equipment(self, tenant: str, equipment: str) -> Equipment | None:
        """The equipment with this id."""
        return self._own(Equipment, tenant, equipment)

    def all_equipment(self, tenant: str) -> Sequence[Equipment]:
        """The tenant's equipment, as listed."""
        return [each for each in self._all(Equipment) if each.tenant == tenant]

    def binding(self, tenant: str, binding: str) -> Binding | None:
        """The binding with this id."""
        return self._own(Binding, tenant, binding)

    def bindings(self, tenant: str, *, point: str = "", equipment: str = "") -> Sequence[Binding]:
        """What a point feeds, or what an equipment is fed by."""
        found = [each for each in self._all(Binding) if each.tenant == tenant]
        return [each for each in found if point == each.point or equipment == each.equipment]

    def trigger(self, tenant: str, trigger: str) -> Trigger | None:
        """The trigger with this id."""
        return self._own(Trigger, tenant, trigger)

    def triggers(self, tenant: str, point: str) -> Sequence[Trigger]:
        """A point's triggers."""
        found = [each for each in self._all(Trigger) if each.tenant == tenant]
        return [each for each in found if each.point == point]

    def _own(self, cls: type[T], tenant: str, id: str) -> T | None:
        found = self._things.get((cls.KIND, id))
        own = isinstance(found, cls) and getattr(found, "tenant", "") == tenant
        return found if own else None

    def _all(self, cls: type[T]) -> list[T]:
        return [thing for thing in self._things.values() if isinstance(thing, cls)]

    def tenant(self, tenant: str) -> Tenant | None:
        """The tenant with this short name."""
        found = self._things.get((Tenant.KIND, tenant))
        return found if isinstance(found, Tenant) else None

    def tenant_of(self, uuid: str) -> str | None:
        """The short name behind a UUID."""
        tenants = (thing for thing in self._things.values() if isinstance(thing, Tenant))
        return next((tenant.id for tenant in tenants if tenant.uuid == uuid), None)

    def policy(self, point: Point) -> PointPolicy:
        """The policy of a point."""
        return self._policies[point.id]

    def stamps(self, tenant: str, device: str) -> Mapping[str, tuple[int, PointPolicy]]:
        """Series and policy of each key of a device."""
        points = self.points(tenant, device)
        return {key: (point.series, self.policy(point)) for key, point in points.items()}

    def free_policy(self, tenant: str) -> PointPolicy:
        """The policy of points that are not declared."""
        return self._free.setdefault(tenant, PointPolicy(tenant, self.revision))

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
        """The change that makes a point; asked for a second time there is none."""
        if any(change.body and change.body["key"] == key for change in self.creations):
            return None
        point = Point(
            f"{device}/{key}",
            tenant=tenant,
            device=device,
            key=key,
            series=self.series(tenant, device, key),
            kind=kind,
            locked=locked,
            precision=precision,
            band=band,
            on_change=on_change,
            keep_minutes=keep_minutes,
            created_ms=received_ms,
        )
        change = Change(Point.KIND, point.id, point.body(), first=True)
        self.creations.append(change)
        return change

    def creation_failed(self, change: Change) -> None:
        """As if it had not been asked for."""
        if change in self.creations:
            self.creations.remove(change)


class ListedActions:
    """`Actions` that know the client "client" and the user "anna", both with the word "secret".

    `tenants` are those that the user may enter. A token says what it is for, in plain text. Control
    is the real one, on a catalogue of `things` that nobody else sees.
    """

    EXPIRES_S = 86_400

    def __init__(
        self, tenants: Sequence[Tenant] = (), things: Iterable[Thing] = (), now_ms: int = 0
    ) -> None:
        self._tenants = tenants
        self._view = a_view(*map(_placed, things))
        self._clock = ManualClock(now_ms)

    def client_token(self, client_id: str, client_secret: str, audience: str) -> tuple[str, int]:
        """A token for the one client."""
        if (client_id, client_secret) != ("client", "secret"):
            raise Unauthorized("unknown client or wrong secret")
        return f"token of {client_id}", self.EXPIRES_S

    def key_set(self) -> Mapping[str, Any]:
        """One key."""
        return {"keys": [{"kid": "first", "kty": "EC"}]}

    def memberships(self, username: str, password: str) -> Sequence[Tenant]:
        """The tenants of the one user."""
        if (username, password) != ("anna", "secret"):
            raise Unauthorized("unknown user or wrong password")
        return self._tenants

    def user_tokens(self, username: str, password: str, tenant: str) -> tuple[str, str]:
        """Tokens of the one user."""
        if all(tenant != known.id for known in self.memberships(username, password)):
            raise Unauthorized("no member")
        return f"token of {username} for {tenant}", f"refresh of {username} for {tenant}"

    def refresh(self, refresh_token: str) -> tuple[str, str]:
        """A new pair for a token that begins like one of ours."""
        if not refresh_token.startswith("refresh of "):
            raise Unauthorized("no refresh token of ours")
        return refresh_token.replace("refresh", "token"), refresh_token

    def log_in(
        self,
        username: str,
        password: str,
        choose: Callable[[Sequence[Tenant]], Tenant],
        seconds: int | None = None,
    ) -> tuple[str, int]:
        """A token of the one user, good for a day at the most."""
        tenant = choose(self.memberships(username, password))
        return f"token of {username} for {tenant.id}", min(
            seconds or self.EXPIRES_S, self.EXPIRES_S
        )

    def user(self, username: str) -> User | None:
        """The one user, and those that are listed."""
        return self._view.user(username) or (User(username) if username == "anna" else None)

    def users(self, tenant: str) -> Sequence[User]:
        """Who may enter the tenant, of those that are listed."""
        return [user for user in self._view.users() if tenant in user.tenants]

    def keys(self, tenant: str) -> Sequence[Key]:
        """The tenant's credentials, of those that are listed."""
        return self._view.keys(tenant)

    async def promise(self, caller: Principal, receipt: str) -> Promise:
        """The verdicts and the note that the id spells, "KEPT,CONFLICT" with ".1" behind it; none
        yet for "pending".
        """
        names, _, note = receipt.partition(".")
        if not set(names.split(",")) <= {"pending", *Verdict.__members__}:
            raise Unknown("there is no such receipt")
        if names == "pending":
            return Promise(None, int(note or 0))
        return Promise([Verdict[name] for name in names.split(",")], int(note or 0))

    def control(self, caller: Principal) -> Control:
        """The actions, on what is listed."""
        log: Any = AppliedLog(self._view)
        control = a_control(log, self._view, self._clock)
        return control.by(Caller(caller.subject, "http", caller.tenant, caller.scopes))


class AppliedLog:
    """A log of changes that are in the view as soon as they are appended. `records` holds what was
    appended, of any topic.
    """

    _offsets = count()
    """Of commands: one view may have several of these logs."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.lanes = 1
        self.records: list[Any] = []

    async def append(self, out: Sequence[tuple[Topic, int, Envelope]]) -> list[int]:
        """Take it in."""
        offsets = []
        for topic, _, envelope in out:
            self.records.append(envelope.record)
            offset = self._view.revision + 1
            if isinstance(envelope.record, Command):
                offset = next(self._offsets)
                self._view.commands.apply(0, offset, envelope.record)
            if topic is CATALOGUE_CHANGED and isinstance(envelope.record, Change):
                self._view.apply(envelope.record, offset)
            offsets.append(offset)
        return offsets


def _placed(thing: Thing) -> Thing:
    """A listed point with the series that it has in the catalogue."""
    if not isinstance(thing, Point):
        return thing
    return replace(thing, series=series_id(thing.tenant, thing.device, thing.origin or thing.key))


def a_principal(tenant: str = "acme", **members: Any) -> Principal:
    """A principal that may do everything, unless `members` say otherwise."""
    members.setdefault("subject", "somebody")
    members["scopes"] = frozenset(members.get("scopes", ("ingest", "read")))
    return Principal(tenant, **members)
