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

from schemas.catalogue import THINGS, Key, Point, Revocation, SigningKey, Thing, Trigger
from schemas.commands import Command
from schemas.envelope import Change, Envelope, Logged
from schemas.points import PointPolicy, Rule
from schemas.samples import Kind
from schemas.topics import CATALOGUE_CHANGED
from services import metrics
from services.catalogue._ids import first, new_point, origin_of, point_id, series_id
from services.catalogue._points import Creations, Policies, special
from services.catalogue._things import Things
from services.catalogue.commands import Commands
from services.clock import pause
from services.errors import Malformed, Unavailable
from services.eventlog import EventLog

_log = logging.getLogger(__name__)

_BATCH_WAIT_MS = 500

Stamp = tuple[int, PointPolicy]
"""What a door writes on the samples of a point: its series and its policy."""


class View(Things):
    """The catalogue of this process. Implements `services.dialects.Lookup`.

    `revision` is the offset of the last record seen, -1 before the first.
    """

    def __init__(
        self, *, keys_per_device_max: int = 10_000, commands: Commands | None = None
    ) -> None:
        super().__init__()
        self.revision = -1
        self.commands = commands if commands is not None else Commands()
        self._gone: set[str] = set()
        """Ids of points that were deleted."""
        self._policies = Policies(self._rules_of)
        self._stamps: dict[tuple[str, str], dict[str, Stamp]] = {}
        self._creations = Creations(keys_per_device_max)
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
        if cls in (SigningKey, Revocation):
            self._order_signing_keys()
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
                place = origin_of(thing)
                if thing.series != series_id(*place):
                    raise ValueError(f"series {thing.series:#x} is not that of {place}")
        except (TypeError, ValueError) as error:
            self._skip(offset, f"{change.kind} {change.id!r}: {error}")
            return None
        if isinstance(thing, Key) and thing.id in self._things[Revocation.KIND]:
            return _revoked(thing)
        return thing

    def _skip(self, offset: int, reason: str) -> None:
        metrics.CATALOGUE_SKIPPED.labels("undecodable").inc()
        _log.error("record %d of the catalogue cannot be read: %s", offset, reason)

    def _index(self, thing: Thing) -> None:
        super()._index(thing)
        if isinstance(thing, Point):
            self._restamp(thing)
            self._creations.end(thing.tenant, thing.device, thing.key)

    def _unindex(self, thing: Thing) -> None:
        super()._unindex(thing)
        if isinstance(thing, Point):
            self._restamp(thing)

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

    # -- series, and how they are judged -----------------------------------------------------------

    def series(self, tenant: str, device: str, key: str) -> int:
        """The series id, whether or not anything was ever written to it."""
        point = self._points.at(tenant, device, key)
        if point is not None:
            return point.series
        return series_id(tenant, device, self.origin(tenant, device, key) or key)

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

    # -- points that are made by first use ---------------------------------------------------------

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

    def creation_failed(self, change: Change) -> None:
        """The log may not have a change that `creation` gave: the next use of the key asks again at
        once. Of two that got there after all the first counts.
        """
        if change.body is not None:
            self._creations.end(*(change.body[name] for name in ("tenant", "device", "key")))

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
        if (id := point_id(tenant, device, origin)) in self._gone:
            return True
        place = (tenant, device, origin)
        if (holder := self._get(Point, id)) is not None and origin_of(holder) != place:
            return True
        other = self._points.of_series(series_id(tenant, device, origin))
        return other is not None and origin_of(other) == place

    # -- commands ----------------------------------------------------------------------------------

    def commands_of(self, point: Point, now_ms: int) -> Sequence[Command]:
        """The point's newest commands as they are at a moment, the newest first."""
        return self.commands.of(point.series, now_ms)

    def target(self, point: Point, now_ms: int) -> Command | None:
        """The newest command of the point of which something is still expected."""
        return self.commands.target(point.series, now_ms)

    async def commands_current(self) -> None:
        """Wait until every command is in that is on the log now. Raises Unavailable."""
        await self.commands.current()


def _revoked(key: Key) -> Key:
    return replace(key, revoked=True, secrets=())
