"""A running Lineshaft for tests: started like a user would, spoken to like a client would."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from schemas.samples import Verdict
from tests.support.processes import ROOT, Process, free_port, wait_for

Value = tuple[str, str] | tuple[str, str, int | None]
"""Timestamp (RFC 3339), value and perhaps quality, as Building X takes them."""


class Http:
    """One keep-alive connection."""

    def __init__(self, address: str, timeout: float = 30) -> None:
        self._host = address.removeprefix("http://")
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, decoded JSON or text, headers). Raises OSError where the connection breaks."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | dict(headers or {})
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, timeout=self._timeout)
        try:
            self._connection.request(method, path, raw, sent)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise OSError(str(error)) from error
        try:
            content = json.loads(text) if text else None
        except ValueError:
            content = text.decode()
        return answer.status, content, {k.lower(): v for k, v in answer.getheaders()}

    def close(self) -> None:
        """Drop the connection; the next request makes a new one."""
        if self._connection:
            self._connection.close()
            self._connection = None


class Client:
    """What a test does with the demo plant's credentials. One for each thread.

    `facts`: of demo.json; values are read at its "reads", where reads have an address of their own.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.http = Http(facts["http"])
        self._reads = Http(facts["reads"]) if "reads" in facts else self.http
        self._tokens: dict[str, str] = {}

    def token(self) -> str:
        """An access token for Building X."""
        if "client" not in self._tokens:
            bx = self.facts["building_x"]
            grant = {name: bx[name] for name in ("client_id", "client_secret", "audience")}
            grant["grant_type"] = "client_credentials"
            status, answer, _ = self.http.request("POST", "/oauth/token", grant)
            assert status == 200, (status, answer)
            self._tokens["client"] = answer["access_token"]
        return self._tokens["client"]

    def user(self) -> dict[str, str]:
        """The header of a logged-in optiCLOUD user; both steps."""
        if "user" not in self._tokens:
            oc = self.facts["opticloud"]
            login = {"username": oc["username"], "password": oc["password"]}
            status, tenants, _ = self.http.request("POST", "/api/noauth/authorization", login)
            assert status == 200, (status, tenants)
            chosen = next(t for t in tenants if t["tenant"]["name"] == oc["tenant"])
            login["authorityId"] = chosen["authorityId"]["id"]
            status, answer, _ = self.http.request("POST", "/api/auth/login", login)
            assert status == 200, (status, answer)
            self._tokens["user"] = answer["token"]
        return {"X-Authorization": f"Bearer {self._tokens['user']}"}

    def post(
        self,
        values: Sequence[Value],
        *,
        overwrite: bool = False,
        point: str = "",
        key: str = "",
    ) -> tuple[int, list[int]]:
        """Post to a Building X point: (status, dropped indices). Raises OSError."""
        more = {"Idempotency-Key": key} if key else {}
        status, answer, _ = self.exchange(values, overwrite=overwrite, point=point, headers=more)
        dropped = answer["meta"]["droppedIndices"] if status == 202 else []
        return status, dropped

    def exchange(
        self,
        values: Sequence[Value],
        *,
        overwrite: bool = False,
        point: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Post to a Building X point: (status, answer, headers). Raises OSError."""
        bx = self.facts["building_x"]
        body = {"data": [{"type": "PointValue", "attributes": _attributes(*v)} for v in values]}
        sent = {
            "Authorization": f"Bearer {self.token()}",
            "Content-Type": "application/vnd.api+json",
        }
        path = f"/ingest/partitions/{bx['partition_id']}/points/{point or bx['point_id']}/values"
        path += "?overwrite=true" if overwrite else ""
        return self.http.request("POST", path, body, sent | dict(headers or {}))

    def values(self, point: str, start_ms: int, end_ms: int) -> list[dict[str, Any]]:
        """The attributes of a point's values as Building X reads them, oldest first; one page."""
        path = f"/operations/partitions/{self.facts['building_x']['partition_id']}/points/{point}"
        span = {"from": moment(start_ms), "to": moment(end_ms)}
        query = urlencode({f"filter[timestamp][{end}]": at for end, at in span.items()})
        headers = {"Authorization": f"Bearer {self.token()}"}
        status, answer, _ = self._reads.request("GET", f"{path}/values?{query}", headers=headers)
        assert status == 200, (status, answer)
        assert "next" not in answer["links"]
        return [item["attributes"] for item in answer["data"]]

    def receipt(self, place: str) -> tuple[int, Any]:
        """(status, answer) for the `Location` of a receipt. Raises OSError."""
        headers = {"Authorization": f"Bearer {self.token()}"}
        status, answer, _ = self.http.request("GET", place, headers=headers)
        return status, answer

    def range(
        self, start_ms: int, end_ms: int, *, device: str = "", key: str = "", limit: int = 100_000
    ) -> list[tuple[int, str]]:
        """(time, text) pairs of a telemetry key, oldest first."""
        bx = self.facts["building_x"]
        key = key or bx["key"]
        query = urlencode(
            {"keys": key, "startTs": start_ms, "endTs": end_ms, "limit": limit, "orderBy": "ASC"}
        )
        path = f"/api/plugins/telemetry/DEVICE/{device or bx['device_id']}/values/timeseries"
        status, answer, _ = self._reads.request("GET", f"{path}?{query}", headers=self.user())
        assert status == 200, (status, answer)
        return [(row["ts"], row["value"]) for row in answer.get(key, [])]

    def latest(self, device: str) -> dict[str, Any]:
        """The latest values of a device."""
        path = f"/api/plugins/telemetry/DEVICE/{device}/values/timeseries"
        status, answer, _ = self._reads.request("GET", path, headers=self.user())
        assert status == 200, (status, answer)
        return dict(answer)


class Plant:
    """`lineshaft up --demo --no-feed` on a data folder and free ports; it can be killed."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.http_port, self.mqtt_port = free_port(), free_port()
        self._env = {name: value for name, value in os.environ.items() if name[:9] != "LINESHAFT"}
        self._env |= {"LINESHAFT_LOG_FORMAT": "text"} | dict(env or {})
        self.process: Process | None = None

    def start(self, *, seconds: float = 90, ready: Callable[[], bool] | None = None) -> None:
        """Start and wait until it is ready (`ready` asks in another way than over HTTP)."""
        self.launch()
        self.wait_ready(seconds=seconds, ready=ready)

    def argv(self) -> list[str]:
        """The command line."""
        argv = [sys.executable, "-m", "services", "up", "--demo", "--no-feed"]
        argv += ["--http-port", str(self.http_port), "--mqtt-port", str(self.mqtt_port)]
        return [*argv, "--data-dir", str(self.data_dir)]

    def launch(self) -> None:
        """Start, and wait for nothing."""
        output = self.folder / "output.txt"
        self.process = Process(self.argv(), output=output, env=self._env, cwd=ROOT)

    def wait_ready(self, *, seconds: float = 90, ready: Callable[[], bool] | None = None) -> None:
        """Wait until the doors are ready."""

        def is_ready() -> bool:
            assert self.process is not None
            code = self.process.returncode
            assert code is None, f"ended with {code}:\n{self.process.output()[-6000:]}"
            if ready:
                return ready()
            try:
                status, _, _ = Http(f"http://127.0.0.1:{self.http_port}", 2).request(
                    "GET", "/readyz"
                )
            except OSError:
                return False
            return status == 200

        try:
            wait_for(is_ready, seconds=seconds, what="ready")
        except AssertionError as error:
            output = self.process.output()[-6000:] if self.process else ""
            raise AssertionError(f"{error}\n{output}") from None

    @property
    def facts(self) -> dict[str, Any]:
        """What `demo.json` says."""
        return dict(json.loads((self.data_dir / "demo.json").read_text()))

    def client(self) -> Client:
        """A client with the plant's credentials."""
        return Client(self.facts)

    def metric(self, name: str) -> float:
        """A figure of the doors' process, by its name behind `lineshaft_` with its labels."""
        _, text, _ = Http(f"http://127.0.0.1:{self.http_port}").request("GET", "/metrics")
        pattern = rf"^lineshaft_{re.escape(name)} (\S+)$"
        found = re.search(pattern, text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def books(self) -> dict[str, int]:
        """What the judge counted: "received" and the six verdicts."""
        books = {"received": int(self.metric("samples_received_total"))}
        for verdict in Verdict:
            name = verdict.name.lower()
            books[name] = int(self.metric(f'samples_judged_total{{verdict="{name}"}}'))
        return books

    def children(self) -> dict[int, str]:
        """Process id to command line of the supervisor's children."""
        assert self.process is not None
        return dict(_children(self.process.pid))

    def kill_child(self, containing: str = "") -> None:
        """kill -9 to the first child whose command line has the text."""
        for pid, line in self.children().items():
            if containing in line:
                os.kill(pid, signal.SIGKILL)
                return

    def kill(self) -> None:
        """kill -9 to everything at once."""
        if self.process:
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()

    def stop(self) -> int:
        """An orderly stop; the exit code."""
        assert self.process is not None
        return self.process.stop()


def _children(parent: int) -> Iterable[tuple[int, str]]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(stat[1]) == parent and stat[0] != "Z":
            yield int(folder.name), line


@contextmanager
def running(folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Plant]:
    """A plant that is ready; gone when the block ends."""
    plant = Plant(folder, env)
    try:
        plant.start()
        yield plant
    finally:
        plant.kill()


def _attributes(timestamp: str, value: str, quality: int | None = None) -> dict[str, Any]:
    attributes: dict[str, Any] = {"timestamp": timestamp, "value": value}
    return attributes if quality is None else attributes | {"qualityOfValue": quality}


def moment(ms: int) -> str:
    """A time in UTC ms as RFC 3339 with milliseconds."""
    seconds = time.gmtime(ms // 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", seconds) + f".{ms % 1000:03d}Z"
