"""Lineshaft as processes on Apache Kafka and a store that is a server; each can be killed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services import settings
from services.settings import Settings
from tests.support.front import Front
from tests.support.kafka import Broker
from tests.support.plant import Http, Plant
from tests.support.processes import ROOT, Process, free_port, wait_for

SECRET = "a-secret-of-the-tests-of-32-or-more-characters"
DOORS, SECOND_DOORS, READS, SINKS = "doors", "doors-2", "reads", "sinks"


class Cluster(Plant):
    """`doors` (in, with the demo plant), `reads` (doors out), `agents-1` …, `sinks`: every one a
    process of its own; where `reads_apart` is false, the doors serve the reads too, as the roles of
    `lineshaft up` do. With `second_doors` there is one more process of doors in. Spoken to like a
    `Plant`. `broker` and `front` are processes too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        runner: str,
        agents: int = 1,
        reads_apart: bool = True,
        second_doors: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, env)
        self.runner = runner
        self.broker, self.front = Broker(folder / "kafka"), Front(folder)
        self._env |= {
            "LINESHAFT_LOG": f"kafka://{self.broker.address}",
            "LINESHAFT_STORE": self.front.url,
            "LINESHAFT_SECRET": SECRET,
            "LINESHAFT_AGENTS_RUNNER": runner,
            "LINESHAFT_DATA_DIR": str(self.data_dir),
        }
        doors = ["ingress", "demo", "--no-feed"]
        self._services = {DOORS: doors, SINKS: ["sinks"]}
        if reads_apart:
            self._services[READS] = ["query"]
        else:
            doors.insert(0, "query")
        if second_doors:
            self._services[SECOND_DOORS] = ["ingress"]
        self._http_ports = {
            DOORS: self.http_port,
            READS: free_port(),
            SECOND_DOORS: free_port(),
        }
        self._services |= {f"agents-{number + 1}": ["agents"] for number in range(agents)}
        self._ops = {name: free_port() for name in self._services}
        self._running: dict[str, Process] = {}

    def settings(self) -> Settings:
        """The settings of its processes, for control actions from here."""
        return settings.load({k: v for k, v in self._env.items() if k[:9] == "LINESHAFT"})

    @property
    def facts(self) -> dict[str, Any]:
        """What `demo.json` says, and where values are read."""
        apart = READS in self._services
        return super().facts | ({"reads": self.http_of(READS)} if apart else {})

    def http_of(self, name: str) -> str:
        """Where doors or reads are spoken to."""
        return f"http://127.0.0.1:{self._http_ports[name]}"

    @property
    def names(self) -> list[str]:
        """All services."""
        return list(self._services)

    def address_of(self, name: str) -> str:
        """Where a process answers /readyz and /metrics."""
        return f"http://127.0.0.1:{self._ops[name]}"

    def start_all(self, *, seconds: float = 120) -> None:
        """Start everything and wait until it is ready."""
        self.broker.start()
        self.front.start()
        argv = [sys.executable, "-m", "services", "migrate"]
        output = self.folder / "migrate.txt"
        code = Process(argv, output=output, env=self._env, cwd=ROOT).wait(seconds=seconds)
        assert code == 0, output.read_text()
        for name in self._services:
            self.start_one(name)
        for name in self._services:
            self.wait_one(name, seconds=seconds)

    def start_one(self, name: str) -> None:
        """Start a service's process."""
        argv = [sys.executable, "-m", "services", "run", *self._services[name]]
        argv += ["--ops-port", str(self._ops[name])]
        if name in self._http_ports:
            argv += ["--http-port", str(self._http_ports[name])]
        if name in (DOORS, SECOND_DOORS):
            mqtt_port = self.mqtt_port if name == DOORS else free_port()
            argv += ["--mqtt-port", str(mqtt_port)]
        output = self.folder / f"{name}.txt"
        self._running[name] = Process(argv, output=output, env=self._env, cwd=ROOT)

    def wait_one(self, name: str, *, seconds: float = 60) -> None:
        """Wait until the service is ready; one that ended is started again."""

        def ready() -> bool:
            if self._running[name].returncode is not None:
                self.start_one(name)
            try:
                status, _, _ = Http(self.address_of(name), 2).request("GET", "/readyz")
            except OSError:
                return False
            return status == 200

        wait_for(ready, seconds=seconds, what=f"{name} ready")

    @property
    def ended(self) -> dict[str, str]:
        """Services whose process has ended, with the last lines that it wrote."""
        return {
            name: process.output()[-3000:]
            for name, process in self._running.items()
            if process.returncode is not None
        }

    def kill_one(self, name: str) -> None:
        """kill -9."""
        self._running[name].kill()

    def stop_one(self, name: str) -> None:
        """An orderly stop."""
        self._running[name].stop()

    def freeze_one(self, name: str) -> None:
        """Let it stand still; its connections stay open."""
        self._running[name].signal(signal.SIGSTOP)

    def thaw_one(self, name: str) -> None:
        """Let a frozen one go on."""
        self._running[name].signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 to everything at once."""
        for process in self._running.values():
            process.kill()
        self.broker.kill()
        self.front.kill()


@contextmanager
def cluster(
    folder: Path,
    *,
    runner: str,
    agents: int = 1,
    reads_apart: bool = True,
    second_doors: bool = False,
    env: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """A cluster that is ready; gone when the block ends."""
    made = Cluster(
        folder,
        runner=runner,
        agents=agents,
        reads_apart=reads_apart,
        second_doors=second_doors,
        env=env,
    )
    try:
        made.start_all()
        yield made
    finally:
        made.kill()
