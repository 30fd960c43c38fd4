"""The sinks that fill the store's tables: one for each of `schemas.tables`.

Records become rows by the table's own function and go in by month: a month is a partition, and the
engine refuses an insert of too many as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.envelope import Logged
from schemas.rows import month_batches
from schemas.tables import TABLES, Table
from services.errors import Malformed
from services.sinks._contract import Sink, Write
from services.store import Store

MONTHS_MAX = 64
"""Of one insert; ClickHouse's own limit (max_partitions_per_insert_block) is 100."""


def _into(table: Table) -> Write:
    async def write(store: Store, records: Sequence[Logged]) -> None:
        try:
            rows = table.rows(records)
        except (ValueError, TypeError, LookupError) as error:
            raise Malformed(f"{table.name}: {error}", code="NO_ROW") from error
        for piece in month_batches(rows, MONTHS_MAX, table.time):
            await store.insert(table.name, piece)

    return write


SINKS = tuple(Sink(table.name, table.topic, _into(table)) for table in TABLES)
