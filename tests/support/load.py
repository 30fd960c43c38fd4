"""Load on a plant from several threads, noted in a history: colliding posts, QoS 1 publishes, and
pushes of keys of their own and of one that they share.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import paho.mqtt.client as paho

from tests.support.history import Findings, History, Write
from tests.support.plant import Client, Http, moment
from tests.support.processes import let_pass, wait_for

PUBLISHES_MAX = 65_000
PUSH_PAUSE_SECONDS = 0.05
"""A push has ten values: so much, and the values of a long run can still be read in one answer."""
_SPAN_MS = 1_000_000
_spans = itertools.count(1_600_000_000_000, _SPAN_MS)
"""Every load writes into a span of its own, so that one does not find another's values."""
_push_spans = itertools.count(time.time_ns() // 10**6 - 6 * 3_600_000, _SPAN_MS)
"""The spans of pushes: what is pushed is kept for half a day only."""
HTTP_SERIES, MQTT_SERIES, PUSH_SERIES = "building_x", "opticloud", "next_plus"


class Target(Protocol):
    """What a load is put on: any running system with the demo plant's parts."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `demo.json` says."""
        ...

    @property
    def mqtt_port(self) -> int:
        """Where 127.0.0.1 takes MQTT."""
        ...


class Load:
    """`with Load(plant, seed=1) as load:` sends until the block ends; then its history is whole
    and `findings` holds the stored values against it.

    Publishers rest `pause_seconds` between two publishes.
    """

    def __init__(
        self,
        plant: Target,
        *,
        seed: int,
        posters: int = 3,
        publishers: int = 2,
        pushers: int = 2,
        pause_seconds: float = 0,
    ) -> None:
        self.history = History()
        self._start_ms = next(_spans)
        self._push_start_ms = next(_push_spans)
        self._pause_seconds = pause_seconds
        self._plant, self._seed = plant, seed
        self._stop = threading.Event()
        self._threads = [
            *(self._thread(self._post, number) for number in range(posters)),
            *(self._thread(self._publish, number) for number in range(publishers)),
            *(self._thread(self._push, number) for number in range(pushers)),
        ]
        self.errors: list[BaseException] = []

    def _thread(self, body: Callable[[int], None], number: int) -> threading.Thread:
        def guarded() -> None:
            try:
                body(number)
            except BaseException as error:
                self.errors.append(error)

        return threading.Thread(target=guarded, daemon=True)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self.errors:
            raise self.errors[0]

    def _post(self, number: int) -> None:
        """Posts to one point, whose times the posters share, so that they collide."""
        chance = random.Random(f"{self._seed}/post/{number}")
        client, sequence = Client(self._plant.facts), 0
        while not self._stop.is_set():
            sequence += 1
            times = [
                self._start_ms + chance.randrange(40_000) for _ in range(chance.randint(1, 20))
            ]
            values = [f"{number}{sequence:06d}.{index:02d}5" for index in range(len(times))]
            self._post_once(client, times, values)

    def _post_once(self, client: Client, times: Sequence[int], values: Sequence[str]) -> None:
        began = time.monotonic()
        try:
            status, dropped = client.post(list(zip(map(moment, times), values, strict=True)))
        except OSError:
            status, dropped = 0, []
            self._stop.wait(0.05)
        except AssertionError:
            # The token was asked for in the middle of a restart: nothing was sent.
            self._stop.wait(0.05)
            return
        assert status in (0, 202, 204, 401, 429, 500, 503), status
        told = ["info"] * len(times)
        if status in (202, 204):
            told = ["dropped" if index in dropped else "kept" for index in range(len(times))]
        if status in (202, 204, 503, 0):
            self._note(HTTP_SERIES, times, values, told, began)

    def _note(
        self,
        series: str,
        times: Sequence[int],
        values: Sequence[str],
        told: Sequence[str],
        began: float,
        *,
        last_wins: bool = False,
    ) -> None:
        ended = time.monotonic()
        self.history.add(
            Write((series, at), value, word, began, ended, last_wins)
            for at, value, word in zip(times, values, told, strict=True)
        )

    def _push(self, number: int) -> None:
        """Pushes of several keys, each pusher's own, in order, and a shared one at any time."""
        chance = random.Random(f"{self._seed}/push/{number}")
        facts = self._plant.facts
        http, token = Http(facts["http"]), facts["next_plus"]["editor_token"]
        sequence = 0
        while not self._stop.wait(max(self._pause_seconds, PUSH_PAUSE_SECONDS)):
            sequence += 1
            keys = [chance.choice((f"{number}.{chance.randrange(3)}", "all")) for _ in range(10)]
            items = [
                {
                    "key": f"{PUSH_SERIES}.{key}",
                    "value": float(f"{number}{sequence:06d}.{index:02d}"),
                    "timestamp": self._push_start_ms
                    + (chance.randrange(40_000) if key == "all" else sequence * 10 + index),
                }
                for index, key in enumerate(keys)
            ]
            began = time.monotonic()
            try:
                path = f"/api/ApiServers/push?access_token={token}"
                status, answer, _ = http.request("POST", path, items)
            except OSError:
                status, answer = 0, None
                self._stop.wait(0.05)
            assert status in (0, 200, 401, 429, 500, 503), (status, answer)
            if status in (200, 503, 0):
                self._note_push(items, "kept" if status == 200 else "info", began)

    def _note_push(self, items: Sequence[Mapping[str, Any]], told: str, began: float) -> None:
        """Of two values of a millisecond in one push the later one counts."""
        last = {(item["key"], item["timestamp"]): item["value"] for item in items}
        for (key, at), value in last.items():
            self._note(key, [at], [repr(value)], [told], began, last_wins=True)

    def _publish(self, number: int) -> None:
        """Publishes to the demo device, each publisher with a key and a client id of its own."""
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, f"load-{number}", reconnect_on_failure=True
        )
        client.username_pw_set(self._plant.facts["opticloud"]["device_token"])
        client.reconnect_delay_set(1, 1)
        client.connect_async("127.0.0.1", self._plant.mqtt_port)
        client.loop_start()
        acked: set[int] = set()
        client.on_publish = lambda _client, _data, mid, _code, _properties: acked.add(mid)
        key, sequence = f"{MQTT_SERIES}.{number}", 0
        sent: list[tuple[int, int, str, float]] = []
        # Behind this number packet ids begin again: enough for one run.
        while not self._stop.wait(self._pause_seconds) and sequence < PUBLISHES_MAX:
            sequence += 1
            at, value = self._start_ms + sequence, f"{number}.{sequence:07d}5"
            payload = f'{{"ts": {at}, "values": {{{json.dumps(key)}: {value}}}}}'
            began = time.monotonic()
            mid = client.publish("v1/devices/me/telemetry", payload, qos=1).mid
            sent.append((mid, at, value, began))
            while len(sent) - len(acked) >= 20 and not self._stop.wait(0.005):
                pass
        deadline = time.monotonic() + 15
        while len(acked) < len(sent) and time.monotonic() < deadline:
            let_pass(0.05)
        client.disconnect()
        client.loop_stop()
        for mid, at, value, began in sent:
            told = "kept" if mid in acked else "info"
            self._note(key, [at], [value], [told], began, last_wins=True)

    def findings(self) -> Findings:
        """What the history says of the stored values, once all that was taken in is judged: an
        acknowledgement at the log comes before the verdict, so a value may show a moment later.
        """

        def rests() -> list[Findings]:
            before = self._stored()
            let_pass(0.5)
            findings = self.history.check(before)
            return [findings] if self._stored() == before and not findings.lost else []

        try:
            return wait_for(rests, seconds=120, what="the lanes at rest")[0]
        except AssertionError:
            return self.history.check(self._stored())

    def _stored(self) -> dict[str, list[tuple[int, str]]]:
        """What the read API says of every series in the history, in the history's spelling."""
        client = Client(self._plant.facts)
        device, pushed = (
            self._plant.facts[part]["device_id"] for part in ("opticloud", "next_plus")
        )
        sent = {(write.place, float(write.value)): write.value for write in self.history.writes}
        found: dict[str, list[tuple[int, str]]] = {}
        for series in {write.place[0] for write in self.history.writes}:
            start = self._start_ms
            place = {} if series == HTTP_SERIES else {"device": device, "key": series}
            if series.startswith(PUSH_SERIES):
                start, place = self._push_start_ms, {"device": pushed, "key": series}
            rows = client.range(start, start + _SPAN_MS, **place)
            found[series] = [(at, sent.get(((series, at), float(text)), text)) for at, text in rows]
        return found
