"""Empties the log's topics into store and outboxes, and has what is stored expire: `SERVICE` runs a
worker for each, and one for the periods of points.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from schemas.topics import SAMPLES_ACCEPTED
from services.registry import discover
from services.runtime import Mounted, Runtime
from services.sinks._contract import Outbox, Sink, Worker, Write
from services.sinks._retention import Retention
from services.sinks._worker import SinkWorker

__all__ = ["SERVICE", "Outbox", "Sink", "SinkWorker", "Write", "all_outboxes", "all_sinks"]


def all_sinks() -> tuple[Sink, ...]:
    """The sinks of every module of this folder."""
    return tuple(one for one in _plugged() if isinstance(one, Sink))


def all_outboxes() -> tuple[Outbox, ...]:
    """The outboxes of every module of this folder."""
    return tuple(one for one in _plugged() if isinstance(one, Outbox))


def _plugged() -> list[Sink | Outbox]:
    found = discover(sys.modules[__name__], "SINKS")
    return [one for plugged in found.values() for one in plugged]


class SinksService:
    """All sinks and outboxes of one process, and its retention."""

    name = "sinks"

    def warm(self) -> None:
        """There is nothing to be loaded."""

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Start a worker for each; the first that breaks ends the process."""
        retention = Retention(runtime.view, runtime.store, runtime.clock)
        given = (runtime.log, runtime.store, runtime.clock, runtime.settings)
        workers: list[Worker] = []
        for sink in all_sinks():
            if sink.source is SAMPLES_ACCEPTED:
                sink = replace(sink, write=retention.noting(sink.write))
            workers.append(SinkWorker(sink, *given))
        workers += [outbox.open(runtime) for outbox in all_outboxes()]
        for worker in workers:
            group.create_task(worker.run(stop), name=worker.group)
        group.create_task(retention.run(stop), name="retention")
        return Mounted()


SERVICE = SinksService()
