"""The matrix: what every writing door takes in, as every reading API shows it.

Doors are found through the dialects. For each there is an adapter here: a `Writer` writes a typed
value with a time for a point, a `Reader` reads it back. What a reader has to show is derived from
the value by what its dialect's page says (`spelled`), not by the dialect's code; what a contract
cannot say, or a point that it cannot reach, is said by `taken` and `reaches`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from schemas.samples import TS_MS_MAX, Kind, Value
from services import dialects, registry
from services.catalogue import remote
from services.dialects import Dialect
from tests.support.follow import Events
from tests.support.plant import Plant, moment
from tests.support.processes import wait_for

BEGIN_MS, END_MS = 0, TS_MS_MAX - 1
TENANT = "demo"
SOON_S = 30

Sample = tuple[Kind, Value, int | None]
"""A value as it is kept: its kind, itself, its quality."""

JAVA = {
    21.5: "21.5",
    -4.5: "-4.5",
    0.0: "0.0",
    0.1: "0.1",
    -1e-3: "-0.001",
    1e-4: "1.0E-4",
    9999999.5: "9999999.5",
    1e7: "1.0E7",
    -123456789.125: "-1.23456789125E8",
    9007199254740994.0: "9.007199254740994E15",
    1e22: "1.0E22",
    2.2250738585072014e-308: "2.2250738585072014E-308",
    5e-324: "4.9E-324",
    1.7976931348623157e308: "1.7976931348623157E308",
}
"""Doubles as `Double.toString` of Java 19 and later gives them."""
VALUES: Mapping[Kind, tuple[Value, ...]] = {
    Kind.DOUBLE: (*JAVA, -0.0),
    Kind.LONG: (42, 0, -1, 2**53 + 1, 2**63 - 1, -(2**63)),
    Kind.BOOL: (True, False),
    Kind.STRING: (
        "warm",
        "",
        " with blanks ",
        "42",
        "-4.50",
        "true",
        "null",
        "1e400",
        "grün ß 東京 😀",
        'a "quoted"\\ text\nof\ttwo lines\x7f',
        "2026-01-01T00:00:00Z",
        "nul \0 in it",
        "{}",
        "x" * 4096,
    ),
    Kind.JSON: (
        '{"a":[1,2.50,null,{"b":"grün 😀"}],"c":true}',
        "[]",
        "{}",
        '"text"',
        "false",
        "42",
        "12345678901234567890",
        "null",
    ),
    Kind.DATE: (1_767_225_600_123, 0, TS_MS_MAX - 1),
}
"""What is written of each kind. Of the first one every contract can say it."""


@dataclass(frozen=True)
class Place:
    """A point, and by which names the APIs know it. `kind` None: every sample brings its own."""

    device: str
    key: str
    point: str
    kind: Kind | None
    on_api_server: bool


@dataclass
class Access:
    """The running plant and everybody's credentials."""

    plant: Plant
    _devices: dict[str, paho.Client] = field(default_factory=dict)

    def act(self, action: str, **arguments: Any) -> Any:
        """A control action."""
        return remote.ask(self.plant.data_dir / "control.sock", action, arguments)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `demo.json` says."""
        return self.plant.facts

    @cached_property
    def http(self) -> httpx.Client:
        """A client without credentials."""
        return httpx.Client(base_url=self.facts["http"], timeout=30)

    @cached_property
    def building_x(self) -> dict[str, str]:
        """The header of a machine client."""
        token = self.plant.client().token()
        return {"Authorization": f"Bearer {token}", "Content-Type": "application/vnd.api+json"}

    @cached_property
    def opticloud(self) -> dict[str, str]:
        """The header of a user."""
        return self.plant.client().user()

    @cached_property
    def next_plus(self) -> dict[str, str]:
        """The header of an editor."""
        return {"Authorization": self.facts["next_plus"]["editor_token"]}

    def device(self, device: str) -> paho.Client:
        """The device, connected."""
        if device not in self._devices:
            _, token = self.act(
                "add_key", tenant=TENANT, use="device", name="matrix", device=device
            )
            client = paho.Client(CallbackAPIVersion.VERSION2, f"matrix-{len(self._devices)}")
            client.username_pw_set(token)
            client.connect("127.0.0.1", self.plant.mqtt_port)
            client.loop_start()
            self._devices[device] = client
        return self._devices[device]

    def close(self) -> None:
        """Hang up."""
        for client in self._devices.values():
            client.disconnect()
            client.loop_stop()
        self.http.close()


# -- writers


class Writer:
    """Writes values by one door. `with_quality`: the contract has a field for it."""

    with_quality = False

    def __init__(self, access: Access) -> None:
        self.access = access

    @staticmethod
    def reaches(place: Place) -> bool:
        """Whether the contract can name the point."""
        return True

    def taken(self, place: Place, kind: Kind, value: Value) -> tuple[Kind, Value] | None:
        """What the value is kept as; None where the contract cannot say it, or refuses it."""
        raise NotImplementedError

    def write(
        self, place: Place, ts_ms: int, kind: Kind, value: Value, quality: int | None
    ) -> None:
        """Write it, and see the door's answer."""
        raise NotImplementedError

    def assert_refused(self, place: Place) -> None:
        """The door's answer for a point that it does not reach."""
        raise NotImplementedError


