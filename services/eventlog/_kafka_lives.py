"""Which life of each topic a process works with: the one that it met first.

A topic that was deleted and made anew begins at offset 0 again, and Kafka tells no client; what was
remembered of the earlier life, a place to read on or a commit, would be taken for one in the new.
So the topics' ids are asked for once a second, for all readers of the process together, and a topic
that has another one is not read on here.

Kafka removes what groups committed together with the topic. A member of the earlier life that has
not noticed yet may commit again, though; so a commit carries the id of its topic's life as its
metadata, and counts for no other. One without (an operator's tool wrote it) counts as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from services.errors import Broken, Unavailable
from services.eventlog._kafka_admin import Described

_WATCH_SECONDS = 1.0

Describe = Callable[[Sequence[str]], Awaitable[Mapping[str, Described]]]
"""Those of the topics that exist, by their full names. Raises Unavailable."""


class Lives:
    """The lives of the topics that were met, watched between `start` and `close`."""

    def __init__(self, describe: Describe, *, every_seconds: float = _WATCH_SECONDS) -> None:
        self._describe, self._every_seconds = describe, every_seconds
        self._ids: dict[str, str] = {}
        self._ended: dict[str, str] = {}
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch from here on."""
        self._watching = asyncio.create_task(self._watch(), name="watch Kafka's topics")

    def close(self) -> None:
        """Watch no more."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()

    async def meet(self, names: Iterable[str]) -> None:
        """From here on these topics are what they are now; one that is not there yet is met later.
        Raises Unavailable, and Broken as `check` does.
        """
        names = list(names)
        if strangers := [name for name in names if name not in self._ids]:
            self._note(await self._describe(strangers))
        self.check(names)

    def check(self, names: Iterable[str]) -> None:
        """Raises Broken where one of the topics was made anew after it was met, and where nobody
        watches any more.
        """
        if self._watching is not None and self._watching.done():
            raise Broken("Kafka's topics are not watched any more") from self._watching.exception()
        for name in names:
            if name in self._ended:
                raise Broken(self._ended[name])

    def of(self, name: str) -> str:
        """The id of the topic's life; empty for one that was not met."""
        return self._ids.get(name, "")

    def counts(self, name: str, metadata: str | None) -> bool:
        """Whether a commit with this metadata was made in the topic's life."""
        return not metadata or metadata == self.of(name)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            with contextlib.suppress(Unavailable):
                self._note(await self._describe(list(self._ids)))

    def _note(self, found: Mapping[str, Described]) -> None:
        for name, topic in found.items():
            known = self._ids.setdefault(name, topic.id)
            if topic.id != known:
                self._ended[name] = f"{name} was made anew ({known} is now {topic.id})"
