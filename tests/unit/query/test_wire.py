"""What stands on the connection: fields of an event stream, messages of a WebSocket, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from services.dialects import Reply
from services.query._changes import Change, Position, id_of, mark_of, position_of
from services.query._ring import cut
from services.query._wire import (
    EventStream,
    Messages,
    message_frame,
    refuse,
    sse_frame,
)
from tests.support.follow import Events

MARK = mark_of("a life", 3)


def a_change(number: int, text: bytes = b'{"key":"a","value":1}') -> Change:
    position = Position(number, number * 10)
    return Change(id_of(MARK, position), position, 7, text)


class Asgi:
    """A server's side of a connection."""

    def __init__(self, *received: Mapping[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self._received = list(received)

    async def receive(self) -> Mapping[str, Any]:
        """The next message."""
        return self._received.pop(0)

    async def send(self, message: dict[str, Any]) -> None:
        """Note it."""
        self.sent.append(message)


def test_an_id_leads_back_to_its_position_in_its_own_lane_and_life_only() -> None:
    for position in (Position(-1, -1), Position(0, 0), Position(2**40, 2**62)):
        assert position_of(MARK, id_of(MARK, position)) == position
        assert position_of(mark_of("a life", 4), id_of(MARK, position)) is None
        assert position_of(mark_of("another", 3), id_of(MARK, position)) is None
    for text in ("", MARK, f"{MARK}-", f"{MARK}-1", f"{MARK}-x-1", f"{MARK}--1-1", f"{MARK}-1-1-1"):
        assert position_of(MARK, text) is None
    assert position_of(MARK, f"{MARK}-{'f' * 50}-1") is None


def test_an_event_stands_on_one_line_whatever_breaks_its_text_has() -> None:
    events = Events()
    events.feed(sse_frame([a_change(1, b'{"key":"a",\r\n"value":\n[1,\r2]}'), a_change(2)]))
    assert events.changes == [("a", [1, 2]), ("a", 1)]
    assert [event[0] for event in events.got] == [a_change(1).id, a_change(2).id]


def test_a_message_has_its_changes_and_the_last_id() -> None:
    message = json.loads(message_frame([a_change(1), a_change(2)]))
    assert message == {
        "event": "changes",
        "lastEventId": a_change(2).id,
        "changes": [{"key": "a", "value": 1}] * 2,
    }


def test_a_reader_is_given_bounded_pieces() -> None:
    assert len(cut([a_change(number) for number in range(2_000)])) == 500
    assert len(cut([a_change(number, b"x" * 10_000) for number in range(20)])) == 6
    assert len(cut([a_change(1, b"x" * 1_000_000), a_change(2)])) == 1
    assert cut([]) == []


def test_the_event_stream_from_its_head_to_its_end() -> None:
    async def body() -> None:
        asgi = Asgi({"type": "http.request"}, {"type": "http.disconnect"})
        wire = EventStream(asgi.receive, asgi.send)
        await wire.open("an-id")
        await wire.gap("why")
        await wire.beat("an-id")
        await wire.beat("another-id")
        await wire.close(1013, "enough")
        start, *rest = asgi.sent
        headers = dict(start["headers"])
        assert headers[b"content-type"] == b"text/event-stream"
        assert headers[b"cache-control"] == b"no-store"
        assert headers[b"x-accel-buffering"] == b"no"
        events = Events()
        for message in rest:
            events.feed(message["body"])
        assert [message["more_body"] for message in rest] == [True] * 4 + [False]
        assert (events.retry_ms, events.comments, events.last_id) == (3_000, 2, "another-id")
        assert events.got == [
            ("an-id", "gap", {"reason": "why"}),
            ("another-id", "error", {"reason": "enough"}),
        ]
        assert b"id:" not in rest[2]["body"]
        assert await wire.gone() == ""

    asyncio.run(body())


def test_a_web_socket_from_its_head_to_its_end() -> None:
    async def body() -> None:
        asgi = Asgi({"type": "websocket.receive", "text": "hi"}, {"type": "websocket.disconnect"})
        wire = Messages(asgi.receive, asgi.send)
        await wire.open("an-id")
        await wire.gap("why")
        await wire.beat("an-id")
        await wire.close(1013, "ü" * 100)
        assert asgi.sent[0] == {"type": "websocket.accept"}
        assert [json.loads(message["text"]) for message in asgi.sent[1:4]] == [
            {"event": "open", "lastEventId": "an-id"},
            {"event": "gap", "reason": "why"},
            {"event": "heartbeat", "lastEventId": "an-id"},
        ]
        # A close frame has room for 123 bytes.
        assert asgi.sent[4] == {"type": "websocket.close", "code": 1013, "reason": "ü" * 61}
        assert await wire.gone() != ""
        assert await wire.gone() == ""

    asyncio.run(body())


@pytest.mark.parametrize("able", [True, False])
def test_an_upgrade_is_refused_as_the_server_can(able: bool) -> None:
    async def body() -> None:
        asgi = Asgi({"type": "websocket.connect"})
        extensions = {"websocket.http.response": {}} if able else {}
        reply = Reply(503, b"{}", headers=(("Retry-After", "5"),))
        await refuse({"extensions": extensions}, asgi.receive, asgi.send, reply)
        if not able:
            assert asgi.sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
            return
        start, end = asgi.sent
        assert start["status"] == 503
        assert (b"retry-after", b"5") in start["headers"]
        assert end["body"] == b"{}"

    asyncio.run(body())
