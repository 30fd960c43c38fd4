"""Bodies at the doors in: within bounds, and as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from services.errors import TooLarge, Unavailable, Unsupported
from services.ingress.http import body_of

BYTES_MAX = 8


def read(headers: Mapping[str, str], *messages: Mapping[str, Any]) -> bytes:
    """The body that arrives in the messages."""
    coming = iter(messages)

    async def receive() -> Mapping[str, Any]:
        return next(coming)

    return asyncio.run(body_of(headers, receive, BYTES_MAX, 10.0))


def chunk(body: bytes, *, more: bool = False) -> Mapping[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("headers", [{}, {"content-encoding": "Identity"}])
def test_a_body_is_read_to_its_end(headers: Mapping[str, str]) -> None:
    assert read(headers, chunk(b"[1,", more=True), chunk(b"2]")) == b"[1,2]"


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, gzip", "x" * 1000])
def test_a_packed_body_is_refused_by_its_coding(coding: str) -> None:
    with pytest.raises(Unsupported) as caught:
        read({"content-encoding": coding}, chunk(b"\x1f\x8b"))
    assert coding[:100] in str(caught.value) and len(str(caught.value)) < 200


def test_a_body_beyond_the_bound_is_refused_by_what_it_says_and_by_what_it_is() -> None:
    with pytest.raises(TooLarge):
        read({"content-length": "9"}, chunk(b"[1]"))
    with pytest.raises(TooLarge):
        read({}, chunk(b"12345", more=True), chunk(b"6789"))


def test_a_client_that_goes_away_has_sent_nothing() -> None:
    with pytest.raises(Unavailable):
        read({}, chunk(b"[1,", more=True), {"type": "http.disconnect"})
