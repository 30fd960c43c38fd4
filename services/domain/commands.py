"""How far a command has come: queued, delivered, confirmed, or expired by the time alone.

The records of a command lie in one lane, so that all who read them agree on which came first. A
state counts only as the next one of what was before: what is told twice, or by two who deliver at
the same time, counts once.

That a command has expired is no record: nobody has to be alive to write it, and who delivers needs
no leave from who would. It follows from the moment in the record and the reader's clock. Who
delivers begins before that moment and has `DELIVERY_MS` to get the outcome onto the log; readers
say "expired" only after that, so that it is not taken back.
"""

from __future__ import annotations

from dataclasses import replace

from schemas.commands import Command, State

DELIVERY_MS = 5_000
"""Between the moment at which a command expires and that at which readers say so: for a delivery
that has begun, its way onto the log, and clocks that differ.
"""
_BEFORE: dict[str, State] = {State.DELIVERED: State.QUEUED, State.CONFIRMED: State.DELIVERED}


def step(held: Command | None, record: Command) -> Command | None:
    """The command after a record of it; None where its request is not known any more."""
    if held is None:
        return record if record.state == State.QUEUED else None
    if _BEFORE.get(record.state) != held.state:
        return held
    if record.state == State.DELIVERED and not deliverable(held, record.changed_ms):
        return held
    return replace(held, state=record.state, changed_ms=record.changed_ms)


def deliverable(command: Command, now_ms: int) -> bool:
    """Whether somebody may begin to deliver it."""
    return command.state == State.QUEUED and now_ms < command.expires_ms


def waiting(command: Command, now_ms: int) -> bool:
    """Whether it may still be delivered, or that it was may be on its way onto the log."""
    return command.state == State.QUEUED and pending(command, now_ms)


def pending(command: Command, now_ms: int) -> bool:
    """Whether the point may still come to the commanded value because of it."""
    open_ = command.state in (State.QUEUED, State.DELIVERED)
    return open_ and now_ms < command.expires_ms + DELIVERY_MS


def seen_at(command: Command, now_ms: int) -> Command:
    """The command as a reader sees it at a moment."""
    if command.state == State.QUEUED and not pending(command, now_ms):
        return replace(command, state=State.EXPIRED, changed_ms=command.expires_ms)
    return command
