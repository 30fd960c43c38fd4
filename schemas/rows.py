"""Rows of the store as pyarrow tables: of blocks, and back; of anything else that a sink fills."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import TEXT_KINDS, Block, arrow_column, bits_of, typed_array
from schemas.points import PointPolicy
from schemas.samples import NO_QUALITY, Kind

NEVER_EXPIRES = 2**32 - 1
"""In the store's column `expires`, UTC seconds: the row is kept for ever."""
KEEP_MS_MAX = 1 << 53
"""Longer than that column can hold from any time on."""
# Not by `pa.array`: that imports pandas, a fifth of a command's time.
_TEXT_CODES = arrow_column(array("B", TEXT_KINDS), pa.uint8())


def sample_rows(block: Block) -> Any:
    """The rows as a pyarrow.Table with the columns of the store's table `samples`."""
    kind = arrow_column(block.kind, pa.uint8())
    bits = arrow_column(block.bits, pa.int64())
    is_double = pc.equal(kind, pa.scalar(int(Kind.DOUBLE), pa.uint8()))
    is_long = pc.and_(
        pc.invert(is_double),
        pc.invert(pc.is_in(kind, _TEXT_CODES)),
    )
    quality = arrow_column(block.quality, pa.int32())
    policy = arrow_column(block.policy, pa.uint16())
    # Several policies may be of one tenant, and the engine refuses a dictionary that repeats.
    names = list(dict.fromkeys(policy.tenant for policy in block.policies))
    places = pa.array([names.index(policy.tenant) for policy in block.policies], pa.uint16())
    tenants = pa.DictionaryArray.from_arrays(places.take(policy), pa.array(names, pa.string()))
    return pa.table(
        {
            "tenant": tenants,
            "series": arrow_column(block.series, pa.uint64()),
            "ts": arrow_column(block.ts_ms, pa.int64()).view(pa.timestamp("ms", "UTC")),
            "kind": kind.view(pa.int8()),
            "double": pc.if_else(is_double, bits.view(pa.float64()), 0.0),
            "long": pc.if_else(is_long, bits, 0),
            "text": (
                pc.coalesce(block.arrow_texts(), "")
                if block.texts
                else pa.repeat(pa.scalar("", pa.string()), len(block))
            ),
            "quality": pc.if_else(pc.equal(quality, NO_QUALITY), None, quality),
            "version": arrow_column(block.version, pa.uint64()),
            "expires": _expires(block, policy),
        }
    )


def suppressed_rows(block: Block) -> Any:
    """Counted suppressed rows (`version` is the count) as a pyarrow.Table with the columns of
    the store's table `suppressed`.
    """
    named = {"ts": "last_ts", "version": "count"}
    table = sample_rows(block).drop_columns(["expires"])
    table = table.rename_columns([named.get(name, name) for name in table.column_names])
    minutes = pc.divide(arrow_column(block.ts_ms, pa.int64()), 60_000)
    starts = pc.multiply(minutes, 60_000).view(pa.timestamp("ms", "UTC"))
    return table.append_column("minute", starts)


def _expires(block: Block, policy: Any) -> Any:
    """The first second at which each row has expired: the one after the last in which it is
    shown. What would outlive the column never expires.
    """
    never = pa.scalar(NEVER_EXPIRES, pa.int64())
    kept = pa.array([min(each.keep_ms, KEEP_MS_MAX) for each in block.policies], pa.int64())
    if not any(policy.keep_ms for policy in block.policies):
        return pa.repeat(never.cast(pa.uint32()), len(block))
    keep_ms = kept.take(policy)
    last = pc.divide(pc.add(arrow_column(block.ts_ms, pa.int64()), keep_ms), 1000)
    # Of a time that cannot be stored nothing is asked but that the store gets to refuse it.
    expires = pc.max_element_wise(pc.min_element_wise(pc.add(last, 1), never), 0)
    return pc.if_else(pc.equal(keep_ms, 0), never, expires).cast(pa.uint32())


def block_of_rows(data: bytes) -> Block:
    """The inverse of `sample_rows`: the rows of an Arrow IPC stream with those columns, as the
    store sends them. Each tenant becomes a policy that says nothing else, the rule follows from
    the version.
    """
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        table = reader.read_all().unify_dictionaries()
    if not table.num_rows:
        return Block()
    column = {name: table.column(name).combine_chunks() for name in table.column_names}
    kind = column["kind"].cast(pa.int8()).view(pa.uint8())
    bits = pc.if_else(
        pc.equal(kind, pa.scalar(int(Kind.DOUBLE), pa.uint8())),
        column["double"].view(pa.int64()),
        column["long"],
    )
    tenants = column["tenant"].dictionary_encode()
    # The store's dictionaries hold more than these rows use: always the empty text.
    used = tenants.indices.unique()
    last = pc.greater_equal(column["version"], pa.scalar(1 << 63, pa.uint64()))
    names = tenants.dictionary.take(used).to_pylist()
    block = Block(policies=[PointPolicy(tenant) for tenant in names])
    for name, values in {
        "series": column["series"],
        "ts_ms": column["ts"].cast(pa.timestamp("ms", "UTC")).view(pa.int64()),
        "kind": kind,
        "bits": bits,
        "quality": pc.fill_null(column["quality"], NO_QUALITY),
        "rule": last.cast(pa.uint8()),
        "policy": pc.index_in(tenants.indices, used).cast(pa.uint16()),
        "version": column["version"],
    }.items():
        setattr(block, name, typed_array(values, getattr(block, name).typecode, values.type))
    rows = pc.indices_nonzero(pc.is_in(kind, _TEXT_CODES))
    block.adopt_texts(zip(rows.to_pylist(), column["text"].take(rows).to_pylist(), strict=True))
    for row, text in block.texts.items():
        block.bits[row] = bits_of(Kind.STRING, text)
    return block


def arrow_rows(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> Any:
    """Plain rows as a pyarrow.Table; `columns` maps a column's name to "string", "int64", "uint64",
    "int32" or "ms".
    """
    kinds = {"ms": pa.timestamp("ms", "UTC")}
    schema = pa.schema(
        [(name, kinds.get(kind) or pa.type_for_alias(kind)) for name, kind in columns.items()]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def concat(tables: Sequence[Any]) -> Any:
    """Tables of one shape as one, their dictionaries unified."""
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def month_batches(table: Any, months_max: int, column: str = "ts") -> list[Any]:
    """The table cut so that no piece touches more than `months_max` calendar months of `column`;
    rows keep their order.

    A month is a partition of the store; an insert that touches too many is refused as a whole.
    """
    if not table.num_rows or column not in table.column_names:
        return [table]
    ts = table.column(column)
    low, high = (pc.min_max(ts)[name].as_py() for name in ("min", "max"))
    if (high.year - low.year) * 12 + high.month - low.month < months_max:
        return [table]
    months = pc.add(pc.multiply(pc.year(ts), 12), pc.month(ts))
    distinct = pc.unique(months).sort()
    groups = [distinct.slice(start, months_max) for start in range(0, len(distinct), months_max)]
    return [table.filter(pc.is_in(months, group)) for group in groups]
