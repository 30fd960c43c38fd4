"""paho-mqtt, the client that most Python devices use, in 3.1.1 and 5.0."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from tests.contract.mqtt._server import DEVICES, TOKEN, Server

TELEMETRY = "v1/devices/me/telemetry"
VERSIONS = pytest.mark.parametrize("protocol", [paho.MQTTv311, paho.MQTTv5], ids=["3.1.1", "5.0"])
WAIT_S = 20


class Device:
    """A paho client whose events can be waited for."""

    def __init__(self, protocol: int, token: str | None, client_id: str = "paho") -> None:
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=protocol,  # type: ignore[arg-type]
        )
        self.client.max_inflight_messages_set(200)
        self.client.username_pw_set(token or "")
        note: Callable[[str, Any], None] = lambda name, value: self.events.put((name, value))  # noqa: E731
        self.client.on_connect = lambda _c, _u, _f, reason, _p: note("connect", reason)
        self.client.on_disconnect = lambda _c, _u, _f, reason, _p: note("disconnect", reason)
        self.client.on_subscribe = lambda _c, _u, _m, reasons, _p: note("subscribe", reasons)
        self.client.on_message = lambda _c, _u, message: note("message", message)
        self.client.on_publish = lambda _c, _u, mid, reason, _p: note("publish", (mid, reason))

    def event(self, name: str) -> Any:
        """The next event of a kind; others are passed over."""
        while True:
            found, value = self.events.get(timeout=WAIT_S)
            if found == name:
                return value


@contextmanager
def connected(
    server: Server, protocol: int, token: str | None = TOKEN, client_id: str = "paho"
) -> Iterator[Device]:
    """A client that has got its CONNACK; the connection ends with the block."""
    device = Device(protocol, token, client_id)
    device.client.reconnect_delay_set(60, 60)
    device.client.connect("127.0.0.1", server.port, keepalive=10)
    device.client.loop_start()
    try:
        yield device
    finally:
        device.client.disconnect()
        device.client.loop_stop()


@VERSIONS
def test_what_is_acknowledged_is_on_the_log(server: Server, protocol: int) -> None:
    with connected(server, protocol) as device:
        assert not device.event("connect").is_failure
        sent = [
            device.client.publish(TELEMETRY, json.dumps({"ts": 1_000 + n, "values": {"n": n}}), 1)
            for n in range(500)
        ]
        for info in sent:
            info.wait_for_publish(WAIT_S)
        assert all(info.is_published() for info in sent)
        assert server.stored() == {(DEVICES[0], "n", n): 1 for n in range(500)}


@VERSIONS
def test_an_unknown_token_is_a_bad_user_name(server: Server, protocol: int) -> None:
    with connected(server, protocol, token="guess") as device:
        assert device.event("connect") == ReasonCode(
            PacketTypes.CONNACK, "Bad user name or password"
        )


def test_qos_2_of_3_1_1_is_a_full_handshake(server: Server) -> None:
    with connected(server, paho.MQTTv311) as device:
        sent = [device.client.publish(TELEMETRY, f'{{"n":{n}}}', 2) for n in range(50)]
        for info in sent:
            info.wait_for_publish(WAIT_S)
        assert sum(server.stored().values()) == 50


@VERSIONS
def test_session_limits_are_answered_as_the_vendor_s_client_asks_for_them(
    server: Server, protocol: int
) -> None:
    with connected(server, protocol) as device:
        device.event("connect")
        device.client.subscribe("v1/devices/me/attributes", 1)
        device.client.subscribe("v1/devices/me/rpc/response/+", 1)
        assert [str(device.event("subscribe")[0]) for _ in range(2)] == ["Granted QoS 1"] * 2
        call = {"method": "getSessionLimits", "params": {"timeout": 5000}}
        device.client.publish("v1/devices/me/rpc/request/1", json.dumps(call), 1)
        message = device.event("message")
        assert message.topic == "v1/devices/me/rpc/response/1"
        assert json.loads(message.payload)["maxPayloadSize"] == 65_536


@VERSIONS
def test_a_filter_that_is_not_offered_is_refused(server: Server, protocol: int) -> None:
    with connected(server, protocol) as device:
        device.event("connect")
        device.client.subscribe("#", 0)
        assert device.event("subscribe")[0].is_failure


def test_5_0_learns_of_a_bad_payload_and_goes_on(server: Server) -> None:
    with connected(server, paho.MQTTv5) as device:
        device.event("connect")
        device.client.publish(TELEMETRY, "[1,2]", 1)
        _, reason = device.event("publish")
        assert reason.value == 0x99
        device.client.publish(TELEMETRY, '{"a":1}', 1).wait_for_publish(WAIT_S)
        assert server.stored() == {(DEVICES[0], "a", 1): 1}
        assert [(x.source, x.body) for x in server.letters()] == [("opticloud", b"[1,2]")]


def test_3_1_1_is_cut_off_for_a_bad_payload_once(server: Server) -> None:
    device = Device(paho.MQTTv311, TOKEN)
    device.client.reconnect_delay_set(1, 1)
    device.client.connect("127.0.0.1", server.port)
    device.client.loop_start()
    try:
        info = device.client.publish(TELEMETRY, "[1,2]", 1)
        device.event("disconnect")
        # paho keeps the message, connects again and sends it with DUP; that one is acknowledged.
        info.wait_for_publish(WAIT_S)
        assert info.is_published()
        assert len(server.letters()) == 1
    finally:
        device.client.disconnect()
        device.client.loop_stop()


@VERSIONS
def test_a_session_is_taken_over_and_can_be_revoked(server: Server, protocol: int) -> None:
    with connected(server, protocol) as old:
        old.event("connect")
        with connected(server, protocol) as new:
            new.event("connect")
            told = old.event("disconnect")
            assert protocol == paho.MQTTv311 or told.value == 0x8E

            async def revoke() -> None:
                server.listener.revoke(lambda principal: principal.subject == TOKEN)

            server.call(revoke())
            told = new.event("disconnect")
            assert protocol == paho.MQTTv311 or told.value == 0x87


@VERSIONS
def test_a_stop_answers_what_was_sent_and_says_goodbye(server: Server, protocol: int) -> None:
    with connected(server, protocol) as device:
        device.event("connect")
        device.client.publish(TELEMETRY, '{"a":1}', 1)
        device.event("publish")
        server.call(server.listener.stop())
        told = device.event("disconnect")
        assert protocol == paho.MQTTv311 or told.value == 0x8B
