"""One record of the event log: its typed content, whose rows are whose, and the bytes and headers
it lies there as.

A record is not a request: what several requests bring for a lane while its last append is open
becomes one record. The envelope lists an `Entry` for each request that somebody waits for or that
may come again; rows nobody asks about have none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

from schemas.blocks import Block
from schemas.commands import Command
from schemas.samples import Value, Verdict
from schemas.topics import Topic

VERSION = 1
"""Of the records' format; a reader refuses a higher one."""

ID_BYTES = 16
_EMPTY_BYTES = 1_000
_ENTRY = Struct("<16s16sHHqHHB")
_RECEIPT = Struct("<16s16sHHQHB")
_KIND, _VERSION, _ENTRIES = "kind", "v", "entries"


class Position(NamedTuple):
    """A record's place in one lane of the log."""

    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """The rows that one request has in one record: rows `start` to `start + count`; entry `index`
    of `total` of it.

    `request_id` and `reply_to` (the door process that waits; empty: nobody) are 16 bytes. `keyed`
    says that the request may come again under the same id and must then get the first answer. After
    `deadline_ms` nobody waits any more (0: no limit).
    """

    request_id: bytes
    reply_to: bytes
    index: int
    total: int
    deadline_ms: int
    start: int
    count: int
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """The verdicts on one entry, one byte (`Verdict`) a row, decided at `offset` of the lane."""

    request_id: bytes
    reply_to: bytes
    index: int
    total: int
    offset: int
    verdicts: bytes

    def rows_of(self, *verdicts: Verdict) -> list[int]:
        """The 0-based rows of the entry that got one of the verdicts."""
        wanted = set(verdicts)
        return [row for row, verdict in enumerate(self.verdicts) if verdict in wanted]


@dataclass(frozen=True, slots=True)
class Receipts:
    """Receipts for one or several door processes."""

    items: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: what was set aside, why, and where it stood.

    `topic`, `lane`, `offset`, `row` say the place in the log (offset -1: it never got there);
    `source` is a dialect or a worker; `body` holds the first 4 KiB; `count` how many rows or
    records it stands for.
    """

    reason: str
    detail: str
    source: str
    tenant: str = ""
    topic: str = ""
    lane: int = -1
    offset: int = -1
    row: int = -1
    body: bytes = b""
    count: int = 1
    ts_ms: int = 0

    BODY_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the catalogue: `kind` and `id` name the thing, `body` is its JSON object, None
    if it was deleted.

    A `first` change only counts if nothing of that kind and id exists yet (things that several
    doors may create at once: the log's order decides); any other replaces. `key` is the record's
    key on the compacted topic.
    """

    kind: str
    id: str
    body: Mapping[str, Any] | None
    first: bool = False
    claim: str = ""

    @property
    def key(self) -> bytes:
        """Claims are kept side by side by compaction, so that the first one stays the first."""
        return f"{self.kind}/{self.id}{'?' + self.claim if self.first else ''}".encode()


