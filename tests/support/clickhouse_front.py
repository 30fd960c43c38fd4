"""ClickHouse's HTTP interface in a process of its own, with chDB as the engine behind it.

Stands in for the server's image where there is none: real SQL, the real client, real requests over
a real socket. It serves what clickhouse-connect uses: /ping, statements in the URL and in the body,
a multipart form for long parameters, bound parameters, settings and database as URL parameters,
inserts in any format, compressed bodies both ways, user and password, the headers of results and of
errors. The data pass through it as bytes. What it has acknowledged is as durable as the engine
makes it, so it may be killed and started again on its folder.
https://clickhouse.com/docs/interfaces/http

    python -m tests.support.clickhouse_front --path DIR [--port 0] [--host 127.0.0.1]

prints its address when it is ready. User, password and database also come from the variables of
ClickHouse's image: CLICKHOUSE_USER, CLICKHOUSE_PASSWORD, CLICKHOUSE_DB.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import os
import re
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb
import cramjam

FORM_FIELD_BYTES_MAX = 128 * 1024
"""The server's `http_max_field_value_size`."""
_NO_SETTINGS = frozenset(
    (
        *("query", "database", "user", "password", "role", "quota_key", "query_id"),
        *("session_id", "session_timeout", "session_check", "default_format"),
        *("compress", "decompress", "enable_http_compression", "client_protocol_version"),
        *("buffer_size", "wait_end_of_query", "send_progress_in_http_headers"),
        "http_headers_progress_interval_ms",
    )
)
_INSERT = re.compile(rb"\s*(INSERT\s+INTO\s.+?)\s+FORMAT\s+(\w+)[ \t]*(?:\r?\n|$)", re.I | re.S)
_FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_NAME = re.compile(r"\w+")
_CODE = re.compile(r"\bCode:\s*(\d+)")
_NOT_FOUND, _UNAUTHORIZED, _SYNTAX = {60, 81}, 516, 62
_CODECS = {"lz4": cramjam.lz4, "zstd": cramjam.zstd, "gzip": cramjam.gzip}


class Refusal(Exception):
    """An error of the server itself, with ClickHouse's code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}")


@dataclass(slots=True)
class Call:
    """One request, taken apart."""

    statement: bytes
    data: bytes | None
    database: str
    fmt: str
    settings: dict[str, str] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)


def taken_apart(fields: Mapping[str, str], body: bytes, database: str) -> Call:
    """The call behind the URL's (and a form's) fields and the body.

    As in the server, the statement is the URL's `query` followed by the body.
    """
    head = fields.get("query", "").encode()
    data: bytes | None = None
    if insert := _INSERT.match(head or body):
        statement, data = insert[0].strip(), body if head else body[insert.end() :]
    else:
        statement = head + b"\n" + body if head and body else head or body
    return Call(
        statement,
        data,
        fields.get("database") or fields.get("X-ClickHouse-Database") or database,
        fields.get("default_format", "TabSeparated"),
        {
            name: value
            for name, value in fields.items()
            if name not in _NO_SETTINGS and not name.startswith(("param_", "X-"))
        },
        {
            name.removeprefix("param_"): value
            for name, value in fields.items()
            if name.startswith("param_")
        },
    )


class Engine:
    """chDB on one folder. Every call has a handle of its own, so that settings and database of one
    are not another's.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = str(path)
        self._bodies = path.with_name(f"{path.name}-bodies")
        self._bodies.mkdir(exist_ok=True)
        # Keeps the engine open between calls.
        self._anchor = chdb.connect(self._path)

    def close(self) -> None:
        """Let go of the folder."""
        self._anchor.close()

    def execute(self, call: Call) -> tuple[bytes, str, dict[str, str]]:
        """(answer, its format or "" where there is no result, summary)."""
        handle = chdb.connect(self._path)
        try:
            handle.query(f"USE {_quoted(call.database, '`')}", "TSV")
            for name, value in call.settings.items():
                if not _NAME.fullmatch(name):
                    raise Refusal(115, f"Unknown setting {name}. (UNKNOWN_SETTING)")
                handle.query(f"SET {name} = {_quoted(value, chr(39))}", "TSV")
            if call.data is not None:
                return self._insert(handle, call, call.data)
            return _answer(handle, call)
        finally:
            handle.close()

    def _insert(self, handle: Any, call: Call, data: bytes) -> tuple[bytes, str, dict[str, str]]:
        insert = _INSERT.match(call.statement)
        assert insert is not None
        with tempfile.NamedTemporaryFile(dir=self._bodies) as body:
            body.write(data)
            body.flush()
            source = _quoted(body.name, "'").encode()
            result = handle.query(insert[1] + b" FROM INFILE " + source + b" FORMAT " + insert[2])
        written = {"written_rows": str(result.rows_read()), "written_bytes": str(len(data))}
        return b"", "", written


