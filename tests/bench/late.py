"""The late path in figures: batches of year-old times, half of which are taken, behind ten million
stored values; embedded, one request at a time.

    python -m tests.bench late [ROWS=10000000]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests.bench import road
from tests.support.crowd import ten_points
from tests.support.late import BATCH, batches, fill
from tests.support.plant import running

ROWS, BATCHES = 10_000_000, 500


def main() -> None:
    """Fill, measure, print."""
    rows = int(os.environ.get("ROWS") or ROWS)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as plant:
        points = ten_points(plant, road.socket_of(plant.data_dir))
        began = time.monotonic()
        past = fill(plant, points, rows)
        road.say(f"late path, {rows:,} stored values (there in {time.monotonic() - began:.0f} s):")
        for spread in (False, True):
            took = batches(plant, past, count=BATCHES, seed=1, spread=spread)
            kind = "anywhere in half a year" if spread else "of a stretch"
            road.say(f"  {BATCHES} batches of {BATCH} {kind}, exact: {road.quantiles(took)}")
