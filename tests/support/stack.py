"""A compose project of tests: our image and the compose files under a name and ports of its own."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.containers import compose_command
from tests.support.plant import Client
from tests.support.processes import environment, free_port, run, wait_for

IMAGE = "lineshaft:test"
PORTS = ("HTTP_PORT", "MQTT_PORT", "CLICKHOUSE_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
AUDIENCE = "https://horizon.siemens.com"


@dataclass(frozen=True)
class Stack:
    """A compose project; called, it runs a compose command."""

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

    def wait_ready(self, *roles: str) -> None:
        """Wait until every role calls itself ready, as its health check asks."""

        def ready() -> bool:
            asked = ("lineshaft", "ready")
            containers = [self("ps", "-q", role).strip() for role in roles]
            return all(containers) and all(
                run(["docker", "exec", name, *asked], check=False).returncode == 0
                for name in containers
            )

        wait_for(ready, seconds=180, what=f"ready: {', '.join(roles)}")


@dataclass(frozen=True)
class Tenant:
    """A tenant of a stack with what a `Client` and a `Load` need of it."""

    facts: Mapping[str, Any]
    mqtt_port: int

    def client(self) -> Client:
        """A client with the tenant's credentials."""
        return Client(self.facts)


def a_stack(folder: Path, files: list[str]) -> Stack:
    """A project with fresh secrets; nothing runs yet."""
    env_file = folder / "env"
    run(["infra/secrets", str(env_file)])
    name = f"lineshaft-test-{secrets.token_hex(4)}"
    ports = {port: str(free_port()) for port in PORTS}
    env = environment(COMPOSE_PROJECT_NAME=name, LINESHAFT_IMAGE=IMAGE, **ports)
    return Stack(files, env, env_file)


def _api_servers(http: str, token: str) -> list[dict[str, Any]]:
    """The tenant's API server, as a list; an empty one while the doors do not know the token."""
    answer = httpx.get(f"{http}/api/ApiServers", headers={"Authorization": token})
    return list(answer.json()) if answer.status_code == 200 else []


def a_tenant(stack: Stack, name: str) -> Tenant:
    """Make a tenant: a point for Building X, device and user for optiCLOUD, a Next Plus token."""
    partition = stack.lineshaft("tenants", "add", name, name.title())["uuid"]
    boiler = stack.lineshaft("devices", "add", name, "boiler")["id"]
    point = stack.lineshaft("points", "add", name, boiler, "temperature", "--kind", "double")
    scopes = ("--use", "client", "--scopes", "ingest", "read")
    key, secret = stack.lineshaft("keys", "add", name, "gateway", *scopes)
    sensor = stack.lineshaft("devices", "add", name, "sensor")["id"]
    used = ("--use", "device", "--device", sensor, "--scopes", "ingest")
    _, token = stack.lineshaft("keys", "add", name, "sensor", *used)
    _, editor = stack.lineshaft("keys", "add", name, "script", "--role", "editor")
    http = stack.address("HTTP_PORT")
    (api_server,) = wait_for(
        lambda: _api_servers(http, editor), what="the token known at the doors"
    )
    user = f"{name}@example.com"
    _, password = stack.lineshaft("users", "add", user, "--tenant", name)
    facts = {
        "http": http,
        "building_x": {
            "client_id": key["id"],
            "client_secret": secret,
            "audience": AUDIENCE,
            "partition_id": partition,
            "point_id": point["id"],
            "device_id": boiler,
            "key": point["key"],
        },
        "opticloud": {
            "username": user,
            "password": password,
            "tenant": name.title(),
            "device_id": sensor,
            "device_token": token,
        },
        "next_plus": {"editor_token": editor, "device_id": api_server["id"]},
    }
    return Tenant(facts, int(stack.env["MQTT_PORT"]))
