"""A plant whose catalogue a test writes as it likes: the services of `lineshaft up --demo` in one
process, and a door that appends any change and answers when it is known.

    python -m tests.support.configured DATA_DIR HTTP_PORT MQTT_PORT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from schemas.catalogue import Thing
from schemas.envelope import Change, Envelope
from schemas.topics import CATALOGUE_CHANGED
from services import agents, demo, ingress, logs, ops, query, runtime, settings, sinks
from services.runtime import Mounted, Runtime
from tests.support.plant import Http, Plant

_PATH = "/changes"


class ConfiguredPlant(Plant):
    """See the module's text."""

    def argv(self) -> list[str]:
        """The child's command line."""
        places = (self.data_dir, self.http_port, self.mqtt_port)
        return [sys.executable, "-m", "tests.support.configured", *map(str, places)]

    def put(self, *things: Thing) -> None:
        """Put things into the catalogue; they hold when this returns."""
        http = Http(f"http://127.0.0.1:{self.http_port}")
        changes = [{"kind": each.KIND, "id": each.id, "body": each.body()} for each in things]
        status, answer, _ = http.request("POST", _PATH, changes)
        assert status == 200, (status, answer)


@contextmanager
def configured(folder: Path) -> Iterator[ConfiguredPlant]:
    """A plant that is ready; gone when the block ends."""
    plant = ConfiguredPlant(folder)
    try:
        plant.start()
        yield plant
    finally:
        plant.kill()


class Changes:
    """The service behind `ConfiguredPlant.put`."""

    name = "changes"

    async def mount(
        self, opened: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Its one route."""
        router = APIRouter()

        async def put(changes: list[dict[str, Any]]) -> None:
            out = [(CATALOGUE_CHANGED, 0, Envelope(Change(**change))) for change in changes]
            offsets = await opened.log.append(out)
            await opened.view.caught_up(max(offsets))

        router.add_api_route(_PATH, put, methods=["POST"])
        return Mounted(routers=[router])


def main(arguments: Sequence[str]) -> int:
    """Run until SIGTERM."""
    data_dir, http_port, mqtt_port = arguments
    ports = {"http_port": int(http_port), "mqtt_port": int(mqtt_port)}
    chosen = settings.load(data_dir=data_dir, **ports)
    logs.set_up(chosen)
    plant = demo.DemoService(feed=False)
    parts = [ingress.SERVICE, query.SERVICE, plant, Changes(), agents.SERVICE, sinks.SERVICE]

    async def body(stop: asyncio.Event) -> None:
        async with runtime.open_runtime(chosen, stop) as opened:
            ready = plant.announce
            await runtime.serve(opened, parts, ops=ops.ops_routes, ready=ready, stop=stop)

    return runtime.run(body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
