"""Times of a year back, half of which are taken: the dropped indices are exactly those, though the
lane's memory does not reach there.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.road import quantiles, socket_of
from tests.support.crowd import ten_points
from tests.support.late import BATCH, batches, fill
from tests.support.plant import running
from tests.support.rounds import rounds, seed


def test_the_indices_are_exact_however_old_the_times_are(tmp_path: Path) -> None:
    """200,000 stored values; ten million where ROUNDS is 20."""
    with running(tmp_path) as plant:
        points = ten_points(plant, socket_of(plant.data_dir))[:4]
        past = fill(plant, points, 500_000 * rounds(0) or 200_000)
        chosen, count = seed(), 40 * rounds(1)
        for spread in (False, True):
            before = plant.metric("store_questions_total")
            took = batches(plant, past, count=count, seed=chosen, spread=spread)
            asked = plant.metric("store_questions_total") - before
            print(f"{past.rows} stored, {count} of {BATCH}, {spread=}: {quantiles(took)}")
            assert asked > count / 2, "the lane's memory had nearly all of it: nothing was shown"
