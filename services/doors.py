"""What every HTTP door shares, in or out: who speaks, how many at a time, how a refusal is said,
how it is routed and described.

`services/ingress/http.py` and `services/query/http.py` are the two users; they differ in what they
do with the `Inbound`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from services import metrics
from services.auth import Auth as Authority
from services.clock import Clock
from services.dialects import Call, Dialect, Follow, Inbound, Principal, Push, Read, Reply
from services.errors import Broken, Malformed, PipelineError, Unavailable
from services.settings import LINKS_BY_HOST, Settings

Door = Push | Read | Follow | Call
Scope = Mapping[str, Any]
Headers = Mapping[str, str]
Serve = Callable[[Inbound], Awaitable[Reply]]
ReadBody = Callable[[Headers], Awaitable[bytes]]

_PARAMETERS_MAX = 1_000
"""Query parameters of one request."""

_logger = logging.getLogger(__name__)


class Turnstile:
    """Lets requests through to doors, so many at a time; one for the doors in and one for those
    out.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        clock: Clock,
        settings: Settings,
        dialects: Iterable[Dialect],
    ) -> None:
        self.authority, self.clock, self.settings = authority, clock, settings
        self._audiences = {dialect.name: dialect.audience for dialect in dialects}
        self._in_flight = 0

    async def reply(
        self,
        dialect: str,
        door: Door,
        scope: Scope,
        path: Mapping[str, str],
        serve: Serve,
        read_body: ReadBody | None = None,
    ) -> Reply:
        """The door's reply to one ASGI request: what `serve` makes of it, or the refusal in the
        vendor's words.

        `path` holds the parameters of its path. Without `read_body` a body that comes is not read.
        """
        labels = (dialect, f"{door.method} {door.paths[0]}")
        received_ms = self.clock.now_ms()
        self._in_flight += 1
        metrics.HTTP_IN_FLIGHT.inc()
        with metrics.http_seconds(*labels).time():
            try:
                if self._in_flight > self.settings.requests_in_flight_max:
                    raise Unavailable("too many requests are under way", retry_after_ms=3_000)
                inbound = await self._inbound(dialect, door, scope, path, received_ms, read_body)
                reply = await serve(inbound)
            except PipelineError as error:
                reply = door.refused(error, received_ms)
            except Exception:
                _logger.exception("door %s broke", labels[1])
                reply = door.refused(Broken("internal error"), received_ms)
            finally:
                self._in_flight -= 1
                metrics.HTTP_IN_FLIGHT.dec()
        metrics.http_requests(*labels, reply.status).inc()
        return reply

    def principal(
        self,
        dialect: str,
        door: Door,
        headers: Headers,
        path: Mapping[str, str],
        query: Mapping[str, str],
    ) -> Principal | None:
        """Who sent a request to a dialect's door. Raises Unauthorized, Forbidden."""
        audience = self._audiences.get(dialect, "")
        return self.authority.principal_of(
            door.auth, headers, path, query, scope=door.scope, audience=audience
        )

    async def _inbound(
        self,
        dialect: str,
        door: Door,
        scope: Scope,
        path: Mapping[str, str],
        received_ms: int,
        read_body: ReadBody | None,
    ) -> Inbound:
        headers, query = _headers(scope), _query(scope)
        principal = self.principal(dialect, door, headers, path, query)
        body = await read_body(headers) if read_body else b""
        route, base = scope["path"], self._base(scope, headers)
        return Inbound(body, received_ms, principal, path, query, headers, route, base)

    def _base(self, scope: Scope, headers: Headers) -> str:
        """What absolute links begin with, where the setting asks for them."""
        if self.settings.links_base != LINKS_BY_HOST:
            return self.settings.links_base.rstrip("/")
        return f"{scope.get('scheme', 'http')}://{headers.get('host', '')}"


def _headers(scope: Scope) -> dict[str, str]:
    """The header's fields, names in lower case; several lines of one are one list: RFC 9110,
    section 5.2.
    """
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


def _query(scope: Scope) -> dict[str, str]:
    """The query's members, decoded; of a repeated one the last."""
    text = scope["query_string"].decode("latin-1")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_PARAMETERS_MAX))
    except ValueError as error:
        raise Malformed(f"more than {_PARAMETERS_MAX} parameters", where="?") from error


# -- routes

Answer = Callable[[str, Any, Request], Awaitable[Reply | Response]]
"""Dialect, door and request to reply, or to what answers by itself."""


class _DoorRoute(APIRoute):
    """A documented route whose handler is the endpoint itself: nothing of it is for FastAPI to
    resolve.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        endpoint: Callable[[Request], Awaitable[Response]] = self.endpoint
        return endpoint


def router_of(doors: Iterable[tuple[str, str, Door]], answer: Answer) -> APIRouter:
    """A FastAPI route for every path of every (dialect, title, door)."""
    router = APIRouter(route_class=_DoorRoute)
    for dialect, title, door in doors:
        for path in door.paths:
            described = operation(door, path)
            router.add_api_route(
                path,
                _endpoint(dialect, door, answer),
                methods=[door.method],
                name=f"{dialect} {door.method} {path}",
                tags=[title],
                response_class=Response,
                summary=described.pop("summary"),
                openapi_extra=described,
            )
    return router


def _endpoint(dialect: str, door: Door, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        reply = await answer(dialect, door, request)
        if isinstance(reply, Response):
            return reply
        headers = dict(reply.headers)
        return Response(reply.body, reply.status, headers, media_type=reply.media_type)

    return endpoint


def operation(door: Door, path: str) -> dict[str, Any]:
    """What a door says of itself, as an OpenAPI operation."""
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    described: dict[str, Any] = {
        "summary": door.docs.get("summary", f"{door.method} {path}"),
        "parameters": named + list(door.docs.get("parameters", ())),
        "responses": door.docs.get("responses", {"200": {"description": "Done"}}),
    }
    if "request" in door.docs:
        described["requestBody"] = door.docs["request"]
    return described
