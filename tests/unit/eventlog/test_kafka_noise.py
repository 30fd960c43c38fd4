"""What a client repeats while Kafka is away is said once in a while, with how often it was."""

from __future__ import annotations

import logging

from services.eventlog._kafka_noise import REPEAT_SECONDS, Seldom


def _record(text: str, at: float) -> logging.LogRecord:
    record = logging.LogRecord("aiokafka", logging.ERROR, __file__, 1, text, ("node",), None)
    record.created = at
    return record


def test_a_repeated_message_is_held_back_and_counted() -> None:
    seldom = Seldom()
    assert seldom.filter(_record("away: %s", 1_000))
    assert not any(seldom.filter(_record("away: %s", 1_000 + n / 10)) for n in range(1, 51))
    late = _record("away: %s", 1_000 + REPEAT_SECONDS)
    assert seldom.filter(late)
    assert late.getMessage() == "away: node (and 50 times more since the last such line)"
    again = _record("away: %s", 1_000 + 2 * REPEAT_SECONDS)
    assert seldom.filter(again) and again.getMessage() == "away: node"


def test_another_message_is_not_held_back_by_it() -> None:
    seldom = Seldom()
    assert seldom.filter(_record("away: %s", 1_000))
    assert seldom.filter(_record("back: %s", 1_000))
