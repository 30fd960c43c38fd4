"""HTTP doors in: one route for each `Push` and `Call` of every dialect, and the vendor's envelope
for what hits none.

Hot doors get here by `bulk.py`, without a framework in between; the others through FastAPI's
router.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from inspect import iscoroutinefunction
from typing import Any

from fastapi import APIRouter, Request
from starlette.routing import compile_path

from services.dialects import Actions, Call, Dialect, Inbound, Lookup, Push, Reply
from services.doors import Door, Headers, Scope, Turnstile, router_of
from services.errors import TooLarge, TooSlow, Unavailable, Unknown, Unsupported, WrongMethod
from services.ingress.accept import Intaker

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class DoorsIn:
    """Serves pushes and calls: reads their bodies within bounds and hands them on."""

    def __init__(
        self, *, turnstile: Turnstile, intaker: Intaker, lookup: Lookup, actions: Actions
    ) -> None:
        self._turnstile, self._intaker, self._lookup = turnstile, intaker, lookup
        self._actions = actions

    async def answer(
        self,
        dialect: str,
        door: Push | Call,
        scope: Scope,
        receive: Receive,
        path: Mapping[str, str],
    ) -> Reply:
        """The door's reply to one ASGI request."""

        async def serve(inbound: Inbound) -> Reply:
            if isinstance(door, Push):
                return await self._intaker.accept(dialect, door, inbound)
            if iscoroutinefunction(door.handle):
                done: Reply = await door.handle(inbound, self._lookup, self._actions)
                return done
            return await asyncio.to_thread(door.handle, inbound, self._lookup, self._actions)  # type: ignore[arg-type]

        async def read_body(headers: Headers) -> bytes:
            seconds_max = self._turnstile.settings.body_seconds_max
            return await body_of(headers, receive, door.body_bytes_max, seconds_max)

        return await self._turnstile.reply(dialect, door, scope, path, serve, read_body)


async def body_of(headers: Headers, receive: Receive, bytes_max: int, seconds_max: float) -> bytes:
    """The whole body, counted while it is read, as it is: it must not be packed. Raises
    Unsupported, TooLarge, TooSlow, Unavailable.
    """
    coding = headers.get("content-encoding")
    if coding and coding.lower() != "identity":
        raise Unsupported(f"the content coding {coding[:100]} is not read: send the body unpacked")
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise TooLarge(f"a body may have {bytes_max} bytes")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(seconds_max):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Unavailable("the client went away")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > bytes_max:
                    raise TooLarge(f"a body may have {bytes_max} bytes")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise TooSlow("the body did not arrive in time") from None


def push_routes(dialects: Iterable[Dialect], doors: DoorsIn) -> APIRouter:
    """A route for every door in; hot ones are listed too, though `bulk.py` answers them before."""

    async def answer(dialect: str, door: Push | Call, request: Request) -> Reply:
        return await doors.answer(
            dialect, door, request.scope, request.receive, request.path_params
        )

    taking_in: list[tuple[str, str, Door]] = []
    for dialect in dialects:
        taking_in += [(dialect.name, dialect.title, door) for door in dialect.pushes]
        taking_in += [(dialect.name, dialect.title, door) for door in dialect.calls]
    return router_of(taking_in, answer)


def stray_reply(dialects: Iterable[Dialect], path: str, status: int, now_ms: int) -> Reply | None:
    """The answer to what hit no door: by another method than the doors at this path have (405), in
    their words; or below a dialect's prefixes.
    """
    doors = _doors_at(dialects, path) if status == 405 else []
    if doors:
        reply = doors[0].refused(WrongMethod("not by this method"), now_ms)
        allowed = ", ".join(sorted({door.method for door in doors}))
        return replace(reply, headers=(*reply.headers, ("Allow", allowed)))
    for dialect in dialects:
        if dialect.refused and any(path.startswith(prefix) for prefix in dialect.prefixes):
            return dialect.refused(Unknown("no such path"), now_ms)
    return None


def _doors_at(dialects: Iterable[Dialect], path: str) -> list[Door]:
    every: list[Door] = []
    for dialect in dialects:
        every += [*dialect.pushes, *dialect.reads, *dialect.follows, *dialect.calls]
    return [door for door in every if any(_pattern(each).fullmatch(path) for each in door.paths)]


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """What fits the path of a door; the same as the router's."""
    return compile_path(path)[0]
