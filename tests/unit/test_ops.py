"""/livez, /readyz and /metrics, asked over ASGI without a socket."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI

from services.ops import Check, ops_routes


def ask(path: str, checks: dict[str, Check]) -> httpx.Response:
    """The answer of a process with these checks."""
    return get(app(checks), path)


def app(checks: dict[str, Check]) -> FastAPI:
    """A process that has nothing but the three routes."""
    made = FastAPI()
    made.include_router(ops_routes(checks, exposition=lambda: b"lineshaft_service_up 1\n"))
    return made


def get(process: FastAPI, path: str) -> httpx.Response:
    """One request, over ASGI."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app=process)
        async with httpx.AsyncClient(transport=transport, base_url="http://ops") as client:
            return await client.get(path)

    return asyncio.run(asked())


def test_alive_whatever_the_checks_say() -> None:
    assert ask("/livez", {"store": lambda: "away"}).status_code == 200


def test_ready_when_every_check_is_content() -> None:
    answer = ask("/readyz", {"log": lambda: None, "store": lambda: None})
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "checks": {"log": "ok", "store": "ok"}}


def test_not_ready_names_the_check_that_is_not_content() -> None:
    answer = ask("/readyz", {"log": lambda: None, "store": lambda: "disk full"})
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "checks": {"log": "ok", "store": "disk full"}}


def test_a_check_may_join_later() -> None:
    checks: dict[str, Check] = {}
    process = app(checks)
    assert get(process, "/readyz").status_code == 200
    checks["store"] = lambda: "away"
    assert get(process, "/readyz").status_code == 503


def test_metrics_are_served_as_text() -> None:
    answer = ask("/metrics", {})
    assert answer.content == b"lineshaft_service_up 1\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
