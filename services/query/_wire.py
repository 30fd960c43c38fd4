"""How changes are put on a connection: as server-sent events, or as messages of a WebSocket. Plain
ASGI.

Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html. A block with an
id and no data moves the reader's last event id and is no event.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from services.dialects import Reply
from services.query._changes import Change

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

RETRY_MS = 3_000
"""After so long EventSource connects again."""
POLICY, TRY_AGAIN, GOING_AWAY, NOT_TAKEN = 1008, 1013, 1001, 1003
"""Close codes of WebSocket: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1, and IANA's."""
_REASON_BYTES_MAX = 123
HEADERS = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))
MEDIA_TYPE = "text/event-stream"


class Wire(Protocol):
    """One connection to a reader."""

    @property
    def frame(self) -> Callable[[list[Change]], bytes | str]:
        """Makes changes ready to be sent; the same for every reader."""
        ...

    async def open(self, at: str) -> None:
        """Begin; the reader has everything up to the id `at`."""
        ...

    async def send(self, framed: bytes | str) -> None:
        """Send what `frame` made; returns when there is room for more."""
        ...

    async def gap(self, reason: str) -> None:
        """Say that changes are missing here."""
        ...

    async def beat(self, at: str) -> None:
        """Say that there is nothing new; the reader has everything up to the id `at`."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """End, with a close code of WebSocket and the reason."""
        ...

    async def gone(self) -> str:
        """Wait until the reader goes away; why we have to end, where it does not by itself."""
        ...


def sse_frame(changes: list[Change]) -> bytes:
    """Changes as events."""
    return b"".join([b"id: %s\ndata: %s\n\n" % (c.id.encode(), _line(c.text)) for c in changes])


def message_frame(changes: list[Change]) -> str:
    """Changes as one message, which the reader gets whole or not at all."""
    texts = b",".join([change.text for change in changes]).decode()
    return f'{{"event":"changes","lastEventId":"{changes[-1].id}","changes":[{texts}]}}'


def _line(text: bytes) -> bytes:
    """JSON on one line: where it has breaks of its own, they stand between its tokens."""
    return (
        text.replace(b"\r", b" ").replace(b"\n", b" ") if b"\n" in text or b"\r" in text else text
    )


class EventStream:
    """Server-sent events."""

    frame = staticmethod(sse_frame)

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._at = ""

    async def open(self, at: str) -> None:
        """The response's head, and where the reader stands."""
        headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS]
        headers.append((b"content-type", MEDIA_TYPE.encode()))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._at = at
        await self.send(f"retry: {RETRY_MS}\nid: {at}\n\n".encode())

    async def send(self, framed: bytes | str) -> None:
        """Send events."""
        await self._send({"type": "http.response.body", "body": framed, "more_body": True})

    async def gap(self, reason: str) -> None:
        """An event of its own kind."""
        await self.send(b"event: gap\ndata: %s\n\n" % _reason(reason))

    async def beat(self, at: str) -> None:
        """A comment."""
        moved, self._at = at != self._at, at
        await self.send(b": heartbeat\n" + (f"id: {at}\n" if moved else "").encode() + b"\n")

    async def close(self, code: int, reason: str) -> None:
        """The last event, and the end of the response."""
        body = b"event: error\ndata: %s\n\n" % _reason(reason)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def gone(self) -> str:
        """The request has no more to say: what comes is its end."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        return ""


class Messages:
    """A WebSocket: text messages, each a JSON object with its `event`."""

    frame = staticmethod(message_frame)

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send

    async def open(self, at: str) -> None:
        """Take the upgrade, and say where the reader stands."""
        await self._send({"type": "websocket.accept"})
        await self._say("open", lastEventId=at)

    async def send(self, framed: bytes | str) -> None:
        """Send a message."""
        await self._send({"type": "websocket.send", "text": framed})

    async def gap(self, reason: str) -> None:
        """A message of its own kind."""
        await self._say("gap", reason=reason)

    async def beat(self, at: str) -> None:
        """A message: an ASGI server sends no pings for us, and a reader in a browser sees none."""
        await self._say("heartbeat", lastEventId=at)

    async def close(self, code: int, reason: str) -> None:
        """The close frame."""
        cut = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": code, "reason": cut})

    async def gone(self) -> str:
        """Nothing is taken in here: who sends a message is told so."""
        message = await self._receive()
        return "" if message["type"] == "websocket.disconnect" else "no messages are taken here"

    async def _say(self, event: str, **members: str) -> None:
        await self.send(json.dumps({"event": event} | members))


def _reason(text: str) -> bytes:
    return json.dumps({"reason": text}).encode()


async def refuse(scope: Mapping[str, Any], receive: Receive, send: Send, reply: Reply) -> None:
    """Answer an upgrade with a refusal: as the HTTP reply where the server can, else it is 403."""
    await receive()
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": POLICY, "reason": ""})
        return
    headers = [
        (b"content-type", reply.media_type.encode()),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in reply.headers),
    ]
    start = {"type": "websocket.http.response.start", "status": reply.status, "headers": headers}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": reply.body})
