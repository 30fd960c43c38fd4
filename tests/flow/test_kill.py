"""kill -9 under load, embedded: lost 0, doubled 0, wrong 0, phantom 0, false receipts 0."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.load import Load
from tests.support.plant import running
from tests.support.processes import let_pass
from tests.support.rounds import rounds, seed


def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path) -> None:
    chosen = seed()
    chance = random.Random(chosen)
    with running(tmp_path, {"LINESHAFT_MQTT_MESSAGES_PER_SECOND": "0"}) as plant:
        with Load(plant, seed=chosen) as load:
            for round_ in range(rounds(4)):
                let_pass(chance.uniform(1, 4))
                if round_ % 2:
                    plant.kill()
                    plant.start()
                else:
                    before = set(plant.children())
                    plant.kill_child("services run")
                    while set(plant.children()) <= before:
                        let_pass(0.02)
                    plant.wait_ready()
            let_pass(1)
        findings = load.findings()
        books = plant.books()
    print(f"{load.history}: {findings}")
    assert load.history.told("kept") > 500
    assert findings.clean, str(findings)
    assert books["received"] == sum(books.values()) - books["received"]
