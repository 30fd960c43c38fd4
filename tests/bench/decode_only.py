"""A server that decodes pushes and does nothing else: the ceiling of the push door.

    python -m tests.bench.decode_only PORT

The same server (Granian in this loop), the same decoder, the same answer; no credential is looked
at, nothing is checked, nothing is kept.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvloop

from services.dialects import Reply
from services.dialects.next_plus._items import items_of
from services.ingress.bulk import send_reply
from services.listener import Listener


async def app(scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
    """One request."""
    chunks, more = [], True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    items = items_of(b"".join(chunks))
    await send_reply(send, Reply(200, b'{"success":true,"processed":%d}' % len(items)))


async def main() -> None:
    """Serve until killed."""
    listener = Listener(app, "127.0.0.1", int(sys.argv[1]), None)
    await listener.start()
    await asyncio.Event().wait()


uvloop.run(main())
