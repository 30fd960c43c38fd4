"""The command as a process, where log and store are servers that are away."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment, free_port, run, started

LINESHAFT = [sys.executable, "-m", "services"]


@pytest.fixture
def away(tmp_path: Path) -> dict[str, str]:
    """An environment that names servers where nobody listens."""
    return environment(
        LINESHAFT_LOG=f"kafka://127.0.0.1:{free_port()}",
        LINESHAFT_STORE=f"clickhouse://127.0.0.1:{free_port()}/lineshaft",
        LINESHAFT_DATA_DIR=str(tmp_path),
        LINESHAFT_LOG_FORMAT="text",
        LINESHAFT_SECRET="a-secret-of-the-tests-of-32-or-more-characters",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_waits_for_its_servers_and_ends_at_once_when_told(
    away: dict[str, str], tmp_path: Path, number: int
) -> None:
    with started([*LINESHAFT, "up"], output=tmp_path / "output", env=away) as process:
        process.wait_output(r"waiting, again in 1 s: Kafka at 127\.0\.0\.1:\d+ is away")
        process.signal(number)
        assert process.wait(seconds=5) == 0


def test_a_service_waits_for_its_log_too(away: dict[str, str], tmp_path: Path) -> None:
    with started([*LINESHAFT, "run", "sinks"], output=tmp_path / "output", env=away) as process:
        process.wait_output(r"waiting, again in 1 s: Kafka at 127\.0\.0\.1:\d+ is away")
        process.signal(signal.SIGTERM)
        assert process.wait(seconds=5) == 1
        assert "stopped before the event log was there" in process.output()


def test_migrate_does_not_wait(away: dict[str, str]) -> None:
    done = run([*LINESHAFT, "migrate"], env=away, check=False, seconds=30)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("lineshaft: Kafka at 127.0.0.1:")


def test_a_command_does_not_pay_for_what_it_does_not_use() -> None:
    code = "import sys, services.cli; print(*{'pandas', 'chdb', 'faust'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
