"""mosquitto_pub, MQTT.js and our own load generator against the door."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.mqtt._server import DEVICES, TOKEN, TOKENS, Server
from tests.support.processes import ROOT

TELEMETRY = "v1/devices/me/telemetry"
MQTT_JS = "mqtt@5"

mosquitto = pytest.mark.skipif(
    shutil.which("mosquitto_pub") is None, reason="mosquitto_pub is not installed"
)


def mosquitto_pub(server: Server, version: str, *more: str, token: str = TOKEN) -> tuple[int, str]:
    """Exit code and output of one publish."""
    done = subprocess.run(
        [
            *("mosquitto_pub", "-h", "127.0.0.1", "-p", str(server.port)),
            *("-V", version, "-u", token, "-t", TELEMETRY, *more),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@mosquitto
@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_pub(server: Server, version: str, qos: str) -> None:
    code, output = mosquitto_pub(server, version, "-q", qos, "-m", '{"a":1.5}')
    if version == "mqttv5" and qos == "2":
        # Our Maximum QoS keeps the client from sending it at all.
        assert "QoS not supported" in output
        assert not server.stored()
        return
    assert (code, output) == (0, "")
    # A second one, acknowledged, comes behind the first on the log.
    assert mosquitto_pub(server, version, "-q", "1", "-m", '{"b":2}')[0] == 0
    assert server.stored() == {(DEVICES[0], "a", 1.5): 1, (DEVICES[0], "b", 2): 1}


@mosquitto
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_mosquitto_pub_with_an_unknown_token(server: Server, version: str) -> None:
    code, output = mosquitto_pub(server, version, "-q", "1", "-m", "{}", token="guess")
    assert code != 0 and "bad user name or password" in output.lower()


SCRIPT = """
const mqtt = require("mqtt");
const [url, token, version] = process.argv.slice(2);
const client = mqtt.connect(url, {
  username: token, protocolVersion: Number(version), reconnectPeriod: 0, connectTimeout: 10000,
});
const fail = (error) => { console.error(String(error)); process.exit(1); };
client.on("error", fail);
client.on("message", (topic, message) => {
  console.log(JSON.stringify([topic, JSON.parse(message)]));
  client.end(false, {}, () => process.exit(0));
});
client.on("connect", () => {
  client.subscribe("v1/devices/me/rpc/response/+", (error) => {
    if (error) fail(error);
    let left = 20;
    for (let n = 0; n < 20; n++)
      client.publish("v1/devices/me/telemetry", JSON.stringify({ n }), { qos: 1 }, (error) => {
        if (error) fail(error);
        if (--left === 0)
          client.publish("v1/devices/me/rpc/request/7", '{"method":"getSessionLimits"}');
      });
  });
});
setTimeout(() => fail("no answer"), 20000);
"""


@pytest.fixture(scope="session")
def mqtt_js() -> Path:
    """A folder with MQTT.js, kept between runs."""
    folder = ROOT / "var" / "test-npm-mqtt"
    if (folder / "node_modules" / "mqtt" / "package.json").exists():
        return folder
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node or npm is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}')
    try:
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", MQTT_JS],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm could not install {MQTT_JS} in 120 s")
    if done.returncode:
        pytest.skip(f"npm could not install {MQTT_JS}: {done.stderr[-300:]}")
    return folder


@pytest.mark.parametrize("version", ["4", "5"])
def test_mqtt_js(server: Server, mqtt_js: Path, version: str) -> None:
    script = mqtt_js / "client.js"
    script.write_text(SCRIPT)
    done = subprocess.run(
        ["node", str(script), f"mqtt://127.0.0.1:{server.port}", TOKEN, version],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    topic, limits = json.loads(done.stdout)
    assert (topic, limits["maxInflightMessages"]) == ("v1/devices/me/rpc/response/7", 100)
    assert server.stored() == {(DEVICES[0], "n", n): 1 for n in range(20)}


def test_the_load_generator_loses_nothing(server: Server, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(TOKENS))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.bench.mqtt_load", "--port", str(server.port)),
            *("--tokens", str(tokens), "--connections", "20", "--window", "10"),
            *("--seconds", "0.5", "--payload-values", "3"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["failed_connections"] == 0
    assert 0 < measured["p50_ms"] <= measured["p99_ms"]
    assert 0 < 3 * measured["acknowledged"] <= sum(server.stored().values())
