"""HTTP doors out: one route for each path of every `Read` of every dialect.

The twin of `services/ingress/http.py`. Reads have no body; one that comes is not read.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request

from services.dialects import Dialect, Inbound, Read, Reply
from services.doors import Door, Turnstile, router_of
from services.query.answer import Answer


def query_routes(dialects: Iterable[Dialect], turnstile: Turnstile, answer: Answer) -> APIRouter:
    """A route for every door out."""

    async def reply(dialect: str, door: Read, request: Request) -> Reply:
        async def serve(inbound: Inbound) -> Reply:
            return await answer.reply(door, inbound)

        return await turnstile.reply(dialect, door, request.scope, request.path_params, serve)

    reads: list[tuple[str, str, Door]] = [
        (dialect.name, dialect.title, door) for dialect in dialects for door in dialect.reads
    ]
    return router_of(reads, reply)
