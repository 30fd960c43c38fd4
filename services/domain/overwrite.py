"""Same series, same millisecond, another value: the sender's contract says whether the first or the
last one wins.

The rule travels with the sample (`Sample.rule`), as contracts differ in it, and one of them per
request.
"""

from __future__ import annotations

from schemas.points import PointPolicy
from schemas.samples import Conflict, Sample, Verdict
from services.domain.dedupe import Taken, fingerprint


def step(taken: Taken, sample: Sample, _: PointPolicy | None = None) -> tuple[Taken, Verdict]:
    """For a sample whose millisecond another one holds: CONFLICT and it is dropped, or OVERWRITE
    and it holds the millisecond from here on.
    """
    if sample.rule == Conflict.FIRST:
        return taken, Verdict.CONFLICT
    return {**taken, sample.ts_ms: fingerprint(sample)}, Verdict.OVERWRITE
