"""The doors that take values in: each writes a typed value with a time for a point.

What is kept of it is said by what the dialect's page says (`taken`), not by the dialect's code; so
is what a contract cannot say, and by `reaches` a point that it cannot name.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from schemas.samples import Kind, Value
from tests.support.matrix import SOON_S, SPOKEN, Access, Place
from tests.support.plant import moment


class Writer(ABC):
    """Writes values by one door. `with_quality`: the contract has a field for it."""

    with_quality = False

    def __init__(self, access: Access) -> None:
        self.access = access

    @staticmethod
    def reaches(place: Place) -> bool:
        """Whether the contract can name the point."""
        return True

    @abstractmethod
    def taken(self, place: Place, kind: Kind, value: Value) -> tuple[Kind, Value] | None:
        """What the value is kept as; None where the contract cannot say it, or refuses it."""

    @abstractmethod
    def write(
        self, place: Place, ts_ms: int, kind: Kind, value: Value, quality: int | None
    ) -> None:
        """Write it, and see the door's answer."""

    def assert_refused(self, place: Place) -> None:
        """The door's answer for a point that it does not reach."""
        raise AssertionError(f"{type(self).__name__} reaches every point, {place} too")


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


WRITERS: Mapping[str, type[Writer]] = {
    "building_x POST /ingest/partitions/{partitionId}/points/{pointId}/values": BuildingXIngest,
    "next_plus POST /api/ApiServers/push": NextPlusPush,
    "opticloud MQTT v1/devices/me/telemetry": OpticloudTelemetry,
}


def writing_doors() -> set[str]:
    """Every door of every dialect that takes values in."""
    http = {f"{d.name} {p.method} {p.paths[0]}" for d in SPOKEN.values() for p in d.pushes}
    return http | {f"{d.name} MQTT {door.topic}" for d in SPOKEN.values() for door in d.publishes}
