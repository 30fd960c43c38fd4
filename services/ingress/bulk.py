"""The hot doors: plain ASGI in front of the app. A request that matches one goes straight from its
bytes to the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from services.dialects import Dialect, Push, Reply
from services.ingress.http import DoorsIn, Receive

_PATHS_MAX, _PATH_LENGTH_MAX = 4096, 200
"""Paths whose doors are remembered: a producer uses the same few all day."""

Send = Any
App = Any
Found = tuple[str, Push, Mapping[str, str]]
"""Dialect, door, parameters of the path."""


class BulkDoors:
    """An ASGI app that answers the doors marked `bulk` itself and leaves everything else to
    `app`.
    """

    def __init__(self, app: App, dialects: Iterable[Dialect], doors: DoorsIn) -> None:
        self._app, self._doors = app, doors
        self._routes = [
            (door.method, _pattern(door.paths), dialect.name, door)
            for dialect in dialects
            for door in dialect.pushes
            if door.bulk
        ]
        self._remembered = lru_cache(_PATHS_MAX)(self._look_up)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI."""
        if scope["type"] == "http" and (found := self._find(scope["method"], scope["path"])):
            dialect, door, path = found
            await send_reply(send, await self._doors.answer(dialect, door, scope, receive, path))
            return
        await self._app(scope, receive, send)

    def _find(self, method: str, path: str) -> Found | None:
        short = len(path) <= _PATH_LENGTH_MAX
        return self._remembered(method, path) if short else self._look_up(method, path)

    def _look_up(self, method: str, path: str) -> Found | None:
        for door_method, pattern, dialect, door in self._routes:
            if method == door_method and (match := pattern.fullmatch(path)):
                names = {name: unquote(value) for name, value in match.groupdict().items()}
                return dialect, door, MappingProxyType(names)
        return None


async def send_reply(send: Send, reply: Reply) -> None:
    """One whole answer over ASGI."""
    headers = [
        (b"content-length", b"%d" % len(reply.body)),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in reply.headers),
    ]
    if reply.body:
        headers.append((b"content-type", reply.media_type.encode()))
    if reply.status == 204:
        headers = headers[1:]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _pattern(paths: Iterable[str]) -> re.Pattern[str]:
    """One pattern for all aliases of a door; they differ in their fixed prefix only."""
    prefixes, rest = set(), set()
    for path in paths:
        fixed, brace, tail = path.partition("{")
        prefixes.add(re.escape(fixed))
        rest.add(brace + tail)
    if len(rest) != 1:
        raise ValueError(f"aliases of a hot door differ in more than their prefix: {sorted(rest)}")
    tail = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", rest.pop())
    return re.compile(f"(?:{'|'.join(sorted(prefixes))}){tail}")