class BuildingXIngest(Writer):
    """Text; the point's declared type says what it means, without one it is a text."""

    with_quality = True

    def taken(self, place: Place, kind: Kind, value: Value) -> tuple[Kind, Value] | None:
        return (kind, value) if place.kind is not None else (Kind.STRING, self.text(kind, value))

    @staticmethod
    def text(kind: Kind, value: Value) -> str:
        """The value as a client writes it."""
        if kind == Kind.DATE:
            return moment(int(value))
        return str(value).lower() if kind == Kind.BOOL else str(value)

    def write(
        self, place: Place, ts_ms: int, kind: Kind, value: Value, quality: int | None
    ) -> None:
        attributes: dict[str, Any] = {"timestamp": moment(ts_ms), "value": self.text(kind, value)}
        if quality is not None:
            attributes["qualityOfValue"] = quality
        body = {"data": [{"type": "PointValue", "attributes": attributes}]}
        partition = self.access.facts["building_x"]["partition_id"]
        path = f"/ingest/partitions/{partition}/points/{quote(place.point)}/values"
        answer = self.access.http.post(path, headers=self.access.building_x, json=body)
        assert answer.status_code == 204, (kind, value, answer.text)


class NextPlusPush(Writer):
    """JSON; for parameters, which are points of the API server."""

    @staticmethod
    def reaches(place: Place) -> bool:
        return place.on_api_server

    def taken(self, place: Place, kind: Kind, value: Value) -> tuple[Kind, Value] | None:
        if kind == Kind.JSON and value == "null":
            return None
        if place.kind is not None:
            return kind, value
        if kind == Kind.DATE:
            return Kind.STRING, moment(int(value))
        return own_type(str(value)) if kind == Kind.JSON else (kind, value)

    def write(
        self, place: Place, ts_ms: int, kind: Kind, value: Value, quality: int | None
    ) -> None:
        status, text = self._push({"key": place.key}, ts_ms, kind, value)
        wanted = 200 if self.taken(place, kind, value) else 422
        assert status == wanted, (kind, value, text)

    def assert_refused(self, place: Place) -> None:
        status, text = self._push({"paramId": place.point}, 0, Kind.DOUBLE, 1.0)
        assert (status, json.loads(text)["error"]["code"]) == (422, "API_PUSH_PARAM_NOT_FOUND")

    def _push(self, named: dict[str, str], ts_ms: int, kind: Kind, value: Value) -> tuple[int, str]:
        text = json_text(kind, moment(int(value)) if kind == Kind.DATE else value)
        head = json.dumps(named | {"timestamp": ts_ms})[:-1]
        headers = self.access.next_plus | {"Content-Type": "application/json"}
        body = f'[{head},"value":{text}}}]'.encode()
        answer = self.access.http.post("/api/ApiServers/push", headers=headers, content=body)
        return answer.status_code, answer.text


class OpticloudTelemetry(Writer):
    """JSON, typed as it is written where the point is not; a date is a number of milliseconds."""

    def taken(self, place: Place, kind: Kind, value: Value) -> tuple[Kind, Value] | None:
        if kind == Kind.JSON and value == "null":
            return None
        if place.kind is not None:
            return kind, value
        if kind == Kind.DOUBLE:
            return of_number(json_text(kind, value))
        if kind == Kind.STRING and re.fullmatch(r"-?(\d+(\.\d+)?|\.\d+)", str(value)):
            return of_number(str(value))
        if kind == Kind.DATE:
            return Kind.LONG, value
        if kind != Kind.JSON:
            return kind, value
        decoded = json.loads(str(value))
        if isinstance(decoded, int) and not isinstance(decoded, bool):
            return of_number(str(value))
        return own_type(str(value))

    def write(
        self, place: Place, ts_ms: int, kind: Kind, value: Value, quality: int | None
    ) -> None:
        head = json.dumps({"ts": ts_ms})[:-1]
        named = json.dumps(place.key)
        body = f'{head},"values":{{{named}:{json_text(kind, value)}}}}}'
        sent = self.access.device(place.device).publish("v1/devices/me/telemetry", body, qos=1)
        sent.wait_for_publish(SOON_S)
        assert sent.is_published(), (kind, value)


