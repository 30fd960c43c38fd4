"""What only the embedded log promises: one process, FULL, an honest answer when the disk
fails.
"""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.topics import SAMPLES_ACCEPTED, SAMPLES_RECEIVED, TOPICS
from services.errors import Broken, Unavailable
from services.eventlog import Reader
from services.eventlog._sqlite_file import LogFile
from services.eventlog.sqlite import SqliteLog
from tests.contract.eventlog._places import LANES, SqlitePlace, opened
from tests.contract.eventlog._records import (
    Told,
    a_record,
    numbers_of,
    read_all,
    read_until,
    until,
)


@pytest.fixture
def place(tmp_path: Path) -> SqlitePlace:
    """An empty log, not opened."""
    return SqlitePlace(tmp_path)


class Disk:
    """What a transaction meets when it is ready: nothing, a wait, or an error."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.waits = threading.Event()
        self._free = threading.Event()
        self._free.set()

    def __call__(self) -> None:
        self.waits.set()
        assert self._free.wait(30)
        if self.error is not None:
            raise self.error

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """No commit goes through."""
        self._free.clear()
        self.waits.clear()
        try:
            yield
        finally:
            self._free.set()


# -- one writer ------------------------------------------------------------------------------------


def test_a_second_process_is_refused(place: SqlitePlace) -> None:
    async def scenario() -> str:
        async with opened(place):
            command = [sys.executable, "-m", "tests.contract.eventlog._child", place.url, "", "4"]
            child = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
            _, said = await asyncio.wait_for(child.communicate(), 30)
            assert child.returncode
            return said.decode()

    assert f"Broken: {place.path} is open in another process" in asyncio.run(scenario()).replace(
        "services.errors.", ""
    )


def test_a_file_that_was_refused_can_be_opened_when_it_is_free(place: SqlitePlace) -> None:
    async def scenario() -> None:
        async with opened(place):
            with pytest.raises(Broken):
                await place.log().__aenter__()
        async with opened(place) as log:
            await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])

    asyncio.run(scenario())


def test_a_file_that_is_no_log_is_refused(place: SqlitePlace) -> None:
    place.path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(Broken):
        asyncio.run(place.log().__aenter__())


def test_installations_with_different_prefixes_do_not_see_each_other(place: SqlitePlace) -> None:
    async def scenario() -> None:
        for prefix, number in (("a.", 1), ("b.", 2), ("a.", 3)):
            async with place.log(prefix=prefix) as log:
                await log.create(TOPICS)
                await log.append([(SAMPLES_RECEIVED, 0, a_record(number))])
                found = numbers_of((await read_all(log, SAMPLES_RECEIVED))[0])
                assert found == {1: [1], 2: [2], 3: [1, 3]}[number]

    asyncio.run(scenario())


def test_a_topic_that_was_not_created_is_an_error(place: SqlitePlace) -> None:
    async def scenario() -> None:
        async with opened(place, topics=[SAMPLES_RECEIVED]) as log:
            with pytest.raises(Broken, match=r"samples\.accepted was not created"):
                await log.append([(SAMPLES_ACCEPTED, 0, a_record(1))])

    asyncio.run(scenario())


# -- the disk --------------------------------------------------------------------------------------


def test_commits_are_synced(place: SqlitePlace) -> None:
    file = LogFile(str(place.path), LANES, "", None)
    file.open()
    said = "INSERT INTO about SELECT 'said', synchronous FROM pragma_synchronous"
    file.write([], [(said, ())])
    assert file.query("SELECT value FROM about WHERE name = 'said'") == [("2",)]
    assert file.query("PRAGMA journal_mode") == [("wal",)]
    file.close()


def test_nothing_is_acknowledged_before_the_disk_has_it(place: SqlitePlace) -> None:
    async def scenario() -> None:
        disk, told = Disk(), Told()
        async with place.log(before_commit=disk) as log:
            await log.create(TOPICS)
            reader = log.reader([SAMPLES_RECEIVED])
            async with reader:
                await _stall(disk, told, log, reader)

    asyncio.run(scenario())


async def _stall(disk: Disk, told: Told, log: SqliteLog, reader: Reader) -> None:
    """A commit that does not come back; what is put meanwhile becomes one record."""
    with disk.stalled():
        log.put(SAMPLES_RECEIVED, 0, a_record(0), told.of(0))
        await until(disk.waits.is_set)
        for number in range(1, 50):
            log.put(SAMPLES_RECEIVED, 0, a_record(number), told.of(number))
        assert await reader.batch(wait_ms=100) is None
        assert not told.count
        assert log.queued_bytes > 0
    await until(lambda: told.count == 50)
    records = (await read_until(reader, {0: 2}))[0]
    assert [len(numbers_of([logged])) for logged in records] == [1, 49]
    assert numbers_of(records) == [*range(50)]


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), OSError(28, "No space left on device")]
)
def test_a_failing_disk_is_said_and_leaves_nothing_behind(
    place: SqlitePlace, error: Exception
) -> None:
    async def scenario() -> None:
        disk = Disk()
        async with place.log(before_commit=disk) as log:
            await log.create(TOPICS)
            await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])
            disk.error = error
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await log.append([(SAMPLES_RECEIVED, lane, a_record(2)) for lane in (0, 1)])
            with pytest.raises(Unavailable):
                await log.checkpoint("judge", 0, 0, b"state", 0, 1)
            assert log.queued_bytes == 0
            disk.error = None
            assert await log.append([(SAMPLES_RECEIVED, 0, a_record(3))]) == [1]
            assert await log.checkpoints("judge", [0]) == {}
            lanes = await read_all(log, SAMPLES_RECEIVED)
            assert {lane: numbers_of(found) for lane, found in lanes.items()} == {0: [1, 3]}
        async with opened(place) as log:
            lanes = await read_all(log, SAMPLES_RECEIVED)
            assert {lane: numbers_of(found) for lane, found in lanes.items()} == {0: [1, 3]}

    asyncio.run(scenario())


_FULL = """
import asyncio, resource, sys
from schemas.topics import SAMPLES_RECEIVED, TOPICS
from services.errors import Unavailable
from services.eventlog import open_eventlog
from tests.contract.eventlog._records import a_record

