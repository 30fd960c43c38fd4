"""Where an HTTP port is. A process whose listener has ended is of no use: it says so, so that it is
started anew.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from services.errors import Broken
from services.listener import Listener


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Never called: ports are opened and closed here, and no request is sent."""
    raise AssertionError(f"asked for {scope}")


def test_a_server_that_ends_by_itself_is_noticed() -> None:
    async def body() -> None:
        listener, stop = Listener(_app, "127.0.0.1", 0, None), asyncio.Event()
        await listener.start()
        watching = asyncio.create_task(listener.watch(stop))
        await listener.stop()
        with pytest.raises(Broken, match="not served any more"):
            await watching

    asyncio.run(body())


def test_a_server_that_was_told_to_stop_is_let_go() -> None:
    async def body() -> None:
        listener, stop = Listener(_app, "127.0.0.1", 0, None), asyncio.Event()
        await listener.start()
        watching = asyncio.create_task(listener.watch(stop))
        stop.set()
        await listener.stop()
        await watching

    asyncio.run(body())


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param("::", "[::]", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6")),
    ],
)
def test_the_address_is_a_url_with_the_port_that_was_picked(host: str, shown: str) -> None:
    listener = Listener(_app, host, 0, None)

    assert listener.port > 0
    assert listener.address == f"http://{shown}:{listener.port}"