def json_text(kind: Kind, value: Value) -> str:
    """The value as JSON; a date as it is given."""
    return str(value) if kind == Kind.JSON else json.dumps(value, ensure_ascii=False)


def own_type(text: str) -> tuple[Kind, Value]:
    """What a JSON value is by its own type; what no type holds stays as it is written."""
    value = json.loads(text)
    if isinstance(value, bool):
        return Kind.BOOL, value
    if isinstance(value, str):
        return Kind.STRING, value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return Kind.LONG, value
    return Kind.JSON, text


def of_number(text: str) -> tuple[Kind, Value]:
    """ThingsBoard's rule: with an exponent it is whole or not by its value, otherwise by its point;
    beyond 64 bits, with more than 16 decimals or beyond a double it is text, in full.
    """
    number = Decimal(text)
    if number == number.to_integral_value() and not ("." in text and "e" not in text):
        whole = int(number)
        return (Kind.LONG, whole) if -(2**63) <= whole < 2**63 else (Kind.STRING, f"{number:f}")
    decimals = -int(number.as_tuple().exponent)
    return (Kind.DOUBLE, float(text)) if decimals <= 16 else (Kind.STRING, f"{number:f}")


# -- readers


class Reader:
    """Reads what one door shows of a point. `shown` is what it was at each time."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.shown: dict[int, Any] = {}

    @staticmethod
    def reaches(place: Place) -> bool:
        """Whether the contract can name the point."""
        return True

    def begin(self, place: Place) -> None:
        """Before anything is written."""

    def look(self, place: Place, ts_ms: int) -> None:
        """After a value was written at this time."""

    def end(self, place: Place, last_ms: int) -> None:
        """When the last one was written, at this time."""

    def spelled(self, kind: Kind, value: Value, quality: int | None) -> Any:
        """How the dialect's page says that the value is shown."""
        raise NotImplementedError

    def assert_refused(self, place: Place) -> None:
        """The door's answer for a point that it does not reach."""
        raise NotImplementedError


class BuildingXValues(Reader):
    """Text and quality of a range."""

    def end(self, place: Place, last_ms: int) -> None:
        partition = self.access.facts["building_x"]["partition_id"]
        path = f"/operations/partitions/{partition}/points/{quote(place.point)}/values"
        query = {
            "filter[timestamp][from]": moment(BEGIN_MS),
            "filter[timestamp][to]": moment(END_MS),
        }

        def found() -> bool:
            answer = self.access.http.get(path, params=query, headers=self.access.building_x)
            assert answer.status_code == 200, answer.text
            rows = [row["attributes"] for row in answer.json()["data"]]
            self.shown = {
                at: (row["value"], row.get("qualityOfValue"))
                for row in rows
                for at in [int(Decimal(_seconds(row["timestamp"])) * 1000)]
            }
            assert len(self.shown) == len(rows)
            return last_ms in self.shown

        wait_for(found, seconds=SOON_S, what=f"the last value of {place}")

    def spelled(self, kind: Kind, value: Value, quality: int | None) -> Any:
        if kind == Kind.DATE:
            return moment(int(value)), quality
        return str(value).lower() if kind == Kind.BOOL else str(value), quality


class BuildingXPoint(BuildingXValues):
    """The point with its latest value, one by one: it has what was acknowledged before."""

    def end(self, place: Place, last_ms: int) -> None:
        """Everything was looked at when it was written."""

    def look(self, place: Place, ts_ms: int) -> None:
        partition = self.access.facts["building_x"]["partition_id"]
        path = f"/operations/partitions/{partition}{self.path(place)}"
        query = {"field[Point]": "pointValue", "filter[name]": place.key}
        answer = self.access.http.get(path, params=query, headers=self.access.building_x)
        assert answer.status_code == 200, answer.text
        found = answer.json()["data"]
        [point] = [one for one in _listed(found) if one["id"] == place.point]
        attributes = point["attributes"]
        shown = attributes["pointValue"]
        at = int(Decimal(_seconds(shown["timestamp"])) * 1000)
        quality = shown.get("qualityOfValue")
        assert attributes["systemAttributes"]["curStatus"] == ("fail" if quality else "ok")
        self.shown[at] = (shown["value"], quality)

    @staticmethod
    def path(place: Place) -> str:
        """Where the point is shown."""
        return f"/points/{quote(place.point)}"


