"""Beside the flow: /livez, /readyz and /metrics of every process, for whoever runs it.

Alive means that the loop turns; ready means that every check of the process is content, and the
answer names those that are not. Both say nothing of tenants or data, so they need no credential.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from services import metrics

Check = Callable[[], str | None]
"""Asked by /readyz: None when all is well, else why not, in a few words. Must answer at once."""

_NOT_STORED = {"Cache-Control": "no-store"}
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def ops_routes(
    checks: Mapping[str, Check], exposition: Callable[[], bytes] = metrics.exposition
) -> APIRouter:
    """The three routes. `checks` is read at every question, so that parts may join and leave."""
    router = APIRouter(include_in_schema=False)

    async def livez() -> Response:
        return PlainTextResponse("ok\n", headers=_NOT_STORED)

    async def readyz() -> Response:
        why_not = {name: check() for name, check in checks.items()}
        ready = not any(why_not.values())
        body = {"ready": ready, "checks": {name: why or "ok" for name, why in why_not.items()}}
        return JSONResponse(body, status_code=200 if ready else 503, headers=_NOT_STORED)

    async def metrics_page() -> Response:
        return Response(exposition(), media_type=_EXPOSITION, headers=_NOT_STORED)

    router.add_api_route("/livez", livez, methods=["GET"])
    router.add_api_route("/readyz", readyz, methods=["GET"])
    router.add_api_route("/metrics", metrics_page, methods=["GET"])
    return router
