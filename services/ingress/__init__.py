"""Doors in: bytes to event log. Thin. `SERVICE` mounts the HTTP doors and the MQTT listener of all
dialects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from schemas.catalogue import Key
from schemas.envelope import Change
from services import dialects, registry
from services.dialects import Dialect, Principal
from services.doors import Turnstile
from services.ingress.accept import Intaker
from services.ingress.actions import DoorActions
from services.ingress.bulk import BulkDoors
from services.ingress.http import DoorsIn, push_routes, stray_reply
from services.ingress.mqtt import MqttListener
from services.ingress.presence import Presences
from services.ingress.promises import Promises
from services.ingress.receipts import ReceiptDesk
from services.runtime import Mounted, Runtime, until

__all__ = ["SERVICE", "IngressService"]


class IngressService:
    """The doors in of one process."""

    name = "ingress"

    def warm(self) -> None:
        """Have the scanners of hot doors compiled, or loaded."""
        for dialect in _spoken():
            if dialect.warm:
                dialect.warm()

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Follow the receipts, then open the doors."""
        log, clock, settings = runtime.log, runtime.clock, runtime.settings
        spoken = _spoken()
        desk = ReceiptDesk(log, waits_max=settings.requests_in_flight_max)
        promises = Promises(log, clock, settings, runtime.derived("receipts"))
        await promises.open()
        desk.on_receipt(promises.hand_out)
        tasks = [group.create_task(desk.follow(), name="follow receipts")]
        await until(desk.following.is_set, seconds=30)
        doors = _doors(runtime, spoken, desk, promises)
        presences = Presences(log, clock)
        tasks.append(group.create_task(presences.follow(), name="follow who is connected"))
        tasks.append(group.create_task(presences.run(), name="say who is connected"))
        mqtt = await _listen(runtime, spoken, presences)
        runtime.checks["mqtt"] = lambda: "not read for long" if mqtt.paused_ms > 10_000 else None
        runtime.checks["log"] = lambda: (
            "its queue is full" if log.queued_bytes >= log.queued_bytes_max else None
        )

        async def drain() -> None:
            await mqtt.stop()
            for task in tasks:
                task.cancel()
            await presences.leave()

        return Mounted(
            fallback=lambda path, status: stray_reply(spoken, path, status, clock.now_ms()),
            routers=[push_routes(spoken, doors)],
            front=lambda app: BulkDoors(app, spoken, doors),
            drain=drain,
        )


def _spoken() -> list[Dialect]:
    found: Mapping[str, Dialect] = registry.discover(dialects, "DIALECT")
    return list(found.values())


def _doors(
    runtime: Runtime, spoken: Sequence[Dialect], desk: ReceiptDesk, promises: Promises
) -> DoorsIn:
    """What answers HTTP."""
    log, view, clock, settings = runtime.log, runtime.view, runtime.clock, runtime.settings
    return DoorsIn(
        turnstile=Turnstile(
            authority=runtime.auth, clock=clock, settings=settings, dialects=spoken
        ),
        intaker=Intaker(
            log=log, view=view, desk=desk, clock=clock, settings=settings, promises=promises
        ),
        lookup=view,
        actions=DoorActions(runtime.auth, runtime.control, view, clock, settings, promises),
    )


async def _listen(
    runtime: Runtime, spoken: Sequence[Dialect], presences: Presences
) -> MqttListener:
    """What answers MQTT, open."""
    settings = runtime.settings
    mqtt = MqttListener(
        log=runtime.log,
        authenticate=runtime.auth.device,
        lookup=runtime.view,
        publishes={
            door.topic.encode(): (dialect.name, door)
            for dialect in spoken
            for door in dialect.publishes
        },
        clock=runtime.clock,
        settings=settings,
        told=presences.told,
    )
    runtime.view.on_change(partial(_close_revoked, mqtt))
    runtime.mqtt_port = await mqtt.start(settings.mqtt_host, settings.mqtt_port)
    if runtime.tls:
        port = settings.mqtt_tls_port
        runtime.mqtt_tls_port = await mqtt.start(settings.mqtt_host, port, runtime.tls.context)
    return mqtt


def _close_revoked(mqtt: MqttListener, change: Change) -> None:
    """A key that was changed or deleted, or a device that is gone: close the sessions that it had
    opened.
    """
    if change.kind == Key.KIND:
        mqtt.revoke(lambda principal: principal.subject == change.id)
    elif change.kind == "device" and change.body is None:

        def of_device(principal: Principal) -> bool:
            return principal.device == change.id

        mqtt.revoke(of_device)


SERVICE = IngressService()
