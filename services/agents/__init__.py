"""Domain put on topics: an agent is a declaration, a runner drives it, a lane keeper makes it true.

`SERVICE` runs every agent of this folder.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from services import registry
from services.agents._contract import Agent, Outcome
from services.agents._guard import guarded, until_available
from services.agents._lane import Parts, Readiness
from services.domain import memory
from services.errors import Unavailable
from services.runtime import Mounted, Runtime

__all__ = ["SERVICE", "Agent", "Outcome", "all_agents"]


def all_agents() -> dict[str, Agent]:
    """Every agent of this folder, by the name of its module."""
    return registry.discover(sys.modules[__name__], "AGENT")


class AgentsService:
    """All agents of one process, on the runner that the settings name."""

    name = "agents"

    def warm(self) -> None:
        """Have the judge's kernels compiled, or loaded."""
        memory.warm()

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Start every agent; they give their lanes up when `stop` is set."""
        for agent in all_agents().values():
            readiness = Readiness()
            runtime.checks[f"agent {agent.name}"] = lambda state=readiness: state.why_not  # type: ignore[misc]
            running = _run(agent, runtime, readiness, stop)
            group.create_task(running, name=f"agent {agent.name}")
        return Mounted()


async def _parts(
    agent: Agent, runtime: Runtime, readiness: Readiness, stop: asyncio.Event
) -> Parts:
    """What the agent's lanes share, once log and store have said which life of the topic this
    is. Raises Unavailable where `stop` comes first.
    """
    log, store, topic = runtime.log, runtime.store, agent.source
    incarnation = await until_available(
        partial(log.incarnation, topic), what="the event log", stop=stop
    )
    epoch = await until_available(
        partial(store.register_epoch, topic.name, incarnation), what="the store", stop=stop
    )
    return Parts(agent, log, store, runtime.clock, runtime.settings, epoch, readiness)


async def _run(agent: Agent, runtime: Runtime, readiness: Readiness, stop: asyncio.Event) -> None:
    async def body() -> None:
        try:
            parts = await _parts(agent, runtime, readiness, stop)
        except Unavailable:
            return
        if parts.settings.runner == "faust":
            from services.agents._faust import run_faust

            await run_faust(parts, stop)
        else:
            from services.agents._loop import run_loop

            await run_loop(parts, stop)

    await guarded(body, what=f"agent {agent.name}")


SERVICE = AgentsService()
