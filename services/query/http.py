"""HTTP doors out: one route for each path of every `Read` and `Follow` of every dialect, and one
for the WebSocket at the path of a `Follow`.

The twin of `services/ingress/http.py`. Reads have no body; one that comes is not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

from fastapi import APIRouter, Request, Response

from services.dialects import Dialect, Follow, Inbound, Read, Reply
from services.doors import Door, Scope, Turnstile, router_of
from services.query._reader import Reader
from services.query._wire import HEADERS, MEDIA_TYPE, EventStream, Messages, Receive, Send, refuse
from services.query.answer import Answer
from services.query.stream import Hub


def query_routes(
    dialects: Iterable[Dialect], turnstile: Turnstile, answer: Answer, hub: Hub
) -> APIRouter:
    """A route for every door out."""
    dialects = tuple(dialects)

    async def reply(dialect: str, door: Read | Follow, request: Request) -> Reply | Response:
        if isinstance(door, Follow):
            opened = await _open(turnstile, hub, dialect, door, request.scope, request.path_params)
            return opened if isinstance(opened, Reply) else _Stream(hub, opened)

        async def serve(inbound: Inbound) -> Reply:
            return await answer.reply(door, inbound)

        return await turnstile.reply(dialect, door, request.scope, request.path_params, serve)

    doors: list[tuple[str, str, Door]] = []
    for dialect in dialects:
        doors += [(dialect.name, dialect.title, door) for door in dialect.reads]
        doors += [(dialect.name, dialect.title, door) for door in dialect.follows]
    router = router_of(doors, reply)
    for dialect in dialects:
        for door in dialect.follows:
            for path in door.paths:
                socket = _Socket(turnstile, hub, dialect.name, door)
                router.add_websocket_route(path, socket)  # type: ignore[arg-type]
    return router


async def _open(
    turnstile: Turnstile, hub: Hub, dialect: str, door: Follow, scope: Scope, path: Any
) -> Reader | Reply:
    """A reader with a place, or the refusal. The stream itself is no request under way."""
    opened: list[Reader] = []

    async def serve(inbound: Inbound) -> Reply:
        def valid() -> float:
            asked = (inbound.headers, inbound.path, inbound.query)
            principal = turnstile.principal(dialect, door, *asked)
            return inf if principal is None else principal.expires_ms

        opened.append(await hub.open(door, inbound, valid))
        return Reply(200, media_type=MEDIA_TYPE, headers=HEADERS)

    reply = await turnstile.reply(dialect, door, scope, path, serve)
    return opened[0] if opened else reply


class _Stream(Response):
    """A response that lasts: server-sent events."""

    media_type = MEDIA_TYPE

    def __init__(self, hub: Hub, reader: Reader) -> None:
        super().__init__(headers=dict(HEADERS))
        self._hub, self._reader = hub, reader

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._hub.serve(self._reader, EventStream(receive, send))


class _Socket:
    """The WebSocket at a door's path, as plain ASGI."""

    def __init__(self, turnstile: Turnstile, hub: Hub, dialect: str, door: Follow) -> None:
        self._turnstile, self._hub = turnstile, hub
        self._dialect, self._door = dialect, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path_params", {})
        opened = await _open(self._turnstile, self._hub, self._dialect, self._door, scope, path)
        if isinstance(opened, Reply):
            await refuse(scope, receive, send, opened)
            return
        await receive()
        await self._hub.serve(opened, Messages(receive, send))
