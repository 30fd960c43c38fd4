"""Brings the store's tables up to what this version needs: `schemas/migrations`, in order.

A file is `NNNN_name.sql`, numbered without gaps. What was applied stands in the table `migrations`
with its checksum: a file that was changed afterwards stops the start, because nobody can say what
the tables are like then. A crash between a file and its row applies the file again, so every
statement says IF [NOT] EXISTS. A name that stands there and has no file was applied by a newer
version and is passed over: versions run side by side while one replaces the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from typing import Any, Protocol

from services.errors import Broken

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
      | (?P<quoted>'(?:\\.|''|[^'\\])*'|`(?:\\.|[^`\\])*`|"(?:\\.|[^"\\])*")
      | (?P<end>;)
      | (?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_TABLE = """
CREATE TABLE IF NOT EXISTS migrations (
    name     String,
    checksum String COMMENT 'SHA-256 of the file',
    applied  DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY name
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
"""


class Commands(Protocol):
    """What a migration needs of the engine's client."""

    def command(
        self, cmd: str, parameters: Mapping[str, Any] | None = None, *, use_database: bool = True
    ) -> object:
        """Execute one statement."""
        ...

    def query(self, query: str) -> Any:
        """Execute a SELECT; the answer's `result_rows` holds the rows."""
        ...


def migrations() -> dict[str, str]:
    """Name to text of every migration, in order. Raises Broken where the numbers have a gap."""
    folder = files("schemas") / "migrations"
    found = {
        file.name: file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".sql")
    }
    for number, name in enumerate(found, start=1):
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) != number:
            raise Broken(f"migrations: {name} is not number {number} of the form NNNN_name.sql")
    return found


def split(sql: str) -> list[str]:
    """The statements of a file, without comments; semicolons in quotes and comments end none."""
    parts, current = [], ""
    for token in _TOKEN.finditer(sql):
        if token.lastgroup == "end":
            parts.append(current.strip())
            current = ""
        else:
            current += " " if token.lastgroup == "comment" else token[0]
    parts.append(current.strip())
    return [part for part in parts if part]


def apply(client: Commands, database: str, texts: Mapping[str, str]) -> list[str]:
    """Apply what is missing of `texts` (name to SQL); the names applied. Raises Broken."""
    client.command(f"CREATE DATABASE IF NOT EXISTS {quoted(database)}", use_database=False)
    client.command(_TABLE)
    rows: Sequence[tuple[str, str]] = client.query(
        "SELECT name, checksum FROM migrations FINAL"
    ).result_rows
    checksums = dict(rows)
    applied = []
    for name, text in texts.items():
        checksum = sha256(text.encode()).hexdigest()
        if name in checksums:
            if checksums[name] != checksum:
                raise Broken(f"migrations: {name} was changed after it had been applied")
            continue
        for statement in split(text):
            client.command(statement)
        client.command(
            "INSERT INTO migrations (name, checksum) SELECT {name:String}, {checksum:String}",
            {"name": name, "checksum": checksum},
        )
        applied.append(name)
    return applied


def quoted(identifier: str) -> str:
    """An identifier as it stands in SQL."""
    escaped = identifier.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"
