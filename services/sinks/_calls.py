"""One call of a webhook: a POST over a connection of its own, to an address that was looked at.

Nothing is kept between calls: no connection (a pool keeps them by address, and would send what is
for one name over TLS that was verified for another), no cookie, no proxy of the environment. Of the
answer only the status counts; redirects are an answer like any other. HTTP/1.1, RFC 9112.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.sinks._addresses import Target, is_public, target_of

_HEAD_BYTES_MAX = 16 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?:[ \r\n]|$)")
GONE = 410

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the addresses behind them. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: `problem` in words, empty where it was taken (2xx). `final` says that
    trying again is of no use.
    """

    problem: str = ""
    final: bool = False


class Caller:
    """Makes calls, each within `seconds_max`. `private` lets them go to any address; `trust` is for
    the endpoints' certificates (default: the machine's). Names are resolved in `threads` threads.
    """

    def __init__(
        self,
        *,
        seconds_max: float,
        private: bool,
        threads: int,
        resolve: Resolve | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._seconds_max, self._private = seconds_max, private
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="webhook-dns")
        self._resolve = resolve or self._look_up
        self._trust = trust or ssl.create_default_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a body (ASCII headers beside the usual ones), and what came of it."""
        try:
            target = target_of(url)
        except ValueError as error:
            return Answer(f"refused: {error}", final=True)
        try:
            async with asyncio.timeout(self._seconds_max):
                addresses = await self._resolve(target.host, target.port)
                if refused := self._refused(target, addresses):
                    return Answer(refused, final=True)
                status = await self._exchange(target, addresses, _request(target, headers, body))
        except TimeoutError:
            return Answer(f"no answer within {self._seconds_max:g} s")
        except (OSError, EOFError, ValueError) as error:
            return Answer(f"{type(error).__name__}: {error}")
        if 200 <= status < 300:
            return Answer()
        return Answer(f"answered with status {status}", final=status == GONE)

    def close(self) -> None:
        """Give the threads up; what they still wait for is nobody's any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _refused(self, target: Target, addresses: Sequence[str]) -> str:
        found = [] if self._private else [one for one in addresses if not is_public(one)]
        return f"refused: {target.host} is at {found[0]}, no public address" if found else ""

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(where[0]) for *_, where in found))

    async def _exchange(self, target: Target, addresses: Sequence[str], request: bytes) -> int:
        """The status of the answer. Raises OSError, EOFError, ValueError."""
        reader, writer = await self._connect(target, addresses)
        try:
            writer.write(request)
            await writer.drain()
            return await _status(reader)
        finally:
            writer.transport.abort()

    async def _connect(
        self, target: Target, addresses: Sequence[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first address that takes one."""
        problem: OSError = ConnectionError(f"{target.host} has no address")
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    address,
                    target.port,
                    limit=_HEAD_BYTES_MAX,
                    ssl=self._trust if target.tls else None,
                    server_hostname=target.host if target.tls else None,
                )
            except OSError as error:
                problem = error
        raise problem


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = {
        "Host": target.authority,
        "User-Agent": "lineshaft",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **headers,
    }
    head = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())]
    return "\r\n".join([*head, "", ""]).encode("ascii") + body


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of the answer that is final; those before it (1xx) are passed over."""
    while True:
        line = await reader.readline()
        if not line:
            raise EOFError("the connection was closed without an answer")
        found = _STATUS.match(line)
        if found is None:
            raise ValueError("what answers does not speak HTTP/1.1")
        if (status := int(found[1])) >= 200:
            return status
        while (await reader.readline()).strip():
            pass
