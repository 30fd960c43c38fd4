"""Every table that a sink fills: which topic it comes from and how records become rows.

The columns themselves are written once, in `migrations/`; what is here only fills them. Every table
replaces by key and version, so that the same record written twice is one row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.blocks import BLOCK_ROWS_MAX, Block
from schemas.catalogue import Device, Point
from schemas.commands import Command, State
from schemas.envelope import Audit, Change, Envelope, Letter, Logged, Record, Tick
from schemas.rows import arrow_rows, concat, sample_rows, suppressed_rows
from schemas.samples import Kind
from schemas.topics import (
    CALLS_AUDITED,
    CATALOGUE_CHANGED,
    COMMANDS_CHANGED,
    RECORDS_REFUSED,
    SAMPLES_ACCEPTED,
    SAMPLES_SUPPRESSED,
    Topic,
)

_POLICIES_MAX = 256
"""Of a joined block: each is looked for among those before it."""

MIDDLE = 1 << 63
"""Versions below it are of first-wins rows, where the earlier one is higher; from it on, of
replacing rows.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` makes a pyarrow.Table of decoded records and raises ValueError, TypeError or
    LookupError where one cannot be a row; `time` names the column that the partition depends on.
    """

    name: str
    topic: Topic
    rows: Callable[[Sequence[Logged]], Any]
    time: str = ""


def _records(logged: Sequence[Logged]) -> Iterator[tuple[int, Record]]:
    for item in logged:
        if not isinstance(item.envelope, Envelope):
            raise ValueError(f"offset {item.offset} holds no record: {item.envelope.reason}")
        yield item.offset, item.envelope.record


def _blocks(logged: Sequence[Logged]) -> Iterator[Block]:
    for offset, record in _records(logged):
        # The time, which an agent that reads the lane has said to itself.
        if isinstance(record, Tick):
            continue
        if not isinstance(record, Block) or len(record.version) != len(record):
            raise ValueError(f"offset {offset} holds no judged block")
        yield record


def _samples(logged: Sequence[Logged]) -> Any:
    joined = _joined(_blocks(logged))
    return concat([sample_rows(Block()), *(sample_rows(block) for block in joined)])


def _suppressed(logged: Sequence[Logged]) -> Any:
    joined = _joined(_blocks(logged))
    return concat([suppressed_rows(Block()), *(suppressed_rows(block) for block in joined)])


def _joined(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same rows in fewer blocks: making rows of a block costs what a thousand of its rows do,
    and under a trickle there is a block for every value.
    """
    waiting: list[Block] = []
    rows = policies = 0
    for block in blocks:
        rows, policies = rows + len(block), policies + len(block.policies)
        if waiting and (rows > BLOCK_ROWS_MAX or policies > _POLICIES_MAX):
            yield Block.join(waiting)
            waiting, rows, policies = [], len(block), len(block.policies)
        waiting.append(block)
    if waiting:
        yield Block.join(waiting)


_REFUSED = {
    "at": "ms",
    "reason": "string",
    "detail": "string",
    "source": "string",
    "tenant": "string",
    "topic": "string",
    "lane": "int32",
    "offset": "int64",
    "row": "int32",
    "body": "string",
    "count": "uint32",
    "letter": "uint64",
}


def _refused(logged: Sequence[Logged]) -> Any:
    rows = []
    for offset, letter in _records(logged):
        if not isinstance(letter, Letter):
            raise TypeError(f"offset {offset} holds no letter")
        row = {name: getattr(letter, name) for name in _REFUSED if hasattr(letter, name)}
        body = letter.body.decode("utf-8", "backslashreplace")
        rows.append(row | {"at": letter.ts_ms, "body": body, "letter": offset})
    return arrow_rows(_REFUSED, [_printable(row) for row in rows])


_AUDIT = {
    "at": "ms",
    "tenant": "string",
    "subject": "string",
    "via": "string",
    "action": "string",
    "target": "string",
    "arguments": "string",
    "outcome": "string",
    "detail": "string",
    "call": "string",
    "version": "uint64",
}


def _audit(logged: Sequence[Logged]) -> Any:
    rows = []
    for offset, call in _records(logged):
        if not isinstance(call, Audit):
            raise TypeError(f"offset {offset} holds no audited call")
        row = {name: getattr(call, name) for name in _AUDIT if hasattr(call, name)}
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        row |= {"at": call.at_ms, "arguments": arguments, "version": offset}
        rows.append(_printable(row))
    return arrow_rows(_AUDIT, rows)


_COMMANDS = {
    "at": "ms",
    "tenant": "string",
    "device": "string",
    "point": "string",
    "series": "uint64",
    "command": "string",
    "kind": "string",
    "value": "string",
    "subject": "string",
    "expires": "ms",
    "state": "string",
    "changed": "ms",
    "version": "uint64",
}
_STATES = (State.QUEUED, State.DELIVERED, State.CONFIRMED)


def _commands(logged: Sequence[Logged]) -> Any:
    rows = []
    for offset, command in _records(logged):
        if not isinstance(command, Command):
            raise TypeError(f"offset {offset} holds no command")
        state = State(command.state)
        if state == State.DELIVERED and command.changed_ms >= command.expires_ms:
            continue  # Too late to count.
        value = command.value
        row = {name: getattr(command, name) for name in _COMMANDS if hasattr(command, name)}
        row |= {
            "at": command.at_ms,
            "command": command.id,
            "kind": Kind(command.kind).name.lower(),
            "value": value if isinstance(value, str) else json.dumps(value),
            "expires": command.expires_ms,
            "changed": command.changed_ms,
            # The furthest state wins; of two records of one state the first.
            "version": (_STATES.index(state) + 1 << 60) - 1 - offset,
        }
        rows.append(_printable(row))
    return arrow_rows(_COMMANDS, rows)


_POINTS = {
    "tenant": "string",
    "series": "uint64",
    "device": "string",
    "key": "string",
    "point": "string",
    "name": "string",
    "kind": "string",
    "unit": "string",
    "version": "uint64",
    "is_deleted": "uint8",
}


def _point(id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    point = Point.of({**body, "id": id})
    return {
        "tenant": point.tenant,
        "series": point.series,
        "device": point.device,
        "key": point.key,
        "point": id,
        "name": point.name or point.key,
        "kind": "" if point.declared is None else point.declared.name.lower(),
        "unit": point.unit,
    }


_DEVICES = {
    "tenant": "string",
    "device": "string",
    "name": "string",
    "type": "string",
    "version": "uint64",
    "is_deleted": "uint8",
}


def _device(id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    device = Device.of({**body, "id": id})
    return {"tenant": device.tenant, "device": id, "name": device.name, "type": device.type}


def _things(
    kind: str, columns: dict[str, str], row: Callable[[str, Mapping[str, Any]], dict[str, Any]]
) -> Callable[[Sequence[Logged]], Any]:
    def rows(logged: Sequence[Logged]) -> Any:
        found = []
        for offset, change in _records(logged):
            if not isinstance(change, Change):
                raise TypeError(f"offset {offset} holds no change of the catalogue")
            if change.kind == kind:
                # Of several claims the first stays; whatever is said later replaces it.
                version = MIDDLE - 1 - offset if change.first else MIDDLE + offset
                made = row(change.id, change.body or {})
                made |= {"version": version, "is_deleted": int(change.body is None)}
                found.append(_printable(made))
        return arrow_rows(columns, found)

    return rows


def _printable(row: dict[str, Any]) -> dict[str, Any]:
    """Texts that UTF-8 can hold: JSON on the log may bring half of a surrogate pair."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode()
        if isinstance(value, str)
        else value
        for name, value in row.items()
    }


SAMPLES = Table("samples", SAMPLES_ACCEPTED, _samples, "ts")
SUPPRESSED = Table("suppressed", SAMPLES_SUPPRESSED, _suppressed)
REFUSED = Table("refused", RECORDS_REFUSED, _refused)
POINTS = Table("points", CATALOGUE_CHANGED, _things("point", _POINTS, _point))
DEVICES = Table("devices", CATALOGUE_CHANGED, _things("device", _DEVICES, _device))
AUDIT = Table("audit", CALLS_AUDITED, _audit)
COMMANDS = Table("commands", COMMANDS_CHANGED, _commands)
TABLES = (SAMPLES, SUPPRESSED, REFUSED, POINTS, DEVICES, AUDIT, COMMANDS)
