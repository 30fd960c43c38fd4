"""The checker of interleaved requests finds what is wrong, and only that."""

from __future__ import annotations

from itertools import chain, combinations, permutations
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.orders import Held, Repeated, Request, Row, apply, explained


def a_request(
    *rows: tuple[int, str],
    told: tuple[int, ...] | None = (),
    overwrite: bool = False,
    at: tuple[float, float] = (0, 1),
) -> Request:
    """A request under way in the time `at`; `told` None: without an answer."""
    made = tuple(Row(ts_ms, value) for ts_ms, value in rows)
    return Request(made, overwrite, at[0], at[1] if told is not None else inf, told)


def stored(**places: str) -> dict[int, Held]:
    """`t5="a"`: a is stored at 5."""
    return {int(name[1:]): (value, None) for name, value in places.items()}


RIGHT = {
    "nothing was sent": ([], stored()),
    "the contract's own example": (
        [a_request((3, "1"), (2, "2"), (3, "3"), (4, "4"), told=(2,))],
        stored(t2="2", t3="1", t4="4"),
    ),
    "of two at once either is the first": (
        [a_request((1, "a"), told=(0,)), a_request((1, "b"))],
        stored(t1="b"),
    ),
    "the later overwrites": (
        [a_request((1, "a")), a_request((1, "b"), overwrite=True, at=(2, 3))],
        stored(t1="b"),
    ),
    "of two that overwrite at once either is the later": (
        [a_request((1, "a"), overwrite=True), a_request((1, "b"), overwrite=True)],
        stored(t1="a"),
    ),
    "what was not answered has happened": ([a_request((1, "a"), told=None)], stored(t1="a")),
    "what was not answered has not happened": ([a_request((1, "a"), told=None)], stored()),
    "it has happened between others, long after its beginning": (
        [
            a_request((1, "a"), told=None),
            a_request((1, "b"), overwrite=True, at=(2, 3)),
            a_request((2, "c"), told=(0,), at=(4, 5)),
            a_request((2, "d"), at=(2, 3)),
        ],
        stored(t1="b", t2="d"),
    ),
    "a drop by something that was not answered": (
        [a_request((1, "a"), told=None), a_request((1, "b"), told=(0,), at=(2, 3))],
        stored(t1="a"),
    ),
}

