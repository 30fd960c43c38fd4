"""The composition root: settings become opened parts, services run on them, everything closes in
flow order.

`lineshaft run NAME…` opens one Runtime and mounts the named services in one loop. Their HTTP routes
share one listener (Granian in this loop); /livez, /readyz and /metrics are on it too, or on a port
of their own where no service has doors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import uvloop
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import Match

from schemas.topics import COMMANDS_CHANGED, TOPICS, Topic
from services import metrics
from services.auth import Auth, installation_secret
from services.catalogue import Commands, Control, View, derive, remote
from services.clock import Clock, SystemClock
from services.dialects import Reply
from services.errors import Broken, Unavailable
from services.eventlog import EventLog, open_eventlog
from services.listener import Listener, Tls
from services.settings import Settings
from services.store import Store, open_store

T = TypeVar("T")
Check = Callable[[], str | None]
Asgi = Callable[..., Any]

_TRIM_SECONDS = 60
_AGAIN_SECONDS, _AGAIN_SECONDS_MAX = 0.5, 4.0
_DRAIN_SECONDS_MAX = 7
"""Of the ten that a supervisor gives a process to end; what is left is for those behind the doors.
"""
_BRANCH_STEPS = 4
"""Of a path's steps, the empty one before its first slash counted: `/api/plugins/telemetry`."""
CONTROL_SOCKET = "control.sock"
"""In the data folder: where a process that has the embedded log takes control actions."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Runtime:
    """The opened parts of a process. Closed in flow order by whoever opened it."""

    settings: Settings
    clock: Clock
    log: EventLog
    store: Store
    view: View
    control: Control
    auth: Auth
    derived: Callable[[str], bytes]
    """The installation's key for one purpose."""
    following: asyncio.Task[None]
    """Keeps the view up to date; a process that does not hear of revoked keys must end."""
    tls: Tls | None = None
    mqtt_port: int = 0
    mqtt_tls_port: int = 0
    checks: dict[str, Check] = field(default_factory=dict)
    """What /readyz asks; services add theirs."""


@dataclass(slots=True)
class Mounted:
    """A service that has been started: its HTTP face, its body, and how it stops taking things
    in.
    """

    routers: Sequence[APIRouter] = ()
    front: Callable[[Asgi], Asgi] | None = None
    """Wraps the whole app: for doors that are answered before any framework."""
    fallback: Callable[[str, int], Reply | None] | None = None
    """The answer to a path that hit no door (404) or not by this method (405); None: not mine."""
    hang_up: Callable[[], Awaitable[None]] | None = None
    """Awaited before the listeners stop: ends what would last for ever on them."""
    drain: Callable[[], Any] | None = None
    """Awaited first when the process stops: take nothing in any more."""


