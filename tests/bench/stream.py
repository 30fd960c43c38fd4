"""How soon a change reaches those who follow: from the acknowledgement of its push to its event.

`.venv/bin/python -m tests.bench stream` measures; the readers are a process of their own.

    python -m tests.bench.stream --http ADDRESS --token TOKEN --readers N --socket-share 0.5

prints a line when all readers follow, reads until its standard input ends, and prints the number
and the moment of each change for each reader.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import uvloop

from tests.bench.road import Connection, quantiles, say
from tests.support.processes import ROOT

READERS, PER_SECOND, SECONDS, PARAMETERS = 200, 100, 20.0, 50
_VALUE_BEGINS = b'"value":'
_VALUE = re.compile(_VALUE_BEGINS + rb"(\d+),")
_TAIL_BYTES = 64


def report(facts: dict[str, Any]) -> None:
    """Measure a running system and print its lines."""
    token = facts["next_plus"]["editor_token"]
    asyncio.run(push(facts["http"], token, range(PARAMETERS), per_second=1_000, key="warm"))
    for name, share in (("server-sent events", 0.0), ("WebSockets", 1.0)):
        say(f"  {measured(facts['http'], token, name, share)}")


def measured(http: str, token: str, name: str, socket_share: float) -> str:
    """One run: delays, and whether every reader got every change once, in order."""
    numbers = range(int(PER_SECOND * SECONDS))
    with readers(http, token, READERS, socket_share) as child:
        acknowledged = asyncio.run(push(http, token, numbers, per_second=PER_SECOND, key=name[0]))
        time_out = time.monotonic() + 5
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{len(numbers)} {time_out}\n")
        child.stdin.close()
        got = json.loads(child.stdout.read())
    delays, delivered, in_order = [], 0, True
    for received in got:
        delivered += len(received)
        in_order = in_order and as_pushed([number for number, _ in received], len(numbers))
        delays += [max(0.0, at - acknowledged[number]) for number, at in received]
    return (
        f"{PER_SECOND} changes/s to {READERS} {name}: push acknowledged to event received "
        f"{quantiles(delays)}; {delivered:,} of {len(numbers) * READERS:,} delivered"
        f"{', each reader all, once and in order' if in_order else ', NOT IN ORDER'}"
    )


def as_pushed(received: Sequence[int], count: int) -> bool:
    """Whether every number came once, and those of each parameter in their order."""
    places = [number % PARAMETERS for number in received]
    by_parameter = [
        number for _, number in sorted(zip(places, received, strict=True), key=itemgetter(0))
    ]
    return by_parameter == sorted(range(count), key=lambda number: (number % PARAMETERS, number))


async def push(
    http: str, token: str, numbers: Sequence[int], *, per_second: float, key: str
) -> list[float]:
    """Push a change a number at a pace; the moments (monotonic) of their acknowledgements."""
    head = (
        f"POST /api/ApiServers/push HTTP/1.1\r\nAuthorization: {token}\r\n"
        "Content-Type: application/json\r\n"
    )
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(8):
        connection = Connection(http)
        await connection.open()
        free.put_nowait(connection)
    acknowledged = [0.0] * len(numbers)

    async def one(connection: Connection, number: int) -> None:
        body = json.dumps({"key": f"{key}{number % PARAMETERS}", "value": number + 1}).encode()
        try:
            status, answer = await connection.request(head, body)
        finally:
            # Else nobody would hear of what fails: the next ones wait for a connection.
            free.put_nowait(connection)
        acknowledged[number] = time.monotonic()
        assert status == 200, (status, answer)

    began, tasks = time.monotonic(), []
    for number in numbers:
        await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        tasks.append(asyncio.create_task(one(await free.get(), number)))
    await asyncio.gather(*tasks)
    return acknowledged


@contextmanager
def readers(
    http: str, token: str, count: int, socket_share: float
) -> Iterator[subprocess.Popen[str]]:
    """A process with so many readers who follow."""
    argv = [sys.executable, "-m", "tests.bench.stream", "--http", http, "--token", token]
    argv += ["--readers", str(count), "--socket-share", str(socket_share)]
    child = subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "following\n", "the readers could not follow"
        yield child
    finally:
        child.kill()
        child.wait()


# -- the readers' process


class Follower(asyncio.Protocol):
    """One reader: what came, and when. It is looked at afterwards, so that measuring takes little
    of the machine that is measured.
    """

    def __init__(self, head: bytes) -> None:
        self.opened = asyncio.get_running_loop().create_future()
        self.changes = 0
        self._head, self._begin = head, b""
        self._came: list[tuple[float, bytes]] = []

    def connection_made(self, transport: Any) -> None:
        """Ask."""
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        if self.opened.done():
            self._came.append((time.monotonic(), data))
            self.changes += data.count(_VALUE_BEGINS)
            return
        self._begin += data
        if b" 200 " not in self._begin[:16] and b" 101 " not in self._begin[:16]:
            self.opened.set_exception(ConnectionError(self._begin.decode(errors="replace")))
        elif b"open" in self._begin or b"retry" in self._begin:
            self.opened.set_result(None)

    def got(self) -> list[tuple[int, float]]:
        """The numbers and when the last byte of each was there."""
        found, rest = [], b""
        for at, data in self._came:
            text = rest + data
            end = 0
            for value in _VALUE.finditer(text):
                found.append((int(value[1]) - 1, at))
                end = value.end()
            rest = text[end:][-_TAIL_BYTES:]
        return found


async def follow(http: str, token: str, count: int, sockets: int) -> None:
    """Follow, until told how many changes there are and until when to wait for them."""
    host, _, port = http.removeprefix("http://").rpartition(":")
    loop = asyncio.get_running_loop()
    followers = []
    for number in range(count):
        head = f"GET /api/ApiServers/stream?access_token={token} HTTP/1.1\r\nHost: {host}\r\n"
        if number < sockets:
            key = base64.b64encode(os.urandom(16)).decode()
            head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            head += f"Sec-WebSocket-Key: {key}\r\n"
        made = Follower(f"{head}\r\n".encode())
        await loop.create_connection(lambda made=made: made, host, int(port))  # type: ignore[misc]
        await made.opened
        followers.append(made)
    sys.stdout.write("following\n")
    sys.stdout.flush()
    line = await asyncio.to_thread(sys.stdin.readline)
    expected, until = int(line.split()[0]), float(line.split()[1])
    while any(made.changes < expected for made in followers) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    sys.stdout.write(json.dumps([made.got() for made in followers]))


def main() -> None:
    """The readers' process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--readers", type=int, required=True)
    parser.add_argument("--socket-share", type=float, default=0.0)
    given = parser.parse_args()
    gc.disable()
    sockets = round(given.readers * given.socket_share)
    uvloop.run(follow(given.http, given.token, given.readers, sockets))


if __name__ == "__main__":
    main()
