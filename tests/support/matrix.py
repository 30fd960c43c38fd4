"""The matrix: what every writing door takes in, as every reading API shows it.

Doors are found through the dialects. For each there is an adapter: a `Writer` (matrix_writers.py)
writes a typed value with a time for a point, a `Reader` (matrix_readers.py) reads it back. Here is
what is written, and who they are who write and read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from schemas.samples import TS_MS_MAX, Kind, Value
from services import dialects, registry
from services.catalogue import remote
from services.dialects import Dialect
from tests.support.plant import Plant

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


SPOKEN: dict[str, Dialect] = registry.discover(dialects, "DIALECT")


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
