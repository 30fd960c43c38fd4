"""Every service in a process of its own on Apache Kafka and a store behind HTTP: real machine data
through the whole road, then kill -9 of everything in turn and at once, under load.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from services import manage
from tests.support.cluster import DOORS, Cluster, cluster
from tests.support.crowd import crowds, ten_points
from tests.support.load import Load
from tests.support.machine_data import MachineData
from tests.support.processes import let_pass
from tests.support.rounds import rounds, seed

pytestmark = [pytest.mark.system, pytest.mark.needs_kafka]

BROKER, FRONT = "broker", "front"
SESSION_SECONDS = 6
"""After so long without a sign Kafka gives a member's lanes to the others."""


@pytest.fixture(scope="module", params=["loop", "faust"])
def plant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster with two processes of agents, on each of the runners."""
    env = {"LINESHAFT_MQTT_MESSAGES_PER_SECOND": "0"}
    folder = tmp_path_factory.mktemp(request.param)
    with cluster(folder, runner=request.param, agents=2, env=env) as made:
        yield made


class TestKafka(MachineData):
    """The tests of `MachineData` on Kafka and a server, every service in its own process."""


def test_judges_that_come_and_go_lose_and_double_nothing(plant: Cluster) -> None:
    """One says goodbye, one is killed, one stands still until its lanes are somebody else's and
    then goes on as if nothing had been; the lanes move to and fro all the time.
    """
    chosen = seed()
    chance = random.Random(chosen)
    with Load(plant, seed=chosen, pause_seconds=0.01) as load:
        for round_ in range(rounds(3)):
            judge = chance.choice(_judges(plant))
            if round_ % 3 == 2:
                plant.freeze_one(judge)
                let_pass(chance.uniform(1.2, 1.8) * SESSION_SECONDS)
                plant.thaw_one(judge)
            else:
                (plant.kill_one if round_ % 3 else plant.stop_one)(judge)
                let_pass(chance.uniform(0, 2))
                plant.start_one(judge)
            let_pass(chance.uniform(0, 4))
        for name in plant.names:
            plant.wait_one(name)
        let_pass(1)
    _assert_clean(plant, load)


def test_kills_in_turn_and_at_once_lose_and_double_nothing(plant: Cluster) -> None:
    chosen = seed()
    chance = random.Random(chosen)
    with Load(plant, seed=chosen, pause_seconds=0.01) as load:
        for _ in range(rounds(1)):
            let_pass(chance.uniform(1, 3))
            victims = [*plant.names, BROKER, FRONT]
            if plant.runner == "faust" and rounds(1) == 1:
                # The others are the same processes on the plain loop.
                victims = [*_judges(plant), BROKER]
            chance.shuffle(victims)
            for victim in victims:
                _kill(plant, victim, chance)
                assert not plant.ended, f"ended with {victim}: {plant.ended}"
                let_pass(chance.uniform(0.5, 3))
            plant.kill()
            plant.start_all()
        let_pass(1)
    _assert_clean(plant, load)


def test_an_order_explains_every_answer_and_every_value(plant: Cluster) -> None:
    """Of a crowd: 13 histories on each runner, 60 where ROUNDS is 20."""

    def act(action: str, arguments: dict[str, Any]) -> dict[str, str]:
        return dict(manage.act(plant.settings(), action, arguments))

    def killed(name: str) -> None:
        plant.kill_one(name)
        plant.start_one(name)
        plant.wait_one(name)

    crowds(
        plant,
        ten_points(plant, act),
        seed=seed(),
        count=max(13, 3 * rounds(1)),
        disturbances=[partial(killed, DOORS), partial(killed, "agents-1"), plant.broker.restart],
    )


def _assert_clean(plant: Cluster, load: Load) -> None:
    findings = load.findings()
    print(f"{load.history}: {findings}")
    assert load.history.told("kept") > 500
    assert findings.clean, str(findings)


def _judges(plant: Cluster) -> list[str]:
    return [name for name in plant.names if name.startswith("agents")]


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
