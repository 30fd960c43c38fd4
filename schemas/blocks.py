"""Block: many samples of one lane as columns; on the log one record, an Arrow IPC stream.

A block travels, a sample is one row of it. In memory the columns are typed arrays of the standard
library: they grow by appending, join by copying memory, and hand their buffers to Arrow and to the
kernels without a conversion. A block that has been handed on is not changed any more.

Format: Arrow IPC stream with LZ4 buffers (https://arrow.apache.org/docs/format/Columnar.html), the
policies as JSON in the schema's metadata. With `rows` this module is the only home
of pyarrow.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Any

import pyarrow as pa

from schemas.points import PointPolicy, Rule, lane_of
from schemas.samples import NO_QUALITY, Conflict, Kind, Sample, Value

BLOCK_ROWS_MAX = 4096
"""The row's index takes 12 bits of a sample's position."""
BLOCK_BYTES_MAX = 256 * 1024
"""Estimated bytes above which nothing more joins a block."""

_ROW_BYTES, _RULE_BYTES = 33, 160
_double, _long = Struct("<d"), Struct("<q")
TEXT_KINDS = (Kind.STRING, Kind.JSON)
_FIXED = (
    ("series", "Q", pa.uint64()),
    ("ts_ms", "q", pa.int64()),
    ("kind", "B", pa.uint8()),
    ("bits", "q", pa.int64()),
    ("quality", "i", pa.int32()),
    ("rule", "B", pa.uint8()),
    ("policy", "H", pa.uint16()),
)
# What pyarrow and JSON raise for bytes that are none of ours.
_DECODING = (
    pa.ArrowException,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    StopIteration,
)
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def bits_of(kind: int, value: Value) -> int:
    """The 64 bits that stand for `value` in the `bits` column (for text: a hash; the text has its
    own column).

    Two values of one kind are equal exactly if their bits are.
    """
    if kind == Kind.DOUBLE:
        return int(_long.unpack(_double.pack(value))[0])
    if kind in TEXT_KINDS:
        digest = blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int(_long.unpack(digest)[0])
    return int(value)


def bytes_of(text: str) -> int:
    """How many bytes a text takes on the log: up to four times its characters."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def double_of(bits: int) -> float:
    """The double whose IEEE bits are `bits`."""
    return float(_double.unpack(_long.pack(bits))[0])


