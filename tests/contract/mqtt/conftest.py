"""The MQTT door on both event loops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.mqtt._server import LOOPS, Server, serving


@pytest.fixture(params=list(LOOPS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A door with an empty log."""
    with serving(tmp_path, LOOPS[request.param]()) as server:
        yield server