async def main():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    async with open_eventlog(sys.argv[1], lanes=4) as log:
        await log.create(TOPICS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        number, failed = 0, 0
        while failed < 3:
            try:
                await log.append([(SAMPLES_RECEIVED, 0, a_record(number, text="x" * 50_000 ))])
                sys.stdout.write(f"{number}\\n")
            except Unavailable:
                failed += 1
            number += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await log.append([(SAMPLES_RECEIVED, 0, a_record(number, text="x" * 50_000))])
        sys.stdout.write(f"{number}\\n")

asyncio.run(main())
"""


def test_a_full_disk_is_survived(place: SqlitePlace) -> None:
    """A file that may not grow stands for a disk that is full; then there is room again."""
    command = [sys.executable, "-c", _FULL, place.url]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    durable = [int(line) for line in child.stdout.split()]
    assert durable[-1] == durable[-2] + 4

    async def check() -> None:
        async with opened(place) as log:
            found = numbers_of((await read_all(log, SAMPLES_RECEIVED))[0])
            assert set(durable) <= set(found)

    asyncio.run(check())


def test_closing_does_not_wait_for_ever_for_a_disk_that_hangs(place: SqlitePlace) -> None:
    async def scenario() -> None:
        disk, told = Disk(), Told()
        async with opened(place):
            pass  # Makes the topics, so that the disk is not asked for them again.
        with disk.stalled():
            async with place.log(before_commit=disk, drain_ms=50) as log:
                await log.create(TOPICS)
                log.put(SAMPLES_RECEIVED, 0, a_record(1), told.of(1))
                await until(disk.waits.is_set)
                log.put(SAMPLES_RECEIVED, 0, a_record(2), told.of(2))
            assert [type(error) for error in told.errors.values()] == [Unavailable, Unavailable]
            assert log.queued_bytes == 0
        # The thread ends when the disk answers; only then the file is free for the next one.
        await until(lambda: not _is_locked(place))

    asyncio.run(scenario())


def _is_locked(place: SqlitePlace) -> bool:
    file = LogFile(str(place.path), LANES, "", None)
    try:
        file.open()
    except Broken:
        return True
    file.close()
    return False


def test_a_fault_of_the_writer_itself_ends_the_log(place: SqlitePlace) -> None:
    async def scenario() -> None:
        disk = Disk()
        async with place.log(before_commit=disk) as log:
            await log.create(TOPICS)
            disk.error = ZeroDivisionError("a fault of ours")
            with pytest.raises(Unavailable):
                await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])
            with pytest.raises(Broken, match="a fault of ours"):
                await log.append([(SAMPLES_RECEIVED, 0, a_record(1))])

    asyncio.run(scenario())


def test_a_callback_that_raises_does_not_keep_the_others_from_hearing(place: SqlitePlace) -> None:
    async def scenario() -> None:
        told, faults = Told(), list[dict[str, Any]]()
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

        def fails(error: Exception | None, offset: int) -> None:
            raise ZeroDivisionError

        async with opened(place) as log:
            for number in range(5):
                log.put(SAMPLES_RECEIVED, 0, a_record(number), told.of(number))
                log.put(SAMPLES_RECEIVED, 0, a_record(number), fails)
            await until(lambda: told.count == 5)
        assert len(faults) == 5 and not told.errors

    asyncio.run(scenario())


def test_a_loop_that_never_rests_gives_way_while_a_turn_is_open(place: SqlitePlace) -> None:
    """The interpreter's lock is not fair; only a rest of the loop's thread surely lets the writer
    run. Each rest is a voluntary switch of the thread, and a loop that spins makes no others.
    """

    async def rests() -> int:
        loop = asyncio.get_running_loop()
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        end_s = loop.time() + 0.2
        while loop.time() < end_s:
            await asyncio.sleep(0)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before

    async def scenario() -> None:
        disk, told = Disk(), Told()
        async with place.log(before_commit=disk) as log:
            await log.create(TOPICS)
            await rests()
            idle = await rests()
            with disk.stalled():
                log.put(SAMPLES_RECEIVED, 0, a_record(0), told.of(0))
                await until(disk.waits.is_set)
                open_ = await rests()
            await until(lambda: told.count == 1)
        assert open_ > 20 + 2 * idle

    asyncio.run(scenario())