@dataclass(slots=True)
class Block:
    """Columns of equal length, one row a sample.

    `policy` indexes `policies`. `texts` maps row to text for STRING and JSON rows. `version` is
    empty until the judge has decided (`services.domain.lattice`), then uint64 per row. `quality`
    holds NO_QUALITY where none came.
    """

    policies: list[PointPolicy] = field(default_factory=list)
    series: array[int] = field(default_factory=lambda: array("Q"))
    ts_ms: array[int] = field(default_factory=lambda: array("q"))
    kind: array[int] = field(default_factory=lambda: array("B"))
    bits: array[int] = field(default_factory=lambda: array("q"))
    quality: array[int] = field(default_factory=lambda: array("i"))
    rule: array[int] = field(default_factory=lambda: array("B"))
    policy: array[int] = field(default_factory=lambda: array("H"))
    version: array[int] = field(default_factory=lambda: array("Q"))
    texts: dict[int, str] = field(default_factory=dict)
    text_bytes: int = 0

    def __len__(self) -> int:
        return len(self.series)

    @property
    def bytes_estimate(self) -> int:
        """About what the block takes on the log before compression."""
        return len(self.series) * _ROW_BYTES + self.text_bytes + _policies_bytes(self.policies)

    # -- rows in -----------------------------------------------------------------------------------

    def policy_index(self, policy: PointPolicy) -> int:
        """The index by which rows of this block name `policy`; added if it is new here."""
        policies = self.policies
        if policies and policies[-1] is policy:
            return len(policies) - 1
        try:
            return policies.index(policy)
        except ValueError:
            policies.append(policy)
            return len(policies) - 1

    def add(
        self,
        series: int,
        ts_ms: int,
        kind: int,
        value: Value,
        *,
        policy: int,
        quality: int = NO_QUALITY,
        rule: int = Conflict.FIRST,
    ) -> None:
        """Append one row; `policy` comes from `policy_index`."""
        if kind == 3 or kind == 4:
            text = str(value)
            self.texts[len(self.series)] = text
            self.text_bytes += bytes_of(text)
            self.bits.append(bits_of(kind, text))
        elif kind == 0:
            self.bits.append(_long.unpack(_double.pack(value))[0])
        else:
            self.bits.append(int(value))
        self.series.append(series)
        self.ts_ms.append(ts_ms)
        self.kind.append(kind)
        self.quality.append(quality)
        self.rule.append(rule)
        self.policy.append(policy)

    def extend(self, other: Block) -> None:
        """Append all rows of `other`, which stays as it is."""
        offset = len(self.series)
        self.series += other.series
        self.ts_ms += other.ts_ms
        self.kind += other.kind
        self.bits += other.bits
        self.quality += other.quality
        self.rule += other.rule
        self.version += other.version
        if not self.policies:
            self.policies = list(other.policies)
        if self.policies == other.policies:
            self.policy += other.policy
        else:
            renamed = [self.policy_index(policy) for policy in other.policies]
            self.policy.extend([renamed[index] for index in other.policy])
        if other.texts:
            for row, text in other.texts.items():
                self.texts[offset + row] = text
            self.text_bytes += other.text_bytes

    @classmethod
    def join(cls, blocks: Iterable[Block]) -> Block:
        """One new block with the rows of all, in order."""
        joined = cls()
        for block in blocks:
            joined.extend(block)
        return joined

    @classmethod
    def of_samples(cls, samples: Iterable[Sample], policy: PointPolicy) -> Block:
        """A block of samples that share one policy."""
        block = cls()
        index = block.policy_index(policy)
        for s in samples:
            quality = NO_QUALITY if s.quality is None else s.quality
            block.add(
                s.series, s.ts_ms, s.kind, s.value, policy=index, quality=quality, rule=s.rule
            )
        return block

    # -- rows out ----------------------------------------------------------------------------------

    def value(self, row: int) -> Value:
        """The value of a row in its own type."""
        kind = self.kind[row]
        if kind == 0:
            return double_of(self.bits[row])
        if kind == 3 or kind == 4:
            return self.texts[row]
        return bool(self.bits[row]) if kind == 2 else self.bits[row]

    def sample(self, row: int) -> Sample:
        """One row, readable."""
        quality = self.quality[row]
        return Sample(
            self.series[row],
            self.ts_ms[row],
            Kind(self.kind[row]),
            self.value(row),
            None if quality == NO_QUALITY else quality,
            Conflict(self.rule[row]),
        )

    def samples(self) -> Iterator[Sample]:
        """All rows, readable."""
        return (self.sample(row) for row in range(len(self)))

    def take(self, rows: Sequence[int]) -> Block:
        """A new block of the named rows, in the order named."""
        taken = Block(policies=list(self.policies))
        for name, code, _ in _FIXED:
            column = getattr(self, name)
            setattr(taken, name, array(code, [column[row] for row in rows]))
        if self.version:
            taken.version = array("Q", [self.version[row] for row in rows])
        if self.texts:
            taken.adopt_texts((new, self.texts.get(row)) for new, row in enumerate(rows))
        return taken

    def slice(self, start: int, stop: int) -> Block:
        """Rows start (inclusive) to stop (exclusive) as a new block."""
        cut = Block(policies=list(self.policies))
        for name, _, _ in _FIXED:
            setattr(cut, name, getattr(self, name)[start:stop])
        cut.version = self.version[start:stop]
        if self.texts:
            cut.adopt_texts((row - start, self.texts.get(row)) for row in range(start, stop))
        return cut

    def adopt_texts(self, texts: Iterable[tuple[int, str | None]]) -> None:
        """Take these (row, text) pairs for the block's texts."""
        self.texts = {row: text for row, text in texts if text is not None}
        self.text_bytes = sum(map(bytes_of, self.texts.values()))

    def by_lane(self, lanes: int) -> dict[int, Block]:
        """The rows of each lane, in order; the block itself where all belong to one."""
        if self._of_one_device():
            return {lane_of(self.series[0], lanes): self}
        lane_by_series = {series: lane_of(series, lanes) for series in set(self.series)}
        if len(set(lane_by_series.values())) == 1:
            return {next(iter(lane_by_series.values())): self}
        rows: dict[int, list[int]] = {}
        for row, series in enumerate(self.series):
            rows.setdefault(lane_by_series[series], []).append(row)
        return {lane: self.take(members) for lane, members in rows.items()}

    def _of_one_device(self) -> bool:
        """Whether the two bytes of each id that choose the lane are the same in all rows."""
        raw, size = self.series.tobytes(), len(self.series)
        high, low = raw[7::8], raw[6::8]
        return size > 0 and high.count(high[0]) == size and low.count(low[0]) == size

    def pieces(self, rows_max: int = BLOCK_ROWS_MAX) -> list[Block]:
        """The block cut into consecutive blocks that each fit into one record."""
        if len(self) <= rows_max and self.bytes_estimate <= BLOCK_BYTES_MAX:
            return [self]
        pieces, start, size = [], 0, 0
        policy_bytes = [_policies_bytes([policy]) for policy in self.policies]
        for row in range(len(self)):
            row_bytes = _ROW_BYTES + bytes_of(self.texts.get(row, ""))
            row_bytes += policy_bytes[self.policy[row]]
            if row - start >= rows_max or (row > start and size + row_bytes > BLOCK_BYTES_MAX):
                pieces.append(self._piece(start, row))
                start, size = row, 0
            size += row_bytes
        pieces.append(self._piece(start, len(self)))
        return pieces

    def _piece(self, start: int, stop: int) -> Block:
        """A slice with no other policies than those of its rows."""
        piece = self.slice(start, stop)
        used = sorted(set(piece.policy))
        numbers = {old: new for new, old in enumerate(used)}
        piece.policies = [self.policies[number] for number in used]
        piece.policy = array("H", [numbers[number] for number in piece.policy])
        return piece

    # -- bytes -------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The Arrow IPC stream that lies on the log."""
        arrays = [arrow_column(getattr(self, name), kind) for name, _, kind in _FIXED]
        if self.version:
            arrays.append(arrow_column(self.version, pa.uint64()))
        if self.texts:
            arrays.append(self.arrow_texts())
        schema = _schema(tuple(self.policies), bool(self.version), bool(self.texts))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema, options=_OPTIONS) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        return bytes(memoryview(sink.getvalue()))

    @classmethod
    def decode(cls, data: bytes) -> Block:
        """The block in an Arrow IPC stream. Raises ValueError where it is none of ours."""
        try:
            with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
                batch = reader.read_next_batch()
            batch.validate(full=True)
            block = cls(policies=_policies(batch.schema.metadata[b"policies"]))
            for name, code, kind in _FIXED:
                setattr(block, name, typed_array(batch.column(name), code, kind))
            if "version" in batch.schema.names:
                block.version = typed_array(batch.column("version"), "Q", pa.uint64())
            if "text" in batch.schema.names:
                block.adopt_texts(enumerate(batch.column("text").to_pylist()))
        except _DECODING as error:
            raise ValueError(f"not a block: {error}") from error
        block._check()
        return block

    def _check(self) -> None:
        """What a reader of the log may rely on; a block that came from elsewhere could break it."""
        if not len(self):
            return
        if max(self.policy) >= len(self.policies):
            raise ValueError("not a block: a row names a policy that is not there")
        if max(self.kind) > max(Kind) or max(self.rule) > max(Conflict):
            raise ValueError("not a block: a kind or a rule that does not exist")
        if sum(self.kind.count(kind) for kind in TEXT_KINDS) != len(self.texts):
            raise ValueError("not a block: text rows without text")

    def arrow_texts(self) -> Any:
        """The texts as a pyarrow.Array, null in the rows that have none."""
        get = self.texts.get
        return pa.array([get(row) for row in range(len(self))], pa.string())


