"""How a process of services starts, ends in flow order, and ends when a part of it has failed."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from services import ops
from services.catalogue import View
from services.errors import Broken, Unavailable
from services.runtime import Mounted, _branches, _read_through, serve, when_there
from services.settings import Settings


class Judge:
    """A service behind the doors: gives every question its answer until it is told to stop."""

    name = "judge"

    def __init__(self) -> None:
        self.questions: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def mount(self, _: Any, group: asyncio.TaskGroup, stop: asyncio.Event) -> Mounted:
        async def judge() -> None:
            while True:
                question = await self.questions.get()
                self.asked.set()
                await self.may_answer.wait()
                question.set_result("judged")

        async def body() -> None:
            judging = asyncio.create_task(judge())
            await stop.wait()
            judging.cancel()

        group.create_task(body())
        return Mounted()


class Door:
    """A service whose one door answers with what the judge says."""

    name = "door"

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    async def mount(self, _: Any, group: asyncio.TaskGroup, stop: asyncio.Event) -> Mounted:
        router = APIRouter()

        async def ask() -> str:
            question = asyncio.get_running_loop().create_future()
            self._judge.questions.put_nowait(question)
            return str(await question)

        router.add_api_route("/ask", ask)
        return Mounted(routers=[router])


def a_runtime(following: asyncio.Task[None]) -> Any:
    """As much of a runtime as serving needs."""
    given = {"log": "kafka://nowhere", "http_port": 0, "ops_port": 0}
    return SimpleNamespace(settings=Settings(**given), checks={}, following=following, tls=None)  # type: ignore[arg-type]


async def for_ever() -> None:
    """A task that does not end by itself."""
    await asyncio.Event().wait()


def test_what_was_asked_before_the_stop_is_still_judged() -> None:
    async def body() -> None:
        judge, stop = Judge(), asyncio.Event()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def ready(_: Any, where: str) -> None:
            address.set_result(where)

        following = asyncio.create_task(for_ever())
        serving = asyncio.create_task(
            serve(
                a_runtime(following),
                [Door(judge), judge],
                ops=ops.ops_routes,
                ready=ready,
                stop=stop,
            )
        )
        url = f"{await address}/ask"
        asked = asyncio.create_task(
            asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
        )
        await judge.asked.wait()
        stop.set()
        for _ in range(50):
            await asyncio.sleep(0)
        judge.may_answer.set()
        assert await asked == b'"judged"'
        async with asyncio.timeout(10):
            await serving
        following.cancel()

    asyncio.run(body())


def test_what_would_last_for_ever_is_ended_before_the_listeners_stop() -> None:
    class Streaming:
        name = "streaming"

        def __init__(self) -> None:
            self.asked, self.ended, self.hung_up = asyncio.Event(), asyncio.Event(), False

        async def mount(self, _: Any, group: asyncio.TaskGroup, stop: asyncio.Event) -> Mounted:
            router = APIRouter()

            async def stream() -> str:
                self.asked.set()
                await self.ended.wait()
                return "ended"

            async def hang_up() -> None:
                self.hung_up = True
                self.ended.set()

            router.add_api_route("/stream", stream)
            return Mounted(routers=[router], hang_up=hang_up)

    async def body() -> None:
        streaming, stop = Streaming(), asyncio.Event()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def ready(_: Any, where: str) -> None:
            address.set_result(where)

        following = asyncio.create_task(for_ever())
        runtime = a_runtime(following)
        serving = asyncio.create_task(
            serve(runtime, [streaming], ops=ops.ops_routes, ready=ready, stop=stop)
        )
        url = f"{await address}/stream"
        asked = asyncio.create_task(
            asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
        )
        await streaming.asked.wait()
        stop.set()
        assert await asked == b'"ended"'
        async with asyncio.timeout(5):
            await serving
        assert streaming.hung_up
        following.cancel()

    asyncio.run(body())


def test_a_path_that_is_spelled_out_goes_before_parameters_of_another_service() -> None:
    class Named:
        def __init__(self, path: str) -> None:
            self.name, self._path = path, path

        async def mount(self, _: Any, group: asyncio.TaskGroup, stop: asyncio.Event) -> Mounted:
            router = APIRouter()
            path = self._path

            async def answer() -> str:
                return path

            router.add_api_route(path, answer)
            return Mounted(routers=[router])

    async def body() -> None:
        stop, following = asyncio.Event(), asyncio.create_task(for_ever())
        said: dict[str, bytes] = {}

        async def ready(_: Any, where: str) -> None:
            for path in ("/things/stream", "/things/7"):
                url = f"{where}{path}"
                said[path] = await asyncio.to_thread(
                    lambda url=url: urllib.request.urlopen(url, timeout=10).read()  # type: ignore[misc]
                )
            stop.set()

        services = [Named("/things/{thing}"), Named("/things/stream")]
        async with asyncio.timeout(20):
            await serve(a_runtime(following), services, ops=ops.ops_routes, ready=ready, stop=stop)
        assert said == {"/things/stream": b'"/things/stream"', "/things/7": b'"/things/{thing}"'}
        following.cancel()

    asyncio.run(body())


def test_a_request_is_shown_to_the_routes_that_begin_like_it_and_gets_the_right_one() -> None:
    """Whichever branch a route is in: what is spelled out goes first, and another method's is
    found.
    """

    def routes(*pairs: tuple[str, str]) -> Mounted:
        router = APIRouter()
        for method, path in pairs:

            async def endpoint(path: str = path, method: str = method) -> str:
                return f"{method} {path}"

            router.add_api_route(path, endpoint, methods=[method])
        return Mounted(routers=[router])

    one = routes(("GET", "/a/{x}"), ("GET", "/a/b/c/{x}/e"), ("GET", "/a/b/{x}/d/e"), ("GET", "/"))
    other = routes(("POST", "/a/{x}"), ("GET", "/a/b"), ("GET", "/a/b/c/d/e"), ("GET", "/ab/{x}"))
    app = FastAPI()
    for branch in _branches([one, other]):
        app.include_router(branch)
    assert set(app.openapi()["paths"]) >= {"/a/{x}", "/a/b/c/{x}/e", "/ab/{x}"}

    async def flow() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for method, path, found in (
                ("GET", "/a/b", "GET /a/b"),
                ("GET", "/a/c", "GET /a/{x}"),
                ("POST", "/a/c", "POST /a/{x}"),
                ("GET", "/a/b/c/d/e", "GET /a/b/c/d/e"),
                ("GET", "/a/b/c/f/e", "GET /a/b/c/{x}/e"),
                ("GET", "/a/b/f/d/e", "GET /a/b/{x}/d/e"),
                ("GET", "/ab/c", "GET /ab/{x}"),
                ("GET", "/", "GET /"),
            ):
                response = await client.request(method, path)
                assert (response.status_code, response.json()) == (200, found)
            assert (await client.get("/b")).status_code == 404
            assert (await client.delete("/a/c")).status_code == 405

    asyncio.run(flow())


def test_a_process_whose_catalogue_is_not_followed_any_more_ends() -> None:
    async def fails() -> None:
        raise Broken("the log cannot be read")

    async def ended(body: Coroutine[Any, Any, None]) -> None:
        following = asyncio.create_task(body)
        arguments: dict[str, Any] = {"ops": ops.ops_routes, "ready": lambda *_: asyncio.sleep(0)}
        async with asyncio.timeout(10):
            await serve(a_runtime(following), [], stop=asyncio.Event(), **arguments)

    for body in (fails(), asyncio.sleep(0)):
        with pytest.raises(ExceptionGroup) as raised:
            asyncio.run(ended(body))
        assert raised.group_contains(Broken)


def test_a_catalogue_that_cannot_be_read_is_waited_for_until_the_stop() -> None:
    async def body() -> None:
        stop, following = asyncio.Event(), asyncio.create_task(for_ever())
        waiting = asyncio.create_task(_read_through(View(), following, stop))
        await asyncio.sleep(0)
        assert not waiting.done()
        stop.set()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await waiting
        following.cancel()

    asyncio.run(body())


def test_a_catalogue_whose_reading_has_failed_is_not_waited_for() -> None:
    async def fails() -> None:
        raise Broken("the log cannot be read")

    async def body() -> None:
        async with asyncio.timeout(5):
            await _read_through(View(), asyncio.create_task(fails()), asyncio.Event())

    with pytest.raises(Broken):
        asyncio.run(body())


class Preparing:
    """Stands for `prepare`: log or store is away for the first so many attempts."""

    def __init__(self, away: int) -> None:
        self._away = away
        self.began = asyncio.Event()

    async def __call__(self) -> list[str]:
        self.began.set()
        if self._away == 0:
            return ["9 topics in 16 lanes"]
        self._away -= 1
        raise Unavailable("nobody listens there")


def test_preparing_waits_for_log_and_store_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> list[str] | None:
        async with asyncio.timeout(10):
            return await when_there(Preparing(away=1), asyncio.Event())

    assert asyncio.run(body()) == ["9 topics in 16 lanes"]
    assert [record.getMessage() for record in caplog.records] == [
        "waiting, again in 0.5 s: nobody listens there"
    ]


def test_preparing_ends_at_once_with_the_stop() -> None:
    class Hanging(Preparing):
        async def __call__(self) -> list[str]:
            self.began.set()
            await asyncio.Event().wait()
            return []

    async def body(preparing: Preparing) -> None:
        stop = asyncio.Event()
        waiting = asyncio.create_task(when_there(preparing, stop))
        await preparing.began.wait()
        stop.set()
        async with asyncio.timeout(0.4):
            assert await waiting is None

    asyncio.run(body(Preparing(away=1000)))
    asyncio.run(body(Hanging(away=0)))


def test_preparing_does_not_wait_for_what_will_not_mend_itself() -> None:
    async def broken() -> list[str]:
        raise Broken("another number of lanes")

    with pytest.raises(Broken):
        asyncio.run(when_there(broken, asyncio.Event()))


def test_a_stop_that_comes_with_the_last_attempt_counts() -> None:
    async def body() -> None:
        stop = asyncio.Event()

        async def stopped_meanwhile() -> str:
            stop.set()
            return "prepared"

        assert await when_there(stopped_meanwhile, stop) is None

    asyncio.run(body())
