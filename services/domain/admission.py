"""The judge's specification: type, renewal, repetition, overwriting and deadband in one fixed
order, one verdict per sample, once, in the order of the log.

**What is known of a series.** The newest policy that came with its samples (`PointPolicy.revision`;
of two with equal revisions the first). The newest sample seen, also if the deadband dropped it. The
base: the last kept sample, against which the deadband measures. The times that are taken, each with
the fingerprint of what holds it. And a floor: at and below it the store is asked, because times may
have been forgotten there.

**The order in which a sample is judged.**

1. *Policy.* If the sample brings a newer policy, that is the series' policy from here on, whatever
   becomes of the sample.
2. *Type.* If the policy locks the type and the sample's is another: REFUSED. Nothing else changes.
3. *Renewal.* The door says that what held the time has expired (`Conflict.RENEW`): KEPT, see below.
4. *A taken time*, the newest one or any other: the same sample again is a DUPLICATE; another one is
   a CONFLICT where the first wins, an OVERWRITE where the last wins.
5. *A free time before the newest* (a late sample): KEPT. It bypasses the deadband and leaves the
   newest alone, so that the deadband is a function of the log's order. Where it is later than the
   base (the newest was suppressed), it is what readers see as newest from here on: so there is no
   base then, and the next sample counts.
6. *A time after the newest*, or the first of a series: the deadband decides. SUPPRESSED or KEPT, it
   is the newest now; KEPT makes it the base.

**A suppressed sample** is not stored. Its time is known only while it is the newest: until then a
repetition is a DUPLICATE and another value a CONFLICT or an OVERWRITE; afterwards its time is free
for a late sample. So verdicts are a function of the log, however much is remembered.

**An overwrite** replaces the whole sample. At the base's time it moves the base's value. Of a
suppressed newest sample it makes a stored one, and the base.

**A renewal** takes its time as free, whatever is remembered or was learned of it, and holds it from
there on. It is never a repetition, also not of itself: so a replay, for which the store already has
the row, decides the same. It bypasses the deadband. At the newest time or the base's it moves them
as an overwrite does; after the newest it is newest and base. Rows that have expired may still lie
in the store: its version is of the overwriting class, so that it counts above them.

**Forgetting and asking.** A time may be forgotten once the store has it; that raises the floor to
it. The store's answer is learned before the sample is judged: a row that stands before the judged
record in the log (`lattice.is_earlier`; on a replay the sample's own row and later ones may be
stored already) is taken as if seen. Of a series that the state has lost, the newest stored row is
learned too, and raises the floor to its time. What the store does not have before the record is
free: when in doubt a sample is written, which versions make harmless (on a replay, a row that a
later overwrite hides).

This module is written to be read; `services.domain.kernels` does the same on columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from schemas.points import PointPolicy
from schemas.samples import Conflict, Sample, Verdict
from services.domain import deadband, dedupe, overwrite
from services.domain.deadband import Base, base_of
from services.domain.dedupe import Fingerprint, Taken, fingerprint


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest sample seen of a series; a suppressed one is not stored."""

    ts_ms: int
    mark: Fingerprint
    suppressed: bool


@dataclass(frozen=True, slots=True)
class Series:
    """What is known of a series. `taken` are the stored times that are remembered."""

    policy: PointPolicy | None = None
    newest: Newest | None = None
    base: Base | None = None
    taken: Taken = field(default_factory=dict)
    floor_ms: int | None = None


def step(state: Series, sample: Sample, policy: PointPolicy) -> tuple[Series, Verdict]:
    """Judge one sample, which came with `policy`."""
    if state.policy is not None and policy.revision <= state.policy.revision:
        policy = state.policy
    state = replace(state, policy=policy)
    if policy.kind is not None and sample.kind != policy.kind:
        return state, Verdict.REFUSED
    if sample.rule == Conflict.RENEW:
        return _renewed(state, sample), Verdict.KEPT
    taken, verdict = dedupe.step(_with_newest(state), sample)
    if verdict == Verdict.DUPLICATE:
        return state, verdict
    if verdict == Verdict.CONFLICT:
        taken, verdict = overwrite.step(taken, sample)
        if verdict == Verdict.OVERWRITE:
            state = _overwritten(state, sample)
        return state, verdict
    if _is_late(state, sample):
        taken = {**state.taken, sample.ts_ms: fingerprint(sample)}
        return _unseated(replace(state, taken=taken), sample), verdict
    base, verdict = deadband.step(state.base, sample, policy)
    newest = Newest(sample.ts_ms, fingerprint(sample), verdict == Verdict.SUPPRESSED)
    if not newest.suppressed:
        state = replace(state, taken={**state.taken, sample.ts_ms: newest.mark})
    return replace(state, newest=newest, base=base), verdict


def learn(state: Series, sample: Sample) -> Series:
    """Take a stored row that stands before the judged record as if it had been seen."""
    if sample.ts_ms in state.taken:
        return state
    mark = fingerprint(sample)
    taken = {**state.taken, sample.ts_ms: mark}
    if state.newest is not None and sample.ts_ms <= state.newest.ts_ms:
        return replace(state, taken=taken)
    newest = Newest(sample.ts_ms, mark, suppressed=False)
    return replace(state, taken=taken, newest=newest, base=base_of(sample))


def forget(state: Series, ts_ms: int) -> Series:
    """Let a remembered time go."""
    kept = {at: mark for at, mark in state.taken.items() if at != ts_ms}
    return ask_up_to(replace(state, taken=kept), ts_ms)


def ask_up_to(state: Series, ts_ms: int) -> Series:
    """From here on the store is asked for times up to `ts_ms` that are not remembered."""
    floor_ms = ts_ms if state.floor_ms is None else max(state.floor_ms, ts_ms)
    return replace(state, floor_ms=floor_ms)


def must_ask(state: Series, ts_ms: int) -> bool:
    """Whether only the store knows if the time is taken. That holds for the newest time too: the
    next sample may be newer, and then it is a time like any other.
    """
    at_or_below = state.floor_ms is not None and ts_ms <= state.floor_ms
    return at_or_below and ts_ms not in state.taken


def _with_newest(state: Series) -> Taken:
    """The taken times; the newest counts also if it was suppressed or forgotten."""
    if state.newest is None:
        return state.taken
    return {**state.taken, state.newest.ts_ms: state.newest.mark}


def _is_late(state: Series, sample: Sample) -> bool:
    return state.newest is not None and sample.ts_ms < state.newest.ts_ms


def _renewed(state: Series, sample: Sample) -> Series:
    if state.newest is None or sample.ts_ms > state.newest.ts_ms:
        newest = Newest(sample.ts_ms, fingerprint(sample), suppressed=False)
        state = replace(state, newest=newest)
    return _overwritten(state, sample)


def _overwritten(state: Series, sample: Sample) -> Series:
    mark = fingerprint(sample)
    state = replace(state, taken={**state.taken, sample.ts_ms: mark})
    if state.newest is not None and sample.ts_ms == state.newest.ts_ms:
        newest = replace(state.newest, mark=mark, suppressed=False)
        return replace(state, newest=newest, base=base_of(sample))
    if state.base is not None and sample.ts_ms == state.base.ts_ms:
        return replace(state, base=base_of(sample))
    return _unseated(state, sample)


def _unseated(state: Series, sample: Sample) -> Series:
    """No base any more where a sample was stored behind it."""
    behind = state.base is not None and sample.ts_ms > state.base.ts_ms
    return replace(state, base=None) if behind else state
