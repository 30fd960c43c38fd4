"""Same series, same millisecond: a repetition is a duplicate, a free millisecond is taken.

Two samples of a millisecond are the same if kind, value and quality are: an overwrite replaces all
of them, so another quality is another sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from schemas.blocks import bits_of
from schemas.points import PointPolicy
from schemas.samples import NO_QUALITY, Kind, Sample, Verdict


class Fingerprint(NamedTuple):
    """What makes two samples of one millisecond the same."""

    kind: Kind
    bits: int
    quality: int


Taken = Mapping[int, Fingerprint]
"""The milliseconds of a series that are taken, and by what."""


def fingerprint(sample: Sample) -> Fingerprint:
    """The fingerprint of a sample."""
    quality = NO_QUALITY if sample.quality is None else sample.quality
    return Fingerprint(sample.kind, bits_of(sample.kind, sample.value), quality)


def step(taken: Taken, sample: Sample, _: PointPolicy | None = None) -> tuple[Taken, Verdict]:
    """KEPT where the millisecond was free, DUPLICATE where the same sample holds it, CONFLICT where
    another does: what becomes of that, `overwrite` says.
    """
    mark = fingerprint(sample)
    if sample.ts_ms not in taken:
        return {**taken, sample.ts_ms: mark}, Verdict.KEPT
    same = taken[sample.ts_ms] == mark
    return taken, Verdict.DUPLICATE if same else Verdict.CONFLICT
