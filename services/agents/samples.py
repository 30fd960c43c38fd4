"""The judge of the lanes: samples.received -> samples.accepted, samples.suppressed,
receipts.issued, records.refused.

Every record that is judged leads to an accepted one, if only an empty one: so whoever follows those
learns how far the lane is judged. Rows that are kept or overwrite go on in it with their version;
suppressed ones are counted by series and
minute (`services.domain.suppressed`); what somebody waits for gets a receipt; what cannot be used
becomes dead letters. The rules are in `services.domain.admission`, judged on
columns by `services.domain.memory`. A request that came again under its id is not applied: it gets
the first answer, and its rows count as duplicates.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from struct import Struct
from typing import NamedTuple

from schemas.blocks import BLOCK_ROWS_MAX, Block
from schemas.envelope import (
    Entry,
    Envelope,
    Letter,
    Outgoing,
    Position,
    Receipt,
    Receipts,
    Tick,
    Undecodable,
    encode,
)
from schemas.points import lane_of
from schemas.queries import LatestQuery, TakenQuery
from schemas.samples import Value, Verdict
from schemas.topics import (
    RECEIPTS_ISSUED,
    RECORDS_REFUSED,
    SAMPLES_ACCEPTED,
    SAMPLES_RECEIVED,
    SAMPLES_SUPPRESSED,
    receipts_lane,
)
from services.agents._contract import OWN_LANE, Agent, Asked, Outcome
from services.domain import memory

REQUESTS_MAX = 10_000
"""Requests that a lane remembers with their verdicts."""
REQUEST_BYTES_MAX = 4 << 20
"""Verdicts that it remembers of them together."""

_SOURCE = "samples"
_VERDICTS = [verdict.name.lower() for verdict in Verdict]
_FORMAT = 1
_HEAD = Struct("<BII")
_ANSWER = Struct("<16sHQH")


class Answer(NamedTuple):
    """The verdicts on an entry, and the offset at which they were given."""

    offset: int
    verdicts: bytes


class State:
    """A lane's memory of samples, and the ring of its recent requests, oldest first."""

    def __init__(self, lane: memory.Lane) -> None:
        self.lane = lane
        self.ring: OrderedDict[tuple[bytes, int], Answer] = OrderedDict()
        self._ring_bytes = 0

    @classmethod
    def fresh(cls, whole: bool, *, rows_max: int) -> State:
        """The state of a lane that begins; see `Agent` for `whole`."""
        memory.warm()
        return cls(memory.Lane(whole=whole, rows_max=rows_max))

    def keep(self, entry: Entry, answer: Answer) -> None:
        """Remember the answer to an entry; the oldest go."""
        key = (entry.request_id, entry.index)
        if before := self.ring.pop(key, None):
            self._ring_bytes -= len(before.verdicts)
        self.ring[key] = answer
        self._ring_bytes += len(answer.verdicts)
        while len(self.ring) > REQUESTS_MAX or self._ring_bytes > REQUEST_BYTES_MAX:
            _, oldest = self.ring.popitem(last=False)
            self._ring_bytes -= len(oldest.verdicts)

    def pack(self) -> bytes:
        """The state as bytes."""
        lane = self.lane.pack()
        ring = b"".join(
            _ANSWER.pack(request_id, index, answer.offset, len(answer.verdicts)) + answer.verdicts
            for (request_id, index), answer in self.ring.items()
        )
        return _HEAD.pack(_FORMAT, len(lane), len(ring)) + lane + zlib.compress(ring, 1)

    @classmethod
    def unpack(cls, data: bytes, *, rows_max: int) -> State:
        """The inverse of `pack`. Raises ValueError where the bytes are of another format."""
        form, lane_bytes, ring_bytes = _HEAD.unpack_from(data)
        if form != _FORMAT:
            raise ValueError(f"a state of format {form}; this is {_FORMAT}")
        memory.warm()
        lane_end = _HEAD.size + lane_bytes
        state = cls(memory.Lane.unpack(data[_HEAD.size : lane_end], rows_max=rows_max))
        ring, at = zlib.decompress(data[lane_end:]), 0
        while at < ring_bytes:
            request_id, index, offset, count = _ANSWER.unpack_from(ring, at)
            at += _ANSWER.size
            state.ring[request_id, index] = Answer(offset, ring[at : at + count])
            state._ring_bytes += count
            at += count
        return state


