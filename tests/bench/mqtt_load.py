"""A load of MQTT publishes from a process of its own: acknowledged publishes a second, and how long
their acknowledgement took.

    python -m tests.bench.mqtt_load --host 127.0.0.1 --port 1883 --tokens FILE --connections 200

FILE has one device token a line; connections take them in turn. Each connection keeps `window`
QoS 1 publishes unacknowledged, sends as many as were acknowledged in one write, and checks that
PUBACKs come in order. Every message has its own millisecond. The server must be told to allow it:
LINESHAFT_MQTT_MESSAGES_PER_SECOND=0 and LINESHAFT_MQTT_BYTES_PER_SECOND=0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

try:
    from uvloop import run
except ImportError:
    run = asyncio.run

TOPIC = b"v1/devices/me/telemetry"
_CONNACK = b"\x20\x02\x00\x00"
_FIRST_TS_MS = 1_600_000_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out; latencies are from the write of a publish to its PUBACK."""

    connections: int
    window: int
    values: int
    seconds: float
    acknowledged: int
    acknowledged_per_s: float
    p50_ms: float
    p99_ms: float
    failed_connections: int


class Publisher(asyncio.Protocol):
    """One connection that publishes as fast as it is acknowledged."""

    def __init__(self, number: int, token: str, window: int, values: int, first_ts_ms: int) -> None:
        self._window = window
        self._connect = _connect(token, f"load-{number}")
        pairs = ",".join(f'"c{number}v{value}":{value}.5' for value in range(values))
        self._payload = (b'{"ts":', f',"values":{{{pairs}}}}}'.encode())
        length = 2 + len(TOPIC) + 2 + len(self._payload[0]) + 13 + len(self._payload[1])
        self._head = b"\x32" + _variable(length) + len(TOPIC).to_bytes(2, "big") + TOPIC
        self._packet_id, self._expected_id = 0, 1
        self._ts_ms = first_ts_ms
        self._sent: deque[tuple[float, int]] = deque()
        self._rest = b""
        self._stopped = False
        self.connected = asyncio.get_running_loop().create_future()
        self.lost = False
        self.acknowledged = 0
        self.latencies: list[tuple[float, int]] = []
        """Pairs of seconds and how many publishes took them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._connect)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = not self._stopped
        if not self.connected.done():
            self.connected.set_result(False)

    def data_received(self, data: bytes) -> None:
        if not self.connected.done():
            self.connected.set_result(data[:4] == _CONNACK)
            data = data[4:]
        data = self._rest + data
        count = len(data) // 4
        self._rest = data[count * 4 :]
        if not count:
            return
        for at in range(0, count * 4, 4):
            if data[at : at + 4] != b"\x40\x02" + self._expected_id.to_bytes(2, "big"):
                raise ValueError(f"{data[at : at + 4]!r} where {self._expected_id} was next")
            self._expected_id = self._expected_id % 65_535 + 1
        self._acknowledge(count)
        if not self._stopped:
            self.send(count)

    def _acknowledge(self, count: int) -> None:
        now, self.acknowledged = time.perf_counter(), self.acknowledged + count
        while count:
            at, sent = self._sent.popleft()
            taken = min(sent, count)
            if sent > taken:
                self._sent.appendleft((at, sent - taken))
            self.latencies.append((now - at, taken))
            count -= taken

    def send(self, count: int = 0) -> None:
        """Publish `count` messages, a window of them at first."""
        count = count or self._window
        before, after = self._payload
        parts = []
        for _ in range(count):
            self._packet_id = self._packet_id % 65_535 + 1
            packet_id = self._packet_id.to_bytes(2, "big")
            parts.append(b"%b%b%b%d%b" % (self._head, packet_id, before, self._ts_ms, after))
            self._ts_ms += 1
        self._sent.append((time.perf_counter(), count))
        self._transport.write(b"".join(parts))

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


def _variable(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(value: str) -> bytes:
    return len(value.encode()).to_bytes(2, "big") + value.encode()


def _connect(token: str, client_id: str) -> bytes:
    body = _text("MQTT") + b"\x04\x82\x00\x3c" + _text(client_id) + _text(token)
    return b"\x10" + _variable(len(body)) + body


async def load(
    host: str,
    port: int,
    tokens: list[str],
    *,
    connections: int,
    window: int,
    seconds: float,
    values: int,
    first_ts_ms: int = _FIRST_TS_MS,
) -> Measured:
    """Run the load; publishes that are acknowledged after `seconds` do not count."""
    loop = asyncio.get_running_loop()
    publishers = [
        Publisher(number, tokens[number % len(tokens)], window, values, first_ts_ms)
        for number in range(connections)
    ]
    for publisher in publishers:
        await loop.create_connection(partial(_given, publisher), host, port)
    answers = await asyncio.gather(*(publisher.connected for publisher in publishers))
    working = [publisher for publisher, answer in zip(publishers, answers, strict=True) if answer]
    began = time.perf_counter()
    for publisher in working:
        publisher.send()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    acknowledged = sum(publisher.acknowledged for publisher in working)
    latencies = [pair for publisher in working for pair in publisher.latencies]
    for publisher in working:
        publisher.stop()
        publisher.close()
    return Measured(
        connections=connections,
        window=window,
        values=values,
        seconds=round(took, 3),
        acknowledged=acknowledged,
        acknowledged_per_s=round(acknowledged / took, 1),
        p50_ms=_quantile(latencies, 0.50),
        p99_ms=_quantile(latencies, 0.99),
        failed_connections=connections - len(working) + sum(p.lost for p in working),
    )


def _given(publisher: Publisher) -> Publisher:
    return publisher


def _quantile(latencies: list[tuple[float, int]], share: float) -> float:
    """The quantile in ms of pairs of seconds and count; -1 where there are none."""
    wanted = share * sum(count for _, count in latencies)
    for took, count in sorted(latencies):
        wanted -= count
        if wanted <= 0:
            return round(took * 1000, 3)
    return -1.0


def main() -> None:
    """Parse the command line, run, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--payload-values", type=int, default=2)
    parser.add_argument("--first-ts-ms", type=int, default=_FIRST_TS_MS)
    args = parser.parse_args()
    measured = run(
        load(
            args.host,
            args.port,
            args.tokens.read_text().split(),
            connections=args.connections,
            window=args.window,
            seconds=args.seconds,
            values=args.payload_values,
            first_ts_ms=args.first_ts_ms,
        )
    )
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")


if __name__ == "__main__":
    main()
