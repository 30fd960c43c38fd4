"""Catalogues for tests: a view of given things, and a log with a view and a control on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.catalogue import Thing
from schemas.envelope import Audit, Change, Envelope
from schemas.topics import CALLS_AUDITED, TOPICS
from services.catalogue import Control, View
from services.clock import Clock, ManualClock
from services.eventlog import EventLog, open_eventlog
from services.metrics import CATALOGUE_SKIPPED

SECRET = b"the installation's secret of the tests"


def put(view: View, thing: Thing) -> None:
    """Have the view take in a thing, behind everything that it has."""
    view.apply(Change(thing.KIND, thing.id, thing.body()), view.revision + 1)


def a_view(*things: Thing, keys_per_device_max: int = 10_000) -> View:
    """A view that has these things."""
    view = View(keys_per_device_max=keys_per_device_max)
    for thing in things:
        put(view, thing)
    return view


def a_control(log: EventLog, view: View, clock: Clock, **members: Any) -> Control:
    """A control with the settings' defaults."""
    plain = {"command_ms": 600_000, "device_commands_max": 100}
    return Control(log, view, clock, SECRET, **plain | members)


def skipped(reason: str) -> float:
    """How many records of the catalogue this process has passed over for that reason."""
    return CATALOGUE_SKIPPED.labels(reason)._value.get()


@dataclass
class Office:
    """A process that configures: its view and its control."""

    log: EventLog
    view: View
    control: Control
    clock: ManualClock


@asynccontextmanager
async def offices(folder: Path, count: int = 1) -> AsyncIterator[list[Office]]:
    """One log, and as many views and controls on it as asked for, each like a process of its
    own.
    """
    clock, stop = ManualClock(), asyncio.Event()
    async with open_eventlog(f"sqlite:///{folder / 'log.sqlite'}", lanes=1) as log:
        await log.create(TOPICS)
        opened, following = [], []
        try:
            for _ in range(count):
                view = View()
                following.append(asyncio.create_task(view.follow(log, stop)))
                await asyncio.wait_for(view.ready(), 10)
                opened.append(Office(log, view, a_control(log, view, clock), clock))
            yield opened
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)


async def audits(log: EventLog) -> list[Audit]:
    """Every audit record on the log, in its order."""
    found: list[Audit] = []
    span = (await log.spans(CALLS_AUDITED))[0]
    async with log.reader([CALLS_AUDITED]) as reader:
        while len(found) < span.end - span.begin:
            batch = await reader.batch()
            for record in batch.records if batch else ():
                assert isinstance(record.envelope, Envelope)
                assert isinstance(record.envelope.record, Audit)
                found.append(record.envelope.record)
    return found
