"""Where the contract suite finds a store: one engine for a module, a fresh database for each test.

chDB lives in this process, which can have one of its folders open at a time; the front and the
server are processes of their own, reached by `clickhouse://`. An anchor is a connection that keeps
chDB's engine from closing and opening again between two tests.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import chdb
from testcontainers.core.container import DockerContainer

from services.store import Store, open_store
from tests.support.containers import image
from tests.support.processes import Process, free_port, started, wait_for

IMAGE = "clickhouse/clickhouse-server:25.8"
_numbers = itertools.count(1)


class Engine(Protocol):
    """What an implementation must offer to be put through the suite."""

    def url(self, database: str) -> str:
        """For `open_store`."""
        ...


@dataclass(slots=True)
class Place:
    """An empty database of an engine, which the migrations have yet to make."""

    engine: Engine
    database: str = field(default_factory=lambda: f"test_{next(_numbers)}")

    @property
    def url(self) -> str:
        """For `open_store`."""
        return self.engine.url(self.database)


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Store]:
    """The store of a place, migrated."""
    async with open_store(place.url) as store:
        await store.migrate()
        yield store


class Embedded:
    """chDB on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, database: str) -> str:
        """For `open_store`."""
        return f"chdb:///{self.folder}?database={database}"


class Front:
    """The stand-in for a server; it can be killed and started again where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._running: Any = None
        self.process: Process | None = None

    def url(self, database: str) -> str:
        """For `open_store`."""
        return f"clickhouse://lineshaft:p%40ss@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Start it; returns when it answers."""
        argv = [sys.executable, "-m", "tests.support.clickhouse_front"]
        argv += ["--path", str(self._folder / "store"), "--port", str(self._port)]
        argv += ["--user", "lineshaft", "--password", "p@ss"]
        output = self._folder / "output"
        output.unlink(missing_ok=True)
        self._running = started(argv, output=output)
        self.process = self._running.__enter__()
        self.process.wait_output("^http://")

    def kill(self) -> None:
        """kill -9."""
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None


class Server:
    """ClickHouse itself, in a container."""

    def __init__(self, address: str) -> None:
        self._address = address

    def url(self, database: str) -> str:
        """For `open_store`."""
        return f"clickhouse://lineshaft:p%40ss@{self._address}/{database}"


@contextmanager
def embedded(folder: Path) -> Iterator[Embedded]:
    """chDB, kept open."""
    engine = Embedded(folder / "store")
    engine.folder.mkdir()
    anchor = chdb.connect(str(engine.folder))
    try:
        yield engine
    finally:
        anchor.close()


@contextmanager
def front(folder: Path) -> Iterator[Front]:
    """The stand-in, running."""
    engine = Front(folder)
    engine.start()
    try:
        yield engine
    finally:
        engine.kill()


@contextmanager
def server() -> Iterator[Server]:
    """The image, or a skip that says why not."""
    image(IMAGE)
    container = DockerContainer(IMAGE).with_exposed_ports(8123)
    container = container.with_env("CLICKHOUSE_USER", "lineshaft")
    container = container.with_env("CLICKHOUSE_PASSWORD", "p@ss")
    with container as running:
        host, port = running.get_container_host_ip(), running.get_exposed_port(8123)
        logs = "Ready for connections"
        wait_for(lambda: logs in str(running.get_logs()), seconds=60, what="the server")
        yield Server(f"{host}:{port}")
