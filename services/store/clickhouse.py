"""The store on ClickHouse, a server or chDB, the same engine in this process: one client for both.

clickhouse-connect is blocking, so its calls run in threads that the store owns, each with a client
of its own: one that writes, one that retains, a few that read. A client opens when its thread first
needs it, so a server that is away is an error of the call and not of the start. Inserts go as
Arrow, answers come as Arrow; no value becomes a Python object on the way.

Durable means: the tables say `fsync_after_insert`, and inserts are never asynchronous
(`async_insert=0`; the engine's default is to gather them in memory). Nothing here tries again: an
error is told apart by what the caller shall do, and the caller repeats the same rows.
https://clickhouse.com/docs/integrations/python, https://clickhouse.com/docs/chdb
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from clickhouse_connect import common, create_client
from clickhouse_connect.driver.exceptions import ClickHouseError, ProgrammingError

from schemas.blocks import Block
from schemas.rows import block_of_rows
from services.errors import Broken, Malformed, PipelineError, Unavailable
from services.store import _retention, migrate
from services.store._port import Owned, Query
from services.store._sql import Statement, statements

T = TypeVar("T")

EPOCH_MAX = 254
"""255 stands for repairs by hand and 0 for histories from elsewhere; a log's life gets neither."""

# A session would make two calls of one client exclude one another.
common.set_setting("autogenerate_session_id", False)

_INSERT = {
    "async_insert": 0,
    "insert_deduplicate": 0,
    # Without it a NULL in a key or a version is silently stored as zero.
    "input_format_null_as_default": 0,
}
_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 60
_READERS, _READERS_EMBEDDED = 4, 2

_ROWS_AT_FAULT = {
    6: "CANNOT_PARSE_TEXT",
    27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
    38: "CANNOT_PARSE_DATE",
    41: "CANNOT_PARSE_DATETIME",
    43: "ILLEGAL_TYPE_OF_ARGUMENT",
    50: "UNKNOWN_TYPE",
    53: "TYPE_MISMATCH",
    69: "ARGUMENT_OUT_OF_BOUND",
    70: "CANNOT_CONVERT_TYPE",
    72: "CANNOT_PARSE_NUMBER",
    117: "INCORRECT_DATA",
    131: "TOO_LARGE_STRING_SIZE",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    407: "DECIMAL_OVERFLOW",
    467: "CANNOT_PARSE_BOOL",
    469: "VIOLATED_CONSTRAINT",
    691: "UNKNOWN_ELEMENT_OF_ENUM",
}
"""The engine's codes that only the rows can cause: the same rows will never go in.

Every other code is the world's (disk 243, memory 241, parts 252, read-only 242, a table 60 or a
column 16 that a migration has yet to make, the wrong password 516, what a later version adds): what
is tried again for ever is noticed and mended, and what is set aside may not be.
"""
_OURS_AT_FAULT = {46: "UNKNOWN_FUNCTION", 62: "SYNTAX_ERROR"}
"""Codes that say that a statement of ours is wrong."""
_TOO_MANY_PARTS, _TOO_MANY_MONTHS = 252, "Too many partitions for single INSERT block"
"""One code, two cases: a table with too many parts (wait), rows of too many months (cut them)."""


