"""ClickHouse's HTTP interface over chDB, in a process that can be killed and come back."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.processes import ROOT, Process, free_port


class Front:
    """The store as a server; `url` is for LINESHAFT_STORE."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self.url = f"clickhouse://default:@127.0.0.1:{self.port}/lineshaft"
        self._process: Process | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        argv = [sys.executable, "-m", "tests.support.clickhouse_front"]
        argv += ["--port", str(self.port), "--path", str(self._folder / "front")]
        output = self._folder / f"front-{free_port()}.txt"
        self._process = Process(argv, output=output, env=None, cwd=ROOT)
        self._process.wait_output(str(self.port))

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process = None