class BuildingXPoints(BuildingXPoint):
    """The same in the list of all points."""

    @staticmethod
    def path(place: Place) -> str:
        return "/points"


class BuildingXPointsOfDevice(BuildingXPoint):
    """The same in the list of a device's points."""

    @staticmethod
    def path(place: Place) -> str:
        return f"/devices/{place.device}/points"


def _listed(data: Any) -> list[Any]:
    return data if isinstance(data, list) else [data]


class OpticloudTimeseries(Reader):
    """The range and, one by one, the latest value; each as text and in JSON types."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._latest: dict[int, Any] = {}

    def look(self, place: Place, ts_ms: int) -> None:
        def found() -> bool:
            rows = self._ask(place)
            if rows[0][0] != ts_ms:
                return False
            self._latest[ts_ms] = rows[0][1]
            return True

        wait_for(found, seconds=SOON_S, what=f"the latest value of {place}")

    def end(self, place: Place, last_ms: int) -> None:
        asked = {"startTs": BEGIN_MS, "endTs": TS_MS_MAX, "limit": 1_000, "orderBy": "ASC"}

        def found() -> bool:
            self.shown = dict(self._ask(place, **asked))
            return last_ms in self.shown

        wait_for(found, seconds=SOON_S, what=f"the last value of {place}")
        assert {at: self.shown.get(at) for at in self._latest} == self._latest

    def _ask(self, place: Place, **asked: Any) -> list[tuple[int, Any]]:
        path = f"/api/plugins/telemetry/DEVICE/{place.device}/values/timeseries"
        both = []
        for strict in ("false", "true"):
            query = {"keys": place.key, "useStrictDataTypes": strict} | asked
            answer = self.access.http.get(path, params=query, headers=self.access.opticloud)
            assert answer.status_code == 200, answer.text
            both.append([(row["ts"], row["value"]) for row in answer.json().get(place.key, [])])
        if [at for at, _ in both[0]] != [at for at, _ in both[1]]:
            return [(-1, None)]  # One has come in between.
        return [
            (at, (text, same(value)))
            for (at, text), (_, value) in zip(both[0], both[1], strict=True)
        ]

    def spelled(self, kind: Kind, value: Value, quality: int | None) -> Any:
        if kind == Kind.JSON:
            return str(value), same(json.loads(str(value)))
        if kind == Kind.DOUBLE:
            text = JAVA[float(value)]
            negative_zero = str(value) == "-0.0"
            return "-0.0" if negative_zero else text, same(value)
        return str(value).lower() if kind == Kind.BOOL else str(value), same(value)


class _NextPlus(Reader):
    """JSON in its own types: whole doubles without a point, dates as ISO-8601."""

    @staticmethod
    def reaches(place: Place) -> bool:
        return place.on_api_server

    def spelled(self, kind: Kind, value: Value, quality: int | None) -> Any:
        if kind == Kind.JSON:
            return same(json.loads(str(value)))
        if kind == Kind.DATE:
            return same(moment(int(value)))
        if kind == Kind.DOUBLE and float(value).is_integer() and abs(value) < 2**53:  # type: ignore[arg-type]
            return same(int(value))
        return same(value)


class NextPlusParameter(_NextPlus):
    """The latest value, one by one: it has what was acknowledged before."""

    def look(self, place: Place, ts_ms: int) -> None:
        answer = self._read(place)
        assert answer.status_code == 200, answer.text
        self.shown[ts_ms] = same(answer.json()["value"])

    def assert_refused(self, place: Place) -> None:
        answer = self._read(place)
        found = (answer.status_code, answer.json()["error"]["code"])
        assert found == (404, "MODEL_NOT_FOUND")

    def _read(self, place: Place) -> httpx.Response:
        path = f"/api/ApiServers/readParameter/{quote(place.point)}"
        return self.access.http.get(path, headers=self.access.next_plus)


class NextPlusStream(_NextPlus):
    """Changes as they come."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._events = Events()
        self._told = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, place: Place) -> None:
        self._thread = threading.Thread(target=self._follow, args=(place,), daemon=True)
        self._thread.start()
        wait_for(lambda: self._events.retry_ms, seconds=SOON_S, what="follows")

    def _follow(self, place: Place) -> None:
        with (
            suppress(httpx.HTTPError),
            httpx.stream("GET", self._url(place), timeout=60) as response,
        ):
            for data in response.iter_raw():
                self._events.feed(data)
                if self._told.is_set():
                    return

    def _url(self, place: Place) -> str:
        token = self.access.facts["next_plus"]["operator_token"]
        query = urlencode({"access_token": token, "paramId": place.point})
        return f"{self.access.facts['http']}/api/ApiServers/stream?{query}"

    def end(self, place: Place, last_ms: int) -> None:
        def found() -> bool:
            self.shown = {
                int(Decimal(_seconds(event["timestamp"])) * 1000): same(event["value"])
                for event in self._events.of("message")
            }
            return last_ms in self.shown

        wait_for(found, seconds=SOON_S, what=f"the last change of {place}")
        self._told.set()

    def assert_refused(self, place: Place) -> None:
        answer = self.access.http.get(self._url(place))
        found = (answer.status_code, answer.json()["error"]["code"])
        assert found == (404, "MODEL_NOT_FOUND")


