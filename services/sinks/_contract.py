"""What a sink is: the topic it empties, and a writer for batches that may come again, cut
differently.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from schemas.envelope import Logged
from schemas.topics import Topic
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
