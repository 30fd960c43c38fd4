"""Receipts that are asked for later: what became of a request whose sender did not want to wait
(`Prefer: respond-async`, RFC 7240).

The receipt lies on the log like any other, and its id says where: the lane of `receipts.issued`, an
offset before which it cannot be, the request, and when it was promised, under a mark made with the
installation's key, the tenant and the life of the topic. So any door process finds it, after
restarts too, and none keeps a list of promises. What this process promised itself it sees coming
by; what another one did it looks for on the log, a bounded stretch at a time, and goes on from
there when it is asked again. Only the newest are held in memory, decided or not.
"""

from __future__ import annotations

import asyncio
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from dataclasses import dataclass, field
from struct import Struct

from schemas.envelope import Envelope, Receipt, Receipts
from schemas.samples import Verdict, verdicts_of
from schemas.topics import RECEIPTS_ISSUED
from services.clock import Clock
from services.dialects import Promise
from services.errors import Unavailable, Unknown
from services.eventlog import EventLog
from services.settings import Settings

HELD_MAX = 10_000
"""Promises in memory; what is not held is looked for on the log again."""
_SEARCHES_MAX = 4
_BATCH_RECORDS = 1_000
_MARK_BYTES = 16
_TICKET = Struct("<16sHBHqq")
_ID_LENGTH = (_TICKET.size + _MARK_BYTES + 2) // 3 * 4


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What a receipt's id says."""

    request_id: bytes
    total: int
    note: int
    lane: int
    offset: int
    promised_ms: int


@dataclass(slots=True)
class _Held:
    """What has been seen of a promised receipt so far, by entry. `searched` is the offset up to
    which the lane was gone through; None: the process sees the receipt coming by itself.
    """

    total: int
    searched: int | None
    seen: dict[int, bytes] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[Verdict] | None:
        """All of them in the request's order; None until they are complete."""
        if len(self.seen) < self.total:
            return None
        return verdicts_of(b"".join(self.seen[index] for index in range(self.total)))


class Promises:
    """The promised receipts, as one process gives out their ids and finds them. One question goes
    through `stretch_records` of the log.
    """

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        settings: Settings,
        key: bytes,
        *,
        stretch_records: int = 20_000,
    ) -> None:
        self._log, self._clock, self._key = log, clock, key
        self._stretch_records = stretch_records
        self._wait_seconds = settings.receipt_wait_ms / 1000
        hours = min(settings.receipt_hours, settings.retention_hours)
        self._kept_ms = min(hours * 3_600_000, RECEIPTS_ISSUED.retention_ms)
        self._held: OrderedDict[bytes, _Held] = OrderedDict()
        self._searches = asyncio.Semaphore(_SEARCHES_MAX)
        self._life = b""

    async def open(self) -> None:
        """Learn which life of the log this is. Raises Unavailable."""
        self._life = (await self._log.incarnation(RECEIPTS_ISSUED)).encode()

    def give(
        self, tenant: str, request_id: bytes, *, total: int, note: int, lane: int, offset: int
    ) -> str:
        """The id under which the receipt of a request of `total` entries can be asked for, which
        will lie in this lane, at `offset` or behind it. Made before the request is appended.
        """
        held = self._held.get(request_id)
        if held is None or held.total != total:
            held = _Held(total, None)
        # What was decided of a request that comes again stays decided, even if this fails.
        self._hold(request_id, held)
        ticket = _TICKET.pack(request_id, total, note, lane, offset, self._clock.now_ms())
        return urlsafe_b64encode(ticket + self._mark(ticket, tenant)).decode().rstrip("=")

    def hand_out(self, receipt: Receipt) -> None:
        """A receipt for this process; one that was not promised is passed over."""
        if held := self._held.get(receipt.request_id):
            held.seen.setdefault(receipt.index, receipt.verdicts)

    async def find(self, tenant: str, receipt: str) -> Promise:
        """What is known of a promised request by now. Raises Unknown (no id of this tenant's and
        log's, or too old) and Unavailable.
        """
        ticket = self._read(tenant, receipt)
        if ticket.promised_ms + self._kept_ms <= self._clock.now_ms():
            raise _nowhere()
        held = self._held.get(ticket.request_id)
        if held is None or held.total != ticket.total:
            held = _Held(ticket.total, ticket.offset)
        self._hold(ticket.request_id, held)
        if held.searched is not None and held.verdicts is None:
            try:
                async with asyncio.timeout(self._wait_seconds), self._searches:
                    await self._search(ticket, held)
            except TimeoutError:
                raise Unavailable("the log was not read in time") from None
        return Promise(held.verdicts, ticket.note)

    async def _search(self, ticket: _Ticket, held: _Held) -> None:
        """Go through the ticket's lane from where the last search ended."""
        assert held.searched is not None
        spans = await self._log.spans(RECEIPTS_ISSUED)
        if ticket.lane not in spans:
            raise _nowhere()
        end = min(spans[ticket.lane].end, held.searched + self._stretch_records)
        if held.searched >= end:
            return
        reader = self._log.reader(
            [RECEIPTS_ISSUED], start={ticket.lane: held.searched}, lanes=[ticket.lane]
        )
        async with reader:
            while held.searched < end and held.verdicts is None:
                batch = await reader.batch(records_max=min(end - held.searched, _BATCH_RECORDS))
                for logged in batch.records if batch else ():
                    envelope = logged.envelope
                    if isinstance(envelope, Envelope) and isinstance(envelope.record, Receipts):
                        for receipt in envelope.record.items:
                            if receipt.request_id == ticket.request_id:
                                held.seen.setdefault(receipt.index, receipt.verdicts)
                if batch:
                    held.searched = max(held.searched, batch.next_offset)

    def _hold(self, request_id: bytes, held: _Held) -> None:
        self._held[request_id] = held
        self._held.move_to_end(request_id)
        while len(self._held) > HELD_MAX:
            self._held.popitem(last=False)

    def _mark(self, ticket: bytes, tenant: str) -> bytes:
        named = b"\0".join((ticket, tenant.encode(), self._life))
        return hmac.digest(self._key, named, "sha256")[:_MARK_BYTES]

    def _read(self, tenant: str, receipt: str) -> _Ticket:
        padding = "=" * (-len(receipt) % 4)
        try:
            raw = urlsafe_b64decode(receipt + padding) if len(receipt) <= _ID_LENGTH else b""
        except ValueError:
            raise _nowhere() from None
        packed, mark = raw[: _TICKET.size], raw[_TICKET.size :]
        if len(packed) < _TICKET.size or not hmac.compare_digest(mark, self._mark(packed, tenant)):
            raise _nowhere()
        return _Ticket(*_TICKET.unpack(packed))


def _nowhere() -> Unknown:
    return Unknown("there is no such receipt (any more)")
