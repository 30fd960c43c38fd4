"""Blocks as rows of the store and back, without a store."""

from __future__ import annotations

from array import array

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.rows import NEVER_EXPIRES, block_of_rows, concat, sample_rows
from schemas.samples import TS_MS_MAX, Conflict, Kind, Sample
from tests.support.builders import a_block, a_policy, a_sample

LONGS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = {
    Kind.DOUBLE: st.floats(allow_nan=False),
    Kind.LONG: LONGS,
    Kind.BOOL: st.booleans(),
    Kind.STRING: TEXTS,
    Kind.JSON: TEXTS,
    Kind.DATE: st.integers(0, TS_MS_MAX - 1),
}
SAMPLES = st.sampled_from(list(Kind)).flatmap(
    lambda kind: st.builds(
        Sample,
        st.integers(0, 2**64 - 1),
        st.integers(0, TS_MS_MAX - 1),
        st.just(kind),
        VALUES[kind],
        st.none() | st.integers(-(2**31) + 1, 2**31 - 1),
        st.sampled_from((Conflict.FIRST, Conflict.LAST)),
    )
)
TENANTS = st.sampled_from(["acme", "other", "Ü", "a'b"])


def judged(rows: list[tuple[Sample, str]]) -> Block:
    """A block whose versions are of the classes that its rules say."""
    policies = [a_policy(tenant=tenant, revision=n) for n, (_, tenant) in enumerate(rows)]
    block = a_block(*(sample for sample, _ in rows), policies=policies)
    block.version = array("Q", [((rule > 0) << 63) + n for n, rule in enumerate(block.rule)])
    return block


def sent(table: pa.Table) -> bytes:
    """A table as the store sends it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return bytes(sink.getvalue())


def tenants_of(block: Block) -> list[str]:
    """The tenant of each row."""
    return [block.policies[index].tenant for index in block.policy]


@given(st.lists(st.tuples(SAMPLES, TENANTS), min_size=1, max_size=12))
def test_rows_come_back_as_they_were(rows: list[tuple[Sample, str]]) -> None:
    block = judged(rows)
    back = block_of_rows(sent(sample_rows(block)))
    for name in ("series", "ts_ms", "kind", "bits", "quality", "version", "texts"):
        assert getattr(back, name) == getattr(block, name), name
    # A renewed row is stored as one that overwrites.
    assert list(back.rule) == [min(rule, Conflict.LAST) for rule in block.rule]
    assert back.text_bytes == block.text_bytes
    assert tenants_of(back) == tenants_of(block)
    assert len(set(back.policies)) == len(back.policies)


@given(st.lists(st.lists(st.tuples(SAMPLES, TENANTS), min_size=1, max_size=4), min_size=1))
def test_several_blocks_are_stored_as_one(parts: list[list[tuple[Sample, str]]]) -> None:
    table = concat([sample_rows(judged(rows)) for rows in parts])
    back = block_of_rows(sent(table))
    assert tenants_of(back) == [tenant for rows in parts for _, tenant in rows]
    assert list(back.series) == [sample.series for rows in parts for sample, _ in rows]
    # The engine refuses a dictionary that names one tenant twice, and one that changes midway.
    [chunk] = table.column("tenant").chunks
    names = chunk.dictionary.to_pylist()
    assert len(set(names)) == len(names)


def test_no_rows_are_an_empty_block() -> None:
    empty = sample_rows(judged([(a_sample(), "acme")])).slice(0, 0)
    assert len(block_of_rows(sent(empty))) == 0


def test_a_tenant_that_no_row_is_of_is_no_policy() -> None:
    table = sample_rows(judged([(a_sample(), "acme"), (a_sample(), "other")])).slice(1)
    assert [p.tenant for p in block_of_rows(sent(table)).policies] == ["other"]


def test_a_block_that_was_not_judged_cannot_be_stored() -> None:
    with pytest.raises(ValueError):
        sample_rows(a_block())


def test_a_row_that_names_a_policy_that_is_not_there_cannot_be_stored() -> None:
    block = judged([(a_sample(), "acme")])
    block.policy[0] = 7
    with pytest.raises(LookupError):
        sample_rows(block)


KEEPS = st.sampled_from([0, 1, 999, 1_000, 60_000, 2**40, 2**63, 2**80])


@given(st.lists(st.tuples(st.integers(0, TS_MS_MAX - 1), KEEPS), min_size=1, max_size=8))
def test_a_row_expires_in_the_second_in_which_it_is_hidden(rows: list[tuple[int, int]]) -> None:
    """It is hidden when the present second begins later than its time and its period; 0 is for
    ever, and so is what the column has no room for.
    """
    policies = [a_policy(revision=n, keep_ms=keep_ms) for n, (_, keep_ms) in enumerate(rows)]
    block = a_block(*(a_sample(ts_ms=ts_ms) for ts_ms, _ in rows), policies=policies)
    block.version = array("Q", range(1, len(rows) + 1))
    found = sample_rows(block).column("expires").to_pylist()
    for (ts_ms, keep_ms), second in zip(rows, found, strict=True):
        if second == NEVER_EXPIRES:
            assert keep_ms == 0 or ts_ms + keep_ms >= (NEVER_EXPIRES - 1) * 1_000
        else:
            assert keep_ms > 0
            assert (second - 1) * 1_000 <= ts_ms + keep_ms < second * 1_000
