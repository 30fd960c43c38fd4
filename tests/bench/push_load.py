"""A load of pushes of 1,000 values from a process of its own: values taken in a second.

    python -m tests.bench.push_load --address http://127.0.0.1:8080 --path /api/… --form next_plus

Each connection sends the next body when the last one is answered. The bodies are made before the
clock starts and are sent in turn; all peers get the same values, each in its own form.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

try:
    from uvloop import run
except ImportError:
    run = asyncio.run

ITEMS, BODIES = 1_000, 32


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out; latencies are from the write of a push to its answer. `failed` are the pushes
    that were answered otherwise than 200 or 204, and the connections that were lost.
    """

    connections: int
    seconds: float
    values_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def next_plus(items: Sequence[tuple[str, float, int]]) -> bytes:
    """A list of items."""
    return json.dumps(
        [{"key": key, "value": value, "timestamp": ts_ms} for key, value, ts_ms in items]
    ).encode()


def victoria_metrics(items: Sequence[tuple[str, float, int]]) -> bytes:
    """Lines of VictoriaMetrics' own JSON: https://docs.victoriametrics.com/#json-line-format"""
    lines = (
        {"metric": {"__name__": key}, "values": [value], "timestamps": [ts_ms]}
        for key, value, ts_ms in items
    )
    return "\n".join(map(json.dumps, lines)).encode()


FORMS = {form.__name__: form for form in (next_plus, victoria_metrics)}


class Pusher(asyncio.Protocol):
    """One connection that always has one push under way."""

    def __init__(self, requests: Sequence[bytes], turn: int) -> None:
        self._requests, self._turn = requests, turn
        self.took: list[float] = []
        self.failed = 0
        self.stopped = False
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.stopped:
            self.failed += 1

    def push(self) -> None:
        """Send the next body."""
        self._began = time.perf_counter()
        self._transport.write(self._requests[self._turn % len(self._requests)])
        self._turn += 1

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, gap, body = self._rest.partition(b"\r\n\r\n")
        if not gap:
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        self._rest = b""
        self.took.append(time.perf_counter() - self._began)
        if lines[0].split()[1] not in (b"200", b"204"):
            self.failed += 1
        if not self.stopped:
            self.push()


def requests_of(path: str, form: str) -> list[bytes]:
    """Whole HTTP requests, their bodies in the peer's form."""
    numbers = random.Random(7)
    now_ms, made = time.time_ns() // 10**6, []
    for turn in range(BODIES):
        items = [
            (f"line_1.station_{at:04}", round(numbers.uniform(20, 80), 2), now_ms + turn)
            for at in range(ITEMS)
        ]
        body = FORMS[form](items)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        made.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return made


async def pushed(
    requests: Sequence[bytes], given: argparse.Namespace
) -> tuple[float, list[float], int]:
    """(seconds, latencies in seconds from the shortest on, failed) of what was sent by the given
    connections in the given time.
    """
    host, _, port = given.address.removeprefix("http://").rpartition(":")
    loop = asyncio.get_running_loop()
    pushers = [
        (await loop.create_connection(lambda at=at: Pusher(requests, at), host, int(port)))[1]
        for at in range(given.connections)
    ]
    began = time.perf_counter()
    for pusher in pushers:
        pusher.push()
    await asyncio.sleep(given.seconds)
    took = time.perf_counter() - began
    latencies = sorted(second for pusher in pushers for second in pusher.took)
    for pusher in pushers:
        pusher.stopped = True
    await asyncio.sleep(0.5)
    return took, latencies, sum(pusher.failed for pusher in pushers)


async def measure(given: argparse.Namespace) -> Measured:
    """Push for some seconds."""
    took, latencies, failed = await pushed(requests_of(given.path, given.form), given)
    return Measured(
        given.connections,
        took,
        len(latencies) * ITEMS / took,
        *(1000 * latencies[int(len(latencies) * share)] for share in (0.5, 0.99)),
        failed,
    )


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    measured = run(measure(parser.parse_args()))
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")


if __name__ == "__main__":
    main()
