"""Which devices are connected, as the log says it: every process that answers for it, and every one
that has sessions, follows `devices.connected`.

A door process says of a device when its first session begins there and when its last one ends, and
of itself, again and again, until when it is there. What a process has said counts for nothing once
that moment has passed: who was killed holds no device for longer than its lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from schemas.envelope import Envelope, Lease, Logged, Presence
from schemas.topics import DEVICES_CONNECTED
from services.clock import Clock
from services.errors import Unavailable
from services.eventlog import EventLog

Device = tuple[str, str]
"""Tenant and device."""

_BATCH_WAIT_MS = 500

_log = logging.getLogger(__name__)


class PresenceView:
    """What was said last of each device and each process. Belongs to one event loop.

    `changed` is called with each device of which something was said.
    """

    def __init__(self, clock: Clock, changed: Callable[[Device], None] | None = None) -> None:
        self._clock, self._changed = clock, changed
        self._said: dict[Device, Presence] = {}
        self._leases: dict[str, int] = {}
        self.offset = 0
        """Of the next record that will be read."""
        self._end: int | None = None

    def ready(self) -> bool:
        """Whether everything has been read that had been said when following began."""
        return self._end is not None and self.offset >= self._end

    def said(self, device: Device) -> Presence | None:
        """What was said last of a device, by whichever process."""
        return self._said.get(device)

    def there(self, process: str) -> bool:
        """Whether a process is there."""
        return self._leases.get(process, 0) > self._clock.now_ms()

    def connected(self, tenant: str, devices: Iterable[str]) -> Mapping[str, bool]:
        """Of the tenant's devices that ever had a session, whether they have one now."""
        found: dict[str, bool] = {}
        for device in devices:
            said = self._said.get((tenant, device))
            if said is not None:
                found[device] = said.connected and self.there(said.process)
        return found

    async def follow(self, log: EventLog) -> None:
        """Read what is said, from the beginning and for ever."""
        while True:
            try:
                if self._end is None:
                    self._end = (await log.spans(DEVICES_CONNECTED))[0].end
                start = {0: self.offset}
                async with log.reader([DEVICES_CONNECTED], start=start) as reader:
                    while True:
                        if batch := await reader.batch(wait_ms=_BATCH_WAIT_MS):
                            for logged in batch.records:
                                self._take(logged)
            except Unavailable as error:
                _log.warning("who is connected cannot be followed: %s", error.message)
                await asyncio.sleep(error.retry_after_ms / 1000)

    def _take(self, logged: Logged) -> None:
        self.offset = logged.offset + 1
        envelope = logged.envelope
        record = envelope.record if isinstance(envelope, Envelope) else None
        if isinstance(record, Lease):
            self._leases[record.process] = record.until_ms
            # Every start of a process has a lease of its own on the log, for good.
            now_ms = self._clock.now_ms()
            self._leases = {each: ms for each, ms in self._leases.items() if ms > now_ms}
        elif isinstance(record, Presence):
            device = record.tenant, record.device
            self._said[device] = record
            if self._changed is not None:
                self._changed(device)
        else:
            _log.warning("a record of %s is passed over", DEVICES_CONNECTED.name)
