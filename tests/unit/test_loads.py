"""The loads of the benchmarks say what failed, which would look like a slow server else."""

from __future__ import annotations

import asyncio
import contextlib
from argparse import Namespace
from collections.abc import AsyncIterator

import pytest

from tests.bench.push_load import pushed
from tests.bench.stream import push

CONNECTIONS = 3


@contextlib.asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[str]:
    """The address of a server that gives each connection these answers, and closes it then."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            for answer in answers:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
                writer.write(answer + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def test_a_connection_that_is_lost_counts_as_failed() -> None:
    async def body() -> None:
        async with answering(b"HTTP/1.1 204 No Content", b"HTTP/1.1 204 No Content") as address:
            given = Namespace(address=address, connections=CONNECTIONS, seconds=0.3)
            request = b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"
            _, latencies, failed = await pushed([request], given)
            assert (len(latencies), failed) == (2 * CONNECTIONS, CONNECTIONS)

    asyncio.run(asyncio.wait_for(body(), 10))


@pytest.mark.parametrize("answers", [[], [b"HTTP/1.1 503 Service Unavailable"] * 10])
def test_a_push_that_fails_ends_the_run(answers: list[bytes]) -> None:
    async def body() -> None:
        async with answering(*answers) as address:
            with pytest.raises((AssertionError, asyncio.IncompleteReadError, ConnectionError)):
                await push(address, "token", range(20), per_second=1_000, key="k")

    asyncio.run(asyncio.wait_for(body(), 10))
