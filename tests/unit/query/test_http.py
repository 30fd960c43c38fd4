"""A request becomes an Inbound, and whatever goes wrong is said in the vendor's words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.clock import ManualClock
from services.dialects import Auth, Dialect, Inbound, Principal, Read, Reply
from services.dialects._contract import described, status_of
from services.doors import Turnstile
from services.errors import Forbidden, Malformed, PipelineError, Unauthorized, Unavailable
from services.query.http import query_routes
from services.settings import Settings

NOW_MS = 1_700_000_000_123


class Keyring:
    """An authority that knows one token."""

    def principal_of(
        self,
        auth: Auth,
        headers: Mapping[str, str],
        path: Mapping[str, str],
        query: Mapping[str, str],
        *,
        scope: str,
        audience: str,
    ) -> Principal | None:
        """Who speaks."""
        if auth is Auth.NONE:
            return None
        if headers.get("authorization") != "Bearer right":
            raise Unauthorized("no valid credential")
        if scope != "read":
            raise Forbidden("not for you")
        return Principal("acme", "tester", frozenset({"read"}))


class Echo:
    """Answers with what it was asked; or fails as told."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def reply(self, read: Read, inbound: Inbound) -> Reply:
        """The request as it came through."""
        self.waiting += 1
        await self.gate.wait()
        if self.error:
            raise self.error
        who = inbound.principal.tenant if inbound.principal else None
        told: dict[str, Any] = {
            "path": dict(inbound.path),
            "query": dict(inbound.query),
            "x-odd": inbound.headers.get("x-odd"),
            "now_ms": inbound.received_ms,
            "who": who,
            "route": inbound.route,
            "base": inbound.base,
        }
        return Reply(200, json.dumps(told).encode(), "application/x-odd", [("X-More", "yes")])


def refused(error: PipelineError, now_ms: int) -> Reply:
    """The vendor's words."""
    body = {"no": type(error).__name__, "where": getattr(error, "where", ""), "at": now_ms}
    return Reply(status_of(error), json.dumps(body).encode())


def a_read(path: str, auth: Auth = Auth.BEARER, **more: Any) -> Read:
    def never(*_: Any) -> Any:
        raise AssertionError("the echo answers")

    return Read("GET", (path, f"/alias{path}"), auth, never, never, refused, **more)


DIALECT = Dialect(
    "odd",
    "Odd",
    "https://example.com",
    reads=[
        a_read("/things/{thing}/values", docs=described("Values", {200: "some"})),
        a_read("/open", Auth.NONE),
        a_read("/admin", scope="admin"),
    ],
)


def get(
    echo: Echo,
    *urls: str,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
    settings: Settings | None = None,
) -> list[httpx.Response]:
    """The responses to requests that are sent at the same time."""

    async def flow() -> list[httpx.Response]:
        turnstile = Turnstile(
            authority=Keyring(),  # type: ignore[arg-type]
            clock=ManualClock(NOW_MS),
            settings=settings or Settings(),
            dialects=[DIALECT],
        )
        app = FastAPI()
        app.include_router(query_routes([DIALECT], turnstile, echo, None))  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            sent = httpx.Headers(headers)
            asked = [asyncio.create_task(client.get(url, headers=sent)) for url in urls]
            while not echo.gate.is_set() and not all(t.done() for t in asked[1:]):
                await asyncio.sleep(0.001)
            echo.gate.set()
            return list(await asyncio.gather(*asked))

    return asyncio.run(flow())


AUTHORIZED = {"authorization": "Bearer right"}


def test_lines_of_one_header_are_one_list() -> None:
    [response] = get(Echo(), "/open", headers=[("X-Odd", "7"), ("Y", "8"), ("x-odd", "9")])
    assert response.json()["x-odd"] == "7, 9"


@pytest.mark.parametrize(
    ("setting", "base"),
    [
        ("", ""),
        ("host", "http://test"),
        ("https://lineshaft.example/", "https://lineshaft.example"),
        ("https://example.com/plant", "https://example.com/plant"),
    ],
)
def test_what_absolute_links_begin_with(setting: str, base: str) -> None:
    [response] = get(Echo(), "/open", settings=Settings(links_base=setting))
    assert response.json()["base"] == base


@pytest.mark.parametrize("prefix", ["", "/alias"])
def test_what_the_dialect_gets_of_a_request(prefix: str) -> None:
    url = f"{prefix}/things/a%20b/values?filter[x]=1%2C2&from=2024-01-01T00:00:00+01:00&k=1&k=&e"
    [response] = get(Echo(), url, headers={**AUTHORIZED, "X-Odd": "7"})
    assert response.json() == {
        "path": {"thing": "a b"},
        "query": {"filter[x]": "1,2", "from": "2024-01-01T00:00:00 01:00", "k": "", "e": ""},
        "x-odd": "7",
        "now_ms": NOW_MS,
        "who": "acme",
        "route": f"{prefix}/things/a b/values",
        "base": "",
    }
    assert response.headers["content-type"] == "application/x-odd"
    assert response.headers["x-more"] == "yes"


@pytest.mark.parametrize(
    ("url", "headers", "status", "name"),
    [
        ("/open", {}, 200, None),
        ("/things/1/values", {}, 401, "Unauthorized"),
        ("/admin", AUTHORIZED, 403, "Forbidden"),
        ("/open?" + "&".join(f"a{n}=1" for n in range(1_001)), {}, 400, "Malformed"),
    ],
)
def test_who_may_ask_and_how_much(
    url: str, headers: dict[str, str], status: int, name: str | None
) -> None:
    [response] = get(Echo(), url, headers=headers)
    assert (response.status_code, response.json().get("no")) == (status, name)
    # Too many parameters are the query's fault, no body's.
    assert response.json().get("where") == {"Malformed": "?", None: None}.get(name, "")


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (Malformed("bad", where="?limit"), 400, "Malformed"),
        (Unavailable("later"), 503, "Unavailable"),
        (ZeroDivisionError(), 500, "Broken"),
    ],
)
def test_what_fails_is_said_in_the_vendors_words(error: Exception, status: int, name: str) -> None:
    echo = Echo()
    echo.error = error
    [response] = get(echo, "/open")
    assert response.status_code == status
    assert response.json() == {"no": name, "where": getattr(error, "where", ""), "at": NOW_MS}


def test_above_the_bound_requests_are_unavailable_and_below_it_again_not() -> None:
    echo = Echo()
    echo.gate.clear()
    settings = Settings(requests_in_flight_max=1)
    responses = get(echo, "/open", "/open", settings=settings)
    assert [response.status_code for response in responses] == [200, 503]
    assert echo.waiting == 1


def test_the_doors_are_documented() -> None:
    app = FastAPI()
    turnstile = Turnstile(
        authority=Keyring(),  # type: ignore[arg-type]
        clock=ManualClock(),
        settings=Settings(),
        dialects=[DIALECT],
    )
    app.include_router(query_routes([DIALECT], turnstile, Echo(), None))  # type: ignore[arg-type]
    operation = app.openapi()["paths"]["/things/{thing}/values"]["get"]
    assert operation["summary"] == "Values"
    assert [parameter["name"] for parameter in operation["parameters"]] == ["thing"]
    assert operation["responses"]["200"]["description"] == "some"
