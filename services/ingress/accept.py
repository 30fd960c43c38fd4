"""The one path that every door in takes: decode, cut by lane, append, (wait for the verdicts,)
answer.

Nothing is answered as accepted that is not on the log; an error of ours leaves the outcome unknown
and says so (503).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from weakref import WeakValueDictionary

from schemas.blocks import Block
from schemas.envelope import ID_BYTES, Change, Entry, Envelope, Outgoing, Receipt
from schemas.points import lane_of
from schemas.samples import Verdict
from schemas.topics import CATALOGUE_CHANGED, SAMPLES_RECEIVED
from services import metrics
from services.clock import Clock
from services.dialects import Answer, Inbound, Intake, Lookup, Push, Reply
from services.errors import Malformed, PipelineError, Unavailable
from services.eventlog import EventLog
from services.ingress.receipts import ReceiptDesk
from services.settings import Settings

_IDEMPOTENCY_KEY_MAX = 255
_UNDECIDED_SECONDS = 0.05
ACK_LEVEL = "X-Ack-Level"
"""Header of an accepted push: "logged" (it is on the log) or "decided" (and judged)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a request that go into one record: `rows` are their numbers in the request."""

    lane: int
    block: Block
    rows: Sequence[int]


class Intaker:
    """Takes requests in. One for all doors of a process."""

    def __init__(
        self,
        *,
        log: EventLog,
        view: Lookup,
        desk: ReceiptDesk,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self._log, self._view, self._desk = log, view, desk
        self._clock, self._settings = clock, settings
        self._process = secrets.token_bytes(ID_BYTES // 2)
        self._requests = itertools.count()
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By tenant: nobody waits for what another one makes."""

    async def accept(self, dialect: str, push: Push, inbound: Inbound) -> Reply:
        """The door's answer to a request; whatever is refused is answered in the vendor's
        envelope.
        """
        try:
            request = self._request_id(push, inbound)
            intake = push.decode(inbound, self._view)
            if intake.again:
                intake = await self._decided(push, inbound, intake)
            verdicts = await self._take(push, request, intake)
            metrics.DOOR_SAMPLES.labels(dialect).inc(len(intake.block))
            reply = push.accepted(inbound, intake, verdicts)
            return replace(reply, headers=(*reply.headers, (ACK_LEVEL, push.answer.value)))
        except PipelineError as error:
            return push.refused(error, inbound.received_ms)

    async def _decided(self, push: Push, inbound: Inbound, intake: Intake) -> Intake:
        """The intake once the catalogue has what the request makes: then the log's order has
        decided between this process and others.
        """
        try:
            turn = self._creating.setdefault(inbound.caller.tenant, asyncio.Lock())
            async with asyncio.timeout(self._settings.append_wait_ms / 1000), turn:
                while intake.again:
                    if intake.changes:
                        offsets = await self._append(_changes(intake), intake.changes)
                        await self._view.caught_up(max(offsets))
                    else:
                        # Another request asked for them, and has not seen the end of it.
                        await asyncio.sleep(_UNDECIDED_SECONDS)
                    intake = push.decode(inbound, self._view)
                return intake
        except TimeoutError:
            message = "the catalogue does not have the new keys yet"
            raise Unavailable(message) from None
        finally:
            if intake.again:
                self._failed(intake.changes)

    async def _take(
        self, push: Push, request: tuple[bytes, bool], intake: Intake
    ) -> Sequence[Verdict]:
        """Append the intake; the verdicts in the request's order where the door answers with
        them.
        """
        parts = _parts(intake.block, self._log.lanes)
        decided = push.answer is Answer.VERDICT and bool(parts)
        request_id, keyed = request
        waits = self._desk.expect(request_id, len(parts)) if decided else None
        out = _changes(intake)
        deadline_ms = self._clock.now_ms() + self._settings.receipt_wait_ms
        for index, part in enumerate(parts):
            entries: tuple[Entry, ...] = ()
            if decided or keyed:
                reply_to = self._desk.reply_to if decided else bytes(ID_BYTES)
                count = len(part.block)
                entries = (
                    Entry(request_id, reply_to, index, len(parts), deadline_ms, 0, count, keyed),
                )
            out.append((SAMPLES_RECEIVED, part.lane, Envelope(part.block, entries)))
        try:
            await self._append(out, intake.changes)
            receipts = await self._verdicts(waits) if waits else []
        finally:
            if waits:
                self._desk.forget(request_id, waits)
        return _in_order(parts, receipts) if receipts else ()

    async def _append(self, out: Sequence[Outgoing], changes: Sequence[Change]) -> Sequence[int]:
        """Append; the catalogue hears of changes that may not be on the log."""
        try:
            async with asyncio.timeout(self._settings.append_wait_ms / 1000):
                return await self._log.append(out)
        except (TimeoutError, PipelineError) as error:
            self._failed(changes)
            if isinstance(error, PipelineError):
                raise
            message = "the event log did not answer in time; the outcome is unknown"
            raise Unavailable(message) from None

    def _failed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._view.creation_failed(change)

    async def _verdicts(self, waits: asyncio.Future[list[Receipt]]) -> list[Receipt]:
        with metrics.RECEIPT_SECONDS.time():
            try:
                async with asyncio.timeout(self._settings.receipt_wait_ms / 1000):
                    return await waits
            except TimeoutError:
                metrics.RECEIPTS_LATE.inc()
                message = "the values are on the log, what became of them is not known yet"
                raise Unavailable(message) from None

    def _request_id(self, push: Push, inbound: Inbound) -> tuple[bytes, bool]:
        """The request's id, and whether it may come again under it (Idempotency-Key).

        Door, query and body are part of the id: under a used key, another body is another request,
        and so is the same one that shall overwrite now.
        """
        key = inbound.headers.get("idempotency-key")
        if not key:
            return self._process + next(self._requests).to_bytes(ID_BYTES // 2, "big"), False
        if len(key) > _IDEMPOTENCY_KEY_MAX:
            raise Malformed("Idempotency-Key is too long", where="Idempotency-Key")
        caller = inbound.caller
        asked = (f"{name}={value}" for name, value in sorted(inbound.query.items()))
        place = (caller.tenant, caller.subject, push.paths[0], *inbound.path.values())
        names = (*place, *asked, key)
        digest = blake2b("\0".join(names).encode(), digest_size=ID_BYTES)
        digest.update(inbound.body)
        return digest.digest(), True


def _changes(intake: Intake) -> list[Outgoing]:
    return [(CATALOGUE_CHANGED, 0, Envelope(change, key=change.key)) for change in intake.changes]


def _parts(block: Block, lanes: int) -> list[_Part]:
    """The block cut into records of one lane each."""
    if not len(block):
        return []
    by_lane = block.by_lane(lanes)
    rows_of: dict[int, Sequence[int]] = {}
    if len(by_lane) == 1:
        rows_of[next(iter(by_lane))] = range(len(block))
    else:
        groups: dict[int, list[int]] = {}
        for row, series in enumerate(block.series):
            groups.setdefault(lane_of(series, lanes), []).append(row)
        rows_of |= groups
    parts = []
    for lane, of_lane in by_lane.items():
        start = 0
        for piece in of_lane.pieces():
            parts.append(_Part(lane, piece, rows_of[lane][start : start + len(piece)]))
            start += len(piece)
    return parts


def _in_order(parts: Sequence[_Part], receipts: Sequence[Receipt]) -> list[Verdict]:
    """The verdicts of all rows in the request's order."""
    verdicts = [Verdict.KEPT] * sum(len(part.block) for part in parts)
    for part, receipt in zip(parts, receipts, strict=True):
        for row, verdict in zip(part.rows, receipt.verdicts, strict=True):
            verdicts[row] = Verdict(verdict)
    return verdicts
