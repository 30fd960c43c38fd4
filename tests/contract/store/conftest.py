"""The implementations that the suite runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.store._places import Engine, Place, embedded, front, server


@pytest.fixture(
    scope="module",
    params=["chdb", "front", pytest.param("server", marks=pytest.mark.needs_clickhouse)],
)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine that is there for the module."""
    if request.param == "server":
        with server() as there:
            yield there
        return
    start = embedded if request.param == "chdb" else front
    with start(tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def place(engine: Engine) -> Place:
    """A database that is not there yet."""
    return Place(engine)
