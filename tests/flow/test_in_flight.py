"""A thousand requests wait for their verdict in one process; one more is refused in words, and
nothing of it is on the log. The doors are real; the judge begins when the test says so.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import Envelope
from schemas.topics import SAMPLES_ACCEPTED, SAMPLES_RECEIVED, Topic
from services import metrics, ops
from services.agents import samples
from services.agents._lane import Parts
from services.agents._loop import run_loop
from services.demo import DemoService
from services.eventlog import EventLog
from services.ingress import IngressService
from services.runtime import Mounted, Runtime, open_runtime, serve
from services.settings import Settings
from tests.bench.road import Connection, quantiles
from tests.support.plant import Client, moment

IN_FLIGHT, TOO_MANY = 1_000, 50
DESCRIPTORS = 2 * (IN_FLIGHT + TOO_MANY) + 500
BASE_MS = 1_700_000_000_000


class LateJudge:
    """The judge, from the moment when `begin` is set."""

    name = "agents"

    def __init__(self) -> None:
        self.begin = asyncio.Event()

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Wait beside the doors."""
        parts = Parts(
            samples.agent(), runtime.log, runtime.store, runtime.clock, runtime.settings, 1
        )

        async def judge() -> None:
            await self.begin.wait()
            await run_loop(parts, stop)

        group.create_task(judge())
        return Mounted()


@pytest.fixture
def descriptors() -> None:
    """Room for both ends of all connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"a process may have {hard} files open here, {DESCRIPTORS} are needed")
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


async def rows_of(log: EventLog, topic: Topic) -> int:
    """How many rows lie on a topic."""
    rows = 0
    async with log.reader([topic]) as reader:
        while batch := await reader.batch(wait_ms=0):
            for logged in batch.records:
                assert isinstance(logged.envelope, Envelope)
                rows += logged.envelope.rows
    return rows


def head_of(facts: dict[str, Any], token: str) -> str:
    """The first line and the headers of a post."""
    bx = facts["building_x"]
    path = f"/ingest/partitions/{bx['partition_id']}/points/{bx['point_id']}/values"
    return (
        f"POST {path} HTTP/1.1\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    )


async def post(connection: Connection, head: str, ts_ms: int) -> tuple[int, bytes, float]:
    """One value: (status, answer, seconds)."""
    attributes = {"timestamp": moment(ts_ms), "value": "1.5"}
    body = {"data": [{"type": "PointValue", "attributes": attributes}]}
    began = time.perf_counter()
    status, answer = await connection.request(head, json.dumps(body).encode())
    return status, answer, time.perf_counter() - began


async def connections(address: str, count: int) -> list[Connection]:
    """So many open connections."""
    made = [Connection(address) for _ in range(count)]
    for start in range(0, count, 100):
        await asyncio.gather(*(one.open() for one in made[start : start + 100]))
    return made


def test_a_thousand_wait_and_one_more_is_refused(tmp_path: Path, descriptors: None) -> None:
    settings = Settings(
        data_dir=str(tmp_path),
        http_port=0,
        mqtt_port=0,
        requests_in_flight_max=IN_FLIGHT,
        receipt_wait_ms=60_000,
        append_wait_ms=60_000,
    )

    async def body() -> None:
        stop = asyncio.Event()
        async with open_runtime(settings, stop) as runtime:
            judge, demo = LateJudge(), DemoService(feed=False)
            facts: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

            async def ready(runtime: Runtime, address: str) -> None:
                facts.set_result(await demo.announce(runtime, address))

            services: Sequence[Any] = [judge, IngressService(), demo]
            serving = asyncio.create_task(
                serve(runtime, services, ops=ops.ops_routes, ready=ready, stop=stop)
            )
            try:
                await asyncio.wait({serving, facts}, return_when=asyncio.FIRST_COMPLETED)
                await waiting(runtime, judge, await asyncio.wait_for(facts, 1))
            finally:
                stop.set()
                await serving

    asyncio.run(body())


async def waiting(runtime: Runtime, judge: LateJudge, facts: dict[str, Any]) -> None:
    """What the test is about, on a system whose judge has not begun."""
    token = await asyncio.to_thread(Client(facts).token)
    head, crowd = head_of(facts, token), await connections(facts["http"], IN_FLIGHT)
    posts = [asyncio.create_task(post(one, head, BASE_MS + at)) for at, one in enumerate(crowd)]
    async with asyncio.timeout(60):
        while metrics.HTTP_IN_FLIGHT._value.get() < IN_FLIGHT:
            await asyncio.sleep(0.02)
        while await rows_of(runtime.log, SAMPLES_RECEIVED) < IN_FLIGHT:
            await asyncio.sleep(0.02)
    assert not any(task.done() for task in posts), "nobody has judged yet"

    for one in await connections(facts["http"], TOO_MANY):
        status, answer, _ = await post(one, head, BASE_MS + IN_FLIGHT)
        assert (status, one.headers["retry-after"]) == (503, "3")
        assert json.loads(answer)["errors"][0]["status"] == "503"
    assert await rows_of(runtime.log, SAMPLES_RECEIVED) == IN_FLIGHT

    began = time.perf_counter()
    judge.begin.set()
    answers = await asyncio.wait_for(asyncio.gather(*posts), 60)
    took = time.perf_counter() - began
    assert [status for status, _, _ in answers] == [204] * IN_FLIGHT
    assert await rows_of(runtime.log, SAMPLES_ACCEPTED) == IN_FLIGHT

    again = await asyncio.gather(
        *(post(one, head, BASE_MS + 10_000 + at) for at, one in enumerate(crowd))
    )
    assert [status for status, _, _ in again] == [204] * IN_FLIGHT
    seconds = [took for _, _, took in again]
    print(f"{IN_FLIGHT} that waited: {took:.2f} s; {IN_FLIGHT} at once: {quantiles(seconds)}")
    assert max(seconds) < 10
