"""`make bench`: measures this machine and prints; it asserts nothing.

python -m tests.bench [kernels] [push] [embedded] [late] [stream] [kafka]
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

from services import manage
from tests.bench import kernels, late, push, road, stream
from tests.support.cluster import SINKS, cluster
from tests.support.kafka import why_not
from tests.support.plant import running


def main() -> None:
    """Run what is named, or all."""
    chosen = sys.argv[1:] or ["kernels", "push", "embedded", "late", "stream", "kafka"]
    road.say(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    road.say(f"limits changed: {' '.join(f'{k}={v}' for k, v in road.LIFTED.items())}")
    if "kernels" in chosen:
        kernels.main()
    if "push" in chosen:
        push.main()
    if "embedded" in chosen:
        embedded()
    if "late" in chosen:
        late.main()
    if "stream" in chosen:
        streams()
    if "kafka" in chosen and why_not():
        road.say(f"kafka: {why_not()}")
    elif "kafka" in chosen:
        for runner in ("loop", "faust"):
            on_kafka(runner)


def embedded() -> None:
    """SQLite log and chDB, everything in one process."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), road.LIFTED) as plant:
        facts = plant.facts
        road.report(
            "embedded (SQLite log, plain loop, chDB)",
            facts,
            road.socket_of(plant.data_dir),
            Path(folder),
            lambda: road.sink_rows([facts["http"]]),
        )


def streams() -> None:
    """Changes to many who follow, everything in one process."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as plant:
        road.say("streams, embedded:")
        stream.report(plant.facts)


def on_kafka(runner: str) -> None:
    """Apache Kafka, a process for each service, the store behind ClickHouse's HTTP interface."""
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(Path(folder), runner=runner, reads_apart=False, env=road.LIFTED) as made,
    ):
        sinks = made.address_of(SINKS)
        road.report(
            f"Apache Kafka, {runner} runner, four processes, the store behind HTTP",
            made.facts,
            lambda action, arguments: manage.act(made.settings(), action, arguments),
            Path(folder),
            lambda: road.sink_rows([sinks]),
        )


main()
