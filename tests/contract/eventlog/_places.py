"""Where the contract suite finds a log: one class for each implementation.

A place is an empty installation of a log. What was closed there can be opened again and holds what
it held; the suite never has two logs of one place open in one process at a time.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from schemas.topics import TOPICS, Topic
from services.eventlog import EventLog, open_eventlog
from services.eventlog._sqlite_file import base_of, pack_headers
from services.eventlog.sqlite import SqliteLog
from tests.support.kafka import delete_topics, produce_raw

LANES = 4
_numbers = itertools.count(1)
QUEUED_BYTES_MAX = 64 * 1024 * 1024


class Place(Protocol):
    """What an implementation must offer to be put through the suite."""

    url: str
    """For `open_eventlog`, also in a child process."""
    prefix: str

    async def poison(
        self, topic: Topic, lane: int, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Put any bytes behind a lane's last record; no log is open meanwhile."""
        ...

    async def remake(self) -> None:
        """Remove everything, as if the log's disk had been replaced; no log is open meanwhile."""
        ...


@asynccontextmanager
async def opened(
    place: Place,
    *,
    lanes: int = LANES,
    queued_bytes_max: int = QUEUED_BYTES_MAX,
    topics: Sequence[Topic] = TOPICS,
) -> AsyncIterator[EventLog]:
    """The log of a place, with its topics."""
    log = open_eventlog(
        place.url, lanes=lanes, prefix=place.prefix, queued_bytes_max=queued_bytes_max
    )
    async with log:
        await log.create(topics)
        yield log


class SqlitePlace:
    """A file in a folder of the test's own."""

    prefix = ""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.sqlite"
        self.url = f"sqlite:///{self.path}"

    def log(self, **options: Any) -> SqliteLog:
        """The log with what only this implementation offers; not yet opened."""
        return SqliteLog(str(self.path), lanes=LANES, **options)

    async def poison(
        self, topic: Topic, lane: int, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """A row written past the driver."""
        with sqlite3.connect(self.path) as connection:
            [number] = connection.execute(
                "SELECT number FROM topics WHERE name = ?", (topic.name,)
            ).fetchone()
            base, end = base_of(number, lane), base_of(number, lane + 1)
            [last] = connection.execute(
                "SELECT max(place) FROM records WHERE place >= ? AND place < ?", (base, end)
            ).fetchone()
            place = base if last is None else last + 1
            row = (place, 0, None, pack_headers(list(headers)), value)
            connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", row)
        connection.close()

    async def remake(self) -> None:
        """The file is deleted."""
        for file in self.path.parent.glob(self.path.name + "*"):
            file.unlink()


class KafkaPlace:
    """Topics with a prefix of the test's own, on a broker that many tests share."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.url = f"kafka://{address}"
        self.prefix = f"suite-{os.getpid()}-{next(_numbers)}."

    async def poison(
        self, topic: Topic, lane: int, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """A record produced past the driver."""
        await produce_raw(self.address, self.prefix + topic.name, lane, value, headers)

    async def remake(self) -> None:
        """The topics are deleted."""
        await delete_topics(self.address, self.prefix)