def ask(state: State, position: Position, record: Envelope) -> Sequence[TakenQuery | LatestQuery]:
    """What the store must say of series and times that the lane does not know (any more)."""
    block = record.record
    if not isinstance(block, Block) or len(block) > BLOCK_ROWS_MAX:
        return ()
    unknown, times = state.lane.questions(block)
    queries: list[TakenQuery | LatestQuery] = []
    if unknown:
        queries.append(LatestQuery(series=tuple(unknown)))
    if times:
        series, ts_ms = zip(*times, strict=True)
        queries.append(TakenQuery(series, ts_ms))
    return queries


def step(
    state: State, position: Position, record: Envelope | Undecodable, answers: Asked, lanes: int
) -> Outcome:
    """Judge one record of the lane."""
    if isinstance(record, Undecodable):
        return _set_aside(state, position, record.reason, record.body, lanes)
    block = record.record
    if isinstance(block, Tick):
        return Outcome([_accepted(Block(), OWN_LANE, position)])
    if not isinstance(block, Block) or len(block) > BLOCK_ROWS_MAX:
        reason = "too many rows" if isinstance(block, Block) else "not a block"
        return _set_aside(state, position, reason, encode(record)[0], lanes)
    if not len(block):
        return Outcome([_accepted(Block(), OWN_LANE, position)])
    for query, answer in zip(ask(state, position, record) if answers else (), answers, strict=True):
        unknown = query.series if isinstance(query, LatestQuery) else None
        state.lane.learn(answer, position, unknown or ())
    repeated = _repeated(state, position, record.entries)
    judgement = state.lane.judge(block, position, _spans(len(block), record.entries, repeated))
    verdicts = bytes(judgement.verdicts)
    lane = lane_of(block.series[0], lanes)
    stored = judgement.stored(block)
    out: list[Outgoing] = [_accepted(stored if len(stored) else Block(), lane, position)]
    counted = state.lane.suppressed(block, judgement.verdicts)
    for piece in counted.pieces() if len(counted) else ():
        told = Envelope(piece, received=position.offset, epoch=position.epoch)
        out.append((SAMPLES_SUPPRESSED, lane, told))
    out += _receipts(state, position, record.entries, repeated, verdicts, lanes)
    out += [(RECORDS_REFUSED, 0, Envelope(x)) for x in _letters(block, verdicts, lane, position)]
    tally = dict(zip(_VERDICTS, judgement.counts, strict=True))
    return Outcome(out, {"received": len(block), **tally})


def _accepted(block: Block, lane: int, position: Position) -> Outgoing:
    return SAMPLES_ACCEPTED, lane, Envelope(block, received=position.offset, epoch=position.epoch)


def stored(state: State, offset: int) -> None:
    """The store has every row of the lane up to `offset`: the memory may forget them."""
    state.lane.forget(offset)


def agent(rows_max: int = memory.ROWS_MAX) -> Agent:
    """The judge; its lanes remember `rows_max` times although the store has them."""
    return Agent(
        name="samples",
        source=SAMPLES_RECEIVED,
        fresh=partial(State.fresh, rows_max=rows_max),
        ask=ask,
        step=step,
        pack=State.pack,
        unpack=partial(State.unpack, rows_max=rows_max),
        stored=stored,
    )


# -- requests


def _repeated(
    state: State, position: Position, entries: Sequence[Entry]
) -> dict[int, Answer | None]:
    """The entries (by their place) whose request came before, with the first answer; None where the
    first stands in this very record.
    """
    repeated: dict[int, Answer | None] = {}
    here: set[tuple[bytes, int]] = set()
    for place, entry in enumerate(entries):
        if not entry.keyed:
            continue
        key = (entry.request_id, entry.index)
        answer = state.ring.get(key)
        if answer is not None and answer.offset < position.offset:
            repeated[place] = answer
        elif key in here:
            repeated[place] = None
        here.add(key)
    return repeated


def _spans(
    rows: int, entries: Sequence[Entry], repeated: Collection[int]
) -> list[tuple[int, int]] | None:
    """The stretches of rows that are to be judged: all but those of repeated entries."""
    if not repeated:
        return None
    spans, first = [], 0
    for start, count in sorted((entries[at].start, entries[at].count) for at in repeated):
        spans.append((first, start))
        first = start + count
    return [*spans, (first, rows)]


