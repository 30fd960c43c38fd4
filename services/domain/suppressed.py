"""Suppressed samples are counted by series and minute of sample time, with the last one kept, so
that "nothing came" and "nothing changed" can be told apart.

A row (the last suppressed sample, and how many there were in its minute so far) is put out when the
count reaches 1, 2, 4, 8 and so on. It is put out once more with what came since when a sample of
the series is stored, or suppressed in a later minute. So a minute costs a few rows however many
samples it has, and a reader sees a count that is low by less than a half while the minute lasts and
is right afterwards. A sample that is stored ends no minute: what is suppressed in it later is
counted on.

Times only rise here, because only samples after the newest are ever suppressed. A text is put out
where it is that of the sample which has the row put out; of an earlier one only the hash is
remembered, and the row has an empty text.

This module is written to be read; `kernels.count` does the same on columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from schemas.blocks import bits_of
from schemas.samples import STORED, Kind, Sample, Verdict

MINUTE_MS = 60_000
_TEXT_KINDS = (Kind.STRING, Kind.JSON)


@dataclass(frozen=True, slots=True)
class Count:
    """The last suppressed sample of a series, how many were suppressed in its minute, and of how
    many of them a row has told.
    """

    last: Sample
    count: int
    told: int


Told = list[tuple[Sample, int]]
"""Rows to put out: a suppressed sample, and the count of its minute."""


def step(state: Count | None, sample: Sample, verdict: Verdict) -> tuple[Count | None, Told]:
    """Count a judged sample of the series."""
    if verdict in STORED and state is not None:
        return replace(state, told=state.count), _untold(state, sample)
    if verdict != Verdict.SUPPRESSED:
        return state, []
    told: Told = []
    if state is not None and state.last.ts_ms // MINUTE_MS != sample.ts_ms // MINUTE_MS:
        told, state = _untold(state, sample), None
    count = 1 if state is None else state.count + 1
    if count & (count - 1) == 0:
        return Count(sample, count, count), [*told, (sample, count)]
    return Count(sample, count, 0 if state is None else state.told), told


def _untold(state: Count, by: Sample) -> Told:
    """The row that `by` has put out of what was counted before it."""
    if state.told == state.count:
        return []
    last = state.last
    if last.kind in _TEXT_KINDS and (last.kind, _bits(last)) != (by.kind, _bits(by)):
        last = replace(last, value="")
    return [(last, state.count)]


def _bits(sample: Sample) -> int:
    return bits_of(sample.kind, sample.value)
