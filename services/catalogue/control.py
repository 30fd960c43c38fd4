"""The actions that change what is configured: each appends to `catalogue.changed` and returns when
the own view has it.

What must never be undone by a race between processes, the revocation of a key or a token, is a
record of its own; everything else is claimed and edited as `_changes` says. Every action is written
down as `audit` says.
"""

from __future__ import annotations

import copy
from typing import Self

from services.catalogue._changes import Changes
from services.catalogue._commanding import Commanding
from services.catalogue._credentials import Credentials
from services.catalogue._locations import Locations
from services.catalogue._people import People
from services.catalogue._places import Places
from services.catalogue._signing import Signing
from services.catalogue._ties import Ties
from services.catalogue.audit import PROCESS, Caller, Journal, audited
from services.catalogue.view import View
from services.clock import Clock
from services.eventlog import EventLog

COMMIT_SECONDS = 10
"""How long an action waits for the log and the view."""


@audited
class Control(Places, Locations, Credentials, Signing, People, Ties, Commanding):
    """Every public coroutine is an action. They raise Refused with what is wrong in words, and
    Unavailable where the outcome is unknown.

    A command waits for its delivery for `command_ms`, and `device_commands_max` of a device at a
    time.
    """

    def __init__(
        self,
        log: EventLog,
        view: View,
        clock: Clock,
        secret: bytes,
        *,
        command_ms: int,
        device_commands_max: int,
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        self.caller = PROCESS
        self.journal = Journal(log, clock, commit_seconds)
        self._changes = Changes(log, view, commit_seconds)
        self._view, self._clock, self._secret = view, clock, secret
        self._log, self._commit_seconds = log, commit_seconds
        self._command_ms, self._device_commands_max = command_ms, device_commands_max
        self._commands_under_way = []

    def by(self, caller: Caller) -> Self:
        """The actions, done for this caller."""
        own = copy.copy(self)
        own.caller = caller
        return own