class ClickHouseStore:
    """See `services.store._port.Store`.

    `url`: `clickhouse://user:password@host:8123/database` (`clickhouses://` for TLS), or
    `chdb:///path?database=name`; the database is `default` where none is named. One process at a
    time can have a chDB path open, and a process can have one path open at a time.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self._path: Path | None = None
        if scheme == "chdb":
            path, _, options = rest.removeprefix("/").partition("?")
            self._path = Path(path).absolute()
            self._database = parse_qs(options).get("database", ["default"])[0]
            self._options: dict[str, Any] = {"interface": "chdb", "path": str(self._path)}
        else:
            at = urlsplit(url)
            self._database = unquote(at.path.strip("/")) or "default"
            self._options = {
                "interface": "https" if scheme == "clickhouses" else "http",
                "host": at.hostname or "localhost",
                "port": at.port or (8443 if scheme == "clickhouses" else 8123),
                "username": unquote(at.username or "default"),
                "password": unquote(at.password or ""),
                "connect_timeout": _CONNECT_SECONDS,
                "send_receive_timeout": _ANSWER_SECONDS,
                "query_retries": 0,
                "dedicated_pool": True,
            }
        self._writer = _Desk("store-write", 1, self._connect)
        self._keeper = _Desk("store-keep", 1, self._connect)
        readers = _READERS if self._path is None else _READERS_EMBEDDED
        self._readers = _Desk("store-read", readers, self._connect)
        self._tempdir_before = tempfile.tempdir
        self._handover: int | None = None

    async def __aenter__(self) -> Self:
        if self._path is not None:
            self._prepare(self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        # In threads, because a call that is under way is waited for.
        await asyncio.to_thread(self._writer.close)
        await asyncio.to_thread(self._keeper.close)
        await asyncio.to_thread(self._readers.close)
        if self._handover is not None:
            tempfile.tempdir = self._tempdir_before
            os.close(self._handover)
            self._handover = None

    async def insert(self, table: str, rows: Any) -> None:
        """Write a pyarrow.Table; durable when it returns. Raises Unavailable or Malformed."""
        if rows.num_rows:
            await self._writer.run(
                lambda client: client.insert_arrow(table, rows, settings=_INSERT)
            )

    async def fetch(self, query: Query) -> Block:
        """The answer as a block with versions. Raises Unavailable."""
        asked = [self._readers.run(_reading(statement)) for statement in statements(query)]
        answers = await asyncio.gather(*asked)
        return answers[0] if len(answers) == 1 else Block.join(answers)

    async def migrate(self) -> list[str]:
        """Apply the migrations that are missing; their names. Raises Unavailable, Broken."""
        texts = migrate.migrations()
        return await self._writer.run(lambda client: migrate.apply(client, self._database, texts))

    async def register_epoch(self, topic: str, incarnation: str) -> int:
        """The epoch of this life of the topic. Lives follow one another: two processes may register
        the same one at a time, never two different ones.
        """
        return await self._writer.run(lambda client: _register(client, topic, incarnation))

    async def stored_marks(self, topic: str, epoch: int) -> dict[int, int]:
        """Highest stored offset of each lane of the judged topic in this epoch."""
        found = await self.rows(
            "SELECT lane, max(received) FROM lane_marks"
            " WHERE topic = {topic:String} AND epoch = {epoch:UInt8} GROUP BY lane",
            {"topic": topic, "epoch": epoch},
        )
        return {int(lane): int(received) for lane, received in found}

    async def retain(self, periods: Mapping[Owned, int]) -> dict[Owned, int]:
        """Begin to have the stored rows of each series expire so many ms after their time. Raises
        Unavailable.
        """
        if not periods:
            return {}
        return await self._keeper.run(lambda client: _retain(client, periods))

    async def retaining(self) -> int:
        """How many rewrites that `retain` began are not over. Raises Unavailable."""
        [[count, failure]] = await self._keeper.run(
            lambda client: _rows(client, _retention.OPEN, {})
        )
        if failure:
            raise Unavailable(f"store: a rewrite of samples does not get on: {failure}")
        return int(count)

    async def retained(self) -> list[Owned]:
        """Every series that has, or once had, rows that expire."""
        found = await self._keeper.run(lambda client: _rows(client, _retention.RETAINED, {}))
        return [(str(tenant), int(series)) for tenant, series in found]

    async def rows(
        self, sql: str, parameters: dict[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """Rows of a query, with bound parameters."""
        return await self._readers.run(lambda client: _rows(client, sql, parameters or {}))

    def _connect(self) -> Any:
        client = create_client(**self._options)
        # Not named while connecting: the database may be one that the migration has yet to make.
        client.database = self._database
        return client

    def _prepare(self, path: Path) -> None:
        # The client hands rows to chDB in a temporary file. They lie beside the engine's folder, on
        # the same disk, and what a crash left of them is cleared here: by the one who has the
        # folder, for another process that tried the same path may be writing in it.
        handover = path.with_name(f"{path.name}-inserts")
        try:
            path.mkdir(parents=True, exist_ok=True)
            handover.mkdir(exist_ok=True)
            self._handover = os.open(handover, os.O_RDONLY | os.O_DIRECTORY)
            if _taken(self._handover):
                for left in handover.glob("tmp*.raw"):
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise Broken(f"store: {path}: {error}") from error
        tempfile.tempdir = str(handover)


class _Desk:
    """Threads with a client each. A client is only ever used by its thread."""

    def __init__(self, name: str, threads: int, connect: Callable[[], Any]) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._connect = connect
        self._own = threading.local()
        self._clients: list[Any] = []

    async def run(self, work: Callable[[Any], T]) -> T:
        """The result of `work(client)`, done in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, work)

    def close(self) -> None:
        """Wait for what is under way, then close the clients."""
        self._threads.shutdown(cancel_futures=True)
        while self._clients:
            self._clients.pop().close()

    def _call(self, work: Callable[[Any], T]) -> T:
        try:
            if (client := getattr(self._own, "client", None)) is None:
                client = self._own.client = self._connect()
                self._clients.append(client)
            return work(client)
        except ClickHouseError as error:
            raise told_apart(error) from error
        except OSError as error:
            raise Unavailable(f"store: {error}") from error


