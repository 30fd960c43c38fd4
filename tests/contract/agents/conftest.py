"""The runners that the suite runs on, each with a log of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.agents._ground import Ground
from tests.contract.eventlog._places import KafkaPlace, SqlitePlace
from tests.support.kafka import shared_broker

_KAFKA = [pytest.mark.needs_kafka, pytest.mark.system]
LOOP_SQLITE = "loop on SQLite"
LOOP_KAFKA = pytest.param("loop on Kafka", marks=_KAFKA)
FAUST_KAFKA = pytest.param("Faust on Kafka", marks=_KAFKA)


def _ground(param: str, folder: Path) -> Iterator[Ground]:
    runner = "faust" if param.startswith("Faust") else "loop"
    kafka = KafkaPlace(shared_broker()) if param.endswith("Kafka") else None
    ground = Ground(kafka or SqlitePlace(folder), runner, folder)
    try:
        asyncio.run(ground.create())
        yield ground
    finally:
        ground.end()
        if kafka:
            asyncio.run(kafka.remake())


@pytest.fixture(params=[LOOP_SQLITE, LOOP_KAFKA, FAUST_KAFKA])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """A log with its topics, and a runner for processes on it."""
    yield from _ground(request.param, tmp_path)


@pytest.fixture(params=[LOOP_KAFKA, FAUST_KAFKA])
def kafka_ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """The same where several processes can share a log."""
    yield from _ground(request.param, tmp_path)


@pytest.fixture(params=[FAUST_KAFKA])
def faust_ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """The same on Faust alone."""
    yield from _ground(request.param, tmp_path)
