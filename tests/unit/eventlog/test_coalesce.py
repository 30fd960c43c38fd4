"""What waits for a lane becomes few records; nothing is lost, reordered, changed or overfilled."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block
from schemas.envelope import Entry, Envelope, Receipt, Receipts, Tick, decode, join
from schemas.points import PointPolicy
from schemas.samples import Kind
from schemas.topics import SAMPLES_ACCEPTED, SAMPLES_RECEIVED
from services.errors import Broken, Unavailable
from services.eventlog._coalesce import Coalescer, Gathered, encoded

EVERYTHING = {"bytes_max": 1 << 60, "each_max": 1 << 30}


def _coalescer(queued_bytes_max: int = 1 << 30) -> Coalescer:
    return Coalescer(queued_bytes_max, lambda: 0.0)


def _told(error: Exception | None, offset: int) -> None:
    raise AssertionError("nothing is told here")


def _record(
    count: int, *, tenant: str = "t", version: bool = False, epoch: int = 0, text: str = ""
) -> Envelope:
    block = Block()
    policy = block.policy_index(PointPolicy(tenant))
    for row in range(count):
        value, kind = (text, Kind.STRING) if text else (row, Kind.LONG)
        block.add(1, row, kind, value, policy=policy)
    if version:
        block.version.extend(range(count))
    entries = (Entry(tenant.encode().ljust(16), bytes(16), 0, 1, 0, 0, count),) if count else ()
    return Envelope(block, entries, received=count, epoch=epoch)


def _take(coalescer: Coalescer) -> list[Gathered]:
    return coalescer.take(**EVERYTHING)


records = st.builds(
    _record,
    st.integers(0, 900),
    tenant=st.sampled_from("abc"),
    version=st.booleans(),
    epoch=st.integers(0, 1),
    text=st.sampled_from(["", "", "x" * 90]),
)
ticks = st.builds(lambda n: Envelope(Tick(n)), st.integers(0, 9))
receipts = st.builds(
    lambda n: Envelope(Receipts((Receipt(bytes(16), bytes(16), 0, 1, n, b"\0"),))),
    st.integers(0, 9),
)


@given(st.lists(st.tuples(st.integers(0, 1), records | ticks | receipts), max_size=40))
def test_the_records_taken_are_those_put_joined_two_by_two(
    put: list[tuple[int, Envelope]],
) -> None:
    coalescer = _coalescer()
    before = repr(put)
    for lane, envelope in put:
        coalescer.put(SAMPLES_RECEIVED, lane, envelope, _told)
    taken = _take(coalescer)
    for lane in (0, 1):
        parts = [part for g in taken if g.lane == lane for part in g.parts]
        assert [id(part.envelope) for part in parts] == [id(e) for at, e in put if at == lane]
    for gathered in taken:
        one = gathered.envelope()
        assert one == reduce(join, [_copied(part.envelope) for part in gathered.parts])
        if isinstance(one.record, Block):
            assert len(one.record) <= BLOCK_ROWS_MAX
            assert one.record.bytes_estimate <= BLOCK_BYTES_MAX
            assert len(one.record.version) in (0, len(one.record))
        [result], [] = encoded([gathered])
        assert decode(result.value, result.headers) == one
    assert repr(put) == before
    assert not coalescer.waits
    for gathered in taken:
        coalescer.settle(gathered)
    assert coalescer.queued_bytes == 0


def _copied(envelope: Envelope) -> Envelope:
    """As `join` changes its first argument."""
    record = envelope.record
    if isinstance(record, Block):
        record = Block.join([record])
    return Envelope(record, envelope.entries, envelope.key, envelope.received, envelope.epoch)


def test_a_lone_record_is_handed_on_as_it_is() -> None:
    coalescer, record = _coalescer(), _record(5)
    coalescer.put(SAMPLES_RECEIVED, 0, record, _told)
    [gathered] = _take(coalescer)
    assert gathered.envelope() is record


def test_what_holds_for_a_whole_record_is_not_mixed() -> None:
    for first, second in (
        (_record(1, epoch=1), _record(1, epoch=2)),
        (_record(1, version=True), _record(1)),
        (Envelope(Tick(1)), Envelope(Tick(2))),
        (_record(1), Envelope(Tick(2))),
        (_record(BLOCK_ROWS_MAX), _record(1)),
    ):
        coalescer = _coalescer()
        coalescer.put(SAMPLES_RECEIVED, 0, first, _told)
        coalescer.put(SAMPLES_RECEIVED, 0, second, _told)
        assert [g.envelope() for g in _take(coalescer)] == [first, second]


def test_lanes_take_turns_within_the_bound_of_bytes() -> None:
    coalescer = _coalescer()
    for lane in range(3):
        for _ in range(3):
            coalescer.put(SAMPLES_RECEIVED, lane, Envelope(Tick(lane)), _told)
    one = Envelope(Tick(0)).bytes_estimate
    seen = []
    while coalescer.waits:
        seen.append([g.lane for g in coalescer.take(bytes_max=2 * one, each_max=9)])
    assert seen == [[0, 1], [2, 0], [1, 2], [0, 1], [2]]


def test_a_lane_may_be_left_out_and_be_given_few() -> None:
    coalescer = _coalescer()
    for topic in (SAMPLES_RECEIVED, SAMPLES_ACCEPTED):
        for _ in range(2):
            coalescer.put(topic, 0, Envelope(Tick(1)), _told)
    taken = coalescer.take(bytes_max=1 << 30, each_max=1, skip={(SAMPLES_RECEIVED.name, 0)})
    assert [(g.topic.name, len(g.parts)) for g in taken] == [(SAMPLES_ACCEPTED.name, 1)]
    assert len(_take(coalescer)) == 3


def test_a_full_queue_refuses_and_is_free_again_when_settled() -> None:
    record = _record(10)
    coalescer = _coalescer(record.bytes_estimate)
    coalescer.put(SAMPLES_RECEIVED, 0, record, _told)
    with pytest.raises(Unavailable):
        coalescer.put(SAMPLES_RECEIVED, 0, _record(1), _told)
    with pytest.raises(Unavailable):
        coalescer.check([_record(1)])
    [gathered] = _take(coalescer)
    with pytest.raises(Unavailable):
        coalescer.put(SAMPLES_RECEIVED, 0, _record(1), _told)
    coalescer.settle(gathered)
    coalescer.put(SAMPLES_RECEIVED, 0, _record(1), _told)


def test_a_record_above_the_limits_is_refused() -> None:
    coalescer = _coalescer()
    items = tuple(Receipt(bytes(16), bytes(16), 0, 1, 0, bytes(4096)) for _ in range(80))
    for record in (
        _record(BLOCK_ROWS_MAX + 1),
        _record(1, text="x" * BLOCK_BYTES_MAX),
        Envelope(Receipts(items)),
    ):
        with pytest.raises(Broken):
            coalescer.put(SAMPLES_RECEIVED, 0, record, _told)
    assert not coalescer.waits and coalescer.queued_bytes == 0


def test_whatever_block_pieces_makes_goes_in() -> None:
    coalescer = _coalescer()
    for record in (_record(20_000), _record(900, text="x" * 2000)):
        assert isinstance(record.record, Block)
        for piece in record.record.pieces():
            coalescer.put(SAMPLES_RECEIVED, 0, Envelope(piece, record.entries), _told)


def test_a_part_that_cannot_be_encoded_fails_alone_and_in_its_place() -> None:
    coalescer = _coalescer()
    for text in ("a", "b", "\udc80", "c"):
        coalescer.put(SAMPLES_RECEIVED, 0, _record(1, text=text), _told)
    good, bad = encoded(_take(coalescer))
    texts = [r.envelope.record.texts[0] for r in good if isinstance(r.envelope.record, Block)]
    assert texts == ["a", "b", "c"]
    [(gathered, error)] = bad
    assert isinstance(error, Broken) and len(gathered.parts) == 1
