"""Doors out: store and log to bytes. `SERVICE` follows the log and answers the reads of all
dialects.
"""

from __future__ import annotations

import asyncio

from services import dialects, registry
from services.dialects import Dialect
from services.domain import newest
from services.doors import Turnstile
from services.presence import PresenceView
from services.query.answer import Answer
from services.query.coalesce import Coalescer
from services.query.http import query_routes
from services.query.live import LiveView
from services.query.stream import Hub
from services.runtime import Mounted, Runtime

__all__ = [
    "SERVICE",
    "Answer",
    "Coalescer",
    "Hub",
    "LiveView",
    "QueryService",
    "query_routes",
]


class QueryService:
    """The doors out of one process."""

    name = "query"

    def warm(self) -> None:
        """Have what finds the newest values compiled, or loaded."""
        newest.warm()

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Begin to follow the log; until the view has caught up, reads are answered 503."""
        clock, settings = runtime.clock, runtime.settings
        spoken: list[Dialect] = list(registry.discover(dialects, "DIALECT").values())
        live = LiveView(runtime.log, runtime.store, settings)
        hub = Hub(live, runtime.log, runtime.view, clock=clock, settings=settings)
        runtime.view.on_change(hub.configured)
        following = group.create_task(live.run(), name="follow accepted samples")
        streaming = group.create_task(hub.run(), name="stream changes")
        ranges = Coalescer(runtime.store, rows_max=settings.range_rows_max)
        presence = PresenceView(clock)
        hearing = group.create_task(presence.follow(runtime.log), name="follow who is connected")
        answer = Answer(
            live, ranges, runtime.view, settings=settings, clock=clock, presence=presence
        )
        turnstile = Turnstile(
            authority=runtime.auth, clock=clock, settings=settings, dialects=spoken
        )
        runtime.checks["presence"] = lambda: None if presence.ready() else "still reading the log"
        runtime.checks["live view"] = lambda: None if live.ready() else "still reading the log"

        async def drain() -> None:
            following.cancel()
            streaming.cancel()
            hearing.cancel()
            await ranges.close()

        routes = query_routes(spoken, turnstile, answer, hub)
        return Mounted(routers=[routes], hang_up=hub.hang_up, drain=drain)


SERVICE = QueryService()
