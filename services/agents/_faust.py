"""The Faust runner: drives lanes from Faust streams over Kafka. The only module that imports Faust.

Faust delivers; nothing else of it is believed. Its acknowledgements and commits carry no meaning,
it owns no table, no changelog and no web server. What it loses at a rebalance shows as a gap in a
lane's positions, and the lane is sought back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import faust
from aiokafka.errors import KafkaError
from faust.exceptions import ConsumerNotStarted
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from schemas.envelope import Logged, decode
from services.agents._guard import guarded
from services.agents._lane import Parts
from services.agents._lanes import Lanes
from services.errors import Broken

FETCH_WAIT_MS = 20
"""A long poll for idle partitions holds back busy ones; Faust's own figure is 1,500."""
PATIENCE_SECONDS = 0.25
"""A lane that is full for longer (it waits for the store, perhaps) is paused by itself."""
_STOP_SECONDS_MAX = 5

_logger = logging.getLogger(__name__)


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class _Forgets(dict[Any, Any]):
    """Faust drops a record below the highest offset that it noted for a partition, and may note
    one after it was sought back. It finds nothing noted: the lane keeper decides what is old.
    """

    def __getitem__(self, key: Any) -> None:
        return None


class _Consumer(driver.Consumer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = _Forgets()

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """After a rebalance Faust goes to what the group committed; the lanes know better."""
        await super().perform_seek()
        self.app.after_seek()


class _Transport(driver.Transport):
    Consumer = _Consumer


class _App(faust.App):
    """An app with our consumer, which tells when it has sought by itself."""

    after_seek: Callable[[], None] = staticmethod(lambda: None)

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


class _FaustDrive:
    """Keepers' wishes, told to Faust's consumer in the background; what fails is asked again.

    Faust drops what it has fetched of a partition that is paused, which costs a seek. So a full
    lane first holds the whole stream back; only one that stays full is paused, and the others go
    on.
    """

    def __init__(self, app: faust.App, topic: str) -> None:
        self._app, self._topic = app, topic
        self._asked: set[asyncio.Task[None]] = set()
        self._full: dict[int, asyncio.Event] = {}
        self._paused: set[int] = set()

    def seek(self, lane: int, offset: int) -> None:
        """Deliver from `offset` on."""
        self._ask(self._app.consumer.seek_wait({TP(self._topic, lane): offset}))

    def pause(self, lane: int) -> None:
        """Deliver nothing until `resume`."""
        self._full.setdefault(lane, asyncio.Event())

    def resume(self, lane: int) -> None:
        """Deliver again."""
        self.forget([lane])
        self._app.consumer.resume_partitions({TP(self._topic, lane)})

    async def commit(self, lane: int, next_offset: int) -> None:
        """Faust commits what it likes; nobody reads it."""

    def forget(self, lanes: Sequence[int]) -> None:
        """These lanes are full no more."""
        for lane in lanes:
            self._paused.discard(lane)
            if full := self._full.pop(lane, None):
                full.set()

    async def until_room(self, lane: int) -> None:
        """Wait while the lane is full, but not for one that stays so."""
        full = self._full.get(lane)
        if full is None or lane in self._paused:
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await full.wait()
        except TimeoutError:
            if self._full.get(lane) is full:
                self._paused.add(lane)
                self._app.consumer.pause_partitions({TP(self._topic, lane)})

    def _ask(self, wish: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_tried(wish))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)


async def _tried(wish: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(KafkaError, ConsumerNotStarted, AssertionError, TimeoutError):
        await wish


async def run_faust(parts: Parts, stop: asyncio.Event, *, lanes_class: type[Lanes] = Lanes) -> None:
    """Drive the agent's lanes by a Faust app of their own until `stop` is set."""
    settings, agent = parts.settings, parts.agent
    name = f"{settings.topic_prefix}{agent.source.name}"
    app = new_app(parts)
    topic = app.topic(name, value_serializer="raw", key_serializer="raw", internal=False)
    drive = _FaustDrive(app, name)
    lanes = lanes_class(parts, drive)
    app.after_seek = lanes.seek_again

    async def deliver(stream: Any) -> None:
        async def body() -> None:
            async for event in stream.events():
                message = event.message
                headers = message.headers or ()
                items = headers.items() if isinstance(headers, dict) else headers
                record = decode(message.value, list(items))
                lanes.offer(message.partition, Logged(message.offset, record))
                await drive.until_room(message.partition)

        await guarded(body, what=f"the stream of {name}")

    app.agent(topic, name=agent.name, concurrency=1)(deliver)

    @app.on_partitions_assigned.connect
    async def assigned(_: Any, given: set[TP], **__: Any) -> None:
        lanes.assign([partition.partition for partition in given if partition.topic == name])

    @app.on_partitions_revoked.connect
    async def revoked(_: Any, lost: set[TP], **__: Any) -> None:
        gone = [partition.partition for partition in lost if partition.topic == name]
        lanes.revoke(gone)
        drive.forget(gone)

    beside = [
        asyncio.create_task(guarded(lanes.follow_stored, what="following lanes.stored")),
        asyncio.create_task(guarded(lanes.watch, what="watching lanes")),
    ]
    try:
        await app.start()
        await _until_stopped(app, stop)
    finally:
        for task in beside:
            task.cancel()
        await lanes.close()
        try:
            async with asyncio.timeout(_STOP_SECONDS_MAX):
                await app.stop()
        except TimeoutError:
            _logger.warning("Faust did not stop in order; nothing of it is needed")


async def _until_stopped(app: faust.App, stop: asyncio.Event) -> None:
    """Until `stop` is set. Raises Broken when the app has ended by itself."""
    while not stop.is_set():
        if app.crashed or app.should_stop:
            raise Broken(f"Faust ended by itself: {app.crash_reason!r}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await stop.wait()


def new_app(parts: Parts) -> _App:
    """A Faust app with nothing on it: no table, no web server, no codec, no logging of its own."""
    settings = parts.settings
    brokers = settings.log_url.removeprefix("kafka://").strip("/").split(",")
    return _App(
        f"{settings.topic_prefix}agents.{parts.agent.name}.faust",
        broker=[f"kafka://{broker}" for broker in brokers],
        processing_guarantee="at_least_once",
        value_serializer="raw",
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=settings.lanes,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=1.0,
        broker_max_poll_records=500,
        broker_request_timeout=10.0,
        stream_buffer_maxsize=256,
        stream_wait_empty=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=settings.instance or None,
        datadir=str(Path(settings.data_dir) / "faust"),
        stream_processing_timeout=3_600.0,
        broker_commit_livelock_soft_timeout=3_600.0,
        producer_linger=0.002,
        loghandlers=[],
        logging_config=None,
    )