WRONG = {
    "lost": ([a_request((1, "a"))], stored()),
    "a value that nobody sent": ([a_request((1, "a"))], stored(t1="a", t2="b")),
    "another value than the one that was kept": ([a_request((1, "a"))], stored(t1="b")),
    "two first ones": ([a_request((1, "a")), a_request((1, "b"))], stored(t1="a")),
    "dropped though nothing was there": ([a_request((1, "a"), told=(0,))], stored()),
    "the dropped one is stored": (
        [a_request((1, "a")), a_request((1, "b"), told=(0,), at=(2, 3))],
        stored(t1="b"),
    ),
    "dropped by one that began later": (
        [a_request((1, "a"), told=(0,)), a_request((1, "b"), at=(2, 3))],
        stored(t1="b"),
    ),
    "the earlier of two that overwrite one after the other": (
        [a_request((1, "a"), overwrite=True), a_request((1, "b"), overwrite=True, at=(2, 3))],
        stored(t1="a"),
    ),
    "a first one that came behind an overwriting one and won": (
        [a_request((1, "a"), overwrite=True), a_request((1, "b"), told=(), at=(2, 3))],
        stored(t1="b"),
    ),
    "half of a request that was not answered": (
        [a_request((1, "a"), (2, "b"), told=None)],
        stored(t1="a"),
    ),
    "each of two requests was before the other": (
        [a_request((1, "a"), (2, "b"), told=(1,)), a_request((2, "c"), (1, "d"), told=(1,))],
        stored(t1="a", t2="c"),
    ),
    "a repetition inside the request that was kept": (
        [a_request((1, "a"), (1, "b"))],
        stored(t1="a"),
    ),
    "the second of them": ([a_request((1, "a"), (1, "b"), told=(1,))], stored(t1="b")),
    "an overwriting request that drops": (
        [a_request((1, "a"), told=(0,), overwrite=True)],
        stored(t1="a"),
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_explained(case: str) -> None:
    assert explained(*RIGHT[case])


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found(case: str) -> None:
    assert not explained(*WRONG[case])


def test_a_quality_that_is_not_the_values_own_is_found() -> None:
    request = Request((Row(1, "a", 2),), False, 0, 1, ())
    assert explained([request], {1: ("a", 2)})
    assert not explained([request], {1: ("a", None)})
    overwriting = Request((Row(1, "a"),), True, 2, 3, ())
    assert not explained([request, overwriting], {1: ("a", 2)}), "replaced with its attributes"


def test_a_request_under_a_key_counts_once_and_has_one_answer() -> None:
    rows = (Row(1, "a"), Row(1, "b"))
    kept = Repeated(rows, False)
    kept.note(0, 1, None)
    assert explained([kept.request], {}), "so far nobody knows"
    kept.note(2, 3, [1])
    kept.note(4, 5, [1])
    assert (kept.request.began, kept.request.ended) == (0, 3)
    assert explained([kept.request], stored(t1="a"))
    assert not explained([kept.request], {})
    assert not kept.lies
    kept.note(6, 7, [0, 1])
    assert kept.lies, "applied again"


rows = st.lists(
    st.builds(Row, st.integers(1, 2), st.sampled_from("ab"), st.just(None)), min_size=1, max_size=2
)


@st.composite
def _requests(draw: st.DrawFn) -> Request:
    made = tuple(draw(rows))
    began = draw(st.integers(0, 4))
    if draw(st.booleans()) and draw(st.booleans()):
        return Request(made, draw(st.booleans()), began)
    dropped = draw(st.sets(st.sampled_from(range(len(made)))))
    ended = began + draw(st.integers(0, 3))
    return Request(made, draw(st.booleans()), began, ended, tuple(sorted(dropped)))


places = st.dictionaries(st.integers(1, 2), st.tuples(st.sampled_from("ab"), st.none()))


@given(st.lists(_requests(), max_size=4), places)
def test_it_finds_what_trying_every_order_finds(
    requests: list[Request], held: dict[int, Held]
) -> None:
    assert explained(requests, held) == _tried(requests, held)


@given(st.permutations(range(5)), st.lists(_requests(), min_size=5, max_size=5), st.data())
def test_what_a_sequence_did_is_explained(
    order: list[int], drawn: list[Request], data: st.DataObject
) -> None:
    """Requests done one after the other, each seen for longer than it took."""
    places: dict[int, Held] = {}
    done = []
    for moment, at in enumerate(order):
        places, dropped = apply(places, drawn[at])
        early, late = (data.draw(st.floats(0, 3)) for _ in range(2))
        request = drawn[at]
        if request.dropped is None:
            done.append(Request(request.rows, request.overwrite, moment - early))
        else:
            rows_, over = request.rows, request.overwrite
            done.append(Request(rows_, over, moment - early, moment + late, dropped))
    assert explained(done, places)


def _tried(requests: list[Request], held: dict[int, Held]) -> bool:
    """The definition, word by word."""
    told = [request for request in requests if request.dropped is not None]
    unknown = [request for request in requests if request.dropped is None]
    subsets = chain.from_iterable(combinations(unknown, n) for n in range(len(unknown) + 1))
    return any(
        _allowed(order) and _leads_to(order, held)
        for chosen in subsets
        for order in permutations([*told, *chosen])
    )


def _allowed(order: tuple[Request, ...]) -> bool:
    return not any(later.ended < earlier.began for earlier, later in combinations(order, 2))


def _leads_to(order: tuple[Request, ...], held: dict[int, Held]) -> bool:
    places: dict[int, Held] = {}
    for request in order:
        places, dropped = apply(places, request)
        if request.dropped not in (None, dropped):
            return False
    return places == held
