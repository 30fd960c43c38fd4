"""What is configured, in memory, following `catalogue.changed`: what doors and auth look things up
in.

The view is a fold over the log: the same records give the same view in every process, and so does
what compaction leaves of them (the last record of each key). Its methods are called in the loop's
thread; those that only read may be called from others too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID, uuid4, uuid5

import xxhash

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
from schemas.commands import Command
from schemas.envelope import Change, Envelope, Logged
from schemas.points import LANE_SHIFT, PointPolicy, Rule
from schemas.samples import Kind
from schemas.topics import CATALOGUE_CHANGED
from services import metrics
from services.catalogue._points import Creations, PointIndex, Policies, special
from services.catalogue._relations import Relation
from services.catalogue.commands import Commands
from services.clock import pause
from services.errors import Malformed, Unavailable
from services.eventlog import EventLog

_log = logging.getLogger(__name__)

_POINT_IDS = UUID("8c5b8ac4-6d0e-5f0c-9d5e-3b7b0c7d8a11")
"""Namespace of the ids of points that are named by nobody."""
_API_SERVERS = UUID("d3f4f6b2-3a0e-5c55-9a0f-6f1f3f0f7c42")
"""Namespace of the ids of the tenants' API servers."""
API_SERVER_NAME = "API server"
_LOW = (1 << LANE_SHIFT) - 1
_BATCH_WAIT_MS = 500

T = TypeVar("T", bound=Thing)
Stamp = tuple[int, PointPolicy]
"""What a door writes on the samples of a point: its series and its policy."""


@lru_cache(maxsize=65_536)
def series_id(tenant: str, device: str, key: str) -> int:
    """The 64-bit id of a series: 16 bits of the device's hash above 48 of the whole name's.

    The upper bits choose the lane, so a device's series share one and lie together on disk.
    """
    device_name = f"{tenant}\0{device}".encode("utf-8", "surrogatepass")
    name = device_name + b"\0" + key.encode("utf-8", "surrogatepass")
    high = xxhash.xxh3_64_intdigest(device_name) & 0xFFFF
    return high << LANE_SHIFT | xxhash.xxh3_64_intdigest(name) & _LOW


def new_point(tenant: str, device: str, key: str, **members: Any) -> Point:
    """A point with the series of its place, and, where `members` brings no `id`, an id made of it.

    The id is derived and not drawn, so that doors which make the same point at once name it alike.
    """
    origin = members.get("origin") or key
    point_id = members.pop("id", "") or _point_id(tenant, device, origin)
    members.setdefault("name", key)
    return Point(
        point_id,
        tenant=tenant,
        device=device,
        key=key,
        series=series_id(tenant, device, origin),
        **members,
    )


def _point_id(tenant: str, device: str, origin: str) -> str:
    name = "\0".join((tenant, device, origin)).encode("utf-8", "surrogatepass").hex()
    return str(uuid5(_POINT_IDS, name))


@lru_cache(maxsize=4_096)
def api_server_id(tenant: str) -> str:
    """The id of the tenant's API server."""
    return str(uuid5(_API_SERVERS, tenant))


def first(thing: Thing) -> Change:
    """The change that makes `thing` unless something of its kind and id exists; a claim of its own
    each time.
    """
    return Change(thing.KIND, thing.id, thing.body(), first=True, claim=uuid4().hex)


