"""Empties the log's topics into the store, and has what is there expire: `SERVICE` runs a worker
for every sink there is, and one for the periods of points.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from schemas.topics import SAMPLES_ACCEPTED
from services.registry import discover
from services.runtime import Mounted, Runtime
from services.sinks._contract import Sink, Write
from services.sinks._retention import Retention
from services.sinks._worker import SinkWorker

__all__ = ["SERVICE", "Sink", "SinkWorker", "Write", "all_sinks"]


def all_sinks() -> tuple[Sink, ...]:
    """The sinks of every module of this folder."""
    found = discover(sys.modules[__name__], "SINKS")
    return tuple(sink for sinks in found.values() for sink in sinks)


class SinksService:
    """All sinks of one process, and its retention."""

    name = "sinks"

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Start a worker for every sink; the first that breaks ends the process."""
        retention = Retention(runtime.view, runtime.store, runtime.clock)
        for sink in all_sinks():
            if sink.source is SAMPLES_ACCEPTED:
                sink = replace(sink, write=retention.noting(sink.write))
            worker = SinkWorker(sink, runtime.log, runtime.store, runtime.clock, runtime.settings)
            group.create_task(worker.run(stop), name=worker.group)
        group.create_task(retention.run(stop), name="retention")
        return Mounted()


SERVICE = SinksService()
