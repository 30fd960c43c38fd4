"""The catalogue by the command, beside a running system: what is revoked stops working at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.plant import Client, Plant, running
from tests.support.processes import ROOT, wait_for


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("manage")) as plant:
        yield plant


def command(plant: Plant, *words: str, code: int = 0) -> Any:
    """What `lineshaft …` prints; its error text where it must fail."""
    argv = [sys.executable, "-m", "services", *words, "--data-dir", str(plant.data_dir)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stderr if code else json.loads(done.stdout)


class Device:
    """An MQTT client and what happened to it."""

    def __init__(self, plant: Plant, token: str) -> None:
        self.connected, self.refused, self.lost = (threading.Event() for _ in range(3))
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "device", reconnect_on_failure=False)
        self.client.username_pw_set(token)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = lambda *_: self.lost.set()
        self.client.connect("127.0.0.1", plant.mqtt_port)
        self.client.loop_start()

    def _on_connect(self, *arguments: Any) -> None:
        (self.refused if arguments[3].is_failure else self.connected).set()


def test_a_device_made_by_the_command_can_publish_and_its_values_are_read(plant: Plant) -> None:
    device = command(plant, "devices", "add", "demo", "Press 9")
    key, token = command(
        plant, "keys", "add", "demo", "press 9", "--use", "device", "--scopes", "ingest",
        "--device", device["id"],
    )  # fmt: skip
    assert "secrets" not in key
    one = Device(plant, token)
    assert one.connected.wait(10)
    info = one.client.publish("v1/devices/me/telemetry", '{"speed": 17}', qos=1)
    info.wait_for_publish(10)
    client = plant.client()
    latest = wait_for(lambda: client.latest(device["id"]), what="the latest value")
    assert latest["speed"][0]["value"] == "17"
    names = [each["id"] for each in command(plant, "devices", "list", "--tenant", "demo")]
    assert device["id"] in names
    _revoked(plant, one, key["id"], token)


def _revoked(plant: Plant, one: Device, key: str, token: str) -> None:
    command(plant, "keys", "revoke", key)
    assert one.lost.wait(5), "the session of a revoked token lives on"
    one.client.loop_stop()
    again = Device(plant, token)
    assert again.refused.wait(10)
    again.client.loop_stop()


def test_what_lies_in_the_data_folder_is_for_nobody_else_to_read(plant: Plant) -> None:
    files = [path for path in plant.data_dir.rglob("*") if path.is_file() or path.is_socket()]
    assert {"log.sqlite", "secret", "control.sock"} <= {path.name for path in files}
    assert [path for path in files if path.stat().st_mode & 0o077] == []


def test_a_client_that_is_revoked_loses_its_tokens_at_once(plant: Plant) -> None:
    bx = plant.facts["building_x"]
    key, secret = command(
        plant, "keys", "add", "demo", "script", "--use", "client", "--scopes", "ingest", "read"
    )
    facts = plant.facts | {"building_x": bx | {"client_id": key["id"], "client_secret": secret}}
    client = Client(facts)
    assert client.post([("2020-01-01T00:00:00Z", "1.5")])[0] == 204
    command(plant, "keys", "revoke", key["id"])
    assert client.post([("2020-01-01T00:00:01Z", "1.5")])[0] == 401


def test_a_rotated_secret_overlaps_with_the_old_one(plant: Plant) -> None:
    bx = plant.facts["building_x"]
    key, old = command(
        plant, "keys", "add", "demo", "rotated", "--use", "client", "--scopes", "ingest"
    )
    new = command(plant, "keys", "rotate", key["id"], "--overlap-seconds", "600")
    for secret in (old, new):
        facts = plant.facts | {"building_x": bx | {"client_id": key["id"], "client_secret": secret}}
        assert Client(facts).token()
    last = command(plant, "keys", "rotate", key["id"], "--overlap-seconds", "0")
    facts = plant.facts | {"building_x": bx | {"client_id": key["id"], "client_secret": new}}
    with pytest.raises(AssertionError, match="401"):
        Client(facts).token()
    facts = plant.facts | {"building_x": bx | {"client_id": key["id"], "client_secret": last}}
    assert Client(facts).token()


def test_the_api_server_is_switched_by_the_command(plant: Plant) -> None:
    np = plant.facts["next_plus"]

    def push() -> int:
        path = f"/api/ApiServers/push?access_token={np['editor_token']}"
        return plant.client().http.request("POST", path, {"key": "k", "value": 1})[0]

    assert command(plant, "api-servers", "disable", "demo")["disabled"] is True
    assert push() == 404
    assert command(plant, "api-servers", "rename", "demo", "Line 1")["name"] == "Line 1"
    assert command(plant, "api-servers", "enable", "demo")["disabled"] is False
    assert push() == 200
    [server] = command(plant, "api-servers", "list", "--tenant", "demo")
    assert (server["id"], server["name"]) == (np["device_id"], "Line 1")


def test_points_equipment_bindings_and_triggers_by_the_command(plant: Plant) -> None:
    server = plant.facts["next_plus"]["device_id"]
    point = command(
        plant, "points", "add", "demo", server, "strokes", "--kind", "double", "--on-change",
        "--keep-minutes", "720", "--precision", "0", "--band", "1",
    )  # fmt: skip
    changed = command(plant, "points", "change", "demo", point["id"], "--key", "press.strokes")
    assert (changed["series"], changed["keep_minutes"]) == (point["series"], 720)
    press = command(plant, "equipment", "add", "demo", "Press 7")
    tie = ("bindings", "add", "demo", point["id"], press["id"], "--role", "counter")
    binding = command(plant, *tie)
    assert "already" in command(plant, *tie, code=1)
    trigger, secret = command(
        plant, "triggers", "add", "demo", point["id"], "--when", ">=", "--value", "80",
        "--url", "https://example.com/hook", "--delay-ms", "500", "--on-clear",
    )  # fmt: skip
    assert secret.startswith("whsec_") and trigger["bound"] == 80
    off = command(plant, "triggers", "disable", "demo", trigger["id"])
    assert off == trigger | {"disabled": True}
    changed = command(plant, "triggers", "change", "demo", trigger["id"], "--value", "7.5")
    for group, thing in (("equipment", press), ("bindings", binding), ("triggers", changed)):
        assert command(plant, group, "list", "--tenant", "demo") == [thing]

    command(plant, "points", "delete", "demo", point["id"])
    for group in ("bindings", "triggers"):
        assert command(plant, group, "list", "--tenant", "demo") == []


def test_roles_are_given_by_the_command(plant: Plant) -> None:
    user, _ = command(plant, "users", "add", "eve", "--tenant", "demo", "--role", "editor")
    assert user["tenants"]["demo"] == ["view", "read", "ingest", "configure"]
    command(plant, "tenants", "add", "second", "Second")
    user = command(plant, "users", "let-in", "eve", "second", "--role", "viewer")
    assert user["tenants"]["second"] == ["view"]
    command(plant, "users", "remove", "demo", "eve")
    [eve] = [each for each in command(plant, "users", "list") if each["id"] == "eve"]
    assert [*eve["tenants"]] == ["second"]
    key, _ = command(plant, "keys", "add", "demo", "script", "--use", "api", "--role", "operator")
    assert key["scopes"] == ["view", "read"]


def test_a_wrong_action_is_refused_in_words(plant: Plant) -> None:
    assert "nowhere" in command(plant, "devices", "add", "nowhere", "x", code=1)
    assert command(plant, "tenants", "add", "Bad Name", "x", code=1).startswith("lineshaft: ")


def test_the_command_works_on_a_folder_that_nobody_has_open(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    assert command(plant, "tenants", "add", "acme", "Acme")["id"] == "acme"
    assert [each["id"] for each in command(plant, "tenants", "list")] == ["acme"]


def test_what_the_command_has_done_is_in_the_audit_table(plant: Plant) -> None:
    """The last one: the table can be read where nobody has it open."""
    made = command(plant, "devices", "add", "demo", "Audited")
    command(plant, "devices", "add", "nowhere", "Audited", code=1)
    wait_for(
        lambda: (
            plant.metric('sink_rows_total{sink="audit"}')
            == plant.metric('log_appends_total{topic="calls.audited"}')
        ),
        what="every record stored",
    )
    assert plant.stop() == 0
    rows = json.loads(
        subprocess.run(
            [sys.executable, "-c", AUDITED, str(plant.data_dir / "store")],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    )
    who = f"uid {os.getuid()}"
    assert rows == [
        ["demo", who, "socket", f"device/{made['id']}", "done"],
        ["nowhere", who, "socket", "Audited", "refused"],
    ]


AUDITED = """
import json, sys
from chdb.session import Session
rows = Session(sys.argv[1]).query(
    "SELECT tenant, subject, via, target, outcome FROM default.audit FINAL "
    "WHERE action = 'add_device' AND arguments LIKE '%Audited%' ORDER BY at",
    "JSONCompactEachRow",
)
print(json.dumps([json.loads(line) for line in str(rows).splitlines()]))
"""
