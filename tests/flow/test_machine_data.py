"""Real machine data through the whole road, embedded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.machine_data import MachineData
from tests.support.plant import Plant, running


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("plant")) as plant:
        yield plant


class TestEmbedded(MachineData):
    """The tests of `MachineData` on SQLite and chDB."""
