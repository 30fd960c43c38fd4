"""Commands over the wire: taken in for a writable point, looked at again, there after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from services.dialects.building_x import DIALECT
from services.dialects.building_x.paths import POINT, below
from tests.support.plant import Plant, running
from tests.support.processes import ROOT, wait_for

ROWS_STORED = {sink: f'sink_rows_total{{sink="{sink}"}}' for sink in ("commands", "audit")}


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    env = {"LINESHAFT_COMMAND_SECONDS": "2", "LINESHAFT_DEVICE_COMMANDS_MAX": "1"}
    with running(tmp_path_factory.mktemp("commands"), env) as plant:
        yield plant


def lineshaft(plant: Plant, *words: str) -> Any:
    """What `lineshaft …` prints."""
    argv = [sys.executable, "-m", "services", *words, "--data-dir", str(plant.data_dir)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


class Operations:
    """A client of the vendor's Operations API, at the demo plant's point."""

    def __init__(self, plant: Plant) -> None:
        self.client = plant.client()
        bx = self.client.facts["building_x"]
        self.point: str = bx["point_id"]
        self.path = f"/partitions/{bx['partition_id']}/points/{self.point}"

    def __call__(
        self, method: str, path: str = "", body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        headers["Authorization"] = f"Bearer {self.client.token()}"
        status, answer, _ = self.client.http.request(
            method, "/operations" + self.path + path, body, headers
        )
        return status, answer

    def command(self, text: str, key: str = "") -> tuple[int, Any]:
        """As public clients send it: no type."""
        value = {"pointValue": {"value": text}}
        own = {"Idempotency-Key": key} if key else {}
        return self("PATCH", "", {"data": {"id": self.point, "attributes": value}}, **own)


def value_of(text: str) -> Any:
    """A push of one value."""
    attributes = {"timestamp": "2026-01-01T00:00:00Z", "value": text}
    return {"data": [{"type": "PointValue", "attributes": attributes}]}


def test_a_command_is_taken_in_shown_and_expires_and_a_kill_changes_nothing(plant: Plant) -> None:
    api = Operations(plant)
    status, answer = api.command("21.5")
    assert (status, answer["errors"][0]["code"]) == (403, "NOT_WRITABLE")
    assert lineshaft(plant, "points", "change", "demo", api.point, "--writable")["writable"]

    status, answer = api.command("21.50", key="once")
    assert status == 200
    assert api.command("21.5", key="once") == (200, answer)
    assert answer["data"]["attributes"] == {"pointValue": {"targetValue": "21.5"}}
    [queued] = answer["included"]
    assert queued["attributes"]["state"] == "queued"
    assert queued["attributes"]["requestedBy"] == api.client.facts["building_x"]["client_id"]
    status, point = api("GET", "?field[Point]=pointValue")
    attributes = point["data"]["attributes"]
    assert (status, attributes["systemAttributes"]["writable"]) == (200, "m:")
    assert attributes["pointValue"] == {"targetValue": "21.5"}
    assert api("POST", "/values", value_of("20.0"))[0] == 204
    _, point = api("GET", "?field[Point]=pointValue")
    shown = point["data"]["attributes"]["pointValue"]
    assert (shown["value"], shown["targetValue"]) == ("20.0", "21.5")
    status, listed = api("GET", "/commands")
    assert (status, [each["id"] for each in listed["data"]]) == (200, [queued["id"]])
    assert queued["links"]["self"] == f"{api.path}/commands/{queued['id']}"

    plant.kill()
    plant.start()
    api = Operations(plant)
    status, one = api("GET", f"/commands/{queued['id']}")
    assert status == 200
    for name in ("value", "requested", "expires", "requestedBy"):
        assert one["data"]["attributes"][name] == queued["attributes"][name]

    def state() -> str:
        _, one = api("GET", f"/commands/{queued['id']}")
        return str(one["data"]["attributes"]["state"])

    wait_for(lambda: state() == "expired", seconds=20, what="expired")
    _, point = api("GET", "?field[Point]=pointValue")
    assert "targetValue" not in point["data"]["attributes"]["pointValue"]


def test_too_many_that_wait_for_a_device_are_answered_429(plant: Plant) -> None:
    api = Operations(plant)
    headers = {"Authorization": f"Bearer {api.client.token()}"}
    body = {"data": {"attributes": {"pointValue": {"value": "1"}}}}
    path = "/api/openness/operations" + api.path
    # What a kill has had repeated was stored while the first command expired.
    stored = {sink: plant.metric(name) for sink, name in ROWS_STORED.items()}
    answers = [api.client.http.request("PATCH", path, body, headers) for _ in range(2)]
    assert [status for status, _, _ in answers] == [200, 429]
    [door] = [d for d in DIALECT.calls if (d.method, d.paths) == ("PATCH", below(POINT))]
    assert {"200", "429"} <= door.docs["responses"].keys()
    assert int(answers[1][2]["retry-after"]) > 0
    for sink, rows in (("commands", 1), ("audit", 2 * 2)):
        name, wanted = ROWS_STORED[sink], stored[sink] + rows
        wait_for(lambda n=name, w=wanted: plant.metric(n) >= w, what=f"rows of {sink}")  # type: ignore[misc]


def test_the_table_tells_what_became_of_them(plant: Plant) -> None:
    """The last one: the table can be read where nobody has it open."""
    api = Operations(plant)
    _, listed = api("GET", "/commands")
    assert len(listed["data"]) == 2
    commands = "SELECT outcome, value FROM default.commands FINAL ORDER BY at"
    audit = (
        "SELECT outcome, JSONExtractFloat(arguments, 'value') FROM default.audit FINAL "
        "WHERE action = 'command_point' ORDER BY at, call"
    )
    assert plant.stop() == 0
    rows = [
        json.loads(line)
        for line in subprocess.run(
            [sys.executable, "-c", ROWS, str(plant.data_dir / "store"), commands, audit],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.splitlines()
    ]
    assert rows[0][0] == ["expired", "21.5"] and len(rows[0]) == 2
    assert [outcome for outcome, _ in rows[1]].count("done") == 3, "one came twice"
    assert ["refused", 21.5] in rows[1] and ["refused", 1.0] in rows[1]


ROWS = """
import json, sys
from chdb.session import Session
store = Session(sys.argv[1])
for query in sys.argv[2:]:
    rows = str(store.query(query, "JSONCompactEachRow")).splitlines()
    print(json.dumps([json.loads(line) for line in rows]))
"""
