"""The demo plant: one working set of credentials for every dialect in `demo.json`, and real machine
data flowing through the doors.

Everything here is a client of the system: it configures through the catalogue's control and sends
over HTTP and MQTT as anybody would. Secrets are made fresh for every fresh data folder and kept by
a restart.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from schemas.catalogue import INGEST, READ, ROLES, SCOPES, Device, Key
from schemas.samples import Kind
from services.clock import Clock
from services.listener import netloc
from services.runtime import Mounted, Runtime

FILE = "demo.json"
TENANT, TENANT_NAME = "demo", "Demo plant"
AUDIENCE = "https://horizon.siemens.com"
USER = "demo@example.com"
FEED_SECONDS = 1.0

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a listener on all addresses is bound to, and where clients of this machine reach it."""

_logger = logging.getLogger(__name__)


class DemoService:
    """Writes `demo.json` once the doors listen, then feeds them."""

    name = "demo"

    def __init__(self, *, feed: bool = True) -> None:
        self._feed = feed

    def warm(self) -> None:
        """There is nothing to be loaded."""

    async def mount(
        self, runtime: Runtime, group: asyncio.TaskGroup, stop: asyncio.Event
    ) -> Mounted:
        """Make what is missing of the plant; `announce` does the rest when the addresses are
        known.
        """
        self._group, self._stop = group, stop
        self._plant = await make_plant(runtime)
        return Mounted()

    async def announce(self, runtime: Runtime, address: str) -> dict[str, Any]:
        """Write `demo.json` with the addresses and start the feed; returns what was written."""
        http = urlsplit(address)
        plant: dict[str, Any] = {
            "http": f"{http.scheme}://{_reached(http.hostname or '', http.port or 0)}",
            "mqtt": _reached(runtime.settings.mqtt_host, runtime.mqtt_port),
        } | self._plant
        write_private(Path(runtime.settings.data_dir) / FILE, json.dumps(plant, indent=2) + "\n")
        if self._feed:
            trust = runtime.settings.tls_cert or None
            self._group.create_task(
                _feed_http(plant, trust, runtime.clock, self._stop), name="demo feed, HTTP"
            )
            self._group.create_task(_feed_mqtt(plant, self._stop), name="demo feed, MQTT")
        return plant


def _reached(host: str, port: int) -> str:
    return netloc(_EVERYWHERE.get(host, host), port)


async def make_plant(runtime: Runtime) -> dict[str, Any]:
    """Credentials and ids of the demo plant: those of `demo.json` where it is there, else fresh
    ones.
    """
    path = Path(runtime.settings.data_dir) / FILE
    if path.exists() and runtime.view.tenant(TENANT):
        kept: dict[str, Any] = json.loads(path.read_text())
        kept = {name: part for name, part in kept.items() if name not in ("http", "mqtt")}
        # An older demo did not have it.
        return kept if "next_plus" in kept else kept | {"next_plus": await _next_plus(runtime)}
    control, view = runtime.control, runtime.view
    tenant = view.tenant(TENANT) or await control.add_tenant(TENANT, TENANT_NAME)
    plant: dict[str, Any] = {}
    for part, name in (("building_x", "Boiler house"), ("feed_building_x", "Machine 1")):
        device = await _device(runtime, name)
        point = view.known(TENANT, device.id, "temperature") or await control.add_point(
            TENANT,
            device.id,
            "temperature",
            kind=Kind.DOUBLE,
            unit="°F",
            name=f"{name} temperature",
        )
        key, secret = await _key(runtime, name, use="client", scopes=(INGEST, READ))
        plant[part] = {
            "client_id": key.id,
            "client_secret": secret,
            "audience": AUDIENCE,
            "partition_id": tenant.uuid,
            "point_id": point.id,
            "device_id": device.id,
            "key": point.key,
        }
    plant["next_plus"] = await _next_plus(runtime)
    if view.user(USER):
        password = await control.set_password(USER)
    else:
        _, password = await control.add_user(USER, {TENANT: SCOPES})
    for part, name in (("opticloud", "smartMINI 1"), ("feed_opticloud", "Office sensor")):
        device = await _device(runtime, name)
        _, token = await _key(runtime, name, use="device", scopes=(INGEST,), device=device.id)
        plant[part] = {
            "username": USER,
            "password": password,
            "tenant": tenant.name,
            "tenant_id": tenant.uuid,
            "device_id": device.id,
            "device_token": token,
        }
    return plant


async def _next_plus(runtime: Runtime) -> dict[str, str]:
    """A token for each role, and the device that the parameters are points of."""
    made = {"device_id": runtime.view.api_server(TENANT).id}
    for role in ("editor", "operator", "viewer"):
        _, made[f"{role}_token"] = await _key(
            runtime, f"Next Plus {role}", use="api", scopes=ROLES[role]
        )
    return made


async def _device(runtime: Runtime, name: str) -> Device:
    """The demo's device of this name, also where an earlier try was cut short."""
    known = (each for each in runtime.view.devices(TENANT) if each.name == name)
    return next(known, None) or await runtime.control.add_device(TENANT, name)


async def _key(runtime: Runtime, name: str, *, use: str, **given: Any) -> tuple[Key, str]:
    """A new key and its secret. One of an earlier try ends: nobody has its secret."""
    for each in runtime.view.keys(TENANT):
        if (each.name, each.use) == (name, use) and not each.revoked:
            await runtime.control.revoke_key(each.id)
    return await runtime.control.add_key(TENANT, use=use, name=name, **given)


