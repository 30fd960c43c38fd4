"""A real Apache Kafka for tests: the one that LINESHAFT_TEST_KAFKA names, else one from the Maven
jars, else a skip.

`Broker` is a process of its own that can be killed and come back on its data; `shared_broker` is
one for the whole test run.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from tests.support.processes import ROOT, Process, free_port, listening, wait_for

RUN = ROOT / "infra" / "kafka" / "run"
JARS = ROOT / ".kafka" / "lib"
ADDRESS_VARIABLE = "LINESHAFT_TEST_KAFKA"


def why_not() -> str:
    """Why there is no Kafka to be had here; empty where there is one."""
    if os.environ.get(ADDRESS_VARIABLE):
        return ""
    missing = [name for name in ("java", "mvn") if not shutil.which(name)]
    return f"Kafka needs {' and '.join(missing)} on the PATH" if missing else ""


@cache
def _jars() -> None:
    subprocess.run([str(RUN), "jars"], env=_env(JARS.parent, 0), check=True, timeout=600)


def _env(folder: Path, port: int) -> dict[str, str]:
    return dict(os.environ) | {
        "KAFKA_DIR": str(folder),
        "KAFKA_LIB": str(JARS),
        "KAFKA_PORT": str(port),
    }


class Broker:
    """One KRaft node on a folder and a port of its own."""

    def __init__(self, folder: Path) -> None:
        if reason := why_not():
            pytest.skip(reason)
        _jars()
        self.folder, self.port = folder, free_port()
        self._process: Process | None = None

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start on what the folder holds; returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        output = self.folder / "output.txt"
        env = _env(self.folder, self.port)
        self._process = Process([str(RUN)], output=output, env=env, cwd=ROOT)
        wait_for(self._answers, seconds=90, what=f"Kafka on {self.address}")

    def _answers(self) -> bool:
        assert self._process is not None
        ended = self._process.returncode
        assert ended is None, f"Kafka ended with {ended}:\n{self._process.output()[-4000:]}"
        return listening(self.port) and asyncio.run(_bootstraps(self.address))

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """kill -9, and a new start on the same data."""
        self.kill()
        self.start()


async def _bootstraps(address: str) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=2_000)
    try:
        async with asyncio.timeout(3):
            await admin.start()
            await admin.list_topics()
    except (OSError, TimeoutError, RuntimeError):
        return False
    except Exception as error:
        if type(error).__module__.startswith("aiokafka"):
            return False
        raise
    finally:
        await admin.close()
    return True


@cache
def shared_broker() -> str:
    """host:port of a broker for the whole test run; tests take topic prefixes of their own."""
    if address := os.environ.get(ADDRESS_VARIABLE):
        return address
    folder = Path(tempfile.mkdtemp(prefix="lineshaft-kafka-"))
    broker = Broker(folder)
    broker.start()

    def end() -> None:
        broker.kill()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return broker.address


async def delete_topics(address: str, prefix: str) -> None:
    """Remove every topic whose name begins with the prefix, and wait until they are gone."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name.startswith(prefix)]
        if names:
            await admin.delete_topics(names)
        async with asyncio.timeout(30):
            while any(name.startswith(prefix) for name in await admin.list_topics()):
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def produce_raw(
    address: str, topic: str, lane: int, value: bytes | None, headers: Sequence[tuple[str, bytes]]
) -> None:
    """Any bytes onto a topic, past the driver."""
    producer = AIOKafkaProducer(bootstrap_servers=address, max_request_size=16 << 20)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, partition=lane, headers=list(headers))
    finally:
        await producer.stop()


async def commit_raw(
    address: str, group: str, topic: str, lane: int, next_offset: int, metadata: str
) -> None:
    """A commit of a group that has no members, past the driver."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        partition = TopicPartition(topic, lane)
        consumer.assign([partition])
        await consumer.commit({partition: (next_offset, metadata)})
    finally:
        await consumer.stop()


async def committed_raw(address: str, group: str) -> dict[tuple[str, int], tuple[int, str]]:
    """(topic, lane) to (next offset, metadata), as Kafka keeps it."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets(group)
        return {tuple(partition): tuple(at) for partition, at in found.items()}
    finally:
        await admin.close()
