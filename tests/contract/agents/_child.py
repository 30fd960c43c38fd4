"""A process that drives an agent's lanes, to be killed: `python -m tests.contract.agents._child
JSON`, where the JSON object holds the fields of `Orders`.

Each line of its output is a JSON object: lane to the last offset whose outputs are durable; of the
watch over rules it is a list of the agent's name and that object.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from schemas.blocks import Block
from schemas.envelope import Logged
from schemas.topics import TOPICS
from services.agents import Agent, samples, triggers
from services.agents._guard import guarded
from services.agents._lane import LaneKeeper, Parts
from services.agents._lanes import Lanes
from services.clock import SystemClock
from services.eventlog import open_eventlog
from services.settings import Settings
from services.store import Query
from tests.contract.agents import _toy
from tests.support.stores import MemoryStore

CHECKPOINT_MS = 150


@dataclass(frozen=True, slots=True)
class Orders:
    """What the process shall do.

    `agent` names one, or several with + between. `folder` holds flags: while the file `away` is
    there the store is away, while `raises` is there the toy agent has a bug. `crash_at` kills the
    process before so many pieces of checkpoints. `garble` is the seed of a layer of faults between
    runner and lanes. `unchecked` takes the lane keeper's check out. `bare` runs a Faust agent
    without lanes instead, guarded or unguarded.
    """

    runner: str
    url: str
    prefix: str
    lanes: int
    folder: str
    agent: str = "toy"
    epoch: int = 1
    crash_at: int = 0
    garble: int = 0
    unchecked: bool = False
    bare: str = ""


class FlagStore(MemoryStore):
    """A store that knows nothing, and is away while a file says so."""

    def __init__(self, flag: Path) -> None:
        super().__init__()
        self._flag = flag

    async def fetch(self, query: Query) -> Block:
        """No rows."""
        self.away = self._flag.exists()
        return await super().fetch(query)


class Keeper(LaneKeeper):
    """A keeper that checkpoints often, and ends the process before a piece of a checkpoint."""

    crash_at = 0

    def _checkpoint_in_ms(self) -> float:
        due_ms = super()._checkpoint_in_ms()
        elapsed_ms = self.parts.clock.monotonic_ms() - self._checkpointed_ms
        return due_ms if self.position == self._checkpointed else CHECKPOINT_MS - elapsed_ms

    async def _keep(self, slot: int, piece: bytes, offset: int) -> None:
        Keeper.crash_at -= 1
        if Keeper.crash_at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await super()._keep(slot, piece, offset)


class Unchecked(Keeper):
    """The control: takes whatever comes."""

    def _place(self, offset: int) -> int:
        return 0


class Watched(Lanes):
    """Lanes that say where they are."""

    keeper_class = Keeper

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        told: dict[int, int] = {}
        name = self.parts.agent.name
        while True:
            positions = {
                lane: told.get(lane, -1) if keeper._open else keeper.position
                for lane, keeper in self.held.items()
            }
            if positions != told:
                told = positions
                said = [name, told] if name == triggers.NAME else told
                sys.stdout.write(json.dumps(said) + "\n")
                sys.stdout.flush()
            await asyncio.sleep(0.02)


class Garbled(Watched):
    """Leaves records out, repeats and reorders them on their way from the runner to the lanes."""

    chance = random.Random()

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._held_back: dict[int, Logged] = {}
        self._old: list[tuple[int, Logged]] = []

    def offer(self, lane: int, logged: Logged) -> None:
        """Pass a record on, somehow."""
        dice = self.chance.random()
        if dice > 0.4:
            super().offer(lane, logged)
        elif dice < 0.1:
            return
        elif dice < 0.2:
            super().offer(lane, logged)
            super().offer(lane, logged)
        elif dice < 0.3 and self._old:
            super().offer(*self.chance.choice(self._old))
            super().offer(lane, logged)
        else:
            self._held_back[lane] = logged
            return
        self._old.append((lane, logged))
        if late := self._held_back.pop(lane, None):
            super().offer(lane, late)


class UncheckedGarbled(Garbled):
    """The control."""

    keeper_class = Unchecked


async def main(orders: Orders) -> None:
    """Drive until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    folder = Path(orders.folder)
    settings = Settings(
        data_dir=orders.folder,
        log=orders.url,
        topic_prefix=orders.prefix,
        lanes=orders.lanes,
        agents_runner=orders.runner,
        checkpoint_seconds=1,
    )
    agents: dict[str, Agent] = {
        "toy": _toy.agent(raises=folder / "raises"),
        "samples": samples.agent(),
        "triggers": triggers.AGENT,
    }
    store = FlagStore(folder / "away")
    async with open_eventlog(orders.url, lanes=orders.lanes, prefix=orders.prefix) as log:
        if settings.log_embedded:
            await log.create(TOPICS)
        clock = SystemClock()
        async with asyncio.TaskGroup() as group:
            for name in orders.agent.split("+"):
                parts = Parts(agents[name], log, store, clock, settings, orders.epoch)
                body = partial(_run, orders, parts, stop)
                group.create_task(guarded(body, what=f"the test's agent {name}"))


async def _run(orders: Orders, parts: Parts, stop: asyncio.Event) -> None:
    Keeper.crash_at = orders.crash_at
    Garbled.chance = random.Random(orders.garble)
    lanes_class: type[Lanes] = Watched
    if orders.garble:
        lanes_class = UncheckedGarbled if orders.unchecked else Garbled
    if orders.bare:
        await _bare(parts, stop, guard=orders.bare == "guarded")
    elif orders.runner == "faust":
        from services.agents._faust import run_faust

        await run_faust(parts, stop, lanes_class=lanes_class)
    else:
        from services.agents._loop import run_loop

        await run_loop(parts, stop, lanes_class=lanes_class)


async def _bare(parts: Parts, stop: asyncio.Event, *, guard: bool) -> None:
    """A Faust agent without lanes, with a body that raises once at record 13; each line of the
    output is a record that it has seen.
    """
    from services.agents._faust import new_app

    app = new_app(parts)
    name = f"{parts.settings.topic_prefix}{parts.agent.source.name}"
    topic = app.topic(name, value_serializer="raw", key_serializer="raw", internal=False)
    flag = Path(parts.settings.data_dir) / "raised"

    def see(offset: int) -> None:
        if offset == 13 and not flag.exists():
            flag.touch()
            raise ValueError("a bug")
        sys.stdout.write(f"{offset}\n")
        sys.stdout.flush()

    async def deliver(stream: Any) -> None:
        async def body() -> None:
            async for event in stream.events():
                see(event.message.offset)

        unguarded: Callable[[], Awaitable[None]] = body
        await (guarded(body, what="the bare body") if guard else unguarded())

    app.agent(topic, name="bare", concurrency=1)(deliver)
    await app.start()
    await stop.wait()
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main(Orders(**json.loads(sys.argv[1]))))
