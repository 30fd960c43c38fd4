"""The wall clock, behind a port: the only module that asks it. Tests advance a `ManualClock`."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Protocol


class Clock(Protocol):
    """Where "now" comes from."""

    def now_ms(self) -> int:
        """UTC milliseconds since 1970."""
        ...

    def monotonic_ms(self) -> float:
        """Milliseconds that only ever grow; for intervals."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """UTC milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> float:
        """Milliseconds that only ever grow."""
        return time.monotonic() * 1000


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """The moment last set."""
        return self._now_ms

    def monotonic_ms(self) -> float:
        """The moment last set."""
        return float(self._now_ms)

    def advance(self, ms: int) -> None:
        """Move on."""
        self._now_ms += ms


async def pause(stop: asyncio.Event, pause_ms: float) -> None:
    """Wait so long, or until `stop`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(pause_ms / 1000):
            await stop.wait()
