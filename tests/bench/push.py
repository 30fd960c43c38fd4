"""The push door alone, into the log: values a second, beside a server that only decodes the same
bodies and beside VictoriaMetrics taking the same values in its own JSON.

Only the doors run (`lineshaft run ingress`): nothing is judged or stored while it is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.push_load import ITEMS, requests_of
from tests.bench.road import say
from tests.support.plant import Plant
from tests.support.processes import ROOT, Process, free_port, wait_for

CONNECTIONS, SECONDS, ROUNDS = 16, 4, 3
PACKAGE = "victoria-metrics"


def main() -> None:
    """Measure in turns, so that a slow minute of the machine is one of all, and print the best."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts, data_dir = _plant(folder)
        token = facts["next_plus"]["editor_token"]
        peers = {
            "the push door into the log": (
                _doors(folder, data_dir),
                f"/api/ApiServers/push?access_token={token}",
                "next_plus",
            ),
            "decoding alone (msgspec)": (_decoding(folder), "/", "next_plus"),
        }
        version = _victoria_metrics(folder)
        if version:
            peers[version] = (_victoria(folder), "/api/v1/import", "victoria_metrics")
        best: dict[str, dict[str, Any]] = {}
        for _ in range(ROUNDS):
            for peer, (server, path, form) in peers.items():
                with server as address:
                    found = _load(address, path, form)
                if found["values_per_s"] > best.get(peer, {}).get("values_per_s", 0):
                    best[peer] = found
    _report(best, version)


def _report(best: Mapping[str, Mapping[str, Any]], version: str) -> None:
    say(f"pushes of {ITEMS} values, {CONNECTIONS} connections, the best of {ROUNDS} turns:")
    ours = next(iter(best.values()))["values_per_s"]
    for peer, found in best.items():
        rate = found["values_per_s"]
        say(
            f"  {peer}: {rate:,.0f} values/s (p50 {found['p50_ms']:.1f} ms, "
            f"p99 {found['p99_ms']:.1f} ms), ratio {ours / rate:.2f}"
        )
        if found["failed"]:
            say(f"  {found['failed']} OF THEM FAILED")
    if not version:
        say(f"  no VictoriaMetrics: the package {PACKAGE} is not to be had here")


def _load(address: str, path: str, form: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.bench.push_load", "--address", address, "--path", path]
    argv += ["--form", form, "--connections", str(CONNECTIONS), "--seconds", str(SECONDS)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _plant(folder: Path) -> tuple[dict[str, Any], Path]:
    """A data folder with the demo plant, its parameters made."""
    plant = Plant(folder)
    plant.start()
    try:
        path = f"/api/ApiServers/push?access_token={plant.facts['next_plus']['editor_token']}"
        body = requests_of(path, "next_plus")[0].partition(b"\r\n\r\n")[2]
        with urllib.request.urlopen(f"{plant.facts['http']}{path}", body, timeout=60):
            return plant.facts, plant.data_dir
    finally:
        plant.stop()


class _Server:
    """A server that is started anew for every turn; as a context manager it gives its address."""

    def __init__(self, argv: Sequence[str], port: int, output: Path, env: Mapping[str, str]):
        self._argv, self._port, self._output, self._env = argv, port, output, env

    def __enter__(self) -> str:
        env = {name: value for name, value in os.environ.items() if name[:9] != "LINESHAFT"}
        self._process = Process(self._argv, output=self._output, env=env | self._env, cwd=ROOT)
        address = f"http://127.0.0.1:{self._port}"
        wait_for(lambda: _answers(address), seconds=60, what=f"{self._argv[0]} answers")
        return address

    def __exit__(self, *_: object) -> None:
        self._process.stop()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False


def _doors(folder: Path, data_dir: Path) -> _Server:
    port = free_port()
    env = {
        "LINESHAFT_DATA_DIR": str(data_dir),
        "LINESHAFT_HTTP_PORT": str(port),
        "LINESHAFT_MQTT_PORT": str(free_port()),
    }
    argv = [sys.executable, "-m", "services", "run", "ingress"]
    return _Server(argv, port, folder / "doors.txt", env)


def _decoding(folder: Path) -> _Server:
    port = free_port()
    argv = [sys.executable, "-m", "tests.bench.decode_only", str(port)]
    return _Server(argv, port, folder / "decoding.txt", {})


def _victoria(folder: Path) -> _Server:
    port = free_port()
    argv = [str(folder / "usr/bin/victoria-metrics"), f"-httpListenAddr=127.0.0.1:{port}"]
    argv += [f"-storageDataPath={folder / 'victoria'}", "-retentionPeriod=120"]
    return _Server(argv, port, folder / "victoria.txt", {})


def _victoria_metrics(folder: Path) -> str:
    """Unpack the Debian package there; its name and version, "" where it is not to be had."""
    if shutil.which("apt-get") is None:
        return ""
    with contextlib.chdir(folder):
        argv = ["apt-get", "download", PACKAGE]
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            return ""
        package = next(Path().glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg", "-x", str(package), "."], capture_output=True, check=True)
    return f"VictoriaMetrics {package.name.split('_')[1].partition('+')[0]}"
