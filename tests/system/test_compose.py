"""The image and the compose files: the whole road on Kafka, in containers, as `make up` starts it.

Where ClickHouse's image is not to be had, tests/compose.override.yaml puts our own front with the
same engine in its place. Ports are free ones and the project's name is random, so that nothing
meets an installation of this machine; everything is removed at the end, volumes too.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.containers import compose_command, docker, engine, image
from tests.support.processes import ROOT, environment, free_port, run, wait_for

pytestmark = [pytest.mark.system, pytest.mark.needs_containers]

IMAGE = "lineshaft:test"
SERVER = ["infra/compose.yaml", "tests/compose.override.yaml"]
EMBEDDED = ["infra/compose.embedded.yaml"]
PORTS = ("HTTP_PORT", "MQTT_PORT", "CLICKHOUSE_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")


@dataclass(frozen=True)
class Stack:
    """A compose project under its own name and ports."""

    files: list[str]
    env: dict[str, str]
    env_file: Path

    def __call__(self, *arguments: str, check: bool = True, seconds: float = 300) -> str:
        """Run a compose command; what it wrote to standard output."""
        files = [part for file in self.files for part in ("-f", file)]
        argv = [*compose_command(), *files, "--env-file", str(self.env_file), *arguments]
        return run(argv, env=self.env, check=check, seconds=seconds).stdout

    def lineshaft(self, *arguments: str) -> Any:
        """The JSON answer of a command in the edge's container."""
        return json.loads(self("exec", "-T", "edge", "lineshaft", *arguments))

    def address(self, port: str) -> str:
        """The HTTP address behind one of PORTS."""
        return f"http://127.0.0.1:{self.env[port]}"


def a_stack(folder: Path, files: list[str]) -> Stack:
    """A project with fresh secrets; nothing runs yet."""
    env_file = folder / "env"
    run(["infra/secrets", str(env_file)])
    name = f"lineshaft-test-{secrets.token_hex(4)}"
    ports = {port: str(free_port()) for port in PORTS}
    env = environment(COMPOSE_PROJECT_NAME=name, LINESHAFT_IMAGE=IMAGE, **ports)
    return Stack(files, env, env_file)


@pytest.fixture(scope="module")
def built() -> None:
    """Our image, built from the checkout."""
    image("python:3.11-slim-bookworm")
    docker("build", "--quiet", "-t", IMAGE, "-f", "infra/Dockerfile", ".", seconds=1200)


