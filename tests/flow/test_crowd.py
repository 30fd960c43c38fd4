"""Twenty clients on ten points at the same milliseconds, with kills: for every history there is an
order of the requests that explains every answer and every stored value. Embedded.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.catalogue import remote
from tests.support.crowd import crowds, ten_points
from tests.support.plant import Plant, running
from tests.support.processes import let_pass
from tests.support.rounds import rounds, seed


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("crowd")) as plant:
        yield plant


def test_an_order_explains_every_answer_and_every_value(plant: Plant) -> None:
    """25 histories; 300 where ROUNDS is 20."""

    def act(action: str, arguments: dict[str, object]) -> dict[str, str]:
        return dict(remote.ask(plant.data_dir / "control.sock", action, arguments))

    def everything() -> None:
        plant.kill()
        plant.start()

    def child() -> None:
        before = set(plant.children())
        plant.kill_child("services run")
        while set(plant.children()) <= before:
            let_pass(0.02)
        plant.wait_ready()

    crowds(
        plant,
        ten_points(plant, act),
        seed=seed(),
        count=max(25, 15 * rounds(1)),
        disturbances=[everything, child],
    )
