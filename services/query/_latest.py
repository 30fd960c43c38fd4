"""The newest sample of every series, in memory: what latest values are answered from.

A series moves on only when (time, version) grows, the same maximum that the store takes, so what
is applied twice, or late, or in another order changes nothing. A block is looked through by
compiled code (`domain.newest`); what runs in the interpreter runs once a series.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import compress, repeat
from operator import gt, itemgetter

from schemas.blocks import Block, bytes_of
from schemas.points import PointPolicy
from schemas.samples import Kind
from services.domain.newest import newest_rows

Newest = tuple[int, int, int, int, int, str, str]
"""(ts_ms, version, kind, bits, quality, tenant, text): ordered by time, then version."""

_TEXT_KINDS = frozenset((Kind.STRING, Kind.JSON))
_TENANT = 5
_tenant_of = itemgetter(_TENANT)
_NOTHING: tuple[int, ...] = (-1,)
"""Older than every sample."""


class Latest:
    """Series id (uint64) to its newest sample."""

    def __init__(self) -> None:
        self._newest: dict[int, Newest] = {}

    def __len__(self) -> int:
        return len(self._newest)

    def apply(self, block: Block) -> None:
        """Let the rows of an accepted block (with versions) count."""
        if not len(block):
            return
        rows = newest_rows(block)
        found = zip(
            *(
                [column[row] for row in rows]
                for column in (block.ts_ms, block.version, block.kind, block.bits, block.quality)
            ),
            _tenants(block, rows),
            _texts(block, rows),
            strict=False,
        )
        newer = dict(zip([block.series[row] for row in rows], found, strict=True))
        # Each key is looked up just before it may be set: no other entry of `newer` touches it.
        held = map(self._newest.get, newer, repeat(_NOTHING))
        self._newest.update(compress(newer.items(), map(gt, newer.values(), held)))

    def select(self, tenant: str | None, series: Iterable[int] | None) -> Block:
        """The newest samples as a block with versions, in the order asked for; series without one
        have no row.

        `series` None means all; `tenant` None means that of any tenant, else what belongs to
        another one is not there.
        """
        asked = list(self._newest if series is None else dict.fromkeys(series))
        held = list(map(self._newest.get, asked))
        # A sample is never empty, so what is empty is a series without one.
        found = list(compress(asked, held))
        samples = list(filter(None, held))
        if tenant is not None and any(map(tenant.__ne__, map(_tenant_of, samples))):
            own = [sample[_TENANT] == tenant for sample in samples]
            found, samples = list(compress(found, own)), list(compress(samples, own))
        return _block(found, samples)


def _tenants(block: Block, rows: list[int]) -> Iterable[str]:
    tenants = [policy.tenant for policy in block.policies]
    if len(set(tenants)) == 1:
        return repeat(tenants[0], len(rows))
    return [tenants[block.policy[row]] for row in rows]


def _texts(block: Block, rows: list[int]) -> Iterable[str]:
    if not block.texts:
        return repeat("", len(rows))
    get = block.texts.get
    return [get(row, "") for row in rows]


def _block(series: list[int], samples: list[Newest]) -> Block:
    """The answer; the rule under which a sample came is not part of it."""
    block = Block()
    if not series:
        return block
    ts_ms, version, kind, bits, quality, tenants, texts = zip(*samples, strict=True)
    block.series, block.ts_ms = array("Q", series), array("q", ts_ms)
    block.version, block.kind = array("Q", version), array("B", kind)
    block.bits, block.quality = array("q", bits), array("i", quality)
    block.rule = array("B", bytes(len(series)))
    named = {tenant: index for index, tenant in enumerate(dict.fromkeys(tenants))}
    block.policies = [PointPolicy(tenant) for tenant in named]
    block.policy = array("H", map(named.__getitem__, tenants))
    kinds = bytes(kind)
    if Kind.STRING in kinds or Kind.JSON in kinds:
        # An empty text is a text too: what counts is the kind.
        block.texts = {row: texts[row] for row, one in enumerate(kind) if one in _TEXT_KINDS}
        block.text_bytes = sum(map(bytes_of, block.texts.values()))
    return block