class View:
    """The catalogue of this process. Implements `services.dialects.Lookup`.

    `revision` is the offset of the last record seen, -1 before the first. `undecodable` counts
    records and bodies that could not be read.
    """

    def __init__(
        self, *, keys_per_device_max: int = 10_000, commands: Commands | None = None
    ) -> None:
        self.revision = -1
        self.undecodable = 0
        self.commands = commands if commands is not None else Commands()
        self._things: dict[str, dict[str, Thing]] = {kind: {} for kind in THINGS}
        self._points = PointIndex()
        self._devices: Relation[Device] = Relation(lambda device: device.tenant)
        self._locations: Relation[Location] = Relation(lambda location: location.tenant)
        self._triggers: Relation[Trigger] = Relation(lambda trigger: trigger.point)
        self._bindings: Relation[Binding] = Relation(lambda binding: binding.point)
        self._feeds: Relation[Binding] = Relation(lambda binding: binding.equipment)
        self._gone: set[str] = set()
        """Ids of points that were deleted."""
        self._policies = Policies(self._rules_of)
        self._stamps: dict[tuple[str, str], dict[str, Stamp]] = {}
        self._creations = Creations(keys_per_device_max)
        self._key_by_digest: dict[str, str] = {}
        self._tenant_by_uuid: dict[str, str] = {}
        self._callbacks: list[Callable[[Change], None]] = []
        self._moved = asyncio.Event()
        self._end: int | None = None

    # -- the fold ----------------------------------------------------------------------------------

    def apply(self, change: Change, offset: int) -> None:
        """Take in the change at `offset`; one at or below the revision has been taken in already.

        A `first` change counts only if nothing of its kind and id exists. Any other replaces; where
        its body cannot be read, the thing is gone until a good one comes (what cannot be read must
        not leave an older right standing). A revocation is never taken back. Kinds that a newer
        version wrote are passed over.
        """
        if offset <= self.revision:
            return
        self.revision = offset
        if (cls := THINGS.get(change.kind)) is None:
            return
        things = self._things[change.kind]
        old = things.get(change.id)
        if change.first and old is not None:
            self._lost(change)
            return
        new = self._load(cls, change, offset)
        if change.first and new is None:
            self._lost(change)
            return
        if old is not None:
            del things[change.id]
            self._unindex(old)
        if cls is Trigger or (
            cls is Point and (not change.first or (isinstance(new, Point) and special(new)))
        ):
            self._policies.advance(offset)
            self._stamps.clear()
        if cls is Point:
            (self._gone.add if new is None else self._gone.discard)(change.id)
        if new is not None:
            things[change.id] = new
            self._index(new)
        self._tell(change)
        if cls is Revocation and (key := self.key(change.id)) is not None and not key.revoked:
            self._unindex(key)
            revoked = self._things[Key.KIND][key.id] = _revoked(key)
            self._tell(Change(Key.KIND, key.id, revoked.body()))

    def _lost(self, change: Change) -> None:
        """A claim that does not count ends its creation: the next use of the key may ask again, by
        another id where this one is taken.
        """
        place = [(change.body or {}).get(name) for name in ("tenant", "device", "key")]
        if change.kind == Point.KIND and all(isinstance(name, str) for name in place):
            self.creation_failed(change)

    def _tell(self, change: Change) -> None:
        for callback in tuple(self._callbacks):
            callback(change)

    def _load(self, cls: type[Thing], change: Change, offset: int) -> Thing | None:
        if cls is Revocation:
            return Revocation(change.id)
        if change.body is None:
            return None
        try:
            thing = cls.of({**change.body, "id": change.id})
            if isinstance(thing, Point):
                place = _origin(thing)
                if thing.series != series_id(*place):
                    raise ValueError(f"series {thing.series:#x} is not that of {place}")
        except (TypeError, ValueError) as error:
            self._skip(offset, f"{change.kind} {change.id!r}: {error}")
            return None
        if isinstance(thing, Key) and thing.id in self._things[Revocation.KIND]:
            return _revoked(thing)
        return thing

    def _skip(self, offset: int, reason: str) -> None:
        self.undecodable += 1
        metrics.CATALOGUE_SKIPPED.labels("undecodable").inc()
        _log.error("record %d of the catalogue cannot be read: %s", offset, reason)

    def _index(self, thing: Thing) -> None:
        if isinstance(thing, Point):
            self._points.put(thing)
            self._restamp(thing)
            self._creations.end(thing.tenant, thing.device, thing.key)
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
        if isinstance(thing, Point):
            self._points.remove(thing)
            self._restamp(thing)
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

    def _rules_of(self, point: str) -> tuple[Rule, ...]:
        """The rules of a point's triggers, by id."""
        found = sorted(self._triggers.of(point), key=lambda trigger: trigger.id)
        return tuple(
            Rule(each.id, each.when, each.bound, each.hysteresis, each.delay_ms, each.on_clear)
            for each in found
            if each.bound is not None and not each.disabled
        )

    # -- following the log -------------------------------------------------------------------------

    async def follow(self, log: EventLog, stop: asyncio.Event) -> None:
        """Read the catalogue and the commands from their beginning and go on for ever, until `stop`
        is set.
        """
        tasks = [
            asyncio.create_task(self._follow(log, stop), name="follow the catalogue"),
            asyncio.create_task(self.commands.follow(log, stop), name="follow the commands"),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _follow(self, log: EventLog, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                span = (await log.spans(CATALOGUE_CHANGED))[0]
                if self._end is None:
                    self._end = span.end
                    self._wake()
                await self._read(log, stop)
            except Unavailable as error:
                _log.warning("the catalogue cannot be followed: %s", error.message)
                await pause(stop, error.retry_after_ms)

    async def _read(self, log: EventLog, stop: asyncio.Event) -> None:
        start = {0: self.revision + 1}
        async with log.reader([CATALOGUE_CHANGED], start=start) as reader:
            while not stop.is_set():
                if batch := await reader.batch(wait_ms=_BATCH_WAIT_MS):
                    for record in batch.records:
                        self._take(record)
                    self._wake()

    def _take(self, record: Logged) -> None:
        envelope, offset = record.envelope, record.offset
        if isinstance(envelope, Envelope) and isinstance(envelope.record, Change):
            self.apply(envelope.record, offset)
        elif offset > self.revision:
            self.revision = offset
            found = type(envelope.record).__name__ if isinstance(envelope, Envelope) else ""
            self._skip(offset, f"a {found}" if isinstance(envelope, Envelope) else envelope.reason)

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def ready(self) -> None:
        """Wait until everything is in that lay on the log when following began."""
        while self._end is None or self.revision + 1 < self._end:
            await self._moved.wait()
        await self.commands.ready()

    async def caught_up(self, offset: int) -> None:
        """Wait until the record at `offset` is in; the caller sets the limit of time."""
        while self.revision < offset:
            await self._moved.wait()

    def on_change(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Have `callback` called in the loop's thread after each change that counted.

        It must be quick and must not raise. Returns what ends the subscription.
        """
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    # -- Lookup ------------------------------------------------------------------------------------

    def series(self, tenant: str, device: str, key: str) -> int:
        """The series id, whether or not anything was ever written to it."""
        point = self._points.at(tenant, device, key)
        if point is not None:
            return point.series
        return series_id(tenant, device, self.origin(tenant, device, key) or key)

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
        found = self._own_device(tenant, device_id := api_server_id(tenant))
        return found or Device(device_id, tenant, API_SERVER_NAME, API_SERVER)

    def device(self, tenant: str, device: str) -> Device | None:
        """The device with this id."""
        found = self._own_device(tenant, device)
        if found is None and device == api_server_id(tenant):
            return self.api_server(tenant)
        return found

    def _own_device(self, tenant: str, device: str) -> Device | None:
        found = self._get(Device, device)
        return found if found is not None and found.tenant == tenant else None

    def devices(self, tenant: str) -> Sequence[Device]:
        """The tenant's devices in the order of creation; the API server among them."""
        found, server = self._devices.of(tenant), api_server_id(tenant)
        if self.tenant(tenant) is None or self._own_device(tenant, server) is not None:
            return found
        return [self.api_server(tenant), *found]

    def location(self, tenant: str, location: str) -> Location | None:
        """The location with this id."""
        found = self._get(Location, location)
        return found if found is not None and found.tenant == tenant else None

    def locations(self, tenant: str) -> Sequence[Location]:
        """The tenant's locations, in the order of creation."""
        return self._locations.of(tenant)

    def equipment(self, tenant: str, equipment: str) -> Equipment | None:
        """The equipment with this id."""
        found = self._get(Equipment, equipment)
        return found if found is not None and found.tenant == tenant else None

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

    def policy(self, point: Point) -> PointPolicy:
        """The policy to stamp on the point's samples; the same object for the same policy."""
        current = self._points.get(point.id)
        return self.free_policy(point.tenant) if current is None else self._policies.of(current)

    def stamps(self, tenant: str, device: str) -> Mapping[str, Stamp]:
        """Key to (series id, policy) of the device's points: all that a hot door must know of them.

        It is kept up to date in place, so it is not to be held beyond one message.
        """
        place = (tenant, device)
        if (found := self._stamps.get(place)) is None:
            points = self._points.of(tenant, device)
            found = {key: self._stamp(point) for key, point in points.items()}
            self._stamps[place] = found
        return found

    def _stamp(self, point: Point) -> Stamp:
        return point.series, self._policies.of(point)

    def _restamp(self, changed: Point) -> None:
        """What stands at the place of a point that came or went, as far as it was asked for."""
        stamps = self._stamps.get((changed.tenant, changed.device))
        if stamps is None:
            return
        if self._points.tangled(changed):
            del self._stamps[changed.tenant, changed.device]
            return
        stands = self._points.at(changed.tenant, changed.device, changed.key)
        if stands is None:
            stamps.pop(changed.key, None)
        else:
            stamps[changed.key] = self._stamp(stands)

    def free_policy(self, tenant: str) -> PointPolicy:
        """The policy of points whose samples bring their own type."""
        return self._policies.free(tenant)

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
        """The `first` change that makes the point at a new key; None where there is nothing to do:
        the point is known, or this process asked for it a moment ago.

        Raises Malformed ("too_many_keys") above the device's limit, Unavailable where too many keys
        are being made at once.
        """
        if self._points.at(tenant, device, key) is not None:
            return None
        origin = self.origin(tenant, device, key)
        if self._points.of_series(series_id(tenant, device, origin or key)) is not None:
            raise Malformed("the key's id belongs to another one: take another key", code="taken")
        known = self._points.count(tenant, device)
        if not self._creations.begin(tenant, device, key, known=known, received_ms=received_ms):
            return None
        return first(
            new_point(
                tenant,
                device,
                key,
                kind=None if kind is None else int(kind),
                locked=locked,
                origin=origin,
                precision=precision,
                band=band,
                on_change=on_change,
                keep_minutes=keep_minutes,
                created_ms=received_ms,
            )
        )

    def origin(self, tenant: str, device: str, key: str) -> str:
        """What the series of a new point at this key is made of, where it is not the key itself:
        another point took that series along when it got another key, or left it behind when it was
        deleted, or a point of another place has the id. What is made anew has none of the old one's
        values.
        """
        origin, count = key, 0
        while self._is_used(tenant, device, origin):
            count += 1
            origin = f"{key}\0{count}"
        return "" if origin == key else origin

    def _is_used(self, tenant: str, device: str, origin: str) -> bool:
        if (point_id := _point_id(tenant, device, origin)) in self._gone:
            return True
        place = (tenant, device, origin)
        if (holder := self._get(Point, point_id)) is not None and _origin(holder) != place:
            return True
        other = self._points.of_series(series_id(tenant, device, origin))
        return other is not None and _origin(other) == place

    def commands_of(self, point: Point, now_ms: int) -> Sequence[Command]:
        """The point's newest commands as they are at a moment, the newest first."""
        return self.commands.of(point.series, now_ms)

    def target(self, point: Point, now_ms: int) -> Command | None:
        """The newest command of the point of which something is still expected."""
        return self.commands.target(point.series, now_ms)

    async def commands_current(self) -> None:
        """Wait until every command is in that is on the log now. Raises Unavailable."""
        await self.commands.current()

    def crowded(self, tenant: str, device: str, key: str) -> bool:
        """Whether more than one point wants this key of the device, or the series of who has it.
        The one created first has both.
        """
        return self._points.crowded(tenant, device, key)

    def creation_failed(self, change: Change) -> None:
        """The log may not have a change that `creation` gave: the next use of the key asks again at
        once. Of two that got there after all the first counts.
        """
        if change.body is not None:
            self._creations.end(*(change.body[name] for name in ("tenant", "device", "key")))

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
        turns; without those that were ended.
        """
        keys = sorted(
            (FIRST_SIGNING_KEY, *self._all(SigningKey)),
            key=lambda key: (key.signs_ms, key.created_ms, key.id),
        )
        ended = self._things[Revocation.KIND]
        return [key for key in keys if Revocation.signing_key_id(key.id) not in ended]

    def user(self, name: str) -> User | None:
        """The user with this name."""
        return self._get(User, name)

    def point_of(self, series: int) -> Point | None:
        """The point whose series this is, of any tenant."""
        return self._points.of_series(series)

    def retained(self) -> Sequence[Point]:
        """The points whose values are not kept for ever."""
        return self._points.retained()

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

    @property
    def collisions(self) -> int:
        """How many points are passed over because their series belongs to another."""
        return self._points.shadowed

    def _get(self, cls: type[T], thing: str) -> T | None:
        found = self._things[cls.KIND].get(thing)
        return found if isinstance(found, cls) else None

    def _all(self, cls: type[T]) -> list[T]:
        things = [
            thing for thing in list(self._things[cls.KIND].values()) if isinstance(thing, cls)
        ]
        return sorted(things, key=lambda thing: thing.id)


def _revoked(key: Key) -> Key:
    return replace(key, revoked=True, secrets=())


def _origin(point: Point) -> tuple[str, str, str]:
    """What a point's series is made of."""
    return point.tenant, point.device, point.origin or point.key


def _own(tenant: str, point: Point | None) -> Point | None:
    return point if point is not None and point.tenant == tenant else None
