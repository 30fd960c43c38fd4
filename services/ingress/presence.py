"""Says on the log which devices have sessions at this process, and that the process is there.

Nothing is said at the moment when a session begins or ends: once a second what is held here is
compared with what was said last, and the difference is said. So a device that comes and goes costs
a record a second at the most, and what another process says of a device that has sessions at both
is put right by itself: of two that hold it the one where it came last says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from uuid import uuid4

from schemas.envelope import Envelope, Lease, Presence
from schemas.topics import DEVICES_CONNECTED
from services.clock import Clock
from services.errors import Unavailable
from services.eventlog import EventLog
from services.presence import Device, PresenceView

LEASE_MS = 30_000
_RENEW_MS = 10_000
_EVERY_SECONDS = 1
_LEAVE_SECONDS = 1
_RECORDS_MAX = 500
"""Of one second; the others wait for the next."""

_log = logging.getLogger(__name__)


class Presences:
    """The devices with sessions at this process. Belongs to one event loop."""

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self.process = uuid4().hex
        self._log, self._clock = log, clock
        self.view = PresenceView(clock, self._look_at)
        self._held: dict[Device, int] = {}
        self._due: dict[Device, None] = {}
        """The devices to look at: something happened here or was said."""
        self._lease_ms = 0
        """Until when it was said that the process is there."""

    def told(self, tenant: str, device: str, connected: bool) -> None:
        """The first session of a device has begun here, or the last one has ended."""
        place = tenant, device
        if connected:
            self._held.setdefault(place, self._clock.now_ms())
        else:
            self._held.pop(place, None)
        self._look_at(place)

    def _look_at(self, device: Device) -> None:
        self._due[device] = None

    async def follow(self) -> None:
        """Read what is said, for ever."""
        await self.view.follow(self._log)

    async def run(self) -> None:
        """Say what differs, until cancelled."""
        while True:
            await self.say()
            await asyncio.sleep(_EVERY_SECONDS)

    async def say(self) -> None:
        """Have on the log what differs from what was said last."""
        now_ms = self._clock.now_ms()
        renew = bool(self._held) and self._lease_ms - now_ms <= LEASE_MS - _RENEW_MS
        due, self._due = self._due, {}
        # At each renewal all are looked at: what a process said that is gone counts no more.
        differences = list(self._differences(due | dict.fromkeys(self._held) if renew else due))
        said, later = differences[:_RECORDS_MAX], differences[_RECORDS_MAX:]
        self._look_again(later)
        if not (said or renew):
            return
        lease, before_ms = [Lease(self.process, now_ms + LEASE_MS)] if renew else [], self._lease_ms
        if renew:
            # Before it is said: a process that ends meanwhile has something to take back.
            self._lease_ms = now_ms + LEASE_MS
        try:
            await self._append([*lease, *said])
        except Unavailable as error:
            self._lease_ms = before_ms
            self._look_again(said)
            _log.warning("who is connected cannot be said: %s", error.message)

    def _look_again(self, said: Iterable[Presence]) -> None:
        for each in said:
            self._look_at((each.tenant, each.device))

    async def leave(self) -> None:
        """The process ends: what it has said counts no more. Nobody waits long for that: if it
        cannot be said, the lease ends it.
        """
        if not self._lease_ms:
            return
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._append([Lease(self.process, 0)])
        except (Unavailable, TimeoutError) as error:
            _log.warning("that the process ends cannot be said: %s", error)

    def _differences(self, devices: Iterable[Device]) -> Iterator[Presence]:
        for device in devices:
            since_ms, said = self._held.get(device), self.view.said(device)
            mine = said is not None and said.process == self.process
            if since_ms is None:
                if said is not None and mine and said.connected:
                    yield Presence(*device, self.process, False, self._clock.now_ms())
            elif not (
                said is not None
                and said.connected
                and (mine or (said.since_ms >= since_ms and self.view.there(said.process)))
            ):
                yield Presence(*device, self.process, True, since_ms)

    async def _append(self, records: Iterable[Lease | Presence]) -> None:
        await self._log.append(
            [(DEVICES_CONNECTED, 0, Envelope(record, key=record.key)) for record in records]
        )
