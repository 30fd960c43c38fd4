"""The road's figures on a running system: receipts, visibility, publishes, values a second.

Everything is measured from outside, by clients in processes of their own, on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.catalogue import remote
from tests.support.plant import Client, moment
from tests.support.processes import ROOT, let_pass

Act = Callable[[str, dict[str, Any]], Any]
"""A control action of the system: its name and arguments."""

LIFTED = {
    "LINESHAFT_MQTT_MESSAGES_PER_SECOND": "0",
    "LINESHAFT_MQTT_BYTES_PER_SECOND": "0",
    "LINESHAFT_MQTT_SESSIONS_PER_DEVICE_MAX": "10000",
}
"""Limits that the benchmarks change."""


class Connection:
    """One keep-alive HTTP connection with as little of its own as possible."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.removeprefix("http://").rpartition(":")
        self._port = int(port)

        self.headers: dict[str, str] = {}
        """Of the last answer, with lower-case names."""

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def request(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        """(status, body) of one request; `head` is its first line and headers."""
        self._writer.write(
            f"{head}Host: {self._host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        self._writer.write(body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        first, *others = lines.splitlines()
        self.headers = dict(line.split(": ", 1) for line in others if line)
        size = int(self.headers.get("content-length", 0))
        answer = await self._reader.readexactly(size) if size else b""
        return int(first.split()[1]), answer


def quantiles(seconds: Sequence[float]) -> str:
    """p50 and p99 in ms."""
    ordered = sorted(seconds)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"


def receipts(facts: dict[str, Any], *, in_flight: int, count: int, first_ms: int) -> str:
    """Round trips of one-value posts that are answered with the judge's verdict."""
    bx = facts["building_x"]
    token = Client(facts).token()
    head = (
        f"POST /ingest/partitions/{bx['partition_id']}/points/{bx['point_id']}/values HTTP/1.1\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    )

    async def one(connection: Connection, numbers: range, took: list[float]) -> None:
        await connection.open()
        for number in numbers:
            attributes = {"timestamp": moment(first_ms + number), "value": "1.5"}
            body = {"data": [{"type": "PointValue", "attributes": attributes}]}
            began = time.perf_counter()
            status, answer = await connection.request(head, json.dumps(body).encode())
            took.append(time.perf_counter() - began)
            assert status == 204, (status, answer)

    async def all_of_them() -> list[float]:
        took: list[float] = []
        share = count // in_flight
        await asyncio.gather(
            *(
                one(Connection(facts["http"]), range(at * share, (at + 1) * share), took)
                for at in range(in_flight)
            )
        )
        return took

    return quantiles(asyncio.run(all_of_them()))


def visible(facts: dict[str, Any], *, count: int) -> str:
    """Time from the acknowledgement of a post until the latest value shows it."""
    bx, client = facts["building_x"], Client(facts)
    post = (
        f"POST /ingest/partitions/{bx['partition_id']}/points/{bx['point_id']}/values HTTP/1.1\r\n"
        f"Authorization: Bearer {client.token()}\r\nContent-Type: application/json\r\n"
    )
    user = client.user()["X-Authorization"]
    latest = (
        f"GET /api/plugins/telemetry/DEVICE/{bx['device_id']}/values/timeseries?keys={bx['key']} "
        f"HTTP/1.1\r\nX-Authorization: {user}\r\n"
    )
    base_ms = time.time_ns() // 1_000_000 + 1_000_000

    async def body() -> list[float]:
        connection, took = Connection(facts["http"]), []
        await connection.open()
        for number in range(count):
            attributes = {"timestamp": moment(base_ms + number), "value": "1.5"}
            sent = {"data": [{"type": "PointValue", "attributes": attributes}]}
            status, answer = await connection.request(post, json.dumps(sent).encode())
            began = time.perf_counter()
            assert status == 204, (status, answer)
            while True:
                status, answer = await connection.request(latest)
                if status == 200 and json.loads(answer)[bx["key"]][0]["ts"] >= base_ms + number:
                    break
            took.append(time.perf_counter() - began)
        return took

    return quantiles(asyncio.run(body()))


def devices(act: Act, folder: Path, *, count: int) -> Path:
    """A file with the tokens of so many new devices."""
    tokens = []
    for number in range(count):
        device = act("add_device", {"tenant": "demo", "name": f"bench {number}"})
        _, token = act(
            "add_key",
            {
                "tenant": "demo",
                "use": "device",
                "name": f"bench {number}",
                "scopes": ["ingest"],
                "device": device["id"],
            },
        )
        tokens.append(token)
    path = folder / "tokens.txt"
    path.write_text("\n".join(tokens) + "\n")
    return path


def publishes(
    facts: dict[str, Any],
    tokens: Path,
    *,
    seconds: float,
    values: int,
    stored: Callable[[], float],
    window: int = 20,
) -> str:
    """QoS 1 publishes acknowledged a second, and values a second until the last is stored."""
    host, _, port = facts["mqtt"].rpartition(":")
    argv = [sys.executable, "-m", "tests.bench.mqtt_load", "--host", host, "--port", port]
    argv += ["--tokens", str(tokens), "--connections", "200", "--window", str(window)]
    argv += ["--payload-values", str(values)]

    def load(for_seconds: float) -> dict[str, Any]:
        run = [*argv, "--seconds", str(for_seconds), "--first-ts-ms", str(time.time_ns() // 10**6)]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    load(2)  # makes the points, which is a cost of its own
    settled(stored)
    before, began = stored(), time.monotonic()
    measured = load(seconds)
    expected = measured["acknowledged"] * values
    deadline = time.monotonic() + 120
    while stored() - before < expected and time.monotonic() < deadline:
        let_pass(0.02)
    took = time.monotonic() - began
    there = stored() - before
    rate = f"{there / took:,.0f} values/s from the doors to the store"
    if there < expected:
        rate = f"NOT ALL STORED: {there:,.0f} of {expected:,.0f}"
    return (
        f"{measured['acknowledged_per_s']:,.0f} publishes/s of {values} values "
        f"(p50 {measured['p50_ms']:.1f} ms, p99 {measured['p99_ms']:.1f} ms), {rate}"
    )


def settled(figure: Callable[[], float]) -> None:
    """Wait until a figure has stood still for two seconds."""
    last, since = figure(), time.monotonic()
    while time.monotonic() - since < 2:
        let_pass(0.1)
        if (now := figure()) != last:
            last, since = now, time.monotonic()


def sink_rows(addresses: Sequence[str]) -> float:
    """Rows of samples that the processes' metrics say are stored."""
    total = 0.0
    for address in addresses:
        with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.search(r'^lineshaft_sink_rows_total\{sink="samples"\} (\S+)$', text, re.M)
        total += float(found[1]) if found else 0.0
    return total


def socket_of(data_dir: Path) -> Act:
    """Control actions of a running system on the embedded log."""

    def act(action: str, arguments: dict[str, Any]) -> Any:
        return remote.ask(data_dir / "control.sock", action, arguments)

    return act


def report(
    name: str, facts: dict[str, Any], act: Act, folder: Path, stored: Callable[[], float]
) -> None:
    """Measure one running system and print its lines."""
    say(f"{name}:")
    for in_flight in (4, 1, 16):
        took = receipts(facts, in_flight=in_flight, count=4_000, first_ms=in_flight * 10**9)
        say(f"  receipt round trip, {in_flight} in flight: {took}")
    say(f"  acknowledged to visible in latest: {visible(facts, count=1_000)}")
    tokens = devices(act, folder, count=32)
    for values, window in ((1, 20), (2, 20), (100, 4)):
        took = publishes(facts, tokens, seconds=8, values=values, stored=stored, window=window)
        say(f"  {took}")


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