class Service(Protocol):
    """A service of `lineshaft run`: `warm` does what stops the process for long, as nothing waits
    for it yet; `mount` starts its tasks in the group and returns its face. Tasks end when `stop` is
    set: when the doors are closed and drained, so that what they took in is still judged while they
    answer.
    """

    name: str

    def warm(self) -> None:
        """Have compiled code loaded, or made."""
        ...

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Start."""
        ...


@asynccontextmanager
async def open_runtime(settings: Settings, stop: asyncio.Event) -> AsyncIterator[Runtime]:
    """Open log, store, catalogue; embedded engines are prepared (topics, migrations) on the way. A
    log that is a server is waited for.

    Raises Unavailable where `stop` is set before the catalogue has been read.
    """
    clock = SystemClock()
    secret = installation_secret(settings)
    async with AsyncExitStack() as stack:

        async def open_log() -> EventLog:
            return await stack.enter_async_context(
                open_eventlog(
                    settings.log_url,
                    lanes=settings.lanes,
                    prefix=settings.topic_prefix,
                    queued_bytes_max=settings.log_queue_bytes_max,
                )
            )

        log = await (open_log() if settings.log_embedded else when_there(open_log, stop))
        if log is None:
            raise Unavailable("stopped before the event log was there")
        store = await stack.enter_async_context(open_store(settings.store_url))
        if settings.log_embedded:
            await log.create(topics_of(settings))
        if settings.store_embedded:
            await store.migrate()
        commands = Commands(kept_ms=_kept_ms(settings, COMMANDS_CHANGED))
        view = View(keys_per_device_max=settings.keys_per_device_max, commands=commands)
        closing = asyncio.Event()
        following = asyncio.create_task(view.follow(log, closing), name="follow the catalogue")
        stack.callback(following.cancel)
        stack.callback(closing.set)
        control = Control(
            log,
            view,
            clock,
            secret,
            command_ms=settings.command_seconds * 1000,
            device_commands_max=settings.device_commands_max,
        )
        auth = Auth(view, clock, settings, secret)
        tls = Tls(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
        await _read_through(view, following, stop)
        if settings.log_embedded:
            socket_path = Path(settings.data_dir) / CONTROL_SOCKET
            await stack.enter_async_context(remote.listening(control, view, socket_path))
        derived = partial(derive, secret)
        yield Runtime(settings, clock, log, store, view, control, auth, derived, following, tls)


async def _read_through(view: View, following: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Wait until the view is ready; for ever while the log is away, but not beyond `stop`."""
    ready, ended = asyncio.create_task(view.ready()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({ready, ended, following}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        if not ready.done():
            raise Unavailable("stopped before the catalogue was read")
    finally:
        ready.cancel()
        ended.cancel()


async def prepare(settings: Settings) -> list[str]:
    """Make the topics and apply the migrations that are missing; what was done, in words. Raises
    Unavailable where log or store is away, at once.
    """
    done: list[str] = []
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(
            open_eventlog(settings.log_url, lanes=settings.lanes, prefix=settings.topic_prefix)
        )
        await log.create(topics_of(settings))
        done.append(f"{len(TOPICS)} topics in {settings.lanes} lanes")
        store = await stack.enter_async_context(open_store(settings.store_url))
        done += await store.migrate()
    return done


async def when_there(attempt: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T | None:
    """What `attempt` gives, tried again while it is Unavailable; None where `stop` comes first."""
    trying = asyncio.create_task(_patiently(attempt), name="wait for log and store")
    ended = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({trying, ended}, return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else trying.result()
    finally:
        trying.cancel()
        ended.cancel()
        await asyncio.gather(trying, ended, return_exceptions=True)


async def _patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    wait_seconds = _AGAIN_SECONDS
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            _logger.warning("waiting, again in %g s: %s", wait_seconds, error)
        await asyncio.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, _AGAIN_SECONDS_MAX)


def topics_of(settings: Settings) -> list[Topic]:
    """Every topic, none of them kept for longer than the settings say."""
    return [replace(topic, retention_ms=_kept_ms(settings, topic)) for topic in TOPICS]


def _kept_ms(settings: Settings, topic: Topic) -> int:
    return min(topic.retention_ms, settings.retention_hours * 3_600_000)


async def serve(
    runtime: Runtime,
    services: Sequence[Service],
    *,
    ops: Callable[[Mapping[str, Check]], APIRouter],
    ready: Callable[[Runtime, str], Any],
    stop: asyncio.Event,
) -> None:
    """Run the services until `stop`; `ready` is awaited with the address when everything
    listens.
    """
    settings, drained = runtime.settings, asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch_view(runtime.following, drained), name="watch the catalogue")
        mounted = [await service.mount(runtime, group, drained) for service in services]
        for service in services:
            metrics.UP.labels(service.name).set(1)
        app = FastAPI(
            title="Lineshaft",
            openapi_url="/openapi.json",
            docs_url="/docs",
            redirect_slashes=False,
        )
        _answer_strays(app, mounted)
        has_doors = any(face.routers for face in mounted)
        apart = not has_doors or settings.ops_port >= 0
        for branch in _branches(mounted):
            app.include_router(branch)
        starting: dict[str, Check] = {"starting": lambda: "not all of it has started"}
        checks = ChainMap(starting, runtime.checks)
        listeners = []
        if has_doors:
            if not apart:
                app.include_router(ops(checks))
            listeners.append(
                Listener(
                    _wrapped(app, mounted), settings.http_host, settings.http_port, runtime.tls
                )
            )
        if apart:
            beside = FastAPI(openapi_url=None)
            beside.include_router(ops(checks))
            port = settings.ops_port if settings.ops_port >= 0 else 9090
            listeners.append(Listener(beside, settings.ops_host, port, None))
        for listener in listeners:
            await listener.start()
            group.create_task(listener.watch(stop))
        if settings.log_embedded:
            group.create_task(_trim(runtime, stop))
        while any(check() for check in runtime.checks.values()) and not stop.is_set():
            await asyncio.sleep(0.02)
        await ready(runtime, listeners[0].address)
        del starting["starting"]
        await stop.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS_MAX):
                await asyncio.gather(*(face.hang_up() for face in mounted if face.hang_up))
                for listener in listeners:
                    await listener.stop()
                for face in mounted:
                    if face.drain:
                        await face.drain()
        drained.set()


async def _watch_view(following: asyncio.Task[None], drained: asyncio.Event) -> None:
    """End the process where the catalogue is not followed any more."""
    ended = asyncio.create_task(drained.wait())
    try:
        await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
    if following.done():
        following.result()
        raise Broken("the catalogue is not followed any more")


class _Branch(APIRouter):
    """Routes whose paths begin alike. A request is shown to a router's routes one after the other;
    of those of other branches it is told apart by how its path begins.
    """

    def __init__(self, begins: str, routes: Sequence[Any]) -> None:
        super().__init__(routes=[*routes])
        self._begins = begins

    def matches(self, scope: Any) -> tuple[Match, Any]:
        """Whether one of the routes is the request's."""
        if not scope["path"].startswith(self._begins):
            return Match.NONE, {}
        return super().matches(scope)


def _branches(mounted: Sequence[Mounted]) -> list[APIRouter]:
    """The routes of all services: what is spelled out goes before what has parameters, whichever
    service each is of.
    """
    routes = [route for face in mounted for router in face.routers for route in router.routes]
    branches: dict[str, list[Any]] = {}
    for route in sorted(routes, key=lambda route: getattr(route, "path", "").count("{")):
        literal = getattr(route, "path", "").partition("{")[0]
        branches.setdefault("/".join(literal.split("/")[:_BRANCH_STEPS]), []).append(route)
    # The longer beginning is the more spelled out.
    begins = sorted(branches, key=len, reverse=True)
    return [_Branch(each, branches[each]) for each in begins]


def _answer_strays(app: FastAPI, mounted: Sequence[Mounted]) -> None:
    """What hits no door is answered in the words of the vendor whose path it is."""

    async def stray(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        for face in mounted:
            reply = face.fallback(request.url.path, status) if face.fallback else None
            if reply:
                headers = dict(reply.headers)
                return Response(reply.body, reply.status, headers, media_type=reply.media_type)
        return JSONResponse({"error": "no such door"}, status)

    for status in (404, 405):
        app.add_exception_handler(status, stray)


def _wrapped(app: FastAPI, mounted: Sequence[Mounted]) -> Asgi:
    wrapped: Asgi = app
    for face in mounted:
        if face.front:
            wrapped = face.front(wrapped)
    return wrapped


async def _trim(runtime: Runtime, stop: asyncio.Event) -> None:
    """Apply retention to the embedded log now and then."""
    while not stop.is_set():
        with contextlib.suppress(Unavailable):
            await runtime.log.trim(runtime.clock.now_ms())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TRIM_SECONDS):
                await stop.wait()


def run(main: Callable[[asyncio.Event], Any]) -> int:
    """Run `main(stop)` on uvloop; SIGTERM and SIGINT set `stop`. Returns its exit code."""

    async def body() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return int(await main(stop) or 0)

    code: int = uvloop.run(body())
    return code


async def until(check: Callable[[], bool], *, seconds: float) -> None:
    """Wait until something of this process is so. Raises Unavailable after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not check():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise Unavailable("not ready in time") from None
