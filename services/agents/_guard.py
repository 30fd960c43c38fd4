"""What may leave an agent's body: nothing. The world's faults are waited out in place, ours end the
process.

An exception that escapes into a runner can acknowledge what was not done (Faust does so); a process
that ends loses nothing, because the next owner of its lanes starts from their checkpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from services.errors import Unavailable

T = TypeVar("T")
EXIT_CODE = 70
_BACK_OFF_MS_MAX = 5_000

_logger = logging.getLogger(__name__)


async def until_available(
    action: Callable[[], Awaitable[T]], *, what: str, stop: asyncio.Event | None = None
) -> T:
    """The action's result; Unavailable is waited out and tried again, for ever, with jittered
    back-off; once `stop` is set it is raised.
    """
    wait_ms, tries = 50.0, 0
    while True:
        try:
            return await action()
        except Unavailable as error:
            tries += 1
            if tries in (1, 10) or tries % 100 == 0:
                _logger.warning("%s is not available (try %d): %s", what, tries, error)
            if stop is not None and stop.is_set():
                raise
        await _rest(random.uniform(0.5, 1.0) * wait_ms / 1000, stop)
        wait_ms = min(wait_ms * 2, _BACK_OFF_MS_MAX)


async def _rest(seconds: float, stop: asyncio.Event | None) -> None:
    if stop is None:
        await asyncio.sleep(seconds)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


Die = Callable[[int], NoReturn]


async def guarded(body: Callable[[], Awaitable[None]], *, what: str, die: Die = os._exit) -> None:
    """Run an agent's body to its end. A cancelled one just ends; anything else is logged and ends
    the process with code 70.
    """
    try:
        await body()
    except asyncio.CancelledError:
        raise
    except BaseException:
        _logger.critical(
            "%s broke; the process ends and starts anew from its checkpoints", what, exc_info=True
        )
        logging.shutdown()
        die(EXIT_CODE)
