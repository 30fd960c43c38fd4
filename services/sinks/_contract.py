"""What a sink is: the topic it empties, and a writer for batches that may come again, cut
differently. And an outbox, which brings what is on a topic to the world outside, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.envelope import Logged
from schemas.topics import Topic
from services.runtime import Runtime
from services.store import Store

Write = Callable[[Store, Sequence[Logged]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Sink:
    """`write` makes the decoded records durable. It may be called again with the same ones, cut
    differently.

    It raises Unavailable (try the same again, for ever) or Malformed (some of these will never go
    in: the worker looks for the bad record and sets it aside).
    """

    name: str
    source: Topic
    write: Write


class Worker(Protocol):
    """Reads a topic as `group` and sees to what follows from it."""

    group: str

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Raises Broken where going on would lose data."""
        ...


@dataclass(frozen=True, slots=True)
class Outbox:
    """`open` makes the worker that tells the world outside of what is on `source`. An effect out
    there cannot be written again like a row: the worker keeps which ones there were.
    """

    name: str
    source: Topic
    open: Callable[[Runtime], Worker]
