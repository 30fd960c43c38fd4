"""Control's action on commands: a value is to be written to a point."""

from __future__ import annotations

import json
import math
from uuid import UUID, uuid4, uuid5

from schemas.catalogue import Point
from schemas.commands import Command
from schemas.points import lane_of
from schemas.samples import Kind, Value
from services.catalogue._checks import check
from services.catalogue._part import Part
from services.catalogue.commands import LANE_OPEN_MAX, append
from services.domain import commands as rules
from services.errors import Forbidden, OverQuota

COMMAND_BYTES_MAX = 4_096
"""Of a value that is text."""
_TYPES = {
    Kind.DOUBLE: float,
    Kind.LONG: int,
    Kind.BOOL: bool,
    Kind.STRING: str,
    Kind.JSON: str,
    Kind.DATE: int,
}
_AGAIN_MS = 10_000
_KEY_CHARACTERS_MAX = 255
_IDS = UUID("5a1f7c0e-54b0-5f0e-8d0b-2f6f0c1d9e33")
"""Namespace of the ids of commands that may come again."""


class Commanding(Part):
    """Commands."""

    async def command_point(
        self, tenant: str, id: str, value: Value, *, kind: int, idempotency_key: str = ""
    ) -> Command:
        """Ask for a value, of a kind, to be written to a point; the command, queued.

        Under an idempotency key that the caller used for this value and point before, it is the one
        that was made then, for as long as it is held.

        Raises Forbidden where the point is not writable, OverQuota where too many wait for the
        device, or with it in its lane.
        """
        point, now_ms = self._point(tenant, id), self._clock.now_ms()
        if not point.writable:
            raise Forbidden("the point is not writable", code="NOT_WRITABLE")
        value = _typed(value, kind)
        check(point.declared in (None, kind), "kind", "the point's type")
        commands, lane = self._view.commands, lane_of(point.series, self._log.lanes)
        check(len(idempotency_key) <= _KEY_CHARACTERS_MAX, "Idempotency-Key", "not so long")
        subject = self.caller.subject
        command_id = _id_of(subject, point, value, idempotency_key) or str(uuid4())
        if (held := commands.one(command_id)) is not None:
            return rules.seen_at(held, now_ms)
        command = Command(
            command_id,
            tenant=tenant,
            device=point.device,
            point=point.id,
            series=point.series,
            kind=int(kind),
            value=value,
            subject=subject,
            at_ms=now_ms,
            expires_ms=now_ms + self._command_ms,
            changed_ms=now_ms,
        )
        self._check_quota(command, lane)
        self._commands_under_way.append(command)
        try:
            await append(self._log, commands, command, seconds=self._commit_seconds)
        finally:
            self._commands_under_way.remove(command)
        # Other processes may have filled the lane meanwhile, or taken the same in before.
        if (made := commands.one(command_id)) is None:
            raise _too_many()
        return made

    def _check_quota(self, command: Command, lane: int) -> None:
        """Those count too that are on their way onto the log. Raises OverQuota."""
        commands, now_ms = self._view.commands, command.at_ms
        coming = {
            each.id: each for each in self._commands_under_way if commands.one(each.id) is None
        }
        place = (command.tenant, command.device)
        waiting = len(commands.deliverable(*place, now_ms))
        waiting += sum((each.tenant, each.device) == place for each in coming.values())
        if waiting >= self._device_commands_max:
            raise _too_many(f"{self._device_commands_max} commands wait for the device already")
        lanes = self._log.lanes
        of_lane = sum(lane_of(each.series, lanes) == lane for each in coming.values())
        if commands.open(lane, now_ms) + of_lane >= LANE_OPEN_MAX:
            raise _too_many()


def _too_many(message: str = "too many commands wait already") -> OverQuota:
    return OverQuota(message, retry_after_ms=_AGAIN_MS)


def _id_of(subject: str, point: Point, value: Value, key: str) -> str:
    """The id of the one command that a sender means by this key; '' without one."""
    if not key:
        return ""
    said = json.dumps([subject, point.tenant, point.id, point.series, key, value])
    return str(uuid5(_IDS, said))


def _typed(value: Value, kind: int) -> Value:
    """The value as one of its kind. Raises Malformed."""
    check(kind in tuple(Kind), "kind", f"one of {[*map(int, Kind)]}")
    name = Kind(kind).name.lower()
    if kind == Kind.DOUBLE and type(value) is int:
        value = float(value)
    check(type(value) is _TYPES[Kind(kind)], "value", f"a {name}")
    if isinstance(value, str):
        check(len(value.encode()) <= COMMAND_BYTES_MAX, "value", f"{COMMAND_BYTES_MAX} bytes")
    elif isinstance(value, float):
        check(math.isfinite(value), "value", "a finite number")
    else:
        check(-(2**63) <= value < 2**63, "value", f"a {name} of 64 bits")
    return value
