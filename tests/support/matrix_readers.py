"""The doors that show values: each reads a point back.

What a reader has to show is derived from the value by what its dialect's page says (`spelled`), not
by the dialect's code; a point that a contract cannot name is said by `reaches`.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from schemas.samples import TS_MS_MAX, Kind, Value
from tests.support.follow import Events
from tests.support.matrix import BEGIN_MS, END_MS, JAVA, SOON_S, SPOKEN, Access, Place
from tests.support.plant import moment
from tests.support.processes import wait_for


class Reader(ABC):
    """Reads what one door shows of a point. `shown` is what it was at each time."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.shown: dict[int, Any] = {}

    @staticmethod
    def reaches(place: Place) -> bool:
        """Whether the contract can name the point."""
        return True

    def begin(self, place: Place) -> None:  # noqa: B027 (many need none)
        """Before anything is written."""

    def look(self, place: Place, ts_ms: int) -> None:  # noqa: B027 (many need none)
        """After a value was written at this time."""

    def end(self, place: Place, last_ms: int) -> None:  # noqa: B027 (many need none)
        """When the last one was written, at this time."""

    @abstractmethod
    def spelled(self, kind: Kind, value: Value, quality: int | None) -> Any:
        """How the dialect's page says that the value is shown."""

    def assert_refused(self, place: Place) -> None:
        """The door's answer for a point that it does not reach."""
        raise AssertionError(f"{type(self).__name__} reaches every point, {place} too")


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
                ms_of(row["timestamp"]): (row["value"], row.get("qualityOfValue")) for row in rows
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
        at = ms_of(shown["timestamp"])
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
                ms_of(event["timestamp"]): same(event["value"])
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


def ms_of(time: str) -> int:
    """UTC ms of a time as it is shown."""
    assert time.endswith("Z"), time
    return round(datetime.fromisoformat(time).timestamp() * 1000)


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


def reading_doors() -> set[str]:
    """Every door of every dialect that shows values."""
    found: set[str] = set()
    for dialect in SPOKEN.values():
        found |= {f"{dialect.name} {door.method} {door.paths[0]}" for door in dialect.reads}
        found |= {f"{dialect.name} {door.method} {door.paths[0]}" for door in dialect.follows}
    return found
