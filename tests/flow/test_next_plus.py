"""Next Plus on a running system: what was acknowledged is read, at once and after a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.plant import Http, Plant, running


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("next_plus")) as plant:
        yield plant


class Editor:
    """A client with the editor's token."""

    def __init__(self, plant: Plant) -> None:
        self.http = Http(plant.facts["http"])
        self.headers = {"Authorization": plant.facts["next_plus"]["editor_token"]}

    def push(self, *items: dict[str, Any]) -> tuple[int, Any]:
        """(status, answer)."""
        path = "/api/ApiServers/push"
        return self.http.request("POST", path, list(items), self.headers)[:2]

    def ids(self) -> dict[str, str]:
        """Key to UUID of every parameter."""
        path = "/api/ApiServers/parameters"
        status, found, _ = self.http.request("GET", path, headers=self.headers)
        assert status == 200, found
        return {parameter["key"]: parameter["id"] for parameter in found}

    def read(self, parameter: str) -> Any:
        """The latest value of the parameter with this UUID."""
        path = f"/api/ApiServers/readParameter/{parameter}"
        status, answer, _ = self.http.request("GET", path, headers=self.headers)
        assert status == 200, answer
        return answer["value"]


def test_what_was_acknowledged_is_what_is_read(plant: Plant) -> None:
    editor = Editor(plant)
    assert editor.push({"key": "speed", "value": 0}) == (200, {"success": True, "processed": 1})
    speed, now_ms = editor.ids()["speed"], time.time_ns() // 10**6 + 1000
    for turn in range(300):
        value = 100 + turn / 10
        status, _ = editor.push({"key": "speed", "value": value, "timestamp": now_ms + turn})
        assert status == 200
        assert editor.read(speed) == value


@pytest.mark.parametrize(
    "value", ["warm", 42, 23.5, True, {"a": [1, 2.5, None]}, [], 123456789012345678901234567890]
)
def test_a_text_parameter_gives_back_the_json_value_that_came(plant: Plant, value: Any) -> None:
    editor = Editor(plant)
    editor.push({"key": "recipe", "value": "any text"})
    assert editor.push({"paramId": editor.ids()["recipe"], "value": value})[0] == 200
    found = editor.read(editor.ids()["recipe"])
    assert (found, type(found)) == (value, type(value))


def test_too_small_a_change_is_none_and_a_slow_ramp_counts_in_the_end(plant: Plant) -> None:
    editor, start_ms = Editor(plant), time.time_ns() // 10**6 - 60_000
    values = [20.0, 20.004, 20.008, 20.012, 20.009, 20.022, 20.0220000001]
    for step, value in enumerate(values):
        status, _ = editor.push({"key": "ramp", "value": value, "timestamp": start_ms + step})
        assert status == 200
    # With a precision of 2 a difference of 0.01 from the last one that counted is a change.
    client, device = plant.client(), plant.facts["next_plus"]["device_id"]
    rows = client.range(start_ms, start_ms + 10, device=device, key="ramp")
    assert [(at - start_ms, float(text)) for at, text in rows] == [
        (0, 20.0),
        (3, 20.012),
        (5, 20.022),
    ]
    assert editor.read(editor.ids()["ramp"]) == 20.022


def test_a_late_value_is_stored_and_leaves_the_current_one_alone(plant: Plant) -> None:
    editor, now_ms = Editor(plant), time.time_ns() // 10**6
    editor.push({"key": "level", "value": 5, "timestamp": now_ms})
    editor.push({"key": "level", "value": 5.001, "timestamp": now_ms - 1000})
    client, device = plant.client(), plant.facts["next_plus"]["device_id"]
    assert editor.read(editor.ids()["level"]) == 5
    rows = client.range(now_ms - 2000, now_ms + 1, device=device, key="level")
    assert [float(text) for _, text in rows] == [5.001, 5.0]


def test_of_two_values_of_a_millisecond_the_last_stands(plant: Plant) -> None:
    editor, now_ms = Editor(plant), time.time_ns() // 10**6
    twice = [{"key": "mode", "value": value, "timestamp": now_ms} for value in ("a", "b")]
    assert editor.push(*twice) == (200, {"success": True, "processed": 2})
    assert editor.read(editor.ids()["mode"]) == "b"
    editor.push({"key": "mode", "value": "c", "timestamp": now_ms})
    assert editor.read(editor.ids()["mode"]) == "c"


def test_a_type_stays_locked_and_values_stay_over_a_kill(plant: Plant) -> None:
    editor = Editor(plant)
    editor.push({"key": "count", "value": 7})
    plant.kill()
    plant.start()
    editor = Editor(plant)
    assert editor.read(editor.ids()["count"]) == 7
    status, answer = editor.push({"key": "count", "value": "seven"})
    assert (status, answer["error"]["code"]) == (422, "API_PUSH_VALUE_TYPE_MISMATCH")
    assert editor.read(editor.ids()["count"]) == 7


def test_one_item_that_cannot_be_used_keeps_all_of_them_out(plant: Plant) -> None:
    editor = Editor(plant)
    status, answer = editor.push({"key": "whole", "value": 1}, {"key": "part"})
    assert (status, answer["error"]["details"]) == (422, {"index": 1, "key": "part"})
    assert not {"whole", "part"} & editor.ids().keys()