def same(value: Any) -> str:
    """A JSON value as a text that is equal where value and type are."""
    return json.dumps(value, sort_keys=True)


def _seconds(time: str) -> str:
    """Seconds since 1970 of a time in UTC, as decimals."""
    found = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d\.\d{3})Z", time)
    assert found, time
    year, month, day, hour, minute = map(int, found.groups()[:5])
    # Days from civil, by H. Hinnant: no library between what is shown and what is compared.
    year -= month <= 2
    of_era = year % 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    days = year // 400 * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    return str(((days * 24 + hour) * 60 + minute) * 60 + Decimal(found[6]))


# -- doors to adapters

WRITERS: Mapping[str, type[Writer]] = {
    "building_x POST /ingest/partitions/{partitionId}/points/{pointId}/values": BuildingXIngest,
    "next_plus POST /api/ApiServers/push": NextPlusPush,
    "opticloud MQTT v1/devices/me/telemetry": OpticloudTelemetry,
}
READERS: Mapping[str, type[Reader]] = {
    "building_x GET /ingest/partitions/{partitionId}/points/{pointId}/values": BuildingXValues,
    "building_x GET /ingest/partitions/{partitionId}/points/{pointId}": BuildingXPoint,
    "building_x GET /ingest/partitions/{partitionId}/points": BuildingXPoints,
    "building_x GET /ingest/partitions/{partitionId}/devices/{deviceId}/points": (
        BuildingXPointsOfDevice
    ),
    "next_plus GET /api/ApiServers/readParameter/{paramId}": NextPlusParameter,
    "next_plus GET /api/ApiServers/stream": NextPlusStream,
    "opticloud GET /api/plugins/telemetry/{entityType}/{entityId}/values/timeseries": (
        OpticloudTimeseries
    ),
}
WITHOUT_VALUES = frozenset(
    f"building_x GET /ingest/partitions{path}"
    for path in (
        "",
        "/{partitionId}",
        "/{partitionId}/locations",
        "/{partitionId}/locations/{locationId}",
        "/{partitionId}/devices",
        "/{partitionId}/devices/{deviceId}",
        "/{partitionId}/devices/{deviceId}/devices",
    )
)
"""Reading doors that show no values, but what is configured."""
SPOKEN: dict[str, Dialect] = registry.discover(dialects, "DIALECT")


def writing_doors() -> set[str]:
    """Every door of every dialect that takes values in."""
    http = {f"{d.name} {p.method} {p.paths[0]}" for d in SPOKEN.values() for p in d.pushes}
    return http | {f"{d.name} MQTT {door.topic}" for d in SPOKEN.values() for door in d.publishes}


def reading_doors() -> set[str]:
    """Every door of every dialect that shows values."""
    found: set[str] = set()
    for dialect in SPOKEN.values():
        found |= {f"{dialect.name} {door.method} {door.paths[0]}" for door in dialect.reads}
        found |= {f"{dialect.name} {door.method} {door.paths[0]}" for door in dialect.follows}
    return found
