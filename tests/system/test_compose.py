"""The image and the compose files: the whole road on Kafka, in containers, as `make up` starts it.

Where ClickHouse's image is not to be had, tests/compose.override.yaml puts our own front with the
same engine in its place. Ports are free ones and the project's name is random, so that nothing
meets an installation of this machine; everything is removed at the end, volumes too.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import paho.mqtt.publish
import pytest

from tests.support.containers import compose_command, docker, engine, image
from tests.support.load import Load
from tests.support.plant import moment
from tests.support.processes import ROOT, let_pass, run, wait_for
from tests.support.rounds import rounds, seed
from tests.support.stack import IMAGE, Stack, Tenant, a_stack, a_tenant

pytestmark = [pytest.mark.system, pytest.mark.needs_containers]

SERVER = ["infra/compose.yaml", "tests/compose.override.yaml"]
EMBEDDED = ["infra/compose.embedded.yaml"]
ROLES = ("edge", "agents", "sinks")
MOMENT_MS = 1_767_225_600_000


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
        stack("up", "-d", "prometheus", *ROLES)
        stack.wait_ready(*ROLES)
        yield stack
    finally:
        stack("down", "-v", "--remove-orphans", check=False)


def _push(tenant: Tenant, value: str) -> tuple[int, list[int]]:
    """Ingest one value at a fixed time, asked again while the judge is away (503)."""

    def decided() -> list[tuple[int, list[int]]]:
        answer = tenant.client().post([(moment(MOMENT_MS), value)])
        return [] if answer[0] == 503 else [answer]

    return wait_for(decided, seconds=90, what="a verdict")[0]


def _read(tenant: Tenant) -> list[float]:
    """All values of the point by Building X's own read."""
    client, bx = tenant.client(), tenant.facts["building_x"]
    path = f"/ingest/partitions/{bx['partition_id']}/points/{bx['point_id']}/values"
    span = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
    asked = "&".join(f"filter[timestamp][{end}]={at}" for end, at in span.items())
    headers = {"Authorization": f"Bearer {client.token()}"}
    status, answer, _ = client.http.request("GET", f"{path}?{asked}", headers=headers)
    assert status == 200, answer
    return [float(item["attributes"]["value"]) for item in answer["data"]]


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
    tenant = a_tenant(server, "road")
    assert _push(tenant, "21.5") == (204, [])
    assert wait_for(lambda: _read(tenant), what="the value in an answer") == [21.5]
    password = re.search(r"CLICKHOUSE_PASSWORD=(\w+)", server.env_file.read_text())
    assert password

    def stored() -> list[str]:
        query = "SELECT number FROM lineshaft.telemetry WHERE tenant = 'road'"
        url, auth = server.address("CLICKHOUSE_PORT"), ("lineshaft", password[1])
        answer = httpx.get(url, params={"query": query}, auth=auth, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.text.split()

    assert wait_for(stored, seconds=30, what="the row in the store") == ["21.5"]


def test_a_value_that_came_by_mqtt_is_a_devices_latest(server: Stack) -> None:
    tenant = a_tenant(server, "mqtt")
    opticloud = tenant.facts["opticloud"]
    paho.mqtt.publish.single(
        "v1/devices/me/telemetry",
        json.dumps({"ts": MOMENT_MS, "values": {"humidity": 41.5}}),
        qos=1,
        port=tenant.mqtt_port,
        auth={"username": opticloud["device_token"]},
    )
    client, device = tenant.client(), opticloud["device_id"]
    latest = wait_for(lambda: client.latest(device), what="the value in latest")
    assert latest == {"humidity": [{"ts": MOMENT_MS, "value": "41.5"}]}
    assert client.range(MOMENT_MS, MOMENT_MS + 1, device=device, key="humidity") == [
        (MOMENT_MS, "41.5")
    ]


def test_a_killed_judge_remembers_what_it_judged(server: Stack) -> None:
    tenant = a_tenant(server, "killed")
    assert _push(tenant, "1.5") == (204, [])
    server("kill", "-s", "KILL", "agents")
    server("start", "agents")
    assert _push(tenant, "2.5") == (202, [0]), "the moment is taken: first wins"
    assert _read(tenant) == [1.5]


def test_each_container_killed_in_turn_under_load_loses_and_doubles_nothing(server: Stack) -> None:
    chosen = seed()
    chance = random.Random(chosen)
    with Load(a_tenant(server, "turns"), seed=chosen, pause_seconds=0.01) as load:
        for _ in range(rounds(1)):
            victims = [*ROLES, "kafka", "clickhouse"]
            chance.shuffle(victims)
            for victim in victims:
                let_pass(chance.uniform(0.5, 3))
                server("kill", "-s", "KILL", victim)
                let_pass(chance.uniform(0, 2))
                server("start", victim)
                server.wait_ready(*ROLES)
        let_pass(1)
    findings = load.findings()
    print(f"{load.history}: {findings}")
    assert load.history.told("kept") > 500
    assert findings.clean, str(findings)


def test_prometheus_sees_every_role_and_balanced_books(server: Stack) -> None:
    assert _push(a_tenant(server, "books"), "1.5") == (204, [])
    ups = dict.fromkeys(ROLES, 1.0)
    wait_for(
        lambda: _asked(server, 'up{job="lineshaft"}') == ups, seconds=60, what="all roles scraped"
    )
    received = "sum(lineshaft_samples_received_total)"
    wait_for(
        lambda: _asked(server, received).get("", 0) >= 1,
        seconds=60,
        what="the sample in the counters",
    )
    judged = "sum(lineshaft_samples_judged_total)"
    assert _asked(server, f"{received} - {judged}") == {"": 0.0}


def _asked(stack: Stack, query: str) -> dict[str, float]:
    """A query's answer by role ("" where it has none)."""
    url = f"{stack.address('PROMETHEUS_PORT')}/api/v1/query"
    answer = httpx.get(url, params={"query": query}, timeout=30).json()
    assert answer["status"] == "success", (query, answer)
    return {
        item["metric"].get("role", ""): float(item["value"][1]) for item in answer["data"]["result"]
    }


def test_every_query_of_the_dashboard_returns_data(server: Stack) -> None:
    """Two scrapes after some traffic there is a line, or a zero, in every panel."""
    dashboard = json.loads((ROOT / "infra/grafana/dashboards/lineshaft.json").read_text())
    rows_and_panels = dashboard["panels"]
    queries = {target["expr"] for it in rows_and_panels for target in it.get("targets", ())}
    assert len(queries) > 20
    tenant = a_tenant(server, "panels")
    device = tenant.facts["opticloud"]["device_id"]

    def without() -> set[str]:
        _read(tenant)
        tenant.client().latest(device)
        return {query for query in queries if not _asked(server, query)}

    with Load(tenant, seed=seed(), pause_seconds=0.05):
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not without(), seconds=60)
        assert without() == set()


def test_the_embedded_stack_starts(built: None, tmp_path: Path) -> None:
    stack = a_stack(tmp_path, EMBEDDED)
    try:
        stack("up", "-d")
        stack.wait_ready("lineshaft")
        assert httpx.get(f"{stack.address('HTTP_PORT')}/readyz").json()["ready"] is True
    finally:
        stack("down", "-v", check=False)
