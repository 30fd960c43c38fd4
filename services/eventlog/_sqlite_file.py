"""The file of the embedded log: its tables, its transactions and its reading connections. The only
home of sqlite3.

One connection writes, and it alone moves the write-ahead log into the file, by its own hand and
after the acknowledgements; readers are opened read-only and end every statement they begin. That
keeps out SQLite's WAL-reset bug (3.7.0 to 3.51.2), which needs two connections that write or
checkpoint: https://sqlite.org/wal.html#walresetbug. Never carried across a fork, and the file is
never opened by other means (https://sqlite.org/howtocorrupt.html).

A record's place is one integer: topic (8 bits), lane (10), offset (43). One table holds the records
of all lanes in the order in which they came, so that a turn writes neighbouring pages; an index
finds each lane in one piece (as the table's own order it cost 2.7 times the pages, measured).
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from schemas.envelope import Envelope, Headers, Logged, decode
from services.errors import Broken, Unavailable
from services.eventlog._coalesce import LaneKey
from services.eventlog._port import Span

OFFSET_BITS, LANE_BITS = 43, 10
LANES_MAX, TOPICS_MAX = 1 << LANE_BITS, 1 << 8
FORMAT = "1"

WAL_BYTES_SOON = 8 * 1024 * 1024
"""Written bytes after which the write-ahead log is moved into the file."""
_WAL_BYTES_KEPT = 64 * 1024 * 1024
_WAL_BYTES_ALARM = 256 * 1024 * 1024
_READ_BYTES_MAX = 4 * 1024 * 1024
_ROWS_A_STATEMENT = 64
_LENGTH = Struct("<BI")
_log = logging.getLogger(__name__)

Statement = tuple[str, tuple[Any, ...]]

COMMIT = "INSERT OR REPLACE INTO committed VALUES (?, ?, ?, ?)"
CHECKPOINT = "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)"
NEW_TOPIC = "INSERT INTO topics VALUES (?, ?, ?)"
DELETE = "DELETE FROM records WHERE place >= ? AND place < ?"
DELETE_ONE = "DELETE FROM records WHERE place = ?"
SINCE = (
    "SELECT min(place) FROM (SELECT place FROM records"
    " WHERE place >= ? AND place < ? AND at_ms >= ? ORDER BY place LIMIT 1)"
)
SUPERSEDED = (
    "SELECT place FROM records WHERE place >= ? AND place < ? AND key IS NOT NULL AND place NOT IN"
    " (SELECT max(place) FROM records WHERE place >= ? AND place < ? AND key IS NOT NULL"
    " GROUP BY key) ORDER BY place"
)
FLOOR = "INSERT OR REPLACE INTO floors VALUES (?, ?)"
_TABLES = """
CREATE TABLE IF NOT EXISTS about(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS topics(
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, lanes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records(
    place INTEGER NOT NULL UNIQUE, at_ms INTEGER NOT NULL, key BLOB, headers BLOB NOT NULL,
    value BLOB);
CREATE TABLE IF NOT EXISTS floors(place INTEGER PRIMARY KEY, first INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS committed(
    "group" TEXT, topic TEXT, lane INTEGER, next_offset INTEGER NOT NULL,
    PRIMARY KEY ("group", topic, lane)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints(
    agent TEXT, lane INTEGER, slot INTEGER, state BLOB NOT NULL, last_offset INTEGER NOT NULL,
    epoch INTEGER NOT NULL, PRIMARY KEY (agent, lane, slot));
"""


class Row(NamedTuple):
    """A record as it lies in the file."""

    place: int
    at_ms: int
    key: bytes | None
    headers: bytes
    value: bytes


def base_of(topic_number: int, lane: int) -> int:
    """The place of a lane's offset 0."""
    return (topic_number << LANE_BITS | lane) << OFFSET_BITS


def pack_headers(headers: Headers) -> bytes:
    """Headers as one blob: for each its name and its value behind their lengths."""
    return b"".join(
        _LENGTH.pack(len(name), len(value)) + name.encode() + value for name, value in headers
    )


def unpack_headers(data: bytes) -> Headers:
    """The headers in a blob of `pack_headers`; what is cut short is left out."""
    headers, at = [], 0
    while at + _LENGTH.size <= len(data):
        name, value = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        headers.append(
            (data[at : at + name].decode(errors="replace"), data[at + name : at + name + value])
        )
        at += name + value
    return headers


class LogFile:
    """Opened once; then `write` and `tidy` belong to one thread, `read` and `query` to others."""

    def __init__(
        self, path: str, lanes: int, prefix: str, before_commit: Callable[[], None] | None
    ) -> None:
        self.path = Path(path).absolute()
        self.uuid = ""
        self.topics: dict[str, tuple[int, int]] = {}
        """Name (without the prefix) to number and count of lanes. Only the loop's thread adds."""
        self.topics_max = 0
        """Above the number of every topic in the file, whatever its prefix."""
        self._prefix = prefix
        self._lanes = lanes
        self._before_commit = before_commit
        self._lock: Any = None
        self._writer: sqlite3.Connection | None = None
        self._written_bytes = 0
        self._readers: list[sqlite3.Connection] = []
        self._local = threading.local()

    # -- life --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the file, make its tables where they are missing, read what it says of itself.

        Raises Broken where another process has it, where it has another number of lanes, or where
        it cannot be trusted (no locks, no WAL, no FULL).
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._acquire()
            self._read_about(self._connect())
        except sqlite3.Error as error:
            self.close()
            raise Broken(f"{self.path} cannot be opened: {error}") from error
        except Broken:
            self.close()
            raise
        _log.info(
            "event log %s: SQLite %s, %d lanes", self.path, sqlite3.sqlite_version, self._lanes
        )

    def _read_about(self, writer: sqlite3.Connection) -> None:
        writer.executescript(_TABLES)
        defaults = (("format", FORMAT), ("uuid", uuid.uuid4().hex), ("lanes", str(self._lanes)))
        writer.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", defaults)
        about = dict(writer.execute("SELECT name, value FROM about").fetchall())
        if about["format"] != FORMAT:
            raise Broken(f"{self.path} has format {about['format']}, this program writes {FORMAT}")
        if about["lanes"] != str(self._lanes):
            raise Broken(f"{self.path} has {about['lanes']} lanes, the settings say {self._lanes}")
        self.uuid = about["uuid"]
        for number, name, lanes in writer.execute("SELECT number, name, lanes FROM topics"):
            self.topics_max = max(self.topics_max, number + 1)
            if name.startswith(self._prefix):
                self.topics[name.removeprefix(self._prefix)] = (number, lanes)

    def _acquire(self) -> None:
        self._lock = self.path.with_name(self.path.name + ".lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Broken(f"{self.path} is open in another process") from None
        except OSError as error:
            raise Broken(f"{self.path} cannot be locked: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        writer = self._writer = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        (mode,) = writer.execute("PRAGMA journal_mode=WAL").fetchone()
        writer.execute("PRAGMA synchronous=FULL")
        (synchronous,) = writer.execute("PRAGMA synchronous").fetchone()
        if mode != "wal" or synchronous != 2:
            raise Broken(f"{self.path}: journal mode {mode}, synchronous {synchronous}")
        # The automatic checkpoint would delay an acknowledgement; `tidy` does it behind them.
        writer.execute("PRAGMA wal_autocheckpoint=0")
        writer.execute(f"PRAGMA journal_size_limit={_WAL_BYTES_KEPT}")
        writer.execute("PRAGMA secure_delete=OFF")
        writer.execute("PRAGMA cache_size=-16384")
        return writer

    def close(self) -> None:
        """Close everything; the writer last, because it moves the write-ahead log into the file."""
        while self._readers:
            self._readers.pop().close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def committed(self) -> dict[str, dict[LaneKey, int]]:
        """For each group (without the prefix) the next offset of each lane. Raises Unavailable."""
        groups: dict[str, dict[LaneKey, int]] = {}
        for group, topic, lane, offset in self.query("SELECT * FROM committed"):
            if group.startswith(self._prefix) and topic.startswith(self._prefix):
                lanes = groups.setdefault(group.removeprefix(self._prefix), {})
                lanes[topic.removeprefix(self._prefix), lane] = offset
        return groups

    # -- the writing thread ------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether the writing connection is there; a failure closes it."""
        return self._writer is not None

    def reopen(self) -> None:
        """A new writing connection after a failure. Raises Unavailable."""
        try:
            self._connect()
        except (sqlite3.Error, Broken) as error:
            self._drop()
            raise Unavailable(f"the event log cannot be opened: {error}") from error

    def write(self, rows: Sequence[Row], statements: Sequence[Statement]) -> list[int]:
        """One transaction, durable when it returns; how many rows each of the statements touched.

        Raises Unavailable: nothing of it is known to be there. The connection is closed then,
        because after a failed sync it must not be trusted.
        """
        writer = self._writer
        if writer is None:
            raise Unavailable("the event log is closed")
        try:
            writer.execute("BEGIN IMMEDIATE")
            # Few large statements: each one gives the interpreter away and has to get it back.
            for start in range(0, len(rows), _ROWS_A_STATEMENT):
                some = rows[start : start + _ROWS_A_STATEMENT]
                values = ", ".join(["(?, ?, ?, ?, ?)"] * len(some))
                writer.execute(f"INSERT INTO records VALUES {values}", [v for r in some for v in r])
            touched = [writer.execute(sql, values).rowcount for sql, values in statements]
            if self._before_commit is not None:
                self._before_commit()
            writer.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._drop()
            raise Unavailable(f"the event log cannot be written: {error}") from error
        self._written_bytes += sum(len(row.value) + len(row.headers) + 4096 for row in rows)
        blobs = (v for _, values in statements for v in values if isinstance(v, bytes))
        self._written_bytes += sum(map(len, blobs)) + 4096 * len(statements)
        return touched

    def _drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except sqlite3.Error as error:
                _log.warning("event log %s: closing after a failure: %s", self.path, error)

    def tidy(self) -> None:
        """Move the write-ahead log into the file if enough was written since the last time."""
        if self._writer is None or self._written_bytes < WAL_BYTES_SOON:
            return
        self._written_bytes = 0
        try:
            _, pages, _ = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            (page_bytes,) = self._writer.execute("PRAGMA page_size").fetchone()
        except sqlite3.Error as error:
            # The records are durable in the write-ahead log; the next turn finds a new connection.
            _log.warning("event log %s: checkpoint of the WAL failed: %s", self.path, error)
            self._drop()
            return
        if pages * page_bytes > _WAL_BYTES_ALARM:
            _log.warning(
                "event log %s: the WAL has grown to %d bytes", self.path, pages * page_bytes
            )

    # -- reading threads ---------------------------------------------------------------------------

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a small query. Raises Unavailable."""
        try:
            return self._reading().execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise Unavailable(f"the event log cannot be read: {error}") from error

    def read(self, base: int, offset: int, end: int, records_max: int) -> list[Logged]:
        """Records of a lane from `offset` to `end` (exclusive), decoded: the first `records_max` or
        some MiB. Raises Unavailable.
        """
        sql = (
            "SELECT place, key, headers, value FROM records"
            " WHERE place >= ? AND place < ? ORDER BY place LIMIT ?"
        )
        rows: list[tuple[Any, ...]] = []
        size = 0
        try:
            cursor = self._reading().execute(sql, (base + offset, base + end, records_max))
            for row in cursor:
                rows.append(row)
                size += len(row[3] or b"")
                if size > _READ_BYTES_MAX:
                    break
            cursor.close()
        except sqlite3.Error as error:
            raise Unavailable(f"the event log cannot be read: {error}") from error
        return [_logged(place - base, key, headers, value) for place, key, headers, value in rows]

    def spans(self) -> Mapping[LaneKey, Span]:
        """What every lane of every topic holds. Raises Unavailable."""
        floors = dict(self.query("SELECT place, first FROM floors"))
        spans = {}
        for name, (number, lanes) in list(self.topics.items()):
            for lane in range(lanes):
                base = base_of(number, lane)
                sql = "SELECT max(place) FROM records WHERE place >= ? AND place < ?"
                [(last,)] = self.query(sql, (base, base_of(number, lane + 1)))
                first = floors.get(base, 0)
                spans[name, lane] = Span(first, first if last is None else last - base + 1)
        return spans

    def _reading(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._local.connection = connection
            self._readers.append(connection)
        return connection


def _logged(offset: int, key: bytes | None, headers: bytes, value: bytes | None) -> Logged:
    envelope = decode(value, unpack_headers(headers))
    if isinstance(envelope, Envelope):
        envelope.key = key
    return Logged(offset, envelope)
