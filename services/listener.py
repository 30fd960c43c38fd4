"""An HTTP port of a process: Granian in the process's own loop, and the certificate it presents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from granian.constants import Interfaces
from granian.server.common import SSLProtocols
from granian.server.embed import Server

from services.errors import Broken

Asgi = Callable[..., Any]

_logger = logging.getLogger(__name__)


class Tls:
    """The certificate of the listeners; re-read when its file changes, for connections made from
    then on.
    """

    def __init__(self, cert: str, key: str) -> None:
        self.cert, self.key = Path(cert), Path(key)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen: tuple[int, ...] = ()
        self.reload()

    def changed(self) -> bool:
        """Whether the files are others than those last read."""
        return self._stamps() != self._seen

    def reload(self) -> None:
        """Read the files. Raises Broken with the reason where they cannot be used."""
        stamps = self._stamps()
        try:
            self.context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise Broken(f"LINESHAFT_TLS_CERT: {self.cert}: {error}") from error
        self._seen = stamps

    def _stamps(self) -> tuple[int, ...]:
        try:
            return tuple(path.stat().st_mtime_ns for path in (self.cert, self.key))
        except OSError:
            return ()


class Listener:
    """One HTTP port, served by Granian in this loop."""

    def __init__(self, app: Asgi, host: str, port: int, tls: Tls | None) -> None:
        self._app, self._host, self._tls = app, host, tls
        self.port = port or _free_port(host)
        self._serving: asyncio.Task[None] | None = None
        self._server: Any = None

    @property
    def address(self) -> str:
        """Where it listens."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{netloc(self._host, self.port)}"

    async def start(self) -> None:
        """Listen; returns when connections are taken. Raises Broken where the port is not to be
        had.
        """
        _check_free(self._host, self.port)
        self._server = Server(
            self._app,
            address=self._host,
            port=self.port,
            interface=Interfaces.ASGINL,
            log_enabled=False,
            websockets=True,
            backlog=1024,
            backpressure=4096,
            ssl_cert=self._tls.cert if self._tls else None,
            ssl_key=self._tls.key if self._tls else None,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._serving = asyncio.create_task(self._server.serve(), name="http")
        for _ in range(200):
            if self._serving.done() or await _answers(self._host, self.port):
                break
            await asyncio.sleep(0.025)
        if self._serving.done():
            raise Broken(f"no listener on {self._host}:{self.port}")

    async def stop(self) -> None:
        """Finish what is under way, then close."""
        if self._server and self._serving:
            self._server.stop()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(10):
                    await self._serving

    async def watch(self, stop: asyncio.Event) -> None:
        """Until `stop`: take a changed certificate into use without a restart of the process.
        Raises Broken where the server has ended by itself: nobody would come in any more.
        """
        assert self._serving is not None
        while not stop.is_set():
            await asyncio.wait({self._serving}, timeout=1)
            if self._serving.done() and not stop.is_set():
                raise Broken(f"{self.address} is not served any more")
            if self._tls and self._tls.changed():
                self._take_certificate(self._tls)

    def _take_certificate(self, tls: Tls) -> None:
        try:
            tls.reload()
        except Broken as error:
            _logger.error("the new certificate cannot be used: %s", error)
            return
        self._server.reload()
        _logger.info("new certificate in use")


def netloc(host: str, port: int) -> str:
    """Host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _probe(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def _free_port(host: str) -> int:
    with _probe(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_free(host: str, port: int) -> None:
    with _probe(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Broken(f"{host}:{port} cannot be listened on: {error.strerror}") from error


async def _answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True