def hints(plant: dict[str, Any]) -> str:
    """What to try next, ready to be pasted."""
    http, bx, oc = plant["http"], plant["building_x"], plant["opticloud"]
    np, items = plant["next_plus"], json.dumps([{"key": "speed", "value": 41.5}])
    mqtt = urlsplit(f"//{plant['mqtt']}")
    login = json.dumps({"username": oc["username"], "password": oc["password"]})
    grant = json.dumps(
        {
            "client_id": bx["client_id"],
            "client_secret": bx["client_secret"],
            "audience": bx["audience"],
            "grant_type": "client_credentials",
        }
    )
    value = json.dumps(
        {
            "data": [
                {
                    "type": "PointValue",
                    "attributes": {"timestamp": "2026-01-01T00:00:00.000Z", "value": "73.97"},
                }
            ]
        }
    )
    values = f"{http}/ingest/partitions/{bx['partition_id']}/points/{bx['point_id']}/values"
    field = "python3 -c 'import json,sys;print(json.load(sys.stdin)[sys.argv[1]])'"
    telemetry = f"{http}/api/plugins/telemetry/DEVICE"
    bx_range = "keys=temperature&startTs=1767225600000&endTs=1767225600001"
    client_token = (
        f"TOKEN=$(curl -s {http}/oauth/token -H 'content-type: application/json' "
        f"-d '{grant}' | {field} access_token)"
    )
    post = (
        f"curl -i '{values}' -H \"Authorization: Bearer $TOKEN\" "
        f"-H 'Content-Type: application/vnd.api+json' -d '{value}'"
    )
    user_token = (
        f"USER_TOKEN=$(curl -s {http}/api/auth/login -H 'content-type: application/json' "
        f"-d '{login}' | {field} token)"
    )
    header = '-H "X-Authorization: Bearer $USER_TOKEN"'
    publish = (
        f"mosquitto_pub -d -q 1 -h {mqtt.hostname} -p {mqtt.port} -t v1/devices/me/telemetry "
        f"-u {oc['device_token']} -m '{{\"temperature\":42}}'"
    )
    return f"""
Lineshaft is up.  HTTP {http}   MQTT {plant["mqtt"]}   API pages {http}/docs
Credentials of the demo plant: demo.json in the data folder. To try, paste line by line:

# 1. values in through Next Plus, by key alone
curl -s "{http}/api/ApiServers/push?access_token={np["editor_token"]}" -d '{items}'

# 2. a value in through Building X (204: stored; the same again: 202, its index was dropped)
{client_token}
{post}

# 3. the same value out through optiCLOUD's API, and the first ones
{user_token}
curl -s "{telemetry}/{bx["device_id"]}/values/timeseries?{bx_range}" {header}
curl -s {telemetry}/{np["device_id"]}/values/timeseries {header}

# 4. a value in over MQTT, and the device's latest values
{publish}
curl -s {telemetry}/{oc["device_id"]}/values/timeseries {header}
"""


def write_private(path: Path, text: str) -> None:
    """A file that only its owner may read, in place whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


# -- the feed: a client like any other


def _values(name: str) -> Iterator[float]:
    """The values of one of the shipped recordings, over and over."""
    text = (files("services") / "demo_data" / name).read_text()
    rows = [float(row["value"]) for row in csv.DictReader(text.splitlines())]
    return itertools.cycle(rows)


async def _feed_http(
    plant: dict[str, Any], trust: str | None, clock: Clock, stop: asyncio.Event
) -> None:
    bx, token = plant["feed_building_x"], ""
    grant = {name: bx[name] for name in ("client_id", "client_secret", "audience")}
    grant["grant_type"] = "client_credentials"
    url = f"{plant['http']}/ingest/partitions/{bx['partition_id']}/points/{bx['point_id']}/values"
    for value in _values("machine_temperature.csv"):
        if await _stopped(stop):
            return
        try:
            if not token:
                answer = await asyncio.to_thread(
                    _post, f"{plant['http']}/oauth/token", grant, trust, ""
                )
                token = json.loads(answer)["access_token"]
            now = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
            moment = now.isoformat(timespec="milliseconds")
            attributes = {"timestamp": moment, "value": f"{value:.2f}", "qualityOfValue": 0}
            body = {"data": [{"type": "PointValue", "attributes": attributes}]}
            await asyncio.to_thread(_post, url, body, trust, token)
        except (OSError, ValueError, KeyError) as error:
            token = ""
            _logger.warning("demo feed over HTTP: %s", error)


def _post(url: str, body: Any, trust: str | None, token: str) -> bytes:
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    context = ssl.create_default_context(cafile=trust) if url.startswith("https:") else None
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return bytes(answer.read())


async def _feed_mqtt(plant: dict[str, Any], stop: asyncio.Event) -> None:
    mqtt = urlsplit(f"//{plant['mqtt']}")
    client = paho.Client(CallbackAPIVersion.VERSION2, "lineshaft-demo")
    client.username_pw_set(plant["feed_opticloud"]["device_token"])
    client.max_queued_messages_set(1_000)
    client.connect_async(mqtt.hostname or "", mqtt.port or 0)
    client.loop_start()
    try:
        for value in _values("ambient_temperature.csv"):
            if await _stopped(stop):
                return
            client.publish("v1/devices/me/telemetry", json.dumps({"temperature": value}), qos=1)
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


async def _stopped(stop: asyncio.Event) -> bool:
    """Wait for the next moment of the feed; whether it is over."""
    try:
        async with asyncio.timeout(FEED_SECONDS):
            await stop.wait()
    except TimeoutError:
        return False
    return True
