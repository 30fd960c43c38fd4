"""The things of a `View`, in memory, and the questions that are answered from them alone.

Every index is a function of the set of things, not of the order in which they came: what compaction
leaves of the log gives the same answers as the whole log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from schemas.catalogue import (
    API_SERVER,
    FIRST_SIGNING_KEY,
    THINGS,
    Binding,
    Device,
    Equipment,
    Key,
    Location,
    Point,
    Revocation,
    SigningKey,
    Tenant,
    Thing,
    Trigger,
    User,
)
from services.catalogue._ids import api_server_id
from services.catalogue._points import PointIndex
from services.catalogue._relations import Relation

_API_SERVER_NAME = "API server"

T = TypeVar("T", bound=Thing)
Owned = TypeVar("Owned", Device, Equipment, Location, Point)


class Things:
    """Everything configured, by kind and id, and found by what it belongs to.

    What is asked for a tenant answers for that one alone: what belongs to another does not exist.
    """

    def __init__(self) -> None:
        self._things: dict[str, dict[str, Thing]] = {kind: {} for kind in THINGS}
        self._points = PointIndex()
        self._devices: Relation[Device] = Relation(lambda device: device.tenant)
        self._locations: Relation[Location] = Relation(lambda location: location.tenant)
        self._triggers: Relation[Trigger] = Relation(lambda trigger: trigger.point)
        self._bindings: Relation[Binding] = Relation(lambda binding: binding.point)
        self._feeds: Relation[Binding] = Relation(lambda binding: binding.equipment)
        self._key_by_digest: dict[str, str] = {}
        self._tenant_by_uuid: dict[str, str] = {}
        self._signing_keys: Sequence[SigningKey] = (FIRST_SIGNING_KEY,)

    def _index(self, thing: Thing) -> None:
        """Have a thing that has come found."""
        if isinstance(thing, Point):
            self._points.put(thing)
        elif isinstance(thing, Key):
            self._key_by_digest.update((digest, thing.id) for digest, _ in thing.secrets)
        elif isinstance(thing, Tenant) and thing.uuid:
            self._tenant_by_uuid[thing.uuid] = thing.id
        elif isinstance(thing, Device):
            self._devices.put(thing)
        elif isinstance(thing, Location):
            self._locations.put(thing)
        elif isinstance(thing, Trigger):
            self._triggers.put(thing)
        elif isinstance(thing, Binding):
            self._bindings.put(thing)
            self._feeds.put(thing)

    def _unindex(self, thing: Thing) -> None:
        """Have a thing that goes not found any more."""
        if isinstance(thing, Point):
            self._points.remove(thing)
        elif isinstance(thing, Key):
            for digest, _ in thing.secrets:
                self._key_by_digest.pop(digest, None)
        elif isinstance(thing, Tenant):
            self._tenant_by_uuid.pop(thing.uuid, None)
        elif isinstance(thing, Device):
            self._devices.remove(thing)
        elif isinstance(thing, Location):
            self._locations.remove(thing)
        elif isinstance(thing, Trigger):
            self._triggers.remove(thing)
        elif isinstance(thing, Binding):
            self._bindings.remove(thing)
            self._feeds.remove(thing)

    def _order_signing_keys(self) -> None:
        """A signing key has come or gone, or was ended."""
        keys = sorted(
            (FIRST_SIGNING_KEY, *self._all(SigningKey)),
            key=lambda key: (key.signs_ms, key.created_ms, key.id),
        )
        ended = self._things[Revocation.KIND]
        good = (key for key in keys if Revocation.signing_key_id(key.id) not in ended)
        self._signing_keys = tuple(good)

    # -- for a tenant ------------------------------------------------------------------------------

    def known(self, tenant: str, device: str, key: str) -> Point | None:
        """The point at this key of the device."""
        return self._points.at(tenant, device, key)

    def point(self, tenant: str, point: str) -> Point | None:
        """The point with this id."""
        return _own(tenant, self._points.get(point))

    def points(self, tenant: str, device: str) -> Mapping[str, Point]:
        """Key to point, for all points of the device, in the order of their creation."""
        return self._points.of(tenant, device)

    def of_series(self, tenant: str, series: int) -> Point | None:
        """The point whose samples have this series id."""
        return _own(tenant, self._points.of_series(series))

    def kept_minutes(self, series: int) -> int:
        """For how long values of the series are kept; 0: for ever."""
        point = self.point_of(series)
        return 0 if point is None else point.keep_minutes

    def api_server(self, tenant: str) -> Device:
        """The tenant's device for values that are pushed by key alone; there always is one, on the
        log or not.
        """
        found = _own(tenant, self._get(Device, device_id := api_server_id(tenant)))
        return found or Device(device_id, tenant, _API_SERVER_NAME, API_SERVER)

    def device(self, tenant: str, device: str) -> Device | None:
        """The device with this id."""
        found = _own(tenant, self._get(Device, device))
        if found is None and device == api_server_id(tenant):
            return self.api_server(tenant)
        return found

    def devices(self, tenant: str) -> Sequence[Device]:
        """The tenant's devices in the order of creation; the API server among them."""
        found, server = self._devices.of(tenant), self._get(Device, api_server_id(tenant))
        if self.tenant(tenant) is None or _own(tenant, server) is not None:
            return found
        return [self.api_server(tenant), *found]

    def location(self, tenant: str, location: str) -> Location | None:
        """The location with this id."""
        return _own(tenant, self._get(Location, location))

    def locations(self, tenant: str) -> Sequence[Location]:
        """The tenant's locations, in the order of creation."""
        return self._locations.of(tenant)

    def equipment(self, tenant: str, equipment: str) -> Equipment | None:
        """The equipment with this id."""
        return _own(tenant, self._get(Equipment, equipment))

    def all_equipment(self, tenant: str) -> Sequence[Equipment]:
        """The tenant's equipment, in the order of creation."""
        own = [each for each in self._all(Equipment) if each.tenant == tenant]
        return sorted(own, key=lambda each: (each.created_ms, each.id))

    def binding(self, tenant: str, binding: str) -> Binding | None:
        """The binding with this id, as long as both ends are there."""
        found = self._get(Binding, binding)
        return found if found is not None and self._tied(tenant, found) else None

    def bindings(self, tenant: str, *, point: str = "", equipment: str = "") -> Sequence[Binding]:
        """What a point feeds, or what an equipment is fed by, in the order of creation."""
        found = self._bindings.of(point) if point else self._feeds.of(equipment)
        return [binding for binding in found if self._tied(tenant, binding)]

    def trigger(self, tenant: str, trigger: str) -> Trigger | None:
        """The trigger with this id, as long as its point is there."""
        found = self._get(Trigger, trigger)
        of_point = None if found is None else self.point(tenant, found.point)
        return None if of_point is None else found

    def triggers(self, tenant: str, point: str) -> Sequence[Trigger]:
        """A point's triggers, in the order of creation."""
        return [] if self.point(tenant, point) is None else self._triggers.of(point)

    def _tied(self, tenant: str, binding: Binding) -> bool:
        """Whether both ends are the tenant's. A deletion that was cut short may leave one end."""
        ends = (self.point(tenant, binding.point), self.equipment(tenant, binding.equipment))
        return None not in ends

    def tenant(self, tenant: str) -> Tenant | None:
        """The tenant with this short name."""
        return self._get(Tenant, tenant)

    def tenant_of(self, uuid: str) -> str | None:
        """The short name of the tenant that vendors' APIs call `uuid`."""
        return self._tenant_by_uuid.get(uuid)

    # -- for auth and control ----------------------------------------------------------------------

    def key(self, key: str) -> Key | None:
        """The credential with this public id."""
        return self._get(Key, key)

    def key_of_secret(self, digest: str) -> Key | None:
        """The credential that has a secret with this digest; whether it is valid is not said."""
        found = self._key_by_digest.get(digest)
        return None if found is None else self._get(Key, found)

    def revoked(self, token: str) -> bool:
        """Whether the token of a user with this id was ended."""
        return self._get(Revocation, Revocation.token_id(token)) is not None

    def signing_keys(self) -> Sequence[SigningKey]:
        """What access tokens are or were signed with, the first one too, in the order of their
        turns; without those that were ended. Asked for each request with such a token.
        """
        return self._signing_keys

    def user(self, name: str) -> User | None:
        """The user with this name."""
        return self._get(User, name)

    def point_of(self, series: int) -> Point | None:
        """The point whose series this is, of any tenant."""
        return self._points.of_series(series)

    def retained(self) -> Sequence[Point]:
        """The points whose values are not kept for ever."""
        return self._points.retained()

    def crowded(self, tenant: str, device: str, key: str) -> bool:
        """Whether more than one point wants this key of the device, or the series of who has it.
        The one created first has both.
        """
        return self._points.crowded(tenant, device, key)

    @property
    def collisions(self) -> int:
        """How many points are passed over because their series belongs to another."""
        return self._points.shadowed

    def thing(self, kind: str, thing: str) -> Thing | None:
        """Anything, by kind and id, also a point that stands back behind another."""
        return self._things[kind].get(thing)

    def tenants(self) -> Sequence[Tenant]:
        """All tenants, by id."""
        return self._all(Tenant)

    def users(self) -> Sequence[User]:
        """All users, by name."""
        return self._all(User)

    def keys(self, tenant: str) -> Sequence[Key]:
        """The tenant's credentials, by id."""
        return [key for key in self._all(Key) if key.tenant == tenant]

    def _get(self, cls: type[T], thing: str) -> T | None:
        found = self._things[cls.KIND].get(thing)
        return found if isinstance(found, cls) else None

    def _all(self, cls: type[T]) -> list[T]:
        things = [
            thing for thing in list(self._things[cls.KIND].values()) if isinstance(thing, cls)
        ]
        return sorted(things, key=lambda thing: thing.id)


def _own(tenant: str, found: Owned | None) -> Owned | None:
    return found if found is not None and found.tenant == tenant else None