def _taken(folder: int) -> bool:
    """Whether this process has the open folder to itself now, until it closes it or ends."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def told_apart(error: ClickHouseError) -> PipelineError:
    """What the caller shall do about an error of the client or the engine."""
    code, text = getattr(error, "code", None), f"store: {error}"
    if code in _OURS_AT_FAULT or (code is None and isinstance(error, ProgrammingError)):
        return Broken(text)
    if code in _ROWS_AT_FAULT or (code == _TOO_MANY_PARTS and _TOO_MANY_MONTHS in text):
        return Malformed(text, code=_ROWS_AT_FAULT.get(code, "TOO_MANY_MONTHS"))
    return Unavailable(text)


def _reading(statement: Statement) -> Callable[[Any], Block]:
    def read(client: Any) -> Block:
        data = client.raw_query(statement.sql, statement.parameters, fmt="ArrowStream")
        return block_of_rows(data)

    return read


def _rows(client: Any, sql: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
    rows: Sequence[Sequence[Any]] = client.query(sql, parameters).result_rows
    return rows


def _retain(client: Any, periods: Mapping[Owned, int]) -> dict[Owned, int]:
    asked = _retention.different(periods)
    counts: dict[Owned, int] = {}
    seen_ms: dict[Owned, int] = {}
    unknown: dict[Owned, int] = {}
    for tenant, series, count, newest_ms, for_ever in _rows(client, asked.sql, asked.parameters):
        owned = (tenant, int(series))
        counts[owned], seen_ms[owned] = int(count), int(newest_ms)
        if for_ever:
            unknown[owned] = periods[owned]
    if unknown:
        outliving = _retention.outliving(unknown)
        client.command(outliving.sql, outliving.parameters)
    if counts:
        changed = {owned: periods[owned] for owned in counts}
        rewriting = _retention.rewriting(changed, seen_ms)
        client.command(rewriting.sql, rewriting.parameters)
    return counts


def _register(client: Any, topic: str, incarnation: str) -> int:
    known = "SELECT incarnation, epoch FROM log_epochs FINAL WHERE topic = {topic:String}"
    epochs = {life: int(epoch) for life, epoch in _rows(client, known, {"topic": topic})}
    if incarnation in epochs:
        return epochs[incarnation]
    epoch = max(epochs.values(), default=0) + 1
    if epoch > EPOCH_MAX:
        raise Broken(
            f"store: {topic} was made anew {EPOCH_MAX} times; a version has no room for more"
        )
    client.command(
        "INSERT INTO log_epochs (topic, incarnation, epoch)"
        " SELECT {topic:String}, {incarnation:String}, {epoch:UInt8}",
        {"topic": topic, "incarnation": incarnation, "epoch": epoch},
    )
    return epoch
