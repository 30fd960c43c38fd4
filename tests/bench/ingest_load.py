"""A load of Building X posts from a process of its own: requests answered with the judge's verdict.

    python -m tests.bench.ingest_load --address http://127.0.0.1:8080 --paths FILE --token TOKEN \\
        --connections 16 --values 100

Each connection sends the next request when the last one is answered; every value has a millisecond
of its own, so that each is kept. `--paths` has a line for every point.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.push_load import pushed, run
from tests.support.plant import moment

_SECOND = b"0000-00-00T00:00:00"


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out; `failed` are the answers that were not 204, and lost connections."""

    connections: int
    values: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


class Requests(Sequence[bytes]):
    """Whole HTTP requests, to the points in turn. Whichever is taken is the next one: its values
    are those of the next second.
    """

    def __init__(self, paths: Sequence[str], token: str, values: int, first_ms: int) -> None:
        items = [
            {
                "type": "PointValue",
                "attributes": {
                    "timestamp": f"{_SECOND.decode()}.{at:03}Z",
                    "value": f"{20 + at / 7:.2f}",
                    "qualityOfValue": 0,
                },
            }
            for at in range(values)
        ]
        body = json.dumps({"data": items}).encode()
        self._next = itertools.count()
        self._first_ms = first_ms
        self._made = [
            (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/vnd.api+json\r\n"
                f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body
            for path in paths
        ]

    def __len__(self) -> int:
        return 1 << 60

    def __getitem__(self, _: int) -> bytes:  # type: ignore[override]
        turn = next(self._next)
        second = moment(self._first_ms + turn * 1_000).encode()[: len(_SECOND)]
        return self._made[turn % len(self._made)].replace(_SECOND, second)


async def measure(given: argparse.Namespace) -> Measured:
    """Post for some seconds."""
    paths = Path(given.paths).read_text().split()
    requests = Requests(paths, given.token, given.values, given.first_ms)
    took, latencies, failed = await pushed(requests, given)
    return Measured(
        given.connections,
        given.values,
        len(latencies) / took,
        *(1000 * latencies[int(len(latencies) * share)] for share in (0.5, 0.99)),
        failed,
    )


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--paths", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--first-ms", type=int, default=1_600_000_000_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--values", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    measured = run(measure(parser.parse_args()))
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")


if __name__ == "__main__":
    main()
