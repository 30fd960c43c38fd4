"""The view behind a log: beginning, going on, stopping, records that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import Tenant
from schemas.envelope import Envelope, Letter
from schemas.topics import CATALOGUE_CHANGED, TOPICS
from services.catalogue import View, first
from services.errors import Unavailable
from services.eventlog import EventLog, Reader, open_eventlog
from tests.support.catalogue import skipped


def record(tenant: str) -> tuple[Any, int, Envelope]:
    """A tenant's claim, ready to be appended."""
    change = first(Tenant(tenant))
    return CATALOGUE_CHANGED, 0, Envelope(change, key=change.key)


def a_log(folder: Path) -> EventLog:
    """A log in a folder, not yet opened."""
    return open_eventlog(f"sqlite:///{folder / 'log.sqlite'}", lanes=1)


def test_a_view_is_ready_when_it_has_what_lay_there_and_goes_on_from_there(tmp_path: Path) -> None:
    async def body() -> None:
        async with a_log(tmp_path) as log:
            await log.create(TOPICS)
            await log.append([record("one"), record("two")])
            view, stop = View(), asyncio.Event()
            following = asyncio.create_task(view.follow(log, stop))

            await asyncio.wait_for(view.ready(), 10)
            assert [tenant.id for tenant in view.tenants()] == ["one", "two"]

            [offset] = await log.append([record("three")])
            await asyncio.wait_for(view.caught_up(offset), 10)
            assert view.tenant("three") is not None

            stop.set()
            await asyncio.wait_for(following, 10)

    asyncio.run(body())


def test_a_view_of_an_empty_log_is_ready_and_waits_for_what_is_not_there(tmp_path: Path) -> None:
    async def body() -> None:
        async with a_log(tmp_path) as log:
            await log.create(TOPICS)
            view, stop = View(), asyncio.Event()
            following = asyncio.create_task(view.follow(log, stop))
            await asyncio.wait_for(view.ready(), 10)

            waiting = asyncio.create_task(view.caught_up(0))
            await asyncio.sleep(0)
            assert not waiting.done()
            await log.append([record("one")])
            await asyncio.wait_for(waiting, 10)

            stop.set()
            await asyncio.wait_for(following, 10)

    asyncio.run(body())


def test_a_view_without_a_follower_is_not_ready() -> None:
    async def body() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(View().ready(), 0.01)

    asyncio.run(body())


def test_a_record_that_is_no_change_is_counted_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with a_log(tmp_path) as log:
            await log.create(TOPICS)
            letter = Envelope(Letter("reason", "detail", "source"), key=b"letter")
            await log.append([(CATALOGUE_CHANGED, 0, letter), record("one")])
            view, stop, before = View(), asyncio.Event(), skipped("undecodable")
            following = asyncio.create_task(view.follow(log, stop))
            await asyncio.wait_for(view.ready(), 10)

            assert (skipped("undecodable") - before, view.revision) == (1, 1)
            assert view.tenant("one") is not None

            stop.set()
            await asyncio.wait_for(following, 10)

    asyncio.run(body())
    assert "record 0 of the catalogue cannot be read: a Letter" in caplog.text


class _Faltering:
    """A log whose readers fail after their first batch, as often as `failures` says."""

    def __init__(self, log: EventLog, failures: int) -> None:
        self._log, self.failures = log, failures
        self.starts: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reader(self, topics: Sequence[Any], **options: Any) -> Reader:
        """A reader that may fail."""
        self.starts.append(options["start"])
        reader: Any = self._log.reader(topics, **options)
        whole, read = reader.batch, list[bool]()

        async def batch(**asked: Any) -> Any:
            if read and self.failures:
                self.failures -= 1
                raise Unavailable("the log went away", retry_after_ms=1)
            read.append(True)
            return await whole(**asked)

        reader.batch = batch
        return reader  # type: ignore[no-any-return]


def test_a_view_goes_on_where_it_was_when_the_log_comes_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with a_log(tmp_path) as log:
            await log.create(TOPICS)
            await log.append([record("one")])
            faltering: Any = _Faltering(log, failures=2)
            view, stop = View(), asyncio.Event()
            following = asyncio.create_task(view.follow(faltering, stop))
            await asyncio.wait_for(view.ready(), 10)

            [offset] = await log.append([record("two")])
            await asyncio.wait_for(view.caught_up(offset), 10)

            assert [tenant.id for tenant in view.tenants()] == ["one", "two"]
            assert faltering.starts[0] == {0: 0}
            assert {0: 1} in faltering.starts
            stop.set()
            await asyncio.wait_for(following, 10)

    asyncio.run(body())
