"""A value that shall be written to a point, and how far that has come."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.samples import Value


class State(StrEnum):
    """How far a command has come. The words are on disk and in answers."""

    QUEUED = "queued"
    """It is on the log."""
    DELIVERED = "delivered"
    """The device has it."""
    CONFIRMED = "confirmed"
    """The point has shown the commanded value since."""
    EXPIRED = "expired"
    """It was not delivered in time and will not be. Never a record: the time says it."""


@dataclass(frozen=True, slots=True)
class Command:
    """That `subject` wants `value` (of `kind`) written to a point of a device, with the `state` it
    has been in since `changed_ms`.

    Each state is a record of the whole, so that whoever reads one needs no other. Asked for at
    `at_ms`; from `expires_ms` on nobody begins to deliver it.
    """

    id: str
    tenant: str
    device: str
    point: str
    series: int
    kind: int
    value: Value
    subject: str
    at_ms: int
    expires_ms: int
    state: str = State.QUEUED
    changed_ms: int = 0
