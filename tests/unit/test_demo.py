"""What the demo plant tells of its addresses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.demo import FILE, DemoService, hints
from services.settings import Settings
from tests.support.catalogue import offices


@pytest.mark.parametrize(
    ("bound", "http", "mqtt", "broker"),
    [
        ("0.0.0.0", "http://127.0.0.1:8080", "127.0.0.1:1883", "-h 127.0.0.1 -p 1883 "),
        ("::", "http://[::1]:8080", "[::1]:1883", "-h ::1 -p 1883 "),
        ("10.1.2.3", "http://10.1.2.3:8080", "10.1.2.3:1883", "-h 10.1.2.3 -p 1883 "),
    ],
)
def test_the_addresses_can_be_used_as_they_are_told(
    bound: str, http: str, mqtt: str, broker: str, tmp_path: Path
) -> None:
    async def announced() -> dict[str, Any]:
        settings = Settings(data_dir=str(tmp_path), mqtt_host=bound)
        async with offices(tmp_path) as [office], asyncio.TaskGroup() as group:
            runtime: Any = SimpleNamespace(
                settings=settings, view=office.view, control=office.control, mqtt_port=1883
            )
            service = DemoService(feed=False)
            await service.mount(runtime, group, asyncio.Event())
            host = f"[{bound}]" if ":" in bound else bound
            return await service.announce(runtime, f"http://{host}:8080")

    plant = asyncio.run(announced())

    assert (plant["http"], plant["mqtt"]) == (http, mqtt)
    assert json.loads((tmp_path / FILE).read_text()) == plant
    told = hints(plant)
    assert f" {http}/oauth/token " in told and broker in told
    assert "0.0.0.0" not in told and "[::]" not in told


def test_a_plant_that_was_cut_short_is_made_whole_and_nothing_of_it_is_twice(
    tmp_path: Path,
) -> None:
    async def flow() -> None:
        async with offices(tmp_path) as [office], asyncio.TaskGroup() as group:
            settings = Settings(data_dir=str(tmp_path))
            runtime: Any = SimpleNamespace(
                settings=settings, view=office.view, control=office.control, mqtt_port=1883
            )
            for _ in range(2):
                # The first one never gets to writing `demo.json`.
                await DemoService(feed=False).mount(runtime, group, asyncio.Event())
            view = office.view
            names = [device.name for device in view.devices("demo")]
            assert len(names) == len(set(names))
            good = [(key.use, key.name) for key in view.keys("demo") if not key.revoked]
            assert len(good) == len(set(good)) == len(view.keys("demo")) / 2

    asyncio.run(flow())
