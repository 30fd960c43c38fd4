"""What the judge puts out for a record: accepted rows, receipts, dead letters, and a tally that
balances.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import envelope as envelopes
from schemas.blocks import BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block
from schemas.envelope import (
    Entry,
    Envelope,
    Letter,
    Mark,
    Position,
    Receipt,
    Receipts,
    Tick,
    Undecodable,
)
from schemas.points import lane_of
from schemas.queries import LatestQuery, TakenQuery
from schemas.samples import Conflict, Kind, Sample, Verdict
from schemas.topics import (
    RECEIPTS_ISSUED,
    RECORDS_REFUSED,
    SAMPLES_ACCEPTED,
    SAMPLES_RECEIVED,
    SAMPLES_SUPPRESSED,
    Topic,
    receipts_lane,
)
from services.agents import samples
from services.agents._contract import OWN_LANE, Outcome
from services.agents.samples import AGENT, State
from services.domain.lattice import Place, version_of
from tests.support.builders import a_block, a_policy, a_sample, an_entry, an_envelope
from tests.support.reference import ModelStore, sequential
from tests.support.rounds import rounds, seed

LANES = 16
SERIES = 0x0007_0000_0000_0001
KEPT, DUPLICATE, REFUSED = Verdict.KEPT, Verdict.DUPLICATE, Verdict.REFUSED


def step(state: State, record: Envelope | Undecodable, offset: int = 0) -> Outcome:
    """One record that needs no answers."""
    position = Position(1, offset)
    assert isinstance(record, Undecodable) or not AGENT.ask(state, position, record)
    return AGENT.step(state, position, record, [], LANES)


def fresh() -> State:
    """A lane of which everything is known."""
    state: State = AGENT.fresh(True)
    return state


def of(topic: Topic, outcome: Outcome) -> list[tuple[int, Envelope]]:
    """(lane, record) of what goes to a topic."""
    return [(lane, envelope) for to, lane, envelope in outcome.out if to is topic]


def letters(outcome: Outcome) -> list[Letter]:
    """The dead letters, which all go to lane 0."""
    found = of(RECORDS_REFUSED, outcome)
    assert all(lane == 0 for lane, _ in found)
    return [envelope.record for _, envelope in found if isinstance(envelope.record, Letter)]


def receipts(outcome: Outcome) -> list[Receipt]:
    """The receipts, whatever their lanes."""
    found: list[Receipt] = []
    for _, envelope in of(RECEIPTS_ISSUED, outcome):
        assert isinstance(envelope.record, Receipts)
        found += envelope.record.items
    return found


def some(*values: float, ts_ms: int = 0) -> list[Sample]:
    """Samples of one series, a millisecond apart."""
    return [a_sample(value, ts_ms + at, series=SERIES) for at, value in enumerate(values)]


# -- accepted rows


def test_kept_rows_go_on_with_their_versions_and_position() -> None:
    first, second = some(1.0, 2.0)
    outcome = step(fresh(), an_envelope(first, replace(first, value=9.0), second), 7)
    ((lane, accepted),) = of(SAMPLES_ACCEPTED, outcome)
    assert lane == lane_of(SERIES, LANES)
    assert (accepted.received, accepted.epoch) == (7, 1)
    assert isinstance(accepted.record, Block)
    assert list(accepted.record.samples()) == [first, second]
    assert list(accepted.record.version) == [
        version_of(Place(1, 7, row, Conflict.FIRST)) for row in (0, 2)
    ]


def test_texts_and_policies_go_with_their_rows() -> None:
    series = a_sample("a", 1, series=SERIES, kind=Kind.STRING)
    items = [series, replace(series, value="b"), replace(series, ts_ms=2, value="c")]
    policies = [a_policy(tenant=tenant) for tenant in ("one", "two", "two")]
    outcome = step(fresh(), Envelope(a_block(*items, policies=policies)))
    ((_, accepted),) = of(SAMPLES_ACCEPTED, outcome)
    block = accepted.record
    assert isinstance(block, Block)
    assert [sample.value for sample in block.samples()] == ["a", "c"]
    assert [block.policies[index].tenant for index in block.policy] == ["one", "two"]
    assert Block.decode(block.encode()) == block


def test_an_empty_record_goes_on_where_nothing_is_stored() -> None:
    state = fresh()
    step(state, an_envelope(*some(1.0)))
    outcome = step(state, an_envelope(*some(1.0)), 1)
    accepted = Envelope(Block(), received=1, epoch=1)
    assert outcome.out == [(SAMPLES_ACCEPTED, lane_of(SERIES, LANES), accepted)]
    assert outcome.tally["duplicate"] == 1


def test_an_empty_block_and_a_tick_say_only_that_they_were_judged() -> None:
    accepted = (SAMPLES_ACCEPTED, OWN_LANE, Envelope(Block(), received=0, epoch=1))
    assert step(fresh(), Envelope(Block())) == Outcome([accepted])
    assert step(fresh(), Envelope(Tick(5))) == Outcome([accepted])


# -- suppressed rows


def suppressed(outcome: Outcome) -> list[tuple[Sample, int]]:
    """(sample, count) of what was counted."""
    found: list[tuple[Sample, int]] = []
    for lane, envelope in of(SAMPLES_SUPPRESSED, outcome):
        block = envelope.record
        assert lane == lane_of(SERIES, LANES) and isinstance(block, Block)
        assert len(block) <= BLOCK_ROWS_MAX
        assert {block.policies[index].tenant for index in block.policy} == {"acme"}
        found += zip(block.samples(), block.version, strict=True)
    return found


def test_suppressed_samples_are_counted_by_series_and_minute() -> None:
    state, policy = fresh(), a_policy(on_change=True)
    first = step(state, Envelope(a_block(*some(1.0, 1.0, 1.0, 1.0), policy=policy)), 7)
    assert [(s.ts_ms, count) for s, count in suppressed(first)] == [(1, 1), (2, 2)]
    ((_, envelope),) = of(SAMPLES_SUPPRESSED, first)
    assert (envelope.received, envelope.epoch) == (7, 1)
    again: State = AGENT.unpack(AGENT.pack(state))
    for one in (state, again):
        later = step(one, Envelope(a_block(*some(1.0, ts_ms=60_000), policy=policy)), 8)
        assert [(s.ts_ms, count) for s, count in suppressed(later)] == [(3, 3), (60_000, 1)]
        assert later.tally == tally(received=1, suppressed=1)


def test_where_nothing_is_suppressed_nothing_is_counted() -> None:
    assert not of(SAMPLES_SUPPRESSED, step(fresh(), an_envelope(*some(1.0, 1.0))))


def test_the_counts_of_a_full_record_fit_into_records() -> None:
    state, policy, rows = fresh(), a_policy(on_change=True), BLOCK_ROWS_MAX

    def every(ts_ms: int) -> Envelope:
        samples = (
            a_sample("x" * 50, ts_ms, series=SERIES + n, kind=Kind.STRING) for n in range(rows)
        )
        return Envelope(a_block(*samples, policy=policy))

    for ts_ms in range(4):
        step(state, every(ts_ms), ts_ms)
    outcome = step(state, every(60_000), 4)
    assert len(of(SAMPLES_SUPPRESSED, outcome)) >= 2
    found = suppressed(outcome)
    assert [count for _, count in found] == [3, 1] * rows
    assert {sample.value for sample, _ in found} == {"x" * 50}
    for _, _, envelope in outcome.out:
        assert envelope.bytes_estimate <= BLOCK_BYTES_MAX


# -- receipts


def test_each_entry_that_somebody_waits_for_gets_its_verdicts() -> None:
    entries = [
        an_entry(0, 2, request_id=b"1" * 16, index=3, total=4),
        an_entry(2, 1, request_id=b"2" * 16, reply_to=b""),
        an_entry(3, 1, request_id=b"3" * 16, reply_to=bytes(16)),
        an_entry(4, 1, request_id=b"4" * 16),
    ]
    outcome = step(fresh(), an_envelope(*some(1.0, 2.0, 3.0, 4.0, 5.0), entries=entries), 9)
    assert receipts(outcome) == [
        Receipt(b"1" * 16, b"d" * 16, 3, 4, 9, bytes([KEPT, KEPT])),
        Receipt(b"4" * 16, b"d" * 16, 0, 1, 9, bytes([KEPT])),
    ]


def test_receipts_are_gathered_by_the_lane_their_door_follows() -> None:
    doors = [bytes([number]) * 16 for number in range(1, 9)]
    entries = [an_entry(row, 1, reply_to=door) for row, door in enumerate(doors)]
    outcome = step(fresh(), an_envelope(*some(*map(float, range(8))), entries=entries))
    lanes = [lane for lane, _ in of(RECEIPTS_ISSUED, outcome)]
    assert len(lanes) == len(set(lanes)) < len(doors)
    for lane, envelope in of(RECEIPTS_ISSUED, outcome):
        assert isinstance(envelope.record, Receipts)
        assert {receipts_lane(item.reply_to, LANES) for item in envelope.record.items} == {lane}


def test_a_request_that_comes_again_gets_the_first_answer_and_changes_nothing() -> None:
    state, entry = fresh(), an_entry(0, 2, keyed=True)
    first = step(state, an_envelope(*some(1.0, 2.0), entries=[entry]), 3)
    moved = replace(entry, start=1, reply_to=b"e" * 16)
    again = step(state, an_envelope(*some(0.0, ts_ms=9), *some(5.0, 6.0), entries=[moved]), 4)
    (answer,) = receipts(first)
    assert receipts(again) == [replace(answer, reply_to=b"e" * 16)]
    assert again.tally == tally(received=3, kept=1, duplicate=2)
    late = step(state, an_envelope(*some(1.0, 2.0)), 5)
    assert late.tally["duplicate"] == 2


def test_a_request_that_comes_twice_in_one_record_is_applied_once() -> None:
    one, two = an_entry(0, 1, keyed=True), an_entry(1, 1, keyed=True, reply_to=b"e" * 16)
    outcome = step(fresh(), an_envelope(*some(1.0, 2.0), entries=[one, two]), 3)
    assert [item.verdicts for item in receipts(outcome)] == [bytes([KEPT])] * 2
    assert outcome.tally == tally(received=2, kept=1, duplicate=1)


def test_entries_of_one_request_and_requests_without_a_key_are_told_apart() -> None:
    state = fresh()
    for offset, entry in enumerate(
        [an_entry(keyed=True), an_entry(keyed=True, index=1), an_entry(), an_entry()]
    ):
        outcome = step(state, an_envelope(*some(float(offset), ts_ms=offset), entries=[entry]))
        assert outcome.tally["kept"] == 1


def test_the_oldest_requests_are_forgotten() -> None:
    state = fresh()

    def ask(number: int, offset: int) -> Outcome:
        entry = an_entry(keyed=True, request_id=number.to_bytes(16, "big"))
        sample = a_sample(float(offset), number, series=SERIES, rule=Conflict.LAST)
        return step(state, an_envelope(sample, entries=[entry]), offset)

    for number in range(samples.REQUESTS_MAX + 1):
        ask(number, number)
    assert ask(1, samples.REQUESTS_MAX + 2).tally["duplicate"] == 1
    assert ask(0, samples.REQUESTS_MAX + 3).tally["overwrite"] == 1


def test_the_verdicts_that_are_remembered_have_a_bound() -> None:
    state, rows = fresh(), BLOCK_ROWS_MAX
    block = a_block(*some(*map(float, range(rows))))
    for number in range(samples.REQUEST_BYTES_MAX // rows + 5):
        entry = an_entry(0, rows, keyed=True, request_id=number.to_bytes(16, "big"))
        step(state, Envelope(block, (entry,)), number)
    assert len(state.ring) == samples.REQUEST_BYTES_MAX // rows


# -- dead letters


def test_refused_rows_become_letters_that_hold_them() -> None:
    locked = a_policy(kind=Kind.DOUBLE)
    good, text = a_sample(1.0, 5, series=SERIES), a_sample("x", 6, series=SERIES, kind=Kind.STRING)
    outcome = step(fresh(), Envelope(a_block(good, text, policy=locked)), 4)
    (letter,) = letters(outcome)
    assert (letter.topic, letter.lane, letter.offset, letter.row) == (
        SAMPLES_RECEIVED.name,
        lane_of(SERIES, LANES),
        4,
        1,
    )
    assert (letter.source, letter.tenant, letter.ts_ms, letter.count) == ("samples", "acme", 6, 1)
    assert json.loads(letter.body) == [
        {
            "row": 1,
            "series": str(SERIES),
            "ts_ms": 6,
            "kind": "STRING",
            "value": "x",
            "quality": None,
            "rule": "FIRST",
        }
    ]


@pytest.mark.parametrize("length", [0, 10, 500, 3000, 4200, 20_000])
def test_no_refused_row_is_lost_however_large(length: int) -> None:
    locked = [a_policy(tenant=tenant, kind=Kind.LONG) for tenant in ("one", "two")] * 20
    rows = [
        a_sample("ä" * length + str(at), at, series=SERIES + at % 2, kind=Kind.STRING)
        for at in range(40)
    ]
    found = letters(step(fresh(), Envelope(a_block(*rows, policies=locked))))
    assert all(len(letter.body) <= Letter.BODY_BYTES_MAX for letter in found)
    assert sum(letter.count for letter in found) == 40
    kept: list[tuple[str, str]] = []
    waiting = b""
    for letter in found:
        waiting += letter.body
        try:
            plain = json.loads(waiting)
        except ValueError:
            continue
        waiting = b""
        kept += [
            (letter.tenant, row["value"]) for row in (plain if type(plain) is list else [plain])
        ]
    assert sorted(kept) == sorted(
        (policy.tenant, row.value) for policy, row in zip(locked, rows, strict=True)
    )


def test_a_value_that_json_cannot_say_is_said_as_text() -> None:
    nan = a_sample(float("nan"), 1, series=SERIES)
    outcome = step(fresh(), Envelope(a_block(nan, policy=a_policy(kind=Kind.LONG))))
    (letter,) = letters(outcome)
    assert json.loads(letter.body, parse_constant=pytest.fail)[0]["value"] == "nan"


def test_what_is_no_block_is_set_aside_with_its_bytes() -> None:
    state = fresh()
    outcome = step(state, Undecodable("no kind", b"x" * 5000), 4)
    (letter,) = letters(outcome)
    assert (letter.reason, letter.detail, letter.lane) == ("undecodable", "no kind", -1)
    assert letter.body == b"x" * Letter.BODY_BYTES_MAX
    assert outcome.tally == {"undecodable": 1}
    step(state, an_envelope(*some(1.0)), 5)
    mark = Envelope(Mark("t", 1, 2, 3))
    (letter,) = letters(step(state, mark, 6))
    assert (letter.lane, letter.offset) == (lane_of(SERIES, LANES), 6)
    assert letter.body == envelopes.encode(mark)[0]


def test_a_block_with_more_rows_than_a_position_can_name_is_set_aside() -> None:
    state, block = fresh(), a_block(*some(*map(float, range(BLOCK_ROWS_MAX + 1))))
    outcome = step(state, Envelope(block))
    assert [letter.detail for letter in letters(outcome)] == ["too many rows"]
    assert outcome.tally == {"undecodable": 1}
    assert state.lane.any_series is None


# -- the store


def test_the_store_is_asked_for_what_was_forgotten() -> None:
    agent = samples.agent(rows_max=1)
    state = agent.fresh(True)
    agent.step(state, Position(1, 0), an_envelope(*some(1.0, 2.0, 3.0)), [], LANES)
    agent.stored(state, 0)
    late = an_envelope(*some(1.0))
    assert agent.ask(state, Position(1, 1), late) == [TakenQuery((SERIES,), (0,))]
    assert agent.ask(state, Position(1, 1), an_envelope(*some(4.0, ts_ms=3))) == []


def test_a_lane_that_lost_its_memory_asks_for_series_and_times() -> None:
    asked = AGENT.ask(AGENT.fresh(False), Position(1, 1), an_envelope(*some(1.0, 2.0)))
    assert asked == [LatestQuery(series=(SERIES,)), TakenQuery((SERIES, SERIES), (0, 1))]


# -- histories


@st.composite
def records(draw: st.DrawFn) -> Envelope:
    """A record of several requests, some of which come again."""
    items: list[Sample] = []
    entries: list[Entry] = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(
            st.lists(
                st.builds(
                    a_sample,
                    st.integers(0, 3).map(float),
                    st.integers(0, 6),
                    series=st.integers(SERIES, SERIES + 1),
                    rule=st.sampled_from(Conflict),
                ),
                min_size=1,
                max_size=4,
            )
        )
        keyed = draw(st.booleans())
        request = draw(st.integers(1, 4)).to_bytes(16, "big")
        if draw(st.booleans()):
            entries.append(an_entry(len(items), len(rows), request_id=request, keyed=keyed))
        items += rows
    return an_envelope(*items, entries=entries)


@settings(max_examples=rounds(100))
@hypothesis.seed(seed())
@given(
    st.lists(records(), min_size=1, max_size=10),
    st.integers(0, 10),
    st.sampled_from([3, 1000]),
)
def test_a_crash_between_outputs_and_checkpoint_changes_nothing(
    history: Sequence[Envelope], checkpoint: int, rows_max: int
) -> None:
    """The lane is packed behind record `checkpoint`, goes on to the end and is lost; what follows
    the checkpoint is read again. Everything put out, both times, is stored.
    """
    agent, store = samples.agent(rows_max=rows_max), ModelStore()
    applied: list[Sample] = []
    outcomes: dict[int, Outcome] = {}

    def apply(state: State, offset: int) -> None:
        position, record = Position(1, offset), history[offset]
        answers = [store.answer(query) for query in agent.ask(state, position, record)]
        outcome = agent.step(state, position, record, answers, LANES)
        assert sum(outcome.tally.values()) == 2 * outcome.tally["received"] == 2 * record.rows
        if offset not in outcomes:
            repeated = {item for item in receipts(outcome) if item.offset != offset}
            applied.extend(_applied(record, repeated, outcome))
        outcomes.setdefault(offset, outcome)
        # Nothing was forgotten: then even the receipts are the same.
        assert rows_max == 3 or outcome == outcomes[offset]
        for _, accepted in of(SAMPLES_ACCEPTED, outcome):
            assert isinstance(accepted.record, Block)
            store.insert(accepted.record)
        agent.stored(state, offset)

    state, packed, after = agent.fresh(True), b"", 0
    for offset in range(len(history)):
        apply(state, offset)
        if offset == checkpoint:
            packed, after = agent.pack(state), offset + 1
    state = agent.unpack(packed) if packed else agent.fresh(True)
    for offset in range(after, len(history)):
        apply(state, offset)
    assert store.merged() == sequential(applied)


def _applied(record: Envelope, repeated: set[Receipt], outcome: Outcome) -> list[Sample]:
    """The samples of a record without those of requests that came before."""
    assert isinstance(record.record, Block)
    seen: set[bytes] = {item.request_id for item in repeated}
    passed: set[int] = set()
    for entry in record.entries:
        if entry.keyed and entry.request_id in seen:
            passed.update(range(entry.start, entry.start + entry.count))
        elif entry.keyed:
            seen.add(entry.request_id)
    return [s for row, s in enumerate(record.record.samples()) if row not in passed]


def test_a_packed_state_answers_on() -> None:
    state, entry = fresh(), an_entry(0, 2, keyed=True)
    first = step(state, an_envelope(*some(1.0, 2.0), entries=[entry]), 3)
    again: State = AGENT.unpack(AGENT.pack(state))
    assert AGENT.pack(again) == AGENT.pack(state)
    outcome = step(again, an_envelope(*some(7.0, 8.0), entries=[entry]), 4)
    assert receipts(outcome) == receipts(first)
    assert outcome.tally == tally(received=2, duplicate=2)


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        AGENT.unpack(b"\xff" + AGENT.pack(fresh())[1:])


def tally(**counts: int) -> dict[str, int]:
    """A whole tally: what is not named is 0."""
    return {"received": 0} | {verdict.name.lower(): 0 for verdict in Verdict} | counts
