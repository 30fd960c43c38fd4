"""Changes over real sockets, everything in one process: each once and in the order of its
parameter, through disconnects, a kill -9 and restart, and for nobody who may not have them.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from services.catalogue import remote
from tests.support.follow import Events
from tests.support.plant import Plant, running
from tests.support.processes import let_pass, wait_for

PATH = "/api/ApiServers/stream"
KEYS = [f"k{number}" for number in range(10)]
SETTINGS = {
    "LINESHAFT_STREAM_READERS_MAX": "20",
    "LINESHAFT_STREAM_HEARTBEAT_SECONDS": "1",
    "LINESHAFT_STREAM_STALLED_SECONDS": "2",
    "LINESHAFT_STREAM_CHANGES_MAX": "1000",
}
Sent = tuple[str, int]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with running(tmp_path_factory.mktemp("stream"), SETTINGS) as plant:
        yield plant


def act(plant: Plant, action: str, **arguments: Any) -> Any:
    """A control action."""
    return remote.ask(plant.data_dir / "control.sock", action, arguments)


def token(plant: Plant, role: str = "operator") -> str:
    """A token of the demo tenant."""
    found: str = plant.facts["next_plus"][f"{role}_token"]
    return found


class Pusher:
    """Pushes counted values; `sent` are those that were acknowledged. No two pushers push the same
    value, which would be no change.
    """

    _numbers = itertools.count(1)

    def __init__(self, plant: Plant) -> None:
        self.sent: list[Sent] = []
        self._url = f"{plant.facts['http']}/api/ApiServers/push"
        headers = {"Authorization": token(plant, "editor")}
        self._client = httpx.Client(headers=headers, timeout=10)

    def push(self, values: int = 1) -> None:
        """A push of so many values, sent again until it is acknowledged."""
        numbers = list(itertools.islice(self._numbers, values))
        items = [(KEYS[number % len(KEYS)], number) for number in numbers]
        now_ms = time.time_ns() // 1_000_000
        body = [
            {"key": key, "value": number, "timestamp": now_ms + at}
            for at, (key, number) in enumerate(items)
        ]

        def acknowledged() -> bool:
            try:
                return self._client.post(self._url, json=body).status_code == 200
            except httpx.HTTPError:
                return False

        wait_for(acknowledged, seconds=60, what="acknowledged")
        self.sent += items


class Listener(threading.Thread):
    """Follows by server-sent events as a browser does: comes again with its last event id. `events`
    is what it got; `statuses` the answers.
    """

    def __init__(self, plant: Plant, since: str = "", **query: str) -> None:
        super().__init__(daemon=True)
        self.events, self.statuses = Events(last_id=since), list[int]()
        self._url = f"{plant.facts['http']}{PATH}?" + urlencode(
            {"access_token": token(plant)} | query
        )
        self._told = threading.Event()
        self._response: httpx.Response | None = None

    def run(self) -> None:
        """Follow until told to stop, or refused."""
        while not self._told.is_set():
            headers = {"Last-Event-ID": self.events.last_id} if self.events.last_id else {}
            try:
                with httpx.stream("GET", self._url, headers=headers, timeout=10) as response:
                    self._response = response
                    self.statuses.append(response.status_code)
                    if response.status_code == 200:
                        self._take(response)
                    elif response.status_code != 503:
                        return
            except (httpx.HTTPError, OSError):
                pass
            self._told.wait(0.05)

    def _take(self, response: httpx.Response) -> None:
        # What was cut off in the middle of an event is not an event.
        self.events._rest = b""
        for data in response.iter_raw():
            self.events.feed(data)
            if self._told.is_set():
                return

    def follow(self) -> Listener:
        """Start, and wait until it follows."""
        self.start()
        wait_for(lambda: self.events.retry_ms or self.statuses, seconds=30)
        return self

    def stop(self) -> None:
        """Follow no more."""
        self._told.set()
        self.join(20)

    def got(self, changes: Sequence[Sent]) -> bool:
        """Whether so many changes are there."""
        return len(self.events.changes) >= len(changes)


def assert_same(got: Iterable[Sent], sent: Iterable[Sent]) -> None:
    """Each change once, and those of a parameter in their order."""
    got, sent = list(got), list(sent)
    assert Counter(got) == Counter(sent)
    by_key: dict[str, list[int]] = defaultdict(list)
    for key, value in got:
        by_key[key].append(value)
    assert all(values == sorted(values) for values in by_key.values())


def test_every_change_once_and_in_order_to_many_readers(plant: Plant) -> None:
    pusher = Pusher(plant)
    pusher.push(10)
    pushed = len(pusher.sent)
    readers = [Listener(plant).follow() for _ in range(8)]
    one = Listener(plant, key="k3").follow()
    with web_socket(plant) as socket_:
        opened = json.loads(socket_.recv(10))
        assert opened["event"] == "open"
        for _ in range(100):
            pusher.push()
        pusher.push(500)
        sent = pusher.sent[pushed:]
        messages = list(received(socket_, len(sent)))
    for reader in readers:
        wait_for(lambda r=reader: r.got(sent), seconds=30, what="all changes")  # type: ignore[misc]
        reader.stop()
        assert_same(reader.events.changes, sent)
        assert reader.statuses == [200]
    changes = [change for message in messages for change in message["changes"]]
    assert_same([(change["key"], change["value"]) for change in changes], sent)
    assert {tuple(change) for change in changes} == {("id", "key", "value", "timestamp")}
    only = [change for change in sent if change[0] == "k3"]
    wait_for(lambda: one.got(only), what="the changes of one parameter")
    one.stop()
    assert one.events.changes == only


def test_who_comes_again_after_a_disconnect_goes_on(plant: Plant) -> None:
    pusher, reader = Pusher(plant), Listener(plant).follow()
    for _ in range(5):
        pusher.push(3)
    wait_for(lambda: reader.got(pusher.sent))
    reader.stop()
    pusher.push(200)
    again = Listener(plant, since=reader.events.last_id).follow()
    pusher.push(5)
    wait_for(lambda: again.got(pusher.sent[15:]))
    again.stop()
    assert_same(reader.events.changes + again.events.changes, pusher.sent)
    with web_socket(plant, lastEventId=reader.events.last_id) as socket_:
        messages = received(socket_, 205)
        changes = [change for message in messages for change in message["changes"]]
    assert_same([(change["key"], change["value"]) for change in changes], pusher.sent[15:])


def test_kills_and_restarts_lose_and_repeat_nothing(tmp_path: Path) -> None:
    with running(tmp_path, SETTINGS) as plant:
        pusher = Pusher(plant)
        pusher.push(10)
        readers = [Listener(plant).follow() for _ in range(3)]
        for round_ in range(3):
            for _ in range(40):
                pusher.push()
            pusher.push(100)
            if round_ < 2:
                plant.kill()
                plant.start()
        sent = pusher.sent[10:]
        for reader in readers:
            wait_for(lambda r=reader: r.got(sent), seconds=60, what="all changes")  # type: ignore[misc]
            let_pass(1)
            reader.stop()
            assert len(reader.statuses) >= 3
            assert_same(reader.events.changes, sent)
            assert not reader.events.of("gap")


def test_a_foreign_id_is_answered_with_a_gap_event(plant: Plant) -> None:
    pusher = Pusher(plant)
    pusher.push(2)
    reader = Listener(plant, since="of-another-log").follow()
    wait_for(lambda: reader.got(pusher.sent))
    reader.stop()
    assert reader.events.got[0][1] == "gap"
    assert "not of this log" in reader.events.got[0][2]["reason"]
    with web_socket(plant, lastEventId="of-another-log") as socket_:
        kinds = [json.loads(socket_.recv(10))["event"] for _ in range(3)]
    assert kinds == ["open", "gap", "changes"]


def test_the_stranger_sees_nothing(plant: Plant) -> None:
    act(plant, "add_tenant", id="stranger", name="Stranger")
    _, other = act(
        plant, "add_key", tenant="stranger", use="api", name="x", scopes=["view", "read"]
    )
    stranger = Listener(plant, access_token=other).follow()
    reader, pusher = Listener(plant).follow(), Pusher(plant)
    pusher.push(20)
    wait_for(lambda: reader.got(pusher.sent))
    wait_for(lambda: stranger.events.comments >= 2, what="heartbeats")
    for each in (reader, stranger):
        each.stop()
    assert stranger.events.got == []


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"access_token": "wrong"}, 401, "INVALID_TOKEN"),
        ({}, 401, "AUTHORIZATION_REQUIRED"),
        ({"access_token": "viewer"}, 401, "AUTHORIZATION_REQUIRED"),
        ({"access_token": "operator", "key": "no such"}, 404, "MODEL_NOT_FOUND"),
        ({"access_token": "operator", "key": "a,,b"}, 422, "API_STREAM_FILTER_INVALID"),
    ],
)
def test_refusals_are_the_vendors(
    plant: Plant, query: dict[str, str], status: int, code: str
) -> None:
    named = query.get("access_token", "")
    if named in ("viewer", "operator"):
        query = query | {"access_token": token(plant, named)}
    answer = httpx.get(f"{plant.facts['http']}{PATH}", params=query)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{plant.facts['http'].replace('http', 'ws')}{PATH}?{urlencode(query)}")
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["code"] == code


def test_a_revoked_token_ends_its_streams(plant: Plant) -> None:
    key, secret = act(plant, "add_key", tenant="demo", use="api", name="x", scopes=["view", "read"])
    reader = Listener(plant, access_token=secret).follow()
    with web_socket(plant, access_token=secret) as socket_:
        assert json.loads(socket_.recv(10))["event"] == "open"
        act(plant, "revoke_key", id=key["id"])
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                socket_.recv(10)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, "not valid" in closed.value.rcvd.reason) == (1008, True)
    reader.join(20)
    assert "not valid" in reader.events.of("error")[0]["reason"]
    # It came again, and was refused.
    assert reader.statuses == [200, 401]


def test_places_are_bounded_and_free_when_a_reader_goes(plant: Plant) -> None:
    wait_for(lambda: plant.metric("stream_readers") == 0, what="nobody follows")
    sockets = [raw(plant) for _ in range(20)]
    wait_for(lambda: plant.metric("stream_readers") == 20)
    answer = httpx.get(f"{plant.facts['http']}{PATH}", params={"access_token": token(plant)})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    with pytest.raises(InvalidStatus) as refused:
        web_socket(plant)
    assert refused.value.response.status_code == 503
    # Streams are no requests under way.
    assert plant.metric("http_in_flight") <= 1
    for each in sockets:
        each.close()
    wait_for(lambda: plant.metric("stream_readers") == 0, seconds=5, what="free places")


def raw(plant: Plant, *, upgrade: bool = False) -> socket.socket:
    """A reader with a small buffer that has asked, and reads nothing."""
    address = urlsplit(plant.facts["http"])
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect((address.hostname, address.port))
    head = f"GET {PATH}?access_token={token(plant)} HTTP/1.1\r\nHost: x\r\n"
    if upgrade:
        head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    made.sendall(f"{head}\r\n".encode())
    return made


@pytest.mark.parametrize("upgrade", [False, True])
def test_who_does_not_read_is_cut_off(plant: Plant, upgrade: bool) -> None:
    slow, reader = raw(plant, upgrade=upgrade), Listener(plant).follow()
    wait_for(lambda: plant.metric("stream_readers") == 2)
    before = plant.metric('stream_ends_total{reason="slow"}')
    headers = {"Authorization": token(plant, "editor")}
    url = f"{plant.facts['http']}/api/ApiServers/push"
    pushed = 0
    # Large texts fill what the kernel holds between the two.
    with httpx.Client(headers=headers) as client:
        while plant.metric('stream_ends_total{reason="slow"}') == before and pushed < 400:
            body = [{"key": "text", "value": f"{pushed} {n}" + "x" * 50_000} for n in range(4)]
            assert client.post(url, json=body).status_code == 200
            pushed += 1
    # A fast machine has pushed all of it before the reader's time is up.
    wait_for(lambda: plant.metric('stream_ends_total{reason="slow"}') > before, seconds=30)
    assert plant.metric('stream_ends_total{reason="slow"}') == before + 1
    wait_for(lambda: plant.metric("stream_readers") == 1)
    # What was on its way to it comes to an end, and so does the connection.
    slow.settimeout(10)
    while slow.recv(1 << 20):
        pass
    wait_for(lambda: len(reader.events.of("message")) == 4 * pushed, seconds=60)
    reader.stop()
    assert not reader.events.of("error")


def test_the_stop_ends_streams_promptly(tmp_path: Path) -> None:
    with running(tmp_path, SETTINGS) as plant:
        reader = raw(plant)
        with web_socket(plant) as socket_:
            assert json.loads(socket_.recv(10))["event"] == "open"
            began = time.monotonic()
            assert plant.stop() == 0
            assert time.monotonic() - began < 8
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    socket_.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        reader.settimeout(10)
        text = b""
        while data := reader.recv(1 << 16):
            text += data
        assert b"event: error" in text
        assert text.endswith(b"0\r\n\r\n")


def web_socket(plant: Plant, **query: str) -> ClientConnection:
    """A WebSocket that follows."""
    asked = {"access_token": token(plant)} | query
    return connect(f"{plant.facts['http'].replace('http', 'ws')}{PATH}?{urlencode(asked)}")


def received(socket_: ClientConnection, changes: int) -> Iterator[dict[str, Any]]:
    """Messages with changes, until so many are there."""
    while changes > 0:
        message = json.loads(socket_.recv(20))
        if message["event"] == "changes":
            changes -= len(message["changes"])
            yield message
