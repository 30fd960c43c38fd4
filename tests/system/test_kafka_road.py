"""Every service in a process of its own on Apache Kafka and a store behind HTTP: real machine data
through the whole road, then kill -9 of everything in turn and at once, under load.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.support.cluster import Cluster, cluster
from tests.support.load import Load, checked
from tests.support.plant import Client, moment
from tests.support.processes import ROOT, let_pass, wait_for
from tests.support.rounds import rounds, seed

pytestmark = [pytest.mark.system, pytest.mark.needs_kafka]

CSV = ROOT / "services" / "demo_data" / "machine_temperature.csv"
BROKER, FRONT = "broker", "front"


@pytest.fixture(scope="module", params=["loop", "faust"])
def plant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster with two processes of agents, on each of the runners."""
    env = {"LINESHAFT_MQTT_MESSAGES_PER_SECOND": "0"}
    folder = tmp_path_factory.mktemp(request.param)
    with cluster(folder, runner=request.param, agents=2, env=env) as made:
        yield made


def test_machine_data_comes_back_equal_to_the_first_value_of_each_time(plant: Cluster) -> None:
    with CSV.open() as file:
        rows = [
            (datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC), row["value"])
            for row in csv.DictReader(file)
        ]
    values = [(int(at.timestamp() * 1000), value) for at, value in rows]
    client = plant.client()
    client.facts = plant.facts | {"building_x": plant.facts["feed_building_x"]}
    first: dict[int, float] = {}
    dropped, repeated = set(), set()
    for index, (at, value) in enumerate(values):
        if at in first:
            repeated.add(index)
        first.setdefault(at, float(value))
    for start in range(0, len(values), 100):
        batch = [(moment(at), value) for at, value in values[start : start + 100]]
        indices = _posted(client, batch, key=f"batch {start}")
        dropped |= {start + index for index in indices}
    assert dropped == repeated
    # The answer comes with the verdict; the view of another process follows a moment later.
    wait_for(lambda: len(client.range(min(first), max(first) + 1)) == len(first), what="all values")
    read = client.range(min(first), max(first) + 1)
    assert [(at, float(value)) for at, value in read] == sorted(first.items())


def _posted(client: Client, batch: list[tuple[str, str]], *, key: str) -> list[int]:
    """The dropped indices; a 503 is sent again under its key, as the contract tells clients to."""

    def answered() -> list[list[int]]:
        status, indices = client.post(batch, key=key)
        assert status in (202, 204, 503)
        return [] if status == 503 else [indices]

    return wait_for(answered, seconds=30, what="an answer with the verdict")[0]


def test_kills_in_turn_and_at_once_lose_and_double_nothing(plant: Cluster) -> None:
    chosen = seed()
    chance = random.Random(chosen)
    with Load(plant, seed=chosen, pause_seconds=0.003) as load:
        for _ in range(rounds(2)):
            let_pass(chance.uniform(1, 3))
            victims = [*plant.names, BROKER, FRONT]
            chance.shuffle(victims)
            for victim in victims:
                _kill(plant, victim, chance)
                assert not plant.ended, f"ended with {victim}: {plant.ended}"
                let_pass(chance.uniform(0.5, 3))
            plant.kill()
            plant.start_all()
        let_pass(1)
    findings = checked(plant, load.history)
    told = [write.told for write in load.history.writes]
    print(
        f"{len(told)} writes, {told.count('kept')} kept, {told.count('info')} unknown: {findings}"
    )
    assert told.count("kept") > 500
    assert findings.clean, str(findings)


def _kill(plant: Cluster, victim: str, chance: random.Random) -> None:
    """kill -9, and after a moment a new start."""
    if victim == BROKER:
        plant.broker.kill()
        let_pass(chance.uniform(0, 3))
        plant.broker.start()
        return
    if victim == FRONT:
        plant.front.kill()
        let_pass(chance.uniform(0, 3))
        plant.front.start()
        return
    plant.kill_one(victim)
    let_pass(chance.uniform(0, 1))
    plant.start_one(victim)
    plant.wait_one(victim)
