"""Two processes of doors on Apache Kafka make one parameter at the same moment, with different
types: the log decides on one type, and every value that was taken in is stored or set aside.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.cluster import DOORS, SECOND_DOORS, Cluster, cluster
from tests.support.plant import Client, Http
from tests.support.processes import wait_for
from tests.support.rounds import rounds, seed

pytestmark = [pytest.mark.system, pytest.mark.needs_kafka]
VALUES: tuple[Any, ...] = (21.5, True, "warm")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("two_doors")
    with cluster(folder, runner="loop", second_doors=True) as made:
        yield made


def test_two_processes_that_make_one_key_make_it_of_one_type(plant: Cluster) -> None:
    chance, now_ms = random.Random(seed()), time.time_ns() // 10**6
    doors = [Http(plant.http_of(name)) for name in (DOORS, SECOND_DOORS)]
    path = f"/api/ApiServers/push?access_token={plant.facts['next_plus']['editor_token']}"
    taken: dict[str, list[Any]] = {}
    outcomes: Counter[tuple[int, int]] = Counter()
    with ThreadPoolExecutor(2) as pool:
        for number in range(100 * rounds(1)):
            key, values = f"k{number}", chance.sample(VALUES, 2)

            def push(at: int, key: str = key, values: list[Any] = values) -> int:
                item = {"key": key, "value": values[at], "timestamp": now_ms + at}
                status, answer, _ = doors[at].request("POST", path, [item])
                if status == 422:
                    assert answer["error"]["code"] == "API_PUSH_VALUE_TYPE_MISMATCH"
                return status

            turns = chance.sample(range(2), 2)
            answers = dict(zip(turns, pool.map(push, turns), strict=True))
            outcomes[answers[0], answers[1]] += 1
            taken[key] = [values[at] for at in range(2) if answers[at] == 200]
    print(outcomes)
    # Either door wins now and then; nothing else ever happens.
    assert set(outcomes) <= {(200, 422), (422, 200), (200, 200)}, outcomes
    assert outcomes[200, 422] and outcomes[422, 200], outcomes
    wait_for(lambda: _stored(plant, taken, now_ms) == _sums(taken), seconds=60, what="all stored")
    for key, values in _stored(plant, taken, now_ms).items():
        # Where two values of different types stand, one of them is a text and anything goes.
        assert len(values) == 1 or "warm" in values, (key, values)


def test_a_receipt_is_told_by_the_other_process_too(plant: Cluster) -> None:
    facts = plant.facts
    client, other = Client(facts), Client(facts | {"http": plant.http_of(SECOND_DOORS)})
    values = [("2022-07-11T11:11:30.333Z", "1.5"), ("2022-07-11T11:11:30.333Z", "2.5")]
    status, _, said = client.exchange(values, headers={"Prefer": "respond-async"})
    assert status == 202
    for door in (other, client):
        wait_for(
            lambda door=door: (
                door.receipt(said["location"])[1].get("meta") == {"droppedIndices": [1]}
            ),
            what="the verdicts",
        )


def _sums(taken: dict[str, list[Any]]) -> dict[str, list[str]]:
    return {key: sorted(map(str, values)) for key, values in taken.items()}


def _stored(plant: Cluster, taken: dict[str, list[Any]], now_ms: int) -> dict[str, list[str]]:
    """Key to its stored values."""
    client, keys = plant.client(), list(taken)
    reads = Http(plant.facts["reads"])
    device = plant.facts["next_plus"]["device_id"]
    found: dict[str, list[str]] = {}
    for start in range(0, len(keys), 100):
        query = urlencode(
            {
                "keys": ",".join(keys[start : start + 100]),
                "startTs": now_ms,
                "endTs": now_ms + 2,
                "useStrictDataTypes": "true",
            }
        )
        path = f"/api/plugins/telemetry/DEVICE/{device}/values/timeseries?{query}"
        status, answer, _ = reads.request("GET", path, headers=client.user())
        assert status == 200, answer
        found |= {key: sorted(str(row["value"]) for row in rows) for key, rows in answer.items()}
    return found
