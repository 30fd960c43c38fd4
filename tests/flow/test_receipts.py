"""Answers with the judge's verdict: the same request gets the first answer, however often."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.plant import Client, Plant, running
from tests.support.processes import wait_for

VALUES = [
    ("2022-07-11T11:11:30.333Z", "1.5"),
    ("2022-07-11T11:11:30.222Z", "2.5"),
    ("2022-07-11T11:11:30.333Z", "3.5"),
    ("2022-07-11T11:11:30.444Z", "4.5"),
]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("receipts")) as plant:
        yield plant


def test_the_contracts_own_example_drops_the_third_and_a_key_repeats_the_answer(
    plant: Plant,
) -> None:
    client = plant.client()
    assert client.post(VALUES, key="once") == (202, [2])
    assert client.post(VALUES, key="once") == (202, [2])
    assert client.post(VALUES) == (202, [0, 1, 2, 3])
    assert client.post(VALUES[:2], key="once") == (202, [0, 1]), "another body is another request"


def test_one_request_sent_by_eight_clients_at_once_is_applied_once(plant: Plant) -> None:
    values = [(f"2022-07-12T00:00:{second:02d}Z", "1.5") for second in range(20)]
    clients = [plant.client() for _ in range(8)]
    for client in clients:
        client.token()
    for round_ in range(5):
        sent = [(moment.replace("07-12", f"07-{13 + round_}"), value) for moment, value in values]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda c, s=sent, r=round_: c.post(s, key=f"k{r}"), clients))
        assert answers == [(204, [])] * 8


def test_the_answer_counts_what_came_over_mqtt_and_after_a_restart(plant: Plant) -> None:
    client = plant.client()
    assert client.post([("2022-08-01T00:00:00Z", "1.5")]) == (204, [])
    plant.kill()
    plant.start()
    client = plant.client()
    assert client.post([("2022-08-01T00:00:00Z", "2.5")]) == (202, [0])
    assert client.post([("2022-08-01T00:00:00Z", "2.5")], overwrite=True) == (204, [])
    assert client.post(VALUES, key="once") == (202, [2]), "the ring of requests survives"


def promised(client: Client, values: list[tuple[str, str]], **more: Any) -> str:
    """The place of the receipt of a request that does not wait."""
    headers = {"Prefer": "respond-async, wait=10"} | more.pop("headers", {})
    status, answer, said = client.exchange(values, headers=headers, **more)
    assert (status, said["preference-applied"]) == (202, "respond-async"), answer
    assert said["x-ack-level"] == "logged"
    assert "meta" not in answer, "no telling it from values that were dropped"
    return said["location"]


def decided(client: Client, place: str) -> dict[str, Any]:
    """The receipt's `meta`, once it is decided."""

    def meta() -> dict[str, Any]:
        status, answer = client.receipt(place)
        assert status == 200, answer
        done = answer["data"]["attributes"]["status"] == "decided"
        return dict(answer["meta"]) if done else {}

    return wait_for(meta, seconds=10, what="the receipt")


def test_who_does_not_wait_reads_the_receipt_later_and_after_a_restart(plant: Plant) -> None:
    client = plant.client()
    values = [(moment.replace("2022", "2023"), value) for moment, value in VALUES]
    first = promised(client, values)
    assert decided(client, first) == {"droppedIndices": [2]}
    again = promised(client, values)
    assert decided(client, again) == {"droppedIndices": [0, 1, 2, 3]}
    assert decided(client, promised(client, values, overwrite=True)) == {"droppedIndices": []}
    plant.kill()
    plant.start()
    client = plant.client()
    assert decided(client, first) == {"droppedIndices": [2]}
    assert decided(client, again) == {"droppedIndices": [0, 1, 2, 3]}
    partition = client.facts["building_x"]["partition_id"]
    for place in (f"/ingest/partitions/{partition}/receipts/x", first[:-1], first[:-3] + "xyz"):
        assert client.receipt(place)[0] == 404


def test_a_key_gives_the_first_verdict_whether_or_not_it_is_waited_for(plant: Plant) -> None:
    client = plant.client()
    values = [(moment.replace("2022", "2024"), value) for moment, value in VALUES]
    key = {"Idempotency-Key": "both ways"}
    first = promised(client, values, headers=key)
    assert client.post(values, key="both ways") == (202, [2])
    assert decided(client, promised(client, values, headers=key)) == {"droppedIndices": [2]}
    assert decided(client, first) == {"droppedIndices": [2]}
