"""Requests that many clients sent to a point at once, what each was told, and whether one order of
them explains all of it: the answers and what is stored.

The reference is the contract read aloud: requests one after the other, each row by row; a taken
millisecond drops the newcomer, or is replaced where the request overwrites. An order is allowed if
no request stands before one that had ended when it began. A request nobody knows the end of may
stand anywhere behind its beginning, or nowhere, as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

Held = tuple[str, int | None]
"""A value's text and quality."""


@dataclass(frozen=True, slots=True)
class Row:
    """One value of a request."""

    ts_ms: int
    value: str
    quality: int | None = None

    @property
    def held(self) -> Held:
        """What is stored of it."""
        return self.value, self.quality


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was sent and answered. `dropped` is what was told, None where nothing was;
    then it has no end either.
    """

    rows: tuple[Row, ...]
    overwrite: bool
    began: float
    ended: float = inf
    dropped: tuple[int, ...] | None = None


@dataclass(slots=True)
class Repeated:
    """A request that is sent again under its Idempotency-Key: it counts once, and every answer is
    the first one.
    """

    rows: tuple[Row, ...]
    overwrite: bool
    began: float = inf
    ended: float = inf
    answers: set[tuple[int, ...]] = field(default_factory=set)

    def note(self, began: float, ended: float, dropped: Sequence[int] | None) -> None:
        """One attempt; it was answered where `dropped` is there."""
        self.began = min(self.began, began)
        if dropped is not None:
            # What was answered first had happened by then.
            self.ended = min(self.ended, ended)
            self.answers.add(tuple(dropped))

    @property
    def lies(self) -> bool:
        """Whether it was answered in more than one way."""
        return len(self.answers) > 1

    @property
    def request(self) -> Request:
        """As one request."""
        answer = next(iter(self.answers), None)
        return Request(self.rows, self.overwrite, self.began, self.ended, answer)


def apply(places: Mapping[int, Held], request: Request) -> tuple[dict[int, Held], tuple[int, ...]]:
    """The reference: what is stored after a request, and the rows of it that were dropped."""
    after, dropped = dict(places), []
    for index, row in enumerate(request.rows):
        if request.overwrite or row.ts_ms not in after:
            after[row.ts_ms] = row.held
        else:
            dropped.append(index)
    return after, tuple(dropped)


def explained(requests: Sequence[Request], stored: Mapping[int, Held]) -> bool:
    """Whether some allowed order of the requests leads to the answers and to what is stored.

    All orders are tried (Wing and Gong's search for linearizability), those that come to the same
    set of requests and the same values only once.
    """
    told = sum(1 << at for at, request in enumerate(requests) if request.dropped is not None)
    seen: set[tuple[int, frozenset[tuple[int, Held]]]] = set()
    open_: list[tuple[int, dict[int, Held]]] = [(0, {})]
    while open_:
        done, places = open_.pop()
        mark = done, frozenset(places.items())
        if mark in seen:
            continue
        seen.add(mark)
        if done & told == told and places == stored:
            return True
        left = [at for at in range(len(requests)) if not done >> at & 1]
        first_end = min((requests[at].ended for at in left), default=inf)
        for at in left:
            if requests[at].began > first_end:
                continue
            after, dropped = apply(places, requests[at])
            if requests[at].dropped in (None, dropped):
                open_.append((done | 1 << at, after))
    return False
