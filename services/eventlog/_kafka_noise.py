"""Bounds what aiokafka logs: while Kafka is away every client of a process says so many times a
second.
"""

from __future__ import annotations

import logging

REPEAT_SECONDS = 10
"""The same message (whatever its arguments) is let through once in this time."""


class Seldom(logging.Filter):
    """Lets a message through, then holds its repetitions back for a while and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record goes on; one that stands for others says for how many."""
        text = str(record.msg)
        said, held = self._said.get(text, (0.0, 0))
        if record.created - said < REPEAT_SECONDS:
            self._said[text] = (said, held + 1)
            return False
        self._said[text] = (record.created, 0)
        if held:
            record.msg = f"{text} (and {held} times more since the last such line)"
        return True


_SELDOM = Seldom()


def bound() -> None:
    """Put the filter on every logger of aiokafka; doing it again changes nothing."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "aiokafka":
            logging.getLogger(name).addFilter(_SELDOM)