def _receipts(
    state: State,
    position: Position,
    entries: Sequence[Entry],
    repeated: Mapping[int, Answer | None],
    verdicts: bytes,
    lanes: int,
) -> list[Outgoing]:
    """The receipts of a record, one `Receipts` for each lane of theirs; keeps what was decided."""
    items: dict[int, list[Receipt]] = {}
    here: dict[tuple[bytes, int], Answer] = {}
    for place, entry in enumerate(entries):
        if place in repeated:
            answer = repeated[place] or here[entry.request_id, entry.index]
        else:
            rows = verdicts[entry.start : entry.start + entry.count]
            answer = Answer(position.offset, rows)
            if entry.keyed:
                here[entry.request_id, entry.index] = answer
                state.keep(entry, answer)
        # On the log an empty address is sixteen zeros.
        if any(entry.reply_to):
            receipt = Receipt(
                *(entry.request_id, entry.reply_to, entry.index, entry.total),
                *(answer.offset, answer.verdicts),
            )
            items.setdefault(receipts_lane(entry.reply_to, lanes), []).append(receipt)
    return [
        (RECEIPTS_ISSUED, lane, Envelope(Receipts(tuple(receipts))))
        for lane, receipts in items.items()
    ]


# -- dead letters


def _set_aside(state: State, position: Position, reason: str, body: bytes, lanes: int) -> Outcome:
    """A record that is no block of samples. It does not say its lane; the lane's series do, or
    else the keeper.
    """
    series = state.lane.any_series
    letter = Letter(
        reason="undecodable",
        detail=reason,
        source=_SOURCE,
        topic=SAMPLES_RECEIVED.name,
        lane=OWN_LANE if series is None else lane_of(series, lanes),
        offset=position.offset,
        body=body[: Letter.BODY_BYTES_MAX],
    )
    accepted = _accepted(Block(), OWN_LANE, position)
    return Outcome([accepted, (RECORDS_REFUSED, 0, Envelope(letter))], {"undecodable": 1})


def _letters(block: Block, verdicts: bytes, lane: int, position: Position) -> Iterator[Letter]:
    """The refused rows as JSON, as many a letter as fit into its body.

    There is no clock here: the time of a letter is that of its first sample.
    """
    if Verdict.REFUSED not in verdicts:
        return
    by_tenant: dict[str, list[int]] = {}
    for row, verdict in enumerate(verdicts):
        if verdict == Verdict.REFUSED:
            tenant = block.policies[block.policy[row]].tenant
            by_tenant.setdefault(tenant, []).append(row)
    for tenant, rows in by_tenant.items():
        for first, count, body, detail in _bodies(block, rows):
            yield Letter(
                reason="type",
                detail=detail,
                source=_SOURCE,
                tenant=tenant,
                topic=SAMPLES_RECEIVED.name,
                lane=lane,
                offset=position.offset,
                row=first,
                body=body,
                count=count,
                ts_ms=block.ts_ms[first],
            )


def _bodies(block: Block, rows: Sequence[int]) -> Iterator[tuple[int, int, bytes, str]]:
    """(first row, rows, body, detail) of letters. A row that is too large for one is cut: only its
    first letter counts it.
    """
    detail = "not of the declared type"
    waiting: list[bytes] = []
    first, size = 0, 0
    for row in rows:
        text = _readable(block, row)
        if waiting and size + len(text) + 2 > Letter.BODY_BYTES_MAX:
            yield first, len(waiting), b"[" + b",".join(waiting) + b"]", detail
            waiting, size = [], 0
        if len(text) + 2 > Letter.BODY_BYTES_MAX:
            total = -(-len(text) // Letter.BODY_BYTES_MAX)
            for part in range(total):
                cut = text[part * Letter.BODY_BYTES_MAX : (part + 1) * Letter.BODY_BYTES_MAX]
                yield row, int(part == 0), cut, f"{detail}; part {part + 1} of {total}"
            continue
        first = first if waiting else row
        waiting.append(text)
        size += len(text) + 1
    if waiting:
        yield first, len(waiting), b"[" + b",".join(waiting) + b"]", detail


def _readable(block: Block, row: int) -> bytes:
    """One row as a JSON object in ASCII; 64-bit ids as text, as JSON's numbers are doubles."""
    sample = block.sample(row)
    plain = {
        "row": row,
        "series": str(sample.series),
        "ts_ms": sample.ts_ms,
        "kind": sample.kind.name,
        "value": sample.value if _is_json(sample.value) else str(sample.value),
        "quality": sample.quality,
        "rule": sample.rule.name,
    }
    return json.dumps(plain, separators=(",", ":")).encode("ascii")


def _is_json(value: Value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


AGENT = agent()
