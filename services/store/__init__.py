"""Where it rests: `open_store(url)` gives ClickHouse behind `clickhouse://…` or the same engine in
process, `chdb:///…`.
"""

from __future__ import annotations

from services.errors import Broken
from services.store._port import RETAINED_MAX, Owned, Query, Store

__all__ = ["RETAINED_MAX", "Owned", "Query", "Store", "open_store"]


def open_store(url: str) -> Store:
    """The store behind `url`, not yet opened.

    `chdb:///path` (four slashes for an absolute path),
    `clickhouse://user:password@host:8123/database`, or `clickhouses://…` for TLS.
    """
    if url.partition("://")[0] in ("chdb", "clickhouse", "clickhouses"):
        from services.store.clickhouse import ClickHouseStore

        return ClickHouseStore(url)
    raise Broken(f"no store for {url.partition(':')[0]}://; known are chdb:/// and clickhouse://")
