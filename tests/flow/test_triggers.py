"""Triggers seen from outside, embedded: values are pushed, webhooks come, and a kill -9 at any
place neither loses one nor repeats one that was done with.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Trigger
from schemas.envelope import Envelope
from schemas.topics import CATALOGUE_CHANGED, TOPICS
from services.auth import SECRET_FILE
from services.catalogue import api_server_id, first, new_point, webhook_secret
from services.eventlog import open_eventlog
from tests.flow.test_manage import command
from tests.support.plant import Http, Plant, running
from tests.support.processes import let_pass, wait_for
from tests.support.receiver import Call, Receiver, receiving

POINT = new_point("demo", api_server_id("demo"), "temperature")


class Line:
    """A plant with an API key of its tenant, and a receiver of its webhooks."""

    def __init__(self, plant: Plant, receiver: Receiver) -> None:
        self.plant, self.receiver = plant, receiver
        words = ("--use", "api", "--scopes", "ingest", "read")
        _, self._key = command(plant, "keys", "add", "demo", "line", *words)
        self.push(20)

    def push(self, value: float, ts_ms: int | None = None) -> None:
        """One value of the parameter, until it is acknowledged."""
        item = {"key": "temperature", "value": value}
        item |= {} if ts_ms is None else {"timestamp": ts_ms}
        address = f"http://127.0.0.1:{self.plant.http_port}"
        status, answer, _ = Http(address).request(
            "POST", "/api/ApiServers/push", item, {"Authorization": self._key}
        )
        assert (status, answer) == (200, {"success": True, "processed": 1})

    def restart(self) -> None:
        """kill -9 of everything, and a start."""
        self.plant.kill()
        self.plant.start()

    def have(self, *triggers: Trigger) -> None:
        """Put triggers into the catalogue, while nobody else has the log."""

        async def write() -> None:
            url = f"sqlite:///{self.plant.data_dir / 'log.sqlite'}"
            async with open_eventlog(url, lanes=16) as log:
                await log.create(TOPICS)
                for trigger in triggers:
                    change = first(trigger)
                    await log.append([(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key))])

        self.plant.stop()
        asyncio.run(write())
        self.plant.start()

    def calls(self, path: str) -> list[Call]:
        """What came for a trigger."""
        return [call for call in self.receiver.calls if call.path == path]

    def told(self, path: str) -> list[tuple[str, Any]]:
        """State and value of each call for a trigger."""
        return [(call.told["state"], call.told["value"]) for call in self.calls(path)]

    def wait_told(self, path: str, *expected: tuple[str, Any], seconds: float = 20) -> None:
        """Wait until exactly these came, and let a moment pass in which another could."""
        wait_for(lambda: len(self.told(path)) >= len(expected), seconds=seconds, what=path)
        let_pass(0.5)
        assert self.told(path) == list(expected)


def a_trigger(receiver: Receiver, id: str, **given: Any) -> Trigger:
    """Above 80; its webhook has the id as path."""
    plain = {"tenant": "demo", "point": POINT.id, "name": id, "when": ">", "bound": 80}
    return Trigger(id, **plain | {"url": f"{receiver.url}/{id}"} | given)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """Attempts once a second or two at first; a receiver on this machine may be called."""
    env = {"LINESHAFT_WEBHOOK_PRIVATE": "true"}
    with receiving() as receiver, running(tmp_path, env) as plant:
        yield Line(plant, receiver)


def test_hysteresis_from_outside_and_a_kill_repeats_nothing(line: Line) -> None:
    line.have(a_trigger(line.receiver, "hot", hysteresis=10.0, on_clear=True))
    line.push(81)
    line.wait_told("/hot", ("raised", 81))
    [call] = line.calls("/hot")
    secret = (line.plant.data_dir / SECRET_FILE).read_text().strip().encode()
    assert call.is_signed_with(webhook_secret(secret, "hot"))
    assert call.told["parameter"] == {"id": POINT.id, "key": "temperature"}
    for value in (75, 90, 71, 85):
        line.push(value)
    line.restart()
    line.push(72)
    line.push(70)
    line.wait_told("/hot", ("raised", 81), ("cleared", 70))
    # The receiver is down, and so are we; then it is told of what it missed, and of nothing else.
    line.receiver.answer = lambda call: 503
    line.push(99)
    wait_for(lambda: len(line.calls("/hot")) >= 3, what="an attempt that fails")
    line.plant.kill()
    failed = len(line.calls("/hot")) - 2
    line.receiver.answer = lambda call: 200
    line.plant.start()
    line.wait_told("/hot", ("raised", 81), ("cleared", 70), *[("raised", 99)] * (failed + 1))
    assert len({call.id for call in line.calls("/hot")[2:]}) == 1
    line.restart()
    let_pass(2)
    assert len(line.calls("/hot")) == failed + 3
    assert line.plant.metric("webhooks_open") == 0


def test_a_delay_passes_without_a_sample_and_without_a_process(line: Line) -> None:
    line.have(a_trigger(line.receiver, "slow", delay_ms=3_000))
    now_ms = time.time_ns() // 1_000_000
    line.push(85, now_ms)
    line.plant.kill()
    line.plant.start()
    line.wait_told("/slow", ("raised", 85))
    # It rises and falls within the delay.
    line.push(10)
    line.push(85)
    line.push(10)
    let_pass(4)
    assert line.told("/slow") == [("raised", 85)]


def test_a_webhook_that_is_given_up_is_a_row_and_a_letter(tmp_path: Path) -> None:
    env = {"LINESHAFT_WEBHOOK_ATTEMPTS_MAX": "2"}
    with receiving() as receiver, running(tmp_path, env) as plant:
        line = Line(plant, receiver)
        # Private addresses are refused unless a setting allows them.
        line.have(a_trigger(receiver, "inside"))
        line.push(81)
        refused = 'dead_letters_total{reason="webhook",source="sinks.webhooks"}'
        wait_for(lambda: plant.metric(refused) == 1, what="a dead letter")
        assert plant.metric('webhooks_total{outcome="dead"}') == 1
        plant.stop()
        assert receiver.calls == []
        assert _rows(plant) == [("inside", 1, "dead")]


def _rows(plant: Plant) -> list[tuple[Any, ...]]:
    """The table, read by a process of its own: the engine stays in memory where it was opened."""
    program = (
        "import asyncio, json, sys\n"
        "from services.store import open_store\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1]) as store:\n"
        "        sql = 'SELECT trigger, attempts, outcome FROM webhooks FINAL'\n"
        "        print(json.dumps([list(row) for row in await store.rows(sql)]))\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", program, f"chdb:///{plant.data_dir / 'store'}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return [tuple(row) for row in json.loads(done.stdout)]
