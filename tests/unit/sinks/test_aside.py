"""The limit beyond which a sink stops, and the letters it writes until then."""

from __future__ import annotations

import pytest

from schemas.envelope import Envelope, Letter, Logged
from schemas.samples import Kind
from schemas.topics import SAMPLES_ACCEPTED
from services.errors import Broken, Malformed
from services.sinks._aside import WINDOW_ROWS, Limit, Placed, letter
from tests.support.builders import a_block, a_sample

LETTER = Letter("r", "d", "s")


def breaks(limit: Limit) -> bool:
    """Whether one more bad row is too many."""
    try:
        limit.bad(LETTER)
    except Broken:
        return True
    return False


def test_a_good_row_ends_a_run_of_bad_ones() -> None:
    limit = Limit(share_max=1.0, run_max=2)
    assert [breaks(limit) for _ in range(2)] == [False, False]
    limit.good(1)
    assert [breaks(limit) for _ in range(3)] == [False, False, True]


def test_the_share_is_of_the_last_ten_thousand_rows() -> None:
    limit = Limit(share_max=0.0002, run_max=100)
    assert [breaks(limit) for _ in range(2)] == [False, False]
    limit.good(WINDOW_ROWS - 2)
    # The first one has just left the window, the second is still in it.
    assert [breaks(limit) for _ in range(2)] == [False, False]
    assert breaks(limit)


def test_no_bad_row_is_allowed_where_the_share_is_zero() -> None:
    assert breaks(Limit(share_max=0.0, run_max=100))


@pytest.mark.parametrize(
    ("kind", "text"), [(Kind.DOUBLE, b'"value": 1.0'), (Kind.STRING, b'"value": null')]
)
def test_a_row_that_is_bad_in_itself_can_still_be_told_of(kind: Kind, text: bytes) -> None:
    block = a_block(a_sample(1.0))
    block.kind[0] = kind
    block.policy[0] = 9
    placed = Placed(2, Logged(7, Envelope(block)), row=5)
    note = letter(
        placed, Malformed("why", code="C"), topic=SAMPLES_ACCEPTED, source="sinks.x", ts_ms=3
    )
    assert text in note.body
    assert (note.reason, note.detail, note.tenant) == ("C", "why", "")
    assert (note.lane, note.offset, note.row, note.ts_ms) == (2, 7, 5, 3)


def test_halves_of_halves_know_which_rows_they_are() -> None:
    block = a_block(*(a_sample(float(n)) for n in range(5)))
    whole = Placed(0, Logged(7, Envelope(block)))
    second = whole.halves()[1]
    pieces = [whole.halves()[0], *second.halves()]
    assert [(piece.row, piece.rows) for piece in pieces] == [(0, 2), (2, 1), (3, 2)]
    for piece in pieces:
        envelope = piece.logged.envelope
        assert isinstance(envelope, Envelope)
        values = [sample.value for sample in envelope.record.samples()]  # type: ignore[union-attr]
        assert values == [float(n) for n in range(piece.row, piece.row + piece.rows)]
