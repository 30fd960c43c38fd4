"""Empties the log's topics into store and outboxes: `SERVICE` runs a worker for each."""

from __future__ import annotations

import asyncio
import sys

from services.registry import discover
from services.runtime import Mounted, Runtime
from services.sinks._contract import Outbox, Sink, Worker, Write
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
    """All sinks and outboxes of one process."""

    name = "sinks"

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Start a worker for each; the first that breaks ends the process."""
        given = (runtime.log, runtime.store, runtime.clock, runtime.settings)
        workers: list[Worker] = [SinkWorker(sink, *given) for sink in all_sinks()]
        workers += [outbox.open(runtime) for outbox in all_outboxes()]
        for worker in workers:
            group.create_task(worker.run(stop), name=worker.group)
        return Mounted()


SERVICE = SinksService()
