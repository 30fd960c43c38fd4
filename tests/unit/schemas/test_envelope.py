"""Records as bytes and back; bytes that are none of ours are said to be so, whatever they are."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.blocks import Block, bits_of, double_of
from schemas.envelope import (
    Change,
    Entry,
    Envelope,
    Lease,
    Letter,
    Mark,
    Presence,
    Receipt,
    Receipts,
    Tick,
    Undecodable,
    decode,
    encode,
    join,
)
from schemas.points import PointPolicy
from schemas.samples import TS_MS_MAX, Conflict, Kind, Sample
from tests.support.rounds import rounds

VALUES = {
    Kind.DOUBLE: st.floats(allow_nan=False),
    Kind.LONG: st.integers(-(2**63), 2**63 - 1),
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    Kind.JSON: st.just('{"a":1}'),
    Kind.DATE: st.integers(0, TS_MS_MAX - 1),
}
POLICIES = st.builds(
    PointPolicy,
    st.sampled_from(["demo", "other"]),
    st.integers(0, 9),
    st.none() | st.sampled_from(list(Kind)),
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    kind = draw(st.sampled_from(list(Kind)))
    return Sample(
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(0, TS_MS_MAX - 1)),
        kind,
        draw(VALUES[kind]),
        draw(st.none() | st.integers(0, 3)),
        draw(st.sampled_from(list(Conflict))),
    )


def test_a_record_without_rows_comes_back_and_joins_and_has_a_size() -> None:
    empty = Envelope(Block(), received=7, epoch=2)
    value, headers = encode(empty)
    assert decode(value, headers) == empty
    assert len(value) <= empty.bytes_estimate < 2 * len(value)
    policy = PointPolicy("demo", 3)
    row = Block.of_samples([Sample(1, 2, Kind.LONG, 3)], policy)
    row.version.append(5)
    for parts in ((empty, row), (row, empty), (empty, row, empty)):
        envelopes = [p if isinstance(p, Envelope) else Envelope(p.slice(0, 1)) for p in parts]
        joined = Envelope(Block())
        for envelope in envelopes:
            join(joined, envelope)
        assert joined.record == row
        assert joined.received == 7


blocks = st.lists(st.tuples(st.lists(samples(), max_size=5), POLICIES), min_size=1, max_size=3).map(
    lambda parts: Block.join(Block.of_samples(rows, policy) for rows, policy in parts)
)


@settings(max_examples=rounds(100))
@given(blocks, st.booleans())
def test_a_block_comes_back_as_it_was(block: Block, judged: bool) -> None:
    if judged:
        block.version = array("Q", range(2**63, 2**63 + len(block)))
    entries = (Entry(b"r" * 16, b"d" * 16, 0, 2, 5, 0, len(block), True),)
    back = decode(*encode(Envelope(block, entries, received=7, epoch=3)))
    assert isinstance(back, Envelope)
    assert back == Envelope(block, entries, received=7, epoch=3)
    assert list(back.record.samples()) == list(block.samples())  # type: ignore[union-attr]


@settings(max_examples=rounds(50))
@given(st.lists(st.lists(samples(), max_size=4), max_size=4), POLICIES)
def test_joined_blocks_have_the_rows_of_all_in_order(
    parts: list[list[Sample]], policy: PointPolicy
) -> None:
    joined = Block.join(Block.of_samples(rows, policy) for rows in parts)
    assert list(joined.samples()) == [sample for rows in parts for sample in rows]
    lanes = joined.by_lane(4)
    assert sum(len(block) for block in lanes.values()) == len(joined)
    pieces = joined.pieces(rows_max=3)
    assert [s for piece in pieces for s in piece.samples()] == list(joined.samples())


def test_joining_moves_the_entries_of_the_second_behind_the_first() -> None:
    policy = PointPolicy("demo")
    rows = [Sample(1, at, Kind.LONG, at) for at in range(3)]
    first = Envelope(Block.of_samples(rows, policy), (Entry(b"a" * 16, b"", 0, 1, 0, 0, 3),))
    second = Envelope(Block.of_samples(rows, policy), (Entry(b"b" * 16, b"", 0, 1, 0, 1, 2),))
    joined = join(first, second)
    assert [(e.start, e.count) for e in joined.entries] == [(0, 3), (4, 2)]
    assert joined.rows == 6


def test_every_other_record_comes_back_as_it_was() -> None:
    records = [
        Receipts((Receipt(b"r" * 16, b"d" * 16, 0, 1, 9, b"\0\1\2"),)),
        Letter("reason", "detail", "source", "demo", "samples.received", 3, 4, 5, b"\xff\0", 2, 6),
        Change("point", "p", {"a": [1, {"b": None}]}, first=True, claim="c"),
        Change("point", "p", None),
        Mark("samples.received", 3, 4, 5, "a life"),
        Presence("acme", "d", "a process", True, 5),
        Lease("a process", 6),
        Tick(17, "k"),
    ]
    for record in records:
        back = decode(*encode(Envelope(record)))
        assert back == Envelope(record)


def test_the_bits_of_doubles_and_longs_are_exact() -> None:
    for value in (0.0, -0.0, 1e300, 5e-324, 0.1):
        assert str(double_of(bits_of(Kind.DOUBLE, value))) == str(value)
    assert bits_of(Kind.DOUBLE, 0.0) != bits_of(Kind.DOUBLE, -0.0)
    assert bits_of(Kind.LONG, 2**63 - 1) == 2**63 - 1


@settings(max_examples=rounds(300))
@given(st.binary(max_size=300), st.sampled_from(["block", "receipts", "letter", "change", "zzz"]))
def test_any_bytes_are_a_record_or_undecodable(body: bytes, kind: str) -> None:
    headers = [("kind", kind.encode()), ("v", b"1")]
    assert isinstance(decode(body, headers), Undecodable | Envelope)


@settings(max_examples=rounds(300))
@given(st.data())
def test_a_damaged_block_is_a_record_or_undecodable(data: st.DataObject) -> None:
    policy = PointPolicy("demo")
    rows = [Sample(1, at, Kind.STRING, "abc") for at in range(3)]
    value, headers = encode(Envelope(Block.of_samples(rows, policy)))
    damaged = bytearray(value)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for body in (bytes(damaged), bytes(value[:cut])):
        assert isinstance(decode(body, headers), Undecodable | Envelope)


def test_a_record_of_a_newer_version_or_without_a_value_is_undecodable() -> None:
    value, headers = encode(Envelope(Tick(1)))
    assert isinstance(decode(value, [headers[0], ("v", b"2")]), Undecodable)
    assert isinstance(decode(None, headers), Undecodable)
    assert isinstance(decode(value, []), Undecodable)
