"""Waits for the agents' verdicts on this process's own requests.

A process makes up a random id when it starts and puts it into its requests as `reply_to`. From
before its first append it follows the one lane of `receipts.issued` that this id falls into, from
the end, and passes over the receipts of others. Receipts are soft: one that is lost costs a 503,
never data; a promised one is found again on the log (`promises`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from schemas.envelope import ID_BYTES, Envelope, Receipt, Receipts
from schemas.topics import RECEIPTS_ISSUED, receipts_lane
from services.errors import Unavailable
from services.eventlog import EventLog, Start


class _Waiting:
    """A request that somebody waits for: its receipts so far, by entry, and the futures of those
    who wait.
    """

    __slots__ = ("futures", "receipts", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.receipts: dict[int, Receipt] = {}
        self.futures: list[asyncio.Future[list[Receipt]]] = []


class ReceiptDesk:
    """Hands the receipts of this process's requests to those who wait for them."""

    def __init__(self, log: EventLog, *, waits_max: int = 10_000) -> None:
        self._log, self._waits_max = log, waits_max
        self.reply_to = secrets.token_bytes(ID_BYTES)
        self._waiting: dict[bytes, _Waiting] = {}
        self.lane = receipts_lane(self.reply_to, log.lanes)
        self.next_offset = 0
        """Of the lane: the receipts of requests that are yet to be appended lie there or behind."""
        self.following = asyncio.Event()
        """Set once receipts are followed; nothing may be appended before."""
        self._listeners: list[Callable[[Receipt], None]] = []

    def expect(self, request_id: bytes, total: int) -> asyncio.Future[list[Receipt]]:
        """A future of the request's receipts, in the order of its entries. Raises Unavailable if
        too many wait.
        """
        if len(self._waiting) >= self._waits_max or not self.following.is_set():
            raise Unavailable("too many requests wait for the judge")
        waiting = self._waiting.setdefault(request_id, _Waiting(total))
        future: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        waiting.futures.append(future)
        return future

    def forget(self, request_id: bytes, future: asyncio.Future[list[Receipt]]) -> None:
        """Nobody waits for this future any more."""
        if waiting := self._waiting.get(request_id):
            if future in waiting.futures:
                waiting.futures.remove(future)
            if not waiting.futures:
                del self._waiting[request_id]

    def on_receipt(self, listener: Callable[[Receipt], None]) -> None:
        """Have `listener` called with every receipt for this process."""
        self._listeners.append(listener)

    def hand_out(self, receipt: Receipt) -> None:
        """Take a receipt; with the last one of a request, everybody who waits for it gets them."""
        for listener in self._listeners:
            listener(receipt)
        waiting = self._waiting.get(receipt.request_id)
        if waiting is None:
            return
        waiting.receipts.setdefault(receipt.index, receipt)
        if len(waiting.receipts) < waiting.total:
            return
        del self._waiting[receipt.request_id]
        receipts = [waiting.receipts[index] for index in sorted(waiting.receipts)]
        for future in waiting.futures:
            if not future.done():
                future.set_result(receipts)

    async def follow(self) -> None:
        """Follow the process's lane of receipts, for ever."""
        self.next_offset = (await self._log.spans(RECEIPTS_ISSUED))[self.lane].end
        reader = self._log.reader([RECEIPTS_ISSUED], start=Start.END, lanes=[self.lane])
        async with reader:
            self.following.set()
            while True:
                try:
                    batch = await reader.batch()
                except Unavailable as error:
                    await asyncio.sleep(error.retry_after_ms / 1000)
                    continue
                for logged in batch.records if batch else ():
                    envelope = logged.envelope
                    if isinstance(envelope, Envelope) and isinstance(envelope.record, Receipts):
                        for receipt in envelope.record.items:
                            if receipt.reply_to == self.reply_to:
                                self.hand_out(receipt)
                if batch:
                    self.next_offset = batch.next_offset
