"""The plain runner: drives lanes from any event log by reading it. The only one on SQLite; on Kafka
by a setting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from schemas.topics import Topic
from services.agents._guard import guarded, until_available
from services.agents._lane import Parts
from services.agents._lanes import Lanes
from services.errors import Unavailable
from services.eventlog import Reader


class _ReaderDrive:
    """Keepers' wishes, told to the log's reader."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self.reader: Reader | None = None

    def seek(self, lane: int, offset: int) -> None:
        """Deliver from `offset` on."""
        if self.reader:
            self.reader.seek(self._topic, lane, offset)

    def pause(self, lane: int) -> None:
        """Deliver nothing until `resume`."""
        if self.reader:
            self.reader.pause(self._topic, lane)

    def resume(self, lane: int) -> None:
        """Deliver again."""
        if self.reader:
            self.reader.resume(self._topic, lane)

    async def commit(self, lane: int, next_offset: int) -> None:
        """Best effort: the next checkpoint commits again."""
        if self.reader:
            with contextlib.suppress(Unavailable):
                await self.reader.commit(self._topic, lane, next_offset)


async def run_loop(parts: Parts, stop: asyncio.Event, *, lanes_class: type[Lanes] = Lanes) -> None:
    """Drive the agent's lanes until `stop` is set."""
    drive = _ReaderDrive(parts.agent.source)
    lanes = lanes_class(parts, drive)
    with contextlib.suppress(Unavailable):
        await until_available(
            lambda: _read(parts, drive, lanes, stop), what="the event log", stop=stop
        )


async def _read(parts: Parts, drive: _ReaderDrive, lanes: Lanes, stop: asyncio.Event) -> None:
    agent = parts.agent

    def assigned(_: Topic, given: Sequence[int]) -> None:
        lanes.assign(given)

    def revoked(_: Topic, lost: Sequence[int]) -> None:
        lanes.revoke(lost)

    async with parts.log.reader(
        [agent.source], group=f"agents.{agent.name}", on_assigned=assigned, on_revoked=revoked
    ) as reader:
        drive.reader = reader
        beside = [
            asyncio.create_task(guarded(lanes.follow_stored, what="following lanes.stored")),
            asyncio.create_task(guarded(lanes.watch, what="watching lanes")),
        ]
        try:
            while not stop.is_set():
                batch = await until_available(
                    lambda: reader.batch(wait_ms=200), what="the event log", stop=stop
                )
                for logged in batch.records if batch else ():
                    lanes.offer(batch.lane, logged)  # type: ignore[union-attr]
        finally:
            for task in beside:
                task.cancel()
            await lanes.close()
            drive.reader = None
