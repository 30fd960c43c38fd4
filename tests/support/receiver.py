"""A receiver of webhooks in this process: an HTTP server that notes what it is called with and
answers as it is told. And a signature as somebody else would verify it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request; header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The message's id."""
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        """The body, decoded."""
        return dict(json.loads(self.body))

    def is_signed_with(self, secret: str) -> bool:
        """Verified as the specification says it, with nothing of ours."""
        key = base64.b64decode(secret.split("_", 1)[1])
        content = b".".join(
            (self.id.encode(), self.headers["webhook-timestamp"].encode(), self.body)
        )
        made = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        offered = [each.split(",", 1) for each in self.headers["webhook-signature"].split(" ")]
        return ["v1", made] in offered


@dataclass
class Receiver:
    """`answer` gives the status for a call (or the whole answer as bytes); `gate` holds answers
    back while it is clear. `most` is how many calls of one path were under way at a time.
    """

    url: str = ""
    answer: Callable[[Call], int | bytes] = lambda call: 204
    calls: list[Call] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    most: dict[str, int] = field(default_factory=dict)
    _under_way: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ids(self) -> list[str]:
        """The ids of the calls, in their order."""
        return [call.id for call in self.calls]

    def take(self, call: Call) -> int | bytes:
        """Note a call; what to answer."""
        with self._lock:
            self.calls.append(call)
            count = self._under_way[call.path] = self._under_way.get(call.path, 0) + 1
            self.most[call.path] = max(self.most.get(call.path, 0), count)
            said = self.answer(call)
        self.gate.wait(30)
        with self._lock:
            self._under_way[call.path] -= 1
        return said


@contextmanager
def receiving(trust: ssl.SSLContext | None = None, *, port: int = 0) -> Iterator[Receiver]:
    """A receiver on 127.0.0.1; with `trust` (a server's context) over TLS."""
    receiver = Receiver()
    receiver.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Take a webhook."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            said = receiver.take(Call(self.path, headers, body))
            if isinstance(said, bytes):
                self.wfile.write(said)
                return
            self.send_response(said)
            if 300 <= said < 400:
                self.send_header("Location", f"{receiver.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A caller that has gone away is none of the receiver's business."""

    server = Server(("127.0.0.1", port), Handler)
    if trust:
        server.socket = trust.wrap_socket(server.socket, server_side=True)
    scheme = "https" if trust else "http"
    receiver.url = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