def _answer(handle: Any, call: Call) -> tuple[bytes, str, dict[str, str]]:
    asked = _FORMAT.search(call.statement)
    if asked or call.fmt != "TabSeparated":
        fmt = asked[1].decode() if asked else call.fmt
        result = handle.query(call.statement, fmt, params=call.bound)
        return result.bytes(), fmt, _read(result)
    # A statement that has a result has a line of names, even without rows; others have nothing.
    result = handle.query(call.statement, "TabSeparatedWithNames", params=call.bound)
    names, _, rows = result.bytes().partition(b"\n")
    return rows, "TabSeparated" if names else "", _read(result)


def _read(result: Any) -> dict[str, str]:
    return {"read_rows": str(result.rows_read()), "read_bytes": str(result.bytes_read())}


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


class Front(ThreadingHTTPServer):
    """The listener and what its handlers share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], engine: Engine, user: str, password: str) -> None:
        super().__init__(address, Handler)
        self.engine, self.user, self.password = engine, user, password
        self.database = "default"


class Handler(BaseHTTPRequestHandler):
    """One connection; requests follow one another on it."""

    server: Front
    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; Nagle's algorithm would hold the second one back.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/ping":
            self._send(200, b"Ok.\n", {})
        else:
            self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            fields = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            self._check_user(fields)
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/form-data"):
                fields |= _form(kind, body)
                body = b""
            body = _unpacked(body, self.headers.get("Content-Encoding", ""))
            call = taken_apart(fields, body, self.server.database)
            answer, fmt, summary = self.server.engine.execute(call)
        except (Refusal, RuntimeError, ValueError) as error:
            self._send_error(str(error))
            return
        headers = {
            "X-ClickHouse-Summary": json.dumps(summary),
            "X-ClickHouse-Query-Id": fields.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Server-Display-Name": "chdb",
        }
        if fmt:
            headers["X-ClickHouse-Format"] = fmt
        if fields.get("enable_http_compression") == "1":
            accepted = [name.strip() for name in self.headers.get("Accept-Encoding", "").split(",")]
            if codec := next((name for name in accepted if name in _CODECS), None):
                answer = bytes(_CODECS[codec].compress(answer))
                headers["Content-Encoding"] = codec
        self._send(200, answer, headers)

    def _check_user(self, fields: Mapping[str, str]) -> None:
        user, password = fields.get("user", "default"), fields.get("password", "")
        scheme, _, secret = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            user, _, password = base64.b64decode(secret).decode().partition(":")
        elif "X-ClickHouse-User" in self.headers:
            user = self.headers["X-ClickHouse-User"]
            password = self.headers.get("X-ClickHouse-Key", "")
        expected = (self.server.user, self.server.password)
        if not all(
            hmac.compare_digest(given.encode(), known.encode())
            for given, known in zip((user, password), expected, strict=True)
        ):
            message = (
                f"{user}: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)"
            )
            raise Refusal(_UNAUTHORIZED, message)

    def _send_error(self, message: str) -> None:
        match = _CODE.search(message)
        code = int(match[1]) if match else 1001
        statuses = {_UNAUTHORIZED: 403, _SYNTAX: 400} | dict.fromkeys(_NOT_FOUND, 404)
        headers = {"X-ClickHouse-Exception-Code": str(code)}
        self._send(statuses.get(code, 500), message.encode() + b"\n", headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def _form(kind: str, body: bytes) -> dict[str, str]:
    fields = {}
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    for part in message.walk():
        if name := part.get_param("name", header="Content-Disposition"):
            value = part.get_payload(decode=True)
            assert isinstance(value, bytes)
            if len(value) > FORM_FIELD_BYTES_MAX:
                raise Refusal(
                    1000, f"Poco::Exception. Field value too long: {name}. (POCO_EXCEPTION)"
                )
            fields[str(name)] = value.decode()
    return fields


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding not in _CODECS:
        raise Refusal(1, f"Unknown Content-Encoding {encoding}. (UNSUPPORTED_METHOD)")
    return bytes(_CODECS[encoding].decompress(body))


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    env = os.environ
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default=env.get("CLICKHOUSE_USER", "default"))
    parser.add_argument("--password", default=env.get("CLICKHOUSE_PASSWORD", ""))
    parser.add_argument("--database", default=env.get("CLICKHOUSE_DB", ""))
    given = parser.parse_args()
    engine = Engine(given.path.absolute())
    if given.database:
        create = f"CREATE DATABASE IF NOT EXISTS {_quoted(given.database, '`')}"
        engine.execute(Call(create.encode(), None, "default", "TabSeparated"))
    front = Front((given.host, given.port), engine, given.user, given.password)
    for number in (signal.SIGTERM, signal.SIGINT):
        # `shutdown` waits for the loop that this handler has interrupted.
        signal.signal(number, lambda *_: threading.Thread(target=front.shutdown).start())
    sys.stdout.write(f"http://{given.host}:{front.server_address[1]}\n")
    sys.stdout.flush()
    front.serve_forever()
    front.server_close()
    engine.close()


_Raw = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
