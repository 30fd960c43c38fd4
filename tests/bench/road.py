"""The road's figures on a running system: receipts, visibility, publishes, values a second.

Everything is measured from outside, by clients in processes of their own, on the same machine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from schemas.samples import Kind
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
_first_ms = itertools.count(1_600_000_000_000, 10**8)


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


def ingest(
    facts: dict[str, Any], paths: Path, *, in_flight: int, values: int, seconds: float = 6
) -> str:
    """Posts to the points of `paths` that are answered with the judge's verdict."""
    argv = [sys.executable, "-m", "tests.bench.ingest_load", "--address", facts["http"]]
    argv += ["--paths", str(paths), "--token", Client(facts).token(), "--values", str(values)]
    argv += ["--connections", str(in_flight), "--seconds", str(seconds)]
    # Seconds that no other load has written to.
    argv += ["--first-ms", str(next(_first_ms))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    failed = f", {found['failed']} OF THEM FAILED" if found["failed"] else ""
    return (
        f"{in_flight} in flight, {values} value{'s' if values > 1 else ''} each: "
        f"p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms, "
        f"{found['requests_per_s']:,.0f} requests/s{failed}"
    )


def points(act: Act, facts: dict[str, Any], folder: Path, *, count: int) -> Path:
    """A file with the paths of so many new points, each of a device of its own."""
    paths = []
    for number in range(count):
        device = act("add_device", {"tenant": "demo", "name": f"bench point {number}"})
        asked = {"tenant": "demo", "device": device["id"], "key": "value", "kind": int(Kind.DOUBLE)}
        point = act("add_point", asked)
        partition = facts["building_x"]["partition_id"]
        paths.append(f"/ingest/partitions/{partition}/points/{point['id']}/values")
    path = folder / f"paths-{count}.txt"
    path.write_text("\n".join(paths) + "\n")
    return path


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
    for count, values in ((1, 1), (8, 100)):
        paths = points(act, facts, folder, count=count)
        ingest(facts, paths, in_flight=4, values=values, seconds=2)  # the first ones are slower
        where = "one point" if count == 1 else f"{count} points, each of a device of its own"
        say(f"  answered with the verdict, {where}:")
        for in_flight in (1, 16, 256):
            say(f"    {ingest(facts, paths, in_flight=in_flight, values=values)}")
    say(f"  acknowledged to visible in latest: {visible(facts, count=1_000)}")
    tokens = devices(act, folder, count=32)
    for values, window in ((1, 20), (2, 20), (100, 4)):
        took = publishes(facts, tokens, seconds=8, values=values, stored=stored, window=window)
        say(f"  {took}")


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