@pytest.fixture(scope="module")
def server(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka, the front for ClickHouse, our three roles and Prometheus, all ready."""
    image("apache/kafka:4.1.0", "prom/prometheus:v2.42.0")
    stack = a_stack(tmp_path_factory.mktemp("server"), SERVER)
    try:
        stack("up", "-d", "prometheus", "edge", "agents", "sinks")
        wait_ready(stack, "edge", "agents", "sinks")
        yield stack
    finally:
        stack("down", "-v", "--remove-orphans", check=False)


def wait_ready(stack: Stack, *roles: str) -> None:
    """Wait until every role calls itself ready, as its health check asks."""

    def ready() -> bool:
        return all(
            run([*docker_exec(stack, role), "lineshaft", "ready"], check=False).returncode == 0
            for role in roles
        )

    wait_for(ready, seconds=180, what=f"ready: {', '.join(roles)}")


def docker_exec(stack: Stack, role: str) -> list[str]:
    """How to run a command in the container of a role."""
    container = stack("ps", "-q", role).strip()
    return ["docker", "exec", container]


@dataclass
class BuildingX:
    """A client of Building X's contract, with a point of its own."""

    http: str
    partition: str
    point: str
    token: str

    @classmethod
    def on(cls, stack: Stack, tenant: str) -> BuildingX:
        """Make tenant, device, point and client; get a token."""
        partition = stack.lineshaft("tenants", "add", tenant, tenant.title())["uuid"]
        device = stack.lineshaft("devices", "add", tenant, "boiler")["id"]
        declared = ("temperature", "--kind", "double")
        point = stack.lineshaft("points", "add", tenant, device, *declared)["id"]
        scopes = ("--use", "client", "--scopes", "ingest", "read")
        key, secret = stack.lineshaft("keys", "add", tenant, "gateway", *scopes)
        http = stack.address("HTTP_PORT")
        grant = {"grant_type": "client_credentials", "audience": "https://horizon.siemens.com"}
        grant |= {"client_id": key["id"], "client_secret": secret}
        answer = httpx.post(f"{http}/oauth/token", json=grant)
        assert answer.status_code == 200, answer.text
        return cls(http, partition, point, answer.json()["access_token"])

    @property
    def _url(self) -> str:
        return f"{self.http}/ingest/partitions/{self.partition}/points/{self.point}/values"

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def push(self, value: float) -> httpx.Response:
        """Ingest one value at a fixed time, asked again while the judge is away (503)."""
        attributes = {"timestamp": "2026-01-01T00:00:00.000Z", "value": str(value)}
        body = {"data": [{"type": "PointValue", "attributes": attributes}]}
        headers = self._headers | {"Content-Type": "application/vnd.api+json"}

        def decided() -> httpx.Response | None:
            answer = httpx.post(self._url, json=body, headers=headers, timeout=30)
            return None if answer.status_code == 503 else answer

        answer = wait_for(decided, seconds=90, what="a verdict")
        assert answer is not None
        return answer

    def read(self) -> list[Any]:
        """All values, as the contract shows them."""
        span = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
        asked = {f"filter[timestamp][{end}]": moment for end, moment in span.items()}
        answer = httpx.get(self._url, params=asked, headers=self._headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return [item["attributes"]["value"] for item in answer.json()["data"]]


@pytest.mark.parametrize("files", [SERVER[:1], SERVER, EMBEDDED], ids=str)
def test_a_compose_file_is_valid(tmp_path: Path, files: list[str]) -> None:
    a_stack(tmp_path, files)("config", "-q")


@pytest.mark.parametrize("file", ["infra/compose.yaml", "infra/compose.embedded.yaml"])
def test_every_port_is_bound_to_this_machine(file: str) -> None:
    published = re.findall(r'"([^"\n]*:\d+)"', (ROOT / file).read_text())
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:${")] == []


def test_secrets_are_fresh_private_and_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first, second, second):
        run(["infra/secrets", str(file)])
    assert first.stat().st_mode & 0o777 == 0o600
    made = [line.partition("=")[2] for f in (first, second) for line in f.read_text().splitlines()]
    assert len(set(made)) == 6
    assert all(len(secret) == 64 for secret in made)
    run(["infra/secrets", str(first)])
    assert first.read_text().splitlines()[0].endswith(made[0])


def test_without_secrets_compose_refuses_to_start(tmp_path: Path) -> None:
    stack = a_stack(tmp_path, SERVER[:1])
    stack.env_file.write_text("")
    argv = [*compose_command(), "-f", SERVER[0], "--env-file", str(stack.env_file), "config", "-q"]
    done = run(argv, env=stack.env, check=False)
    assert done.returncode != 0
    assert "made by make up" in done.stderr


def test_prometheus_accepts_its_configuration() -> None:
    engine()
    image("prom/prometheus:v2.42.0")
    mount = f"{ROOT / 'infra/prometheus'}:/etc/prometheus:ro"
    promtool = ("--entrypoint", "promtool", "-v", mount, "prom/prometheus:v2.42.0")
    docker("run", "--rm", *promtool, "check", "config", "/etc/prometheus/prometheus.yml")


def test_the_image_passes_its_own_check_without_root(built: None) -> None:
    assert "building_x" in docker("run", "--rm", IMAGE, "check").stdout
    assert docker("run", "--rm", "--entrypoint", "id", IMAGE, "-u").stdout.strip() != "0"


def test_the_image_brings_no_secret(built: None) -> None:
    listed = docker("run", "--rm", "--entrypoint", "ls", IMAGE, "-A", "/var/lib/lineshaft").stdout
    assert set(listed.split()) <= {".bash_logout", ".bashrc", ".profile"}


def test_a_value_goes_the_whole_road(server: Stack) -> None:
    client = BuildingX.on(server, "road")
    assert client.push(21.5).status_code == 204
    wait_for(client.read, what="the value in an answer")
    assert [float(value) for value in client.read()] == [21.5]
    password = re.search(r"CLICKHOUSE_PASSWORD=(\w+)", server.env_file.read_text())
    assert password

    def stored() -> list[str]:
        query = "SELECT number FROM lineshaft.telemetry WHERE tenant = 'road'"
        url, auth = server.address("CLICKHOUSE_PORT"), ("lineshaft", password[1])
        answer = httpx.get(url, params={"query": query}, auth=auth, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.text.split()

    assert wait_for(stored, seconds=30, what="the row in the store") == ["21.5"]


def test_a_killed_judge_remembers_what_it_judged(server: Stack) -> None:
    client = BuildingX.on(server, "killed")
    assert client.push(1.5).status_code == 204
    server("kill", "-s", "KILL", "agents")
    server("start", "agents")
    assert client.push(2.5).status_code == 202, "the moment is taken: first wins"
    assert [float(value) for value in client.read()] == [1.5]


def test_prometheus_sees_every_role_and_balanced_books(server: Stack) -> None:
    client = BuildingX.on(server, "metrics")
    assert client.push(1.5).status_code == 204

    def value(query: str) -> dict[str, float]:
        url = f"{server.address('PROMETHEUS_PORT')}/api/v1/query"
        found = httpx.get(url, params={"query": query}, timeout=30).json()["data"]["result"]
        return {item["metric"].get("role", ""): float(item["value"][1]) for item in found}

    roles = {"edge": 1.0, "agents": 1.0, "sinks": 1.0}
    wait_for(lambda: value('up{job="lineshaft"}') == roles, seconds=60, what="all roles scraped")
    received = "sum(lineshaft_samples_received_total)"
    wait_for(lambda: value(received).get("", 0) >= 1, seconds=60, what="the sample in the counters")
    judged = "sum(lineshaft_samples_judged_total)"
    assert value(f"{received} - {judged}") == {"": 0.0}


def test_the_embedded_stack_starts(built: None, tmp_path: Path) -> None:
    stack = a_stack(tmp_path, EMBEDDED)
    try:
        stack("up", "-d")
        wait_ready(stack, "lineshaft")
        assert httpx.get(f"{stack.address('HTTP_PORT')}/readyz").json()["ready"] is True
    finally:
        stack("down", "-v", check=False)
