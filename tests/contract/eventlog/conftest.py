"""The implementations that the suite runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.eventlog._places import KafkaPlace, Place, SqlitePlace
from tests.support.kafka import shared_broker


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.needs_kafka)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty log, not opened."""
    if request.param == "sqlite":
        yield SqlitePlace(tmp_path)
        return
    kafka = KafkaPlace(shared_broker())
    yield kafka
    asyncio.run(kafka.remake())
