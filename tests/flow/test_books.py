"""The books balance: every sample received has exactly one of the six verdicts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas.samples import Kind
from services.catalogue import remote
from tests.support.plant import Plant, moment, running
from tests.support.processes import wait_for

BASE_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("books")) as plant:
        yield plant


def test_a_hundred_values_of_every_fate(plant: Plant) -> None:
    """80 kept, 3 duplicate, 16 suppressed (band 1), then 1 overwriting: 81 rows, 80 read."""
    device = plant.facts["building_x"]["device_id"]
    point = remote.ask(
        plant.data_dir / "control.sock",
        "add_point",
        {
            "tenant": "demo",
            "device": device,
            "key": "banded",
            "kind": int(Kind.DOUBLE),
            "band": 1.0,
        },
    )
    values = []
    for step in range(80):
        at, value = BASE_MS + step * 1_000, f"{step * 10}"
        values.append((moment(at), value))
        if step < 16:
            values.append((moment(at + 500), f"{step * 10}.9"))
        if step in (20, 30, 40):
            values.append((moment(at), value))
    assert len(values) == 99
    client = plant.client()
    duplicates = [at for at, (when, _) in enumerate(values) if when in [w for w, _ in values[:at]]]
    assert client.post(values, point=point["id"]) == (202, duplicates)
    assert client.post([(moment(BASE_MS), "7")], point=point["id"], overwrite=True) == (204, [])
    books = plant.books()
    assert books["received"] == sum(books.values()) - books["received"] == 100
    assert {name: count for name, count in books.items() if count} == {
        "received": 100, "kept": 80, "duplicate": 3, "suppressed": 16, "overwrite": 1,
    }  # fmt: skip
    rows = client.range(BASE_MS, BASE_MS + 10**6, device=device, key="banded")
    assert len(rows) == 80
    assert rows[0] == (BASE_MS, "7.0")
    wait_for(lambda: plant.metric('sink_rows_total{sink="samples"}') == 81, what="81 stored rows")
    plant.kill()
    plant.start()
    again = plant.client().range(BASE_MS, BASE_MS + 10**6, device=device, key="banded")
    assert again == rows
