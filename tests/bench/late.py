"""The late path in figures: batches of year-old times, half of which are taken, behind ten million
stored values; embedded, one request at a time.

    python -m tests.bench late
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

ROWS, BATCHES = 10_000_000, 1_000


def main() -> None:
    """Fill, measure, print."""
    rows = int(os.environ.get("ROWS") or ROWS)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as plant:
        points = ten_points(plant, road.socket_of(plant.data_dir))
        began = time.monotonic()
        past = fill(plant, points, rows)
        road.say(f"late path, {rows:,} stored values (there in {time.monotonic() - began:.0f} s):")
        took = batches(plant, past, count=BATCHES, seed=1)
        asked = plant.metric("store_questions_total")
        road.say(f"  {BATCHES} batches of {BATCH}, all exact: {road.quantiles(took)}")
        road.say(f"  the judge asked the store {asked:,.0f} times")
