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
from dataclasses import dataclass
from hashlib import blake2b
from weakref import WeakValueDictionary

from schemas.blocks import Block
from schemas.envelope import ID_BYTES, Change, Entry, Envelope, Outgoing, Receipt
from schemas.points import lane_of
from schemas.samples import Verdict, verdicts_of
from schemas.topics import CATALOGUE_CHANGED, SAMPLES_RECEIVED
from services import metrics
from services.clock import Clock
from services.dialects import Answer, Inbound, Intake, Lookup, Push, Reply
from services.errors import Malformed, PipelineError, Unavailable
from services.eventlog import EventLog
from services.ingress.promises import Promises
from services.ingress.receipts import ReceiptDesk
from services.settings import Settings

_IDEMPOTENCY_KEY_MAX = 255
_UNDECIDED_SECONDS = 0.05
_CLAIMS_MAX = 4
"""Times that a request claims what it makes; every one of them but the last was lost."""
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
        promises: Promises,
    ) -> None:
        self._log, self._view, self._desk, self._promises = log, view, desk, promises
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
            level = push.answer
            if push.promised and _will_not_wait(inbound):
                reply, level = await self._promise(push, inbound, request, intake), Answer.APPEND
            else:
                reply = push.accepted(inbound, intake, await self._take(push, request, intake))
            metrics.door_samples(dialect).inc(len(intake.block))
            headers = (*reply.headers, (ACK_LEVEL, level.value))
            return Reply(reply.status, reply.body, reply.media_type, headers)
        except PipelineError as error:
            return push.refused(error, inbound.received_ms)

    async def _decided(self, push: Push, inbound: Inbound, intake: Intake) -> Intake:
        """The intake once the catalogue has what the request makes: then the log's order has
        decided between this process and others.
        """
        try:
            turn = self._creating.setdefault(inbound.caller.tenant, asyncio.Lock())
            async with asyncio.timeout(self._settings.append_wait_ms / 1000), turn:
                claims = 0
                while intake.again:
                    if intake.changes:
                        if (claims := claims + 1) > _CLAIMS_MAX:
                            raise Unavailable("others took the ids of the new keys")
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
        waits = self._desk.expect(request[0], len(parts)) if decided else None
        deadline_ms = self._clock.now_ms() + self._settings.receipt_wait_ms
        try:
            out = self._records(parts, request, decided=decided, deadline_ms=deadline_ms)
            await self._append(_changes(intake) + out, intake.changes)
            receipts = await self._verdicts(waits) if waits else []
        finally:
            if waits:
                self._desk.forget(request[0], waits)
        return _in_order(parts, receipts) if receipts else ()

    async def _promise(
        self, push: Push, inbound: Inbound, request: tuple[bytes, bool], intake: Intake
    ) -> Reply:
        """Append the intake; the answer says where its receipt can be asked for."""
        assert push.promised is not None
        if not self._desk.following.is_set():
            raise Unavailable("receipts are not followed yet")
        parts, desk = _parts(intake.block, self._log.lanes), self._desk
        receipt = self._promises.give(
            inbound.caller.tenant,
            request[0],
            total=len(parts),
            note=intake.note,
            lane=desk.lane,
            offset=desk.next_offset,
        )
        out = self._records(parts, request, decided=True, deadline_ms=0)
        await self._append(_changes(intake) + out, intake.changes)
        metrics.RECEIPTS_PROMISED.inc()
        return push.promised(inbound, receipt)

    def _records(
        self,
        parts: Sequence[_Part],
        request: tuple[bytes, bool],
        *,
        decided: bool,
        deadline_ms: int,
    ) -> list[Outgoing]:
        """The parts as records; with an entry where a receipt is wanted (`decided`) or the request
        may come again.
        """
        request_id, keyed = request
        reply_to = self._desk.reply_to if decided else bytes(ID_BYTES)
        out: list[Outgoing] = []
        for index, part in enumerate(parts):
            entries: tuple[Entry, ...] = ()
            if decided or keyed:
                count = len(part.block)
                entries = (
                    Entry(request_id, reply_to, index, len(parts), deadline_ms, 0, count, keyed),
                )
            out.append((SAMPLES_RECEIVED, part.lane, Envelope(part.block, entries)))
        return out

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
        # What waits is one future: a timer that fails it costs a fraction of `asyncio.timeout`.
        seconds = self._settings.receipt_wait_ms / 1000
        timer = asyncio.get_running_loop().call_later(seconds, _late, waits)
        with metrics.RECEIPT_SECONDS.time():
            try:
                return await waits
            except TimeoutError:
                metrics.RECEIPTS_LATE.inc()
                message = "the values are on the log, what became of them is not known yet"
                raise Unavailable(message) from None
            finally:
                timer.cancel()

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


def _late(waits: asyncio.Future[list[Receipt]]) -> None:
    if not waits.done():
        waits.set_exception(TimeoutError())


def _will_not_wait(inbound: Inbound) -> bool:
    """Whether the sender prefers an answer before the work is done: RFC 7240, section 4.1."""
    preferences = inbound.headers.get("prefer", "")
    if not preferences:
        return False
    names = (text.partition(";")[0].partition("=")[0] for text in preferences.split(","))
    return any(name.strip().lower() == "respond-async" for name in names)


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
    if len(parts) == 1:
        return verdicts_of(receipts[0].verdicts)
    verdicts = [Verdict.KEPT] * sum(len(part.block) for part in parts)
    for part, receipt in zip(parts, receipts, strict=True):
        for row, verdict in zip(part.rows, verdicts_of(receipt.verdicts), strict=True):
            verdicts[row] = verdict
    return verdicts
