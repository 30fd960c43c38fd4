"""Who follows, in tests: a parser of server-sent events, a reader with a connection that can be
held, and a hub whose live view is told what to pass on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.blocks import Block
from schemas.catalogue import API_SERVER, Device, Point
from schemas.envelope import Envelope, Logged
from schemas.points import PointPolicy, lane_of
from schemas.samples import Conflict, Kind
from schemas.topics import SAMPLES_ACCEPTED, TOPICS
from services.clock import ManualClock
from services.dialects import Inbound
from services.dialects.next_plus.stream import STREAM
from services.domain.lattice import Place, version_of
from services.eventlog import EventLog, open_eventlog
from services.query._reader import Reader
from services.query._wire import EventStream
from services.query.live import Passed
from services.query.stream import Hub
from services.settings import Settings
from tests.support.lookup import ListedLookup, a_principal

LANES, EPOCH = 2, 1
KEYS = ("a", "b", "c")
TENANTS = ("acme", "bolt")
Sent = tuple[str, int]
"""A key and its value."""


@dataclass
class Events:
    """Server-sent events out of bytes, as a browser takes them: `retry_ms`, `last_id`, and `got`:
    (id, event, data) of each.
    """

    got: list[tuple[str, str, Any]] = field(default_factory=list)
    last_id: str = ""
    retry_ms: int = 0
    comments: int = 0
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes in."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            self._take(block.decode().split("\n"))

    def _take(self, lines: Sequence[str]) -> None:
        event, data = "message", []
        for line in lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "":
                self.comments += 1
            elif name == "id":
                self.last_id = value
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)
            elif name == "retry":
                self.retry_ms = int(value)
            else:
                raise AssertionError(f"no field of an event stream: {line!r}")
        if data:
            self.got.append((self.last_id, event, json.loads("\n".join(data))))

    def of(self, event: str) -> list[Any]:
        """The data of the events of a kind."""
        return [data for _, kind, data in self.got if kind == event]

    @property
    def changes(self) -> list[Sent]:
        """Key and value of each change."""
        return [(data["key"], data["value"]) for data in self.of("message")]


class Connection:
    """An ASGI connection of one who follows: `events` is what got through. While it is held, sends
    wait.
    """

    def __init__(self) -> None:
        self.events = Events()
        self.ended = False
        self._open, self._left = asyncio.Event(), asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        """Take nothing more."""
        self._open.clear()

    def release(self) -> None:
        """Take again."""
        self._open.set()

    def leave(self) -> None:
        """Go away."""
        self._left.set()

    async def receive(self) -> Mapping[str, Any]:
        """ASGI."""
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI."""
        await self._open.wait()
        if message["type"] == "http.response.body":
            self.events.feed(message["body"])
            self.ended = not message["more_body"]


@dataclass
class Follower:
    """A reader that is served."""

    reader: Reader
    connection: Connection
    task: asyncio.Task[None]

    @property
    def events(self) -> Events:
        """What got through."""
        return self.connection.events

    async def until(self, check: Callable[[Events], bool]) -> None:
        """Wait for what it got."""
        await until(lambda: check(self.events) or self.task.done())
        assert check(self.events), self.events


class Told:
    """A live view that passes on what the test says."""

    def __init__(self, log: EventLog) -> None:
        self.is_ready = True
        self.offsets = dict.fromkeys(range(LANES), 0)
        self._log = log
        self._passed: list[Passed] = []

    def ready(self) -> bool:
        """Whether it has caught up."""
        return self.is_ready

    def on_record(self, passed: Passed) -> None:
        """Who is told."""
        self._passed.append(passed)

    def tell(self, lane: int, logged: Logged) -> None:
        """Pass a record on."""
        self.offsets[lane] = logged.offset + 1
        for passed in self._passed:
            passed(lane, logged)

    async def read_on(self) -> None:
        """Pass on everything that is on the log and was not passed on yet."""
        for lane, span in (await self._log.spans(SAMPLES_ACCEPTED)).items():
            start = max(self.offsets[lane], span.begin)
            async with self._log.reader(
                [SAMPLES_ACCEPTED], start={lane: start}, lanes=[lane]
            ) as reader:
                while self.offsets[lane] < span.end:
                    batch = await reader.batch()
                    assert batch is not None
                    for logged in batch.records:
                        self.tell(lane, logged)


