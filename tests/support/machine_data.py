"""The machine's recording through a plant, in by one contract and out by another: what every engine
has to show. A test module gives a `plant` fixture and derives a class from `MachineData`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.support.plant import Client, Plant, moment
from tests.support.processes import ROOT, wait_for

CSV = ROOT / "services" / "demo_data" / "machine_temperature.csv"
Row = tuple[int, str]
"""Time in UTC ms and value, as the file has it."""


class MachineData:
    """The tests, in an order: what a later one finds is what an earlier one left."""

    @pytest.fixture(scope="class")
    @classmethod
    def rows(cls) -> list[Row]:
        """The recording; some of its times are in it twice."""
        with CSV.open() as file:
            return [(_ms(row["timestamp"]), row["value"]) for row in csv.DictReader(file)]

    @pytest.mark.parametrize("batch", [100, 10])
    def test_each_repeated_time_is_dropped_at_its_index_and_the_range_equals_the_file(
        self, plant: Plant, rows: list[Row], batch: int
    ) -> None:
        if batch == 10:
            # Ten times the requests: the part around the repeated times will do.
            rows = rows[8_000:12_000]
        assert _repeated(rows), "the file has repeated times, or this shows nothing"
        client = _client(plant, "building_x" if batch == 100 else "feed_building_x")
        statuses, dropped = _post_all(client, rows, batch)
        assert statuses == {202, 204}
        assert dropped == _repeated(rows)
        _comes_to_read(client, rows, _first_values(rows))

    def test_posting_the_file_again_drops_every_index_and_adds_nothing(
        self, plant: Plant, rows: list[Row]
    ) -> None:
        client = _client(plant, "building_x")
        statuses, dropped = _post_all(client, rows, 100)
        assert statuses == {202}
        assert dropped == set(range(len(rows)))
        assert _read(client, rows) == _first_values(rows)

    def test_overwriting_with_other_values_replaces_each_once(
        self, plant: Plant, rows: list[Row]
    ) -> None:
        client = _client(plant, "building_x")
        changed = [(at, f"{float(value) + 1:.9f}") for at, value in rows]
        statuses, dropped = _post_all(client, changed, 100, overwrite=True)
        assert statuses == {204}
        assert dropped == set()
        _comes_to_read(client, rows, sorted({at: float(value) for at, value in changed}.items()))


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def _client(plant: Plant, part: str) -> Client:
    facts: Mapping[str, Any] = plant.facts
    return Client({**facts, "building_x": facts[part]})


def _repeated(rows: Sequence[Row]) -> set[int]:
    """The indices in the file whose time stood in it before."""
    seen: set[int] = set()
    repeated = set()
    for index, (at, _) in enumerate(rows):
        if at in seen:
            repeated.add(index)
        seen.add(at)
    return repeated


def _first_values(rows: Sequence[Row]) -> list[tuple[int, float]]:
    first: dict[int, float] = {}
    for at, value in rows:
        first.setdefault(at, float(value))
    return sorted(first.items())


def _post_all(
    client: Client, rows: Sequence[Row], batch: int, *, overwrite: bool = False
) -> tuple[set[int], set[int]]:
    """(statuses, indices in the file that were reported as dropped)."""
    statuses, dropped, run = set(), set(), uuid4().hex
    for start in range(0, len(rows), batch):
        part = [(moment(at), value) for at, value in rows[start : start + batch]]
        status, indices = _posted(client, part, overwrite=overwrite, key=f"{run} {start}")
        statuses.add(status)
        dropped |= {start + index for index in indices}
    return statuses, dropped


def _posted(
    client: Client, part: Sequence[tuple[str, str]], *, overwrite: bool, key: str
) -> tuple[int, list[int]]:
    """Status and dropped indices; a 503 is sent again under its key, as the contract tells."""

    def answered() -> list[tuple[int, list[int]]]:
        status, indices = client.post(part, overwrite=overwrite, key=key)
        assert status in (202, 204, 503)
        return [] if status == 503 else [(status, indices)]

    return wait_for(answered, seconds=30, what="an answer with the verdict")[0]


def _read(client: Client, rows: Sequence[Row]) -> list[tuple[int, float]]:
    start, end = min(at for at, _ in rows), max(at for at, _ in rows) + 1
    return [(at, float(value)) for at, value in client.range(start, end)]


def _comes_to_read(
    client: Client, rows: Sequence[Row], expected: Sequence[tuple[int, float]]
) -> None:
    """The answer comes with the verdict; the view of another process follows a moment later."""
    wait_for(lambda: _read(client, rows)[-1:] == [expected[-1]], what="the last value")
    assert _read(client, rows) == expected
