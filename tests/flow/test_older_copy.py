"""An older copy of the embedded log, put back: noticed, said, and nothing mixed."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.plant import Plant, moment, running
from tests.support.processes import wait_for

BASE_MS = 1_700_000_000_000


def _write(plant: Plant, first: int) -> None:
    """Twenty values, one request each, and wait until the store's mark covers them."""
    client, before = plant.client(), plant.metric('sink_rows_total{sink="samples"}')
    for at in range(first, first + 20):
        assert client.post([(moment(BASE_MS + at), f"{at}.5")])[0] == 204
    wait_for(
        lambda: plant.metric('sink_rows_total{sink="samples"}') >= before + 20, what="stored rows"
    )


def test_an_older_copy_of_the_log_is_refused_in_words(tmp_path: Path) -> None:
    with running(tmp_path, {"LINESHAFT_RESTART_MAX": "1"}) as plant:
        _write(plant, 0)
        assert plant.stop() == 0
        kept = tmp_path / "kept"
        shutil.copytree(plant.data_dir, kept, ignore=shutil.ignore_patterns("store*", "*.sock"))
        plant.start()
        _write(plant, 20)
        assert plant.stop() == 0
        for file in plant.data_dir.glob("log.sqlite*"):
            file.unlink()
        for file in kept.glob("log.sqlite*"):
            shutil.copy(file, plant.data_dir / file.name)
        plant.launch()
        assert plant.process is not None
        assert plant.process.wait(seconds=60) == 1
        assert "the log is an older copy" in plant.process.output()