@dataclass(frozen=True, slots=True)
class Mark:
    """Of `lane` of the topic that is judged, everything up to `received` (inclusive) is stored; the
    sink's own next offset in the topic it reads is `next_offset`, in that topic's life `life`.
    """

    topic: str
    lane: int
    received: int
    next_offset: int
    life: str = ""

    @property
    def key(self) -> bytes:
        return f"{self.topic}/{self.lane}".encode()


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether a device has sessions at the door process `process`, since when (UTC ms). It counts
    for as long as the process has a `Lease`.
    """

    tenant: str
    device: str
    process: str
    connected: bool
    since_ms: int

    @property
    def key(self) -> bytes:
        return f"device/{self.tenant}/{self.device}".encode()


@dataclass(frozen=True, slots=True)
class Lease:
    """The door process `process` is there until `until_ms` (UTC), if it says nothing else."""

    process: str
    until_ms: int

    @property
    def key(self) -> bytes:
        return f"process/{self.process}".encode()


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment that would change something, appended to the lane and applied when it is read."""

    now_ms: int
    key: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule's condition began (`raised`) or ended at `ts_ms` (sample time) with `value`.

    `id` is the effect's: made of topic, position and rule, the same however often the cause is
    read. `at_ms` is the moment at which it was found, where a tick found it, else the sample's.
    """

    id: str
    tenant: str
    rule: str
    series: int
    raised: bool
    ts_ms: int
    at_ms: int
    value: Value


@dataclass(frozen=True, slots=True)
class Audit:
    """One control call: who (`subject`, by which way `via`) had `action` done to what (`target`),
    with which arguments (secrets left out), and what became of it: "done", "refused", "unknown".

    What changes something has two records with the same `call` and `at_ms`: before it is done the
    outcome is unknown, so that it stays so where nobody could tell the end.
    """

    call: str
    at_ms: int
    tenant: str
    subject: str
    via: str
    action: str
    target: str
    arguments: Mapping[str, Any]
    outcome: str
    detail: str = ""


Record = (
    Block | Receipts | Letter | Change | Mark | Presence | Lease | Tick | Alert | Audit | Command
)
_KINDS: dict[str, type[Any]] = {
    "block": Block,
    "receipts": Receipts,
    "letter": Letter,
    "change": Change,
    "mark": Mark,
    "presence": Presence,
    "lease": Lease,
    "tick": Tick,
    "alert": Alert,
    "audit": Audit,
    "command": Command,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(slots=True)
class Envelope:
    """One record of the log. `key` chooses what compaction keeps; only compacted topics need one.

    `received` is set on judged blocks: up to this offset the lane's records are judged, and what is
    stored of them is in this block and those before it; and on ticks behind them.
    """

    record: Record
    entries: tuple[Entry, ...] = ()
    key: bytes | None = None
    received: int = -1
    epoch: int = 0

    @property
    def rows(self) -> int:
        """How many rows the record has; 1 where it is no block."""
        return len(self.record) if isinstance(self.record, Block) else 1

    @property
    def bytes_estimate(self) -> int:
        """About what the record takes on the log."""
        if isinstance(self.record, Block):
            size = self.record.bytes_estimate + _ENTRY.size * len(self.entries)
            # Rows are told of by their own; what has none must not be free where bytes are a bound.
            return size or _EMPTY_BYTES
        if isinstance(self.record, Receipts):
            return sum(_RECEIPT.size + len(item.verdicts) for item in self.record.items)
        if isinstance(self.record, Alert | Command):
            return 512 + len(str(self.record.value))
        return 512 + (len(self.record.body) if isinstance(self.record, Letter) else 0)


Outgoing = tuple[Topic, int, Envelope]
"""A record on its way to the log: its topic, its lane, itself."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands for a record whose bytes are none of ours: goes to the dead letters with its
    position.
    """

    reason: str
    body: bytes


def join(first: Envelope, second: Envelope) -> Envelope:
    """Two records of one lane as one: rows and entries of the second behind those of the first.

    Only blocks and receipts can be joined; `first`'s block grows in place.
    """
    if isinstance(first.record, Block) and isinstance(second.record, Block):
        offset = len(first.record)
        first.record.extend(second.record)
        if second.entries:
            moved = tuple(replace(entry, start=entry.start + offset) for entry in second.entries)
            first.entries = first.entries + moved
        first.received = max(first.received, second.received)
        return first
    if isinstance(first.record, Receipts) and isinstance(second.record, Receipts):
        first.record = Receipts(first.record.items + second.record.items)
        return first
    raise TypeError(f"cannot join {type(first.record).__name__} and {type(second.record).__name__}")


def joinable(record: Record) -> bool:
    """Whether records of this type may become one."""
    return isinstance(record, Block | Receipts)


Headers = list[tuple[str, bytes]]


def encode(envelope: Envelope) -> tuple[bytes, Headers]:
    """Value and headers of the record on the log."""
    record = envelope.record
    headers: Headers = [(_KIND, _NAMES[type(record)].encode()), (_VERSION, b"%d" % VERSION)]
    if envelope.entries:
        headers.append((_ENTRIES, b"".join(_pack_entry(entry) for entry in envelope.entries)))
    if envelope.received >= 0:
        headers.append(("received", b"%d" % envelope.received))
    if envelope.epoch:
        headers.append(("epoch", b"%d" % envelope.epoch))
    if isinstance(record, Block):
        return record.encode(), headers
    if isinstance(record, Receipts):
        return b"".join(_pack_receipt(item) for item in record.items), headers
    return json.dumps(_plain(record), separators=(",", ":")).encode(), headers


def decode(value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> Envelope | Undecodable:
    """The record behind value and headers, or why there is none."""
    body = value or b""
    try:
        named = dict(headers)
        if int(named.get(_VERSION, b"-1")) != VERSION:
            return Undecodable(f"unknown record version {named.get(_VERSION)!r}", body)
        kind = _KINDS[named[_KIND].decode()]
        record: Record
        if value is None:
            return Undecodable("no value", body)
        if kind is Block:
            record = Block.decode(value)
        elif kind is Receipts:
            record = Receipts(_unpack_receipts(value))
        else:
            record = _record(kind, json.loads(value))
        entries = _unpack_entries(named.get(_ENTRIES, b""))
        if any(entry.start + entry.count > _rows(record) for entry in entries):
            return Undecodable("an entry names rows that are not there", body)
        return Envelope(
            record,
            entries,
            received=int(named.get("received", b"-1")),
            epoch=int(named.get("epoch", b"0")),
        )
    except (ValueError, KeyError, TypeError, StructError) as error:
        return Undecodable(f"{type(error).__name__}: {error}", body)


def _rows(record: Record) -> int:
    return len(record) if isinstance(record, Block) else 0


def _pack_entry(e: Entry) -> bytes:
    return _ENTRY.pack(
        e.request_id, e.reply_to, e.index, e.total, e.deadline_ms, e.start, e.count, e.keyed
    )


def _unpack_entries(data: bytes) -> tuple[Entry, ...]:
    return tuple(
        Entry(request_id, reply_to, index, total, deadline_ms, start, count, bool(keyed))
        for request_id, reply_to, index, total, deadline_ms, start, count, keyed in (
            _ENTRY.iter_unpack(data)
        )
    )


def _pack_receipt(r: Receipt) -> bytes:
    head = _RECEIPT.pack(r.request_id, r.reply_to, r.index, r.total, r.offset, len(r.verdicts), 0)
    return head + r.verdicts


def _unpack_receipts(data: bytes) -> tuple[Receipt, ...]:
    items, at = [], 0
    while at < len(data):
        request_id, reply_to, index, total, offset, count, _ = _RECEIPT.unpack_from(data, at)
        at += _RECEIPT.size
        if at + count > len(data):
            raise ValueError("a receipt is cut short")
        items.append(Receipt(request_id, reply_to, index, total, offset, data[at : at + count]))
        at += count
    return tuple(items)


def _plain(
    record: Letter | Change | Mark | Presence | Lease | Tick | Alert | Audit | Command,
) -> dict[str, Any]:
    plain = {name: getattr(record, name) for name in record.__dataclass_fields__}
    if isinstance(record, Letter):
        plain["body"] = base64.b64encode(record.body[: Letter.BODY_BYTES_MAX]).decode()
    return plain


def _record(kind: type[Any], plain: dict[str, Any]) -> Record:
    if kind is Letter:
        plain["body"] = base64.b64decode(plain["body"])
    record: Record = kind(**plain)
    return record


@dataclass(slots=True)
class Logged:
    """A record as a reader gets it: its offset in the lane, and what stands there."""

    offset: int
    envelope: Envelope | Undecodable
