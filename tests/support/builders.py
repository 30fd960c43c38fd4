"""Things with defaults, so that a test names only what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.blocks import Block
from schemas.commands import Command
from schemas.envelope import Entry, Envelope
from schemas.points import PointPolicy
from schemas.samples import NO_QUALITY, Conflict, Kind, Sample, Value

NOW_MS = 1_700_000_000_000


def a_sample(
    value: Value = 1.0,
    ts_ms: int = NOW_MS,
    *,
    series: int = 1,
    kind: Kind = Kind.DOUBLE,
    quality: int | None = None,
    rule: Conflict = Conflict.FIRST,
) -> Sample:
    """A double of series 1 at NOW_MS, first wins."""
    return Sample(series, ts_ms, kind, value, quality, rule)


def a_policy(
    *,
    tenant: str = "acme",
    revision: int = 1,
    kind: Kind | None = None,
    band: float = 0.0,
    band_percent: float = 0.0,
    heartbeat_ms: int = 0,
    on_change: bool = False,
    keep_ms: int = 0,
) -> PointPolicy:
    """No locked type, no deadband, kept for ever."""
    return PointPolicy(tenant, revision, kind, band, band_percent, heartbeat_ms, on_change, keep_ms)


def a_block(
    *samples: Sample,
    policy: PointPolicy | None = None,
    policies: Sequence[PointPolicy] | None = None,
) -> Block:
    """A block of the samples (one default sample if none is named) that share `policy`, or have
    each its own of `policies`.
    """
    samples = samples or (a_sample(),)
    given = policies or [policy or a_policy()] * len(samples)
    block = Block()
    for s, own in zip(samples, given, strict=True):
        quality = NO_QUALITY if s.quality is None else s.quality
        index = block.policy_index(own)
        block.add(s.series, s.ts_ms, s.kind, s.value, policy=index, quality=quality, rule=s.rule)
    return block


def an_entry(
    start: int = 0,
    count: int = 1,
    *,
    request_id: bytes = b"r" * 16,
    reply_to: bytes = b"d" * 16,
    index: int = 0,
    total: int = 1,
    keyed: bool = False,
) -> Entry:
    """One request's rows, with a door that waits for the receipt."""
    return Entry(request_id, reply_to, index, total, 0, start, count, keyed)


def an_envelope(*samples: Sample, entries: Sequence[Entry] = ()) -> Envelope:
    """A record of the samples."""
    return Envelope(a_block(*samples), tuple(entries))


def a_command(id: str = "c1", **members: Any) -> Command:
    """A command, queued now and good for ten minutes."""
    plain: dict[str, Any] = {
        "tenant": "acme",
        "device": "device",
        "point": "pt",
        "series": 7,
        "kind": Kind.DOUBLE,
        "value": 21.5,
        "subject": "client",
        "at_ms": NOW_MS,
    } | members
    plain.setdefault("changed_ms", plain["at_ms"])
    plain.setdefault("expires_ms", plain["at_ms"] + 600_000)
    return Command(id, **plain)
