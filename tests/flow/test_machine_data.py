"""Real machine data through the whole road: in by one contract, out by another, each value once."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.plant import Client, Plant, moment, running
from tests.support.processes import ROOT

CSV = ROOT / "services" / "demo_data" / "machine_temperature.csv"
Row = tuple[int, str]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("plant")) as plant:
        yield plant


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with Path(CSV).open() as file:
        return [
            (
                int(
                    datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp() * 1000
                ),
                row["value"],
            )
            for row in csv.DictReader(file)
        ]


def _repeated(rows: Sequence[Row]) -> set[int]:
    """The indices in the file whose time stood in it before."""
    seen: set[int] = set()
    repeated = set()
    for index, (at, _) in enumerate(rows):
        if at in seen:
            repeated.add(index)
        seen.add(at)
    return repeated


def _post_all(
    client: Client, rows: Sequence[Row], batch: int, *, point: str = "", overwrite: bool = False
) -> tuple[set[int], set[int]]:
    """(statuses, indices in the file that were reported as dropped)."""
    statuses, dropped = set(), set()
    for start in range(0, len(rows), batch):
        part = [(moment(at), value) for at, value in rows[start : start + batch]]
        status, indices = client.post(part, point=point, overwrite=overwrite)
        statuses.add(status)
        dropped |= {start + index for index in indices}
    return statuses, dropped


def _first_values(rows: Sequence[Row]) -> list[tuple[int, float]]:
    first: dict[int, float] = {}
    for at, value in rows:
        first.setdefault(at, float(value))
    return sorted(first.items())


def _read(client: Client, rows: Sequence[Row], *, device: str = "") -> list[tuple[int, float]]:
    start, end = min(at for at, _ in rows), max(at for at, _ in rows) + 1
    return [(at, float(value)) for at, value in client.range(start, end, device=device)]


@pytest.mark.parametrize("batch", [100, 10])
def test_each_repeated_time_is_dropped_at_its_index_and_the_range_equals_the_file(
    plant: Plant, rows: list[Row], batch: int
) -> None:
    client, facts = plant.client(), plant.facts
    assert _repeated(rows), "the file has repeated times, or this shows nothing"
    part = "building_x" if batch == 100 else "feed_building_x"
    if batch == 10:
        client.facts = facts | {"building_x": facts[part]}
    statuses, dropped = _post_all(client, rows, batch)
    assert statuses == {202, 204}
    assert dropped == _repeated(rows)
    assert _read(client, rows) == _first_values(rows)


def test_posting_the_file_again_drops_every_index_and_adds_nothing(
    plant: Plant, rows: list[Row]
) -> None:
    client = plant.client()
    statuses, dropped = _post_all(client, rows, 100)
    assert statuses == {202}
    assert dropped == set(range(len(rows)))
    assert _read(client, rows) == _first_values(rows)


def test_overwriting_with_other_values_replaces_each_once(plant: Plant, rows: list[Row]) -> None:
    client = plant.client()
    changed = [(at, f"{float(value) + 1:.9f}") for at, value in rows]
    statuses, dropped = _post_all(client, changed, 100, overwrite=True)
    assert statuses == {204}
    assert dropped == set()
    last = {at: float(value) for at, value in changed}
    assert _read(client, rows) == sorted(last.items())
