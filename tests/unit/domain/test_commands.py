"""How far a command has come: each state counts only as the next of what was before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.commands import Command, State
from services.domain.commands import DELIVERY_MS, deliverable, pending, seen_at, step
from tests.support.builders import NOW_MS, a_command

QUEUED = a_command()
DELIVERED = replace(QUEUED, state=State.DELIVERED, changed_ms=NOW_MS + 10)
CONFIRMED = replace(QUEUED, state=State.CONFIRMED, changed_ms=NOW_MS + 20)
EXPIRES_MS = QUEUED.expires_ms


def folded(*records: Command) -> Command | None:
    """What the records come to."""
    held: Command | None = None
    for record in records:
        held = step(held, record)
    return held


def test_a_command_is_queued_delivered_confirmed() -> None:
    assert folded(QUEUED) == QUEUED
    assert folded(QUEUED, DELIVERED) == DELIVERED
    assert folded(QUEUED, DELIVERED, CONFIRMED) == CONFIRMED


@pytest.mark.parametrize(
    ("records", "left"),
    [
        ([DELIVERED], None),
        ([CONFIRMED, QUEUED], QUEUED),
        ([QUEUED, CONFIRMED], QUEUED),
        ([QUEUED, replace(QUEUED, value=7.0)], QUEUED),
        ([QUEUED, DELIVERED, QUEUED], DELIVERED),
        ([QUEUED, DELIVERED, replace(DELIVERED, changed_ms=NOW_MS + 11)], DELIVERED),
        ([QUEUED, DELIVERED, CONFIRMED, DELIVERED], CONFIRMED),
        ([QUEUED, replace(DELIVERED, changed_ms=EXPIRES_MS)], QUEUED),
        ([QUEUED, replace(QUEUED, state="recalled")], QUEUED),
    ],
)
def test_what_is_not_the_next_state_changes_nothing(
    records: list[Command], left: Command | None
) -> None:
    assert folded(*records) == left


def test_delivery_changes_the_state_and_nothing_else() -> None:
    other = replace(DELIVERED, value=99.0, subject="somebody else", expires_ms=EXPIRES_MS + 1)
    assert folded(QUEUED, other) == DELIVERED


def test_a_confirmation_counts_after_the_expiry_too() -> None:
    late = replace(CONFIRMED, changed_ms=EXPIRES_MS + 60_000)
    assert folded(QUEUED, DELIVERED, late) == late


@given(st.lists(st.sampled_from([QUEUED, DELIVERED, CONFIRMED]), max_size=12))
def test_no_state_is_ever_taken_back(records: list[Command]) -> None:
    order = [State.QUEUED, State.DELIVERED, State.CONFIRMED]
    held: Command | None = None
    for record in records:
        now = step(held, record)
        if held is not None:
            assert now is not None
            assert order.index(State(held.state)) <= order.index(State(now.state))
            assert order.index(State(now.state)) - order.index(State(held.state)) <= 1
        held = now


def test_what_is_not_delivered_in_time_is_expired_once_no_delivery_can_be_on_its_way() -> None:
    end = EXPIRES_MS + DELIVERY_MS
    assert deliverable(QUEUED, EXPIRES_MS - 1) and not deliverable(QUEUED, EXPIRES_MS)
    assert seen_at(QUEUED, end - 1) == QUEUED and pending(QUEUED, end - 1)
    expired = seen_at(QUEUED, end)
    assert (expired.state, expired.changed_ms) == (State.EXPIRED, EXPIRES_MS)
    assert not pending(QUEUED, end)


def test_what_was_delivered_does_not_expire_but_is_not_waited_for_for_ever() -> None:
    end = EXPIRES_MS + DELIVERY_MS
    assert not deliverable(DELIVERED, NOW_MS)
    assert pending(DELIVERED, end - 1) and not pending(DELIVERED, end)
    assert seen_at(DELIVERED, end) == DELIVERED
    assert not pending(CONFIRMED, NOW_MS)
