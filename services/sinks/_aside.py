"""What a sink could not store: the letter that tells of it, and the limit beyond which it stops.

A letter is about one row of one record, or about a record that is not made of rows. That data is
bad is believed only up to a point: many unusable rows in a row, or a share of the last ten
thousand, say that something of ours is wrong, and then nothing is set aside any more.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from schemas.blocks import Block
from schemas.envelope import Envelope, Letter, Logged, Undecodable, encode
from schemas.samples import NO_QUALITY
from schemas.topics import Topic
from services.errors import Broken, Malformed

WINDOW_ROWS = 10_000
_DETAIL_CHARS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Placed:
    """A record, or consecutive rows of one from `row` on, and the lane where it stood."""

    lane: int
    logged: Logged
    row: int = 0

    @property
    def rows(self) -> int:
        """How many rows it has; 1 where it is no block."""
        envelope = self.logged.envelope
        return envelope.rows if isinstance(envelope, Envelope) else 1

    def halves(self) -> list[Placed]:
        """Its rows in two parts, each as a record of its own at the same offset."""
        envelope = self.logged.envelope
        assert isinstance(envelope, Envelope) and isinstance(envelope.record, Block)
        block, middle = envelope.record, self.rows // 2
        return [
            Placed(
                self.lane,
                Logged(
                    self.logged.offset,
                    replace(envelope, record=block.slice(start, stop), entries=()),
                ),
                self.row + start,
            )
            for start, stop in ((0, middle), (middle, self.rows))
        ]


def letter(
    placed: Placed, why: Malformed | None, *, topic: Topic, source: str, ts_ms: int
) -> Letter:
    """The dead letter for an undecodable record (`why` None), a single row or another record."""
    envelope, tenant, row = placed.logged.envelope, "", -1
    if isinstance(envelope, Undecodable):
        reason, detail, body = "undecodable", envelope.reason, envelope.body
    else:
        assert why is not None
        reason, detail = why.code or "malformed", why.message
        if isinstance(envelope.record, Block):
            tenant, row = _tenant(envelope.record), placed.row
            body = json.dumps(_readable(envelope.record)).encode()
        else:
            body = encode(envelope)[0]
    return Letter(
        reason=reason,
        detail=detail[:_DETAIL_CHARS_MAX],
        source=source,
        tenant=tenant,
        topic=topic.name,
        lane=placed.lane,
        offset=placed.logged.offset,
        row=row,
        body=body[: Letter.BODY_BYTES_MAX],
        ts_ms=ts_ms,
    )


def _tenant(block: Block) -> str:
    """The tenant of the first row; a row that is set aside may name a policy that is not there."""
    index = block.policy[0]
    return block.policies[index].tenant if index < len(block.policies) else ""


def _readable(block: Block) -> dict[str, Any]:
    """The first row, for a person to read. Takes any bits: the row may be bad in any way."""
    text = block.texts.get(0)
    return {
        "series": block.series[0],
        "ts_ms": block.ts_ms[0],
        "kind": block.kind[0],
        "value": block.value(0) if text is not None or block.kind[0] not in (3, 4) else None,
        "quality": None if block.quality[0] == NO_QUALITY else block.quality[0],
        "version": block.version[0] if block.version else None,
    }


class Limit:
    """How much of one lane may be set aside. Rows are counted in the order of the lane."""

    def __init__(self, *, share_max: float, run_max: int) -> None:
        self._bad_max, self._run_max = round(share_max * WINDOW_ROWS), run_max
        self._seen = self._run = 0
        self._bad: deque[int] = deque()

    def good(self, rows: int) -> None:
        """So many rows were stored."""
        self._seen += rows
        if rows:
            self._run = 0

    def bad(self, last: Letter) -> None:
        """One row was not. Raises Broken beyond the limit."""
        self._seen += 1
        self._run += 1
        self._bad.append(self._seen)
        while self._bad[0] <= self._seen - WINDOW_ROWS:
            self._bad.popleft()
        if self._run > self._run_max or len(self._bad) > self._bad_max:
            raise Broken(
                f"{last.source}: {self._run} unusable rows in a row and {len(self._bad)} of the"
                f" last {WINDOW_ROWS} of {last.topic}/{last.lane}; the last one at offset"
                f" {last.offset}, row {last.row}: {last.reason}: {last.detail}"
            )