def arrow_column(column: array[int], kind: Any) -> Any:
    """The column as a pyarrow.Array of this type, on the same memory."""
    return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(column)])


def typed_array(column: Any, code: str, kind: Any) -> array[int]:
    """A pyarrow.Array of this type as a typed array. Raises ValueError where it is another one."""
    if column.type != kind or column.null_count:
        raise ValueError(f"not a block: a column of {column.type} where {kind} belongs")
    out: array[int] = array(code)
    if len(column):
        size = out.itemsize
        data = memoryview(column.buffers()[1])
        out.frombytes(data[column.offset * size : (column.offset + len(column)) * size])
    return out


@lru_cache(maxsize=1024)
def _schema(policies: tuple[PointPolicy, ...], version: bool, text: bool) -> Any:
    fields = [pa.field(name, kind, nullable=False) for name, _, kind in _FIXED]
    if version:
        fields.append(pa.field("version", pa.uint64(), nullable=False))
    if text:
        fields.append(pa.field("text", pa.string()))
    rows = [_policy_row(policy) for policy in policies]
    return pa.schema(fields, metadata={"policies": json.dumps(rows)})


def _policies_bytes(policies: Sequence[PointPolicy]) -> int:
    """About what policies take on the log; only rules make it worth counting."""
    rules = 0
    for policy in policies:
        rules += len(policy.rules)
    return _RULE_BYTES * rules


def _policy_row(p: PointPolicy) -> list[Any]:
    """A policy as JSON values; what most leave at its default comes last and is left out."""
    row = [p.tenant, p.revision, p.kind, p.band, p.band_percent, p.heartbeat_ms]
    if p.on_change or p.keep_ms or p.rules:
        row += [p.on_change, p.keep_ms, [astuple(rule) for rule in p.rules]]
    return row


def _policy(
    tenant: str,
    revision: int,
    kind: int | None,
    band: float,
    band_percent: float,
    heartbeat_ms: int,
    on_change: bool = False,
    keep_ms: int = 0,
    rules: Sequence[Sequence[Any]] = (),
) -> PointPolicy:
    return PointPolicy(
        tenant,
        revision,
        None if kind is None else Kind(kind),
        band,
        band_percent,
        heartbeat_ms,
        on_change,
        keep_ms,
        tuple(Rule(*rule) for rule in rules),
    )


@lru_cache(maxsize=1024)
def _policy_rows(metadata: bytes) -> tuple[PointPolicy, ...]:
    return tuple(_policy(*row) for row in json.loads(metadata))


def _policies(metadata: bytes) -> list[PointPolicy]:
    return list(_policy_rows(metadata))