class Process:
    """A hub with its view, as another process would have them."""

    def __init__(self, ground: Ground, *, queued_rows_max: int = 200_000, **settings: int) -> None:
        self.ground = ground
        self.live, self.clock = Told(ground.log), ManualClock()
        self.hub = Hub(
            self.live,  # type: ignore[arg-type]
            ground.log,
            ground.lookup,
            clock=self.clock,
            settings=Settings(**settings),  # type: ignore[arg-type]
            queued_rows_max=queued_rows_max,
        )
        self.running = asyncio.create_task(self.hub.run())
        self.followers: list[Follower] = []

    async def follow(
        self,
        tenant: str = "acme",
        since: str = "",
        valid: Callable[[], object] = lambda: None,
        query: Mapping[str, str] | None = None,
        **principal: Any,
    ) -> Follower:
        """Somebody begins to follow, behind the event `since`."""
        headers = {"last-event-id": since} if since else {}
        who = a_principal(tenant, **principal)
        inbound = Inbound(b"", self.clock.now_ms(), who, query=query or {}, headers=headers)
        reader = await self.hub.open(STREAM, inbound, valid)
        connection = Connection()
        wire = EventStream(connection.receive, connection.send)
        task = asyncio.create_task(self.hub.serve(reader, wire))
        made = Follower(reader, connection, task)
        self.followers.append(made)
        return made

    async def close(self) -> None:
        """End it like a kill."""
        tasks = [self.running, *(each.task for each in self.followers)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Ground:
    """A log, a catalogue with the parameters KEYS of two tenants in one lane, and processes."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        servers = [Device(f"server of {tenant}", tenant, type=API_SERVER) for tenant in TENANTS]
        other = Device("other of acme", "acme")
        # Devices are numbered as they come: the two servers get one lane.
        points = [
            Point(f"{prefix}/{key}", device.tenant, device.id, key, name=key)
            for prefix, device in (("acme", servers[0]), ("other", other), ("bolt", servers[1]))
            for key in KEYS
        ]
        self.lookup = ListedLookup([*servers, other, *points])
        assert len({self._lane_of(tenant) for tenant in TENANTS}) == 1
        self.received = 0
        self.processes: list[Process] = []

    def start(self, **settings: int) -> Process:
        """A process that has read nothing yet."""
        process = Process(self, **settings)
        self.processes.append(process)
        return process

    def record(
        self, *values: Sent, tenant: str = "acme", device: str = "", revision: int = 0
    ) -> Envelope:
        """A record of the judge: its next one, with a row for each value."""
        self.received += 1
        block = Block()
        policy = block.policy_index(PointPolicy(tenant, revision))
        for row, (key, value) in enumerate(values):
            series = self.lookup.series(tenant, device or f"server of {tenant}", key)
            ts_ms = 1_700_000_000_000 + value
            block.add(series, ts_ms, Kind.LONG, value, policy=policy, rule=Conflict.LAST)
            block.version.append(version_of(Place(EPOCH, self.received, row, Conflict.LAST)))
        return Envelope(block, received=self.received, epoch=EPOCH)

    async def accept(self, *values: Sent, **more: Any) -> Envelope:
        """Put the next record on the log, in the lane of acme's server."""
        record = self.record(*values, **more)
        await self.repeat(record)
        return record

    async def repeat(self, *records: Envelope) -> None:
        """Put records on the log, again."""
        lane = self._lane_of("acme")
        for record in records:
            await self.log.append([(SAMPLES_ACCEPTED, lane, record)])

    def _lane_of(self, tenant: str) -> int:
        return lane_of(self.lookup.series(tenant, f"server of {tenant}", "a"), LANES)

    async def tell_all(self) -> None:
        """Have every process read on."""
        for process in self.processes:
            await process.live.read_on()


@asynccontextmanager
async def a_ground(folder: Path) -> AsyncIterator[Ground]:
    """Fresh ground; every process on it ends with the block."""
    async with open_eventlog(f"sqlite:///{folder / 'log.sqlite'}", lanes=LANES) as log:
        await log.create(TOPICS)
        ground = Ground(log)
        try:
            yield ground
        finally:
            for process in ground.processes:
                await process.close()


async def until(check: Callable[[], bool]) -> None:
    """Wait for a condition, at most some seconds."""
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.002)
