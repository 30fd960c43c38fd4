"""The world's faults on the embedded log: a store that is away, poison on the log."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.topics import SAMPLES_RECEIVED
from tests.contract.eventlog._places import SqlitePlace
from tests.support.front import Front
from tests.support.load import Load
from tests.support.plant import Plant, moment, running
from tests.support.processes import let_pass
from tests.support.rounds import rounds, seed


@contextmanager
def on_a_server(folder: Path) -> Iterator[tuple[Plant, Front]]:
    """A plant on the embedded log whose store is a server."""
    front = Front(folder)
    front.start()
    try:
        with running(folder, {"LINESHAFT_STORE": front.url}) as plant:
            yield plant, front
    finally:
        front.kill()


def test_a_store_that_is_away_costs_nothing_but_time(tmp_path: Path) -> None:
    chosen, away_seconds = seed(), 6 * rounds(1)
    with on_a_server(tmp_path) as (plant, front):
        with Load(plant, seed=chosen) as load:
            let_pass(2)
            front.kill()
            let_pass(away_seconds)
            front.start()
            let_pass(3)
        findings = load.findings()
        told = [write.told for write in load.history.writes]
    print(f"away {away_seconds} s, {len(told)} writes, {told.count('kept')} kept: {findings}")
    assert told.count("kept") > 300
    assert findings.clean, str(findings)


def test_poison_on_the_log_goes_to_the_dead_letters_and_its_neighbours_are_stored(
    tmp_path: Path,
) -> None:
    chance = random.Random(seed())
    with running(tmp_path) as plant:
        client = plant.client()
        assert client.post([(moment(1_600_000_000_000), "1.5")])[0] == 204
        assert plant.stop() == 0
        place = SqlitePlace(plant.data_dir)
        for lane in range(16):
            body = chance.randbytes(chance.randint(0, 200))
            headers = [("kind", b"block"), ("v", b"1")] if lane % 2 else []
            asyncio.run(place.poison(SAMPLES_RECEIVED, lane, body, headers))
        plant.start()
        client = plant.client()
        assert client.post([(moment(1_600_000_000_001), "2.5")])[0] == 204
        assert [value for _, value in client.range(1_600_000_000_000, 1_600_000_000_002)] == [
            "1.5",
            "2.5",
        ]
        _, text, _ = client.http.request("GET", "/metrics")
        pattern = r'dead_letters_total\{reason="undecodable",source="agents"\} (\S+)'
        found = re.search(pattern, text)
        assert found is not None
        assert float(found[1]) == 16
